//! What a forked child does first, and how a process that is nobody's child ended.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use super::process::Ended;

/// Ends this process with SIGKILL when its parent dies. `parent` is who the parent was before the fork: it may have
/// died since, and then this fails.
///
/// # Errors
/// `ESRCH` when the parent has died already; those of prctl(2).
pub fn die_with(parent: i32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    match rustix::process::getppid() {
        Some(now) if now.as_raw_nonzero().get() == parent => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

/// Closes every descriptor from 3 on but those in `keep`, so that a forked child holds nothing of its parent: no lock,
/// no listening socket, no end of a pipe. Only for a child that never touches the parent's values again.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn close_all_except(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut open: Vec<RawFd> = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    for fd in open {
        if fd > 2 && !keep.iter().any(|kept| kept.as_raw_fd() == fd) {
            // SAFETY: the caller promises that nothing in this process uses the parent's descriptors again. The
            // descriptor of the directory is in the list too, and is closed already.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

/// A network namespace in which only the loopback interface exists, and is up. The calling thread is in it for a
/// moment.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN; those of socket(2) and ioctl(2).
pub fn make_loopback_network() -> io::Result<OwnedFd> {
    let before = fs::File::open("/proc/thread-self/ns/net")?;
    // SAFETY: unsharing the network namespace touches no descriptor table and no memory.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
    let made = raise_loopback().and_then(|()| fs::File::open("/proc/thread-self/ns/net"));
    let network = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(before.as_fd(), network)?;
    Ok(made?.into())
}

fn raise_loopback() -> io::Result<()> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(1);
    // SAFETY: the request is a valid `ifreq` that lives through the call; the kernel only reads it.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `PIDFD_GET_INFO` (Linux 6.13): `_IOWR(0xFF, 11, 64 bytes)`.
const PIDFD_GET_INFO: libc::c_ulong = 0xC040_FF0B;
/// The exit status is asked for and there (Linux 6.15).
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// The first version of the kernel's `struct pidfd_info`; later ones are longer.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// How the process behind `pidfd` ended, whoever its parent is. `None` when it has not been reaped yet.
///
/// # Errors
/// `ENOTTY` before Linux 6.13, `EINVAL` or `ESRCH` before 6.15: the kernel cannot tell.
pub fn exit_of(pidfd: BorrowedFd<'_>) -> io::Result<Option<Ended>> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the structure has the size that is part of the request's number, and lives through the call.
    if unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if info.mask & PIDFD_INFO_EXIT == 0 {
        return Ok(None);
    }
    Ok(Some(from_status(info.exit_code)))
}

/// How the process `identity` ended, while it is a zombie that nobody has reaped. `None` when it is none (any more).
#[must_use]
pub fn exit_of_zombie(identity: &super::process::ProcessIdentity) -> Option<Ended> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", identity.pid)).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Fields 3 (state), 22 (start time) and 52 (wait status) of proc(5); the first two are cut off.
    let is_same = fields.get(19)?.parse() == Ok(identity.start_time);
    (fields.first() == Some(&"Z") && is_same)
        .then(|| fields.get(49)?.parse().ok().map(from_status))?
}

fn from_status(status: i32) -> Ended {
    if libc::WIFSIGNALED(status) {
        Ended::Signaled(libc::WTERMSIG(status))
    } else {
        Ended::Exited(libc::WEXITSTATUS(status))
    }
}

/// Moves the calling process into the network namespace of the process `pid`, so it is for a forked child only.
///
/// # Errors
/// When there is no such process; those of setns(2).
pub fn enter_network_of(pid: i32) -> io::Result<()> {
    let namespace = super::netns::of_process(pid)?;
    let network = Some(rustix::thread::LinkNameSpaceType::Network);
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), network)?)
}

/// A copy of the mount that is `/` for the process `pid`, attached nowhere. Moves the calling process into that
/// process's mount namespace, so it is for a forked child only.
///
/// # Errors
/// `ESRCH` when there is no such process; those of setns(2) and open_tree(2).
pub fn copy_root_mount_of(pid: i32) -> io::Result<OwnedFd> {
    let namespace = fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
    rustix::thread::move_into_link_name_space(
        namespace.as_fd(),
        Some(rustix::thread::LinkNameSpaceType::Mount),
    )?;
    let flags = rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE
        | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(rustix::fs::CWD, "/", flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::open_pidfd;

    #[test]
    fn a_zombie_tells_how_it_ended() {
        let mut child =
            std::process::Command::new("/bin/sh").args(["-c", "kill -9 $$"]).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let identity = crate::sys::process::ProcessIdentity::of(pid).unwrap();
        let pidfd = open_pidfd(pid).unwrap();
        let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, None).unwrap();
        assert_eq!(exit_of_zombie(&identity), Some(Ended::Signaled(9)));
        child.wait().unwrap();
        assert_eq!(exit_of_zombie(&identity), None);
    }

    #[test]
    fn the_exit_of_a_process_is_known_after_it_was_reaped() {
        let mut child =
            std::process::Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pidfd = open_pidfd(i32::try_from(child.id()).unwrap()).unwrap();
        child.wait().unwrap();
        match exit_of(pidfd.as_fd()) {
            Ok(ended) => assert_eq!(ended, Some(Ended::Exited(7))),
            Err(error) => assert!(matches!(error.raw_os_error(), Some(25 | 22 | 3)), "{error}"),
        }
    }
}
