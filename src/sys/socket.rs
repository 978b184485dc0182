//! Unix SEQPACKET sockets between our roles: one packet is one message, and descriptors travel with it.
//!
//! Sockets are bound and connected through a directory descriptor (`/proc/self/fd/N/name`), because a socket path
//! may have at most 108 bytes and run directories may be deeper.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// The largest message; a SEQPACKET message travels whole, so this bounds the kernel's buffers too.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// The most descriptors that one message carries.
pub const MAX_DESCRIPTORS: usize = 8;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process that connected; may be gone.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags | SocketFlags::CLOEXEC,
        None,
    )?)
}

fn address(directory: BorrowedFd<'_>, name: &str) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?)
}

/// Listens at `name` in `directory`, replacing a socket that a dead process left there. Mode 0600.
///
/// # Errors
/// When the socket cannot be made or bound.
pub fn listen(directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let listener = socket(SocketFlags::NONBLOCK)?;
    // Bound under another name and renamed, so that a client never finds the name without a listener behind it.
    let fresh = format!(".{name}.{}", std::process::id());
    let _ = rustix::fs::unlinkat(directory, fresh.as_str(), rustix::fs::AtFlags::empty());
    rustix::net::bind(&listener, &address(directory, &fresh)?)?;
    rustix::fs::chmodat(
        directory,
        fresh.as_str(),
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        rustix::fs::AtFlags::empty(),
    )?;
    rustix::net::listen(&listener, 64)?;
    rustix::fs::renameat(directory, fresh.as_str(), directory, name)?;
    Ok(listener)
}

/// Takes the next connection of `listener`; `WouldBlock` when there is none. The connection is non-blocking.
///
/// # Errors
/// Those of accept(2).
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}

/// Connects to `name` in `directory`; the connection is blocking.
///
/// # Errors
/// `NotFound` when there is no such socket, `ConnectionRefused` when nobody listens any more.
pub fn connect(directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let connection = socket(SocketFlags::empty())?;
    rustix::net::connect(&connection, &address(directory, name)?)?;
    Ok(connection)
}

/// As [`connect`], without ever waiting: for a listener that may not accept any more. The connection is non-blocking.
///
/// # Errors
/// `WouldBlock` when as many connections wait as may wait; those of [`connect`].
pub fn connect_now(directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let connection = socket(SocketFlags::NONBLOCK)?;
    rustix::net::connect(&connection, &address(directory, name)?)?;
    Ok(connection)
}

/// Two connected ends, both blocking.
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends one message with descriptors. A peer that is gone is an error, never a signal.
///
/// # Errors
/// `WouldBlock` on a full non-blocking socket; `InvalidInput` for more than [`MAX_DESCRIPTORS`]; those of sendmsg(2).
pub fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors for one message",
        ));
    }
    let sent = loop {
        match rustix::net::sendmsg(
            socket,
            &[IoSlice::new(message)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    if sent == message.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
}

/// Receives one message and its descriptors (close-on-exec). An empty message means that the peer has closed.
///
/// # Errors
/// `WouldBlock` on an empty non-blocking socket; `InvalidData` when a message exceeds [`MAX_MESSAGE`] or its
/// descriptors were cut; those of recvmsg(2).
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        match rustix::net::recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let descriptors = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.intersects(rustix::net::ReturnFlags::TRUNC | rustix::net::ReturnFlags::CTRUNC)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "message is longer than the protocol allows",
        ));
    }
    buffer.truncate(received.bytes);
    Ok((buffer, descriptors))
}

/// The credentials that the peer had when it connected.
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let credentials = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(Peer {
        pid: credentials.pid.as_raw_nonzero().get(),
        uid: credentials.uid.as_raw(),
        gid: credentials.gid.as_raw(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    #[test]
    fn a_message_and_its_descriptor_arrive_through_a_long_path() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let directory = File::open(&deep).unwrap();
        let listener = listen(directory.as_fd(), "x.sock").unwrap();
        let client = connect(directory.as_fd(), "x.sock").unwrap();
        let server = accept(listener.as_fd()).unwrap();

        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        send(client.as_fd(), b"take this", &[file.as_fd()]).unwrap();
        let (message, mut descriptors) = receive(server.as_fd()).unwrap();
        assert_eq!(message, b"take this");
        let mut received = File::from(descriptors.pop().unwrap());
        received.rewind().unwrap();
        let mut content = String::new();
        received.read_to_string(&mut content).unwrap();
        assert_eq!(content, "content");
        assert_eq!(peer(&server).unwrap().pid, i32::try_from(std::process::id()).unwrap());

        drop(client);
        assert_eq!(receive(server.as_fd()).unwrap().0, b"");
    }
}
