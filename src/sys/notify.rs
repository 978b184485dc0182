//! The service manager's protocol: datagrams that say how this process is, and descriptors that it keeps for us.
//!
//! Owns the words and the socket of sd_notify(3). Which environment variables name them, and when to say what, is the
//! caller's.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use rustix::time::ClockId;

/// The first descriptor that a service manager passes.
const FIRST_RECEIVED: RawFd = 3;

/// More than any manager keeps for one service by default settings of ours; a larger number is no honest one.
const MOST_RECEIVED: u32 = 512;

/// How long a message may wait for a manager that does not read: it must never hold us up for long.
const PATIENCE: Duration = Duration::from_secs(1);

/// The longest path that a socket address holds.
const LONGEST_PATH: usize = 107;

/// The longest name of a kept descriptor.
const LONGEST_NAME: usize = 255;

/// Speaks to the service manager. Every message is sent on its own to the address, so a manager that was replaced
/// meanwhile hears us too.
#[derive(Debug)]
pub struct Notifier {
    socket: OwnedFd,
    address: Address,
}

#[derive(Debug)]
enum Address {
    Abstract(Vec<u8>),
    Path(PathBuf),
    /// Longer than an address may be, so it is reached through its directory.
    Long {
        directory: File,
        name: OsString,
    },
}

impl Notifier {
    /// A notifier for what `NOTIFY_SOCKET` says: an absolute path, or `@` and an abstract name. Nothing is sent yet.
    ///
    /// # Errors
    /// `Unsupported` for other kinds of address; when no socket can be made.
    pub fn new(address: &OsStr) -> io::Result<Self> {
        let address = Address::parse(address)?;
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
        Ok(Self { socket, address })
    }

    /// We serve, or serve again after [`Notifier::reloading`].
    ///
    /// # Errors
    /// Those of sendmsg(2), here and below: a manager that is gone or does not listen is one.
    pub fn ready(&self) -> io::Result<()> {
        self.send("READY=1", &[])
    }

    /// One line for people, as `systemctl status` shows it.
    ///
    /// # Errors
    /// As [`Notifier::ready`].
    pub fn status(&self, status: &str) -> io::Result<()> {
        self.send(&format!("STATUS={}", line(status)), &[])
    }

    /// We read our settings again; [`Notifier::ready`] says when that is done.
    ///
    /// # Errors
    /// As [`Notifier::ready`].
    pub fn reloading(&self) -> io::Result<()> {
        let now = rustix::time::clock_gettime(ClockId::Monotonic);
        let (seconds, nanoseconds) = (i128::from(now.tv_sec), i128::from(now.tv_nsec));
        let microseconds = seconds * 1_000_000 + nanoseconds / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"), &[])
    }

    /// We are ending.
    ///
    /// # Errors
    /// As [`Notifier::ready`].
    pub fn stopping(&self) -> io::Result<()> {
        self.send("STOPPING=1", &[])
    }

    /// We are alive.
    ///
    /// # Errors
    /// As [`Notifier::ready`].
    pub fn watchdog(&self) -> io::Result<()> {
        self.send("WATCHDOG=1", &[])
    }

    /// Asks the manager to keep a copy of `descriptor` as `name` and to pass it to the next process of this service.
    /// One that it has already is kept once.
    ///
    /// The manager is told not to poll it (`FDPOLL=0`, systemd 246): the wait queue of `/dev/fuse` wakes every poller
    /// with every request, so PID 1 would wake up for each read of a lazy file. So it keeps a dead one too, until
    /// [`Notifier::forget`].
    ///
    /// # Errors
    /// `InvalidInput` for a name that the protocol does not allow; as [`Notifier::ready`]. That the manager's store is
    /// full is not told.
    pub fn store(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        check_name(name)?;
        self.send(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &[descriptor])
    }

    /// Asks the manager to close every descriptor that it keeps as `name`.
    ///
    /// # Errors
    /// As [`Notifier::store`].
    pub fn forget(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }

    fn send(&self, message: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let address = self.address.resolve()?;
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                let pushed = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
                debug_assert!(pushed, "the buffer has room for the one descriptor of a message");
            }
            let bytes = [IoSlice::new(message.as_bytes())];
            let flags = SendFlags::NOSIGNAL;
            match rustix::net::sendmsg_addr(&self.socket, &address, &bytes, &mut ancillary, flags) {
                Err(rustix::io::Errno::INTR) => {}
                // A datagram is sent whole or not at all.
                sent => return sent.map(drop).map_err(Into::into),
            }
        }
    }
}

impl Address {
    fn parse(address: &OsStr) -> io::Result<Self> {
        let unsupported = |why| Err(io::Error::new(io::ErrorKind::Unsupported, why));
        match address.as_bytes() {
            [b'@', name @ ..] if !name.is_empty() => Ok(Self::Abstract(name.to_vec())),
            [b'/', ..] if address.len() <= LONGEST_PATH => Ok(Self::Path(PathBuf::from(address))),
            [b'/', ..] => {
                let path = Path::new(address);
                let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
                    return unsupported("the address names no socket");
                };
                Ok(Self::Long { directory: File::open(directory)?, name: name.to_owned() })
            }
            _ => unsupported("only paths and abstract names are spoken to"),
        }
    }

    fn resolve(&self) -> io::Result<SocketAddrUnix> {
        Ok(match self {
            Self::Abstract(name) => SocketAddrUnix::new_abstract_name(name)?,
            Self::Path(path) => SocketAddrUnix::new(path)?,
            Self::Long { directory, name } => SocketAddrUnix::new(
                Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name),
            )?,
        })
    }
}

/// The descriptors that the service manager passed, with their names: `count` is what `LISTEN_FDS` says and `names`
/// what `LISTEN_FDNAMES` says, separated by colons. Ones that are not open are left out. The caller has compared
/// `LISTEN_PID` with its own process id, and calls this once: from here on the descriptors belong to what is returned.
#[must_use]
pub fn received_descriptors(count: u32, names: &str) -> Vec<(String, OwnedFd)> {
    let mut names = names.split(':');
    (FIRST_RECEIVED..)
        .zip(0..count.min(MOST_RECEIVED))
        .filter_map(|(number, _)| {
            let name = names.next().unwrap_or_default().to_owned();
            Some((name, super::process::inherited(number).ok()?))
        })
        .collect()
}

/// A message is made of lines, so nothing in it may break one.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn check_name(name: &str) -> io::Result<()> {
    let allowed = |byte: u8| (b' '..0x7f).contains(&byte) && byte != b':';
    if !name.is_empty() && name.len() <= LONGEST_NAME && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of a kept descriptor is not valid"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    use std::io::{IoSliceMut, Read as _, Seek as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    fn next(manager: &UnixDatagram) -> (String, Vec<OwnedFd>) {
        let mut buffer = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let received =
            rustix::net::recvmsg(manager, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
                .unwrap();
        let descriptors = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        (String::from_utf8(buffer[..received.bytes].to_vec()).unwrap(), descriptors)
    }

    #[test]
    fn a_manager_hears_each_word() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(path.as_os_str()).unwrap();
        notifier.ready().unwrap();
        assert_eq!(next(&manager).0, "READY=1");
        notifier.status("2 services run\nMAINPID=1").unwrap();
        assert_eq!(next(&manager).0, "STATUS=2 services run MAINPID=1");
        notifier.watchdog().unwrap();
        assert_eq!(next(&manager).0, "WATCHDOG=1");
        notifier.reloading().unwrap();
        let reloading = next(&manager).0;
        let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(since.parse::<u64>().unwrap() > 0);
        notifier.stopping().unwrap();
        assert_eq!(next(&manager).0, "STOPPING=1");
        notifier.forget("fuse").unwrap();
        assert_eq!(next(&manager).0, "FDSTOREREMOVE=1\nFDNAME=fuse");
    }

    #[test]
    fn a_kept_descriptor_is_the_same_open_file() {
        let name = format!("supervisor-notify-{}-{:?}", std::process::id(), "kept");
        let manager =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let notifier = Notifier::new(OsStr::new(&format!("@{name}"))).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        notifier.store("fuse-0a1b2c3d", file.as_fd()).unwrap();
        let (message, mut descriptors) = next(&manager);
        assert_eq!(message, "FDSTORE=1\nFDPOLL=0\nFDNAME=fuse-0a1b2c3d");
        let mut kept = File::from(descriptors.pop().unwrap());
        kept.rewind().unwrap();
        let mut content = String::new();
        kept.read_to_string(&mut content).unwrap();
        assert_eq!(content, "content");
        assert!(descriptors.is_empty());
    }

    #[test]
    fn a_long_path_and_a_manager_that_was_replaced_are_reached() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let near = File::open(&deep).unwrap();
        let short = format!("/proc/self/fd/{}/notify", near.as_raw_fd());
        let first = UnixDatagram::bind(&short).unwrap();
        let notifier = Notifier::new(deep.join("notify").as_os_str()).unwrap();
        notifier.watchdog().unwrap();
        assert_eq!(next(&first).0, "WATCHDOG=1");
        drop(first);
        std::fs::remove_file(deep.join("notify")).unwrap();
        assert!(notifier.watchdog().is_err());
        let second = UnixDatagram::bind(&short).unwrap();
        notifier.watchdog().unwrap();
        assert_eq!(next(&second).0, "WATCHDOG=1");
    }

    #[test]
    fn what_the_protocol_does_not_know_is_refused() {
        for address in ["", "@", "notify", "vsock:2:9999"] {
            let error = Notifier::new(OsStr::new(address)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{address}");
        }
        for name in ["", "a:b", "a\nb", "\u{e4}", &"x".repeat(256)] {
            let error = check_name(name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }

    #[test]
    fn no_descriptors_are_taken_when_none_were_passed() {
        assert!(received_descriptors(0, "").is_empty());
        assert!(received_descriptors(0, "fuse:other").is_empty());
    }
}
