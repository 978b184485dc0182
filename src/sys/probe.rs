//! Asking the kernel what it can do, by doing it once where it leaves nothing behind.
//!
//! What the answers mean for us, and what is done without a feature, is the business of `host`.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;
use rustix::thread::UnshareFlags;

use super::child;
use super::process::Ended;

/// The kernel asks at once after a mount.
const INIT_PATIENCE: rustix::time::Timespec = rustix::time::Timespec { tv_sec: 2, tv_nsec: 0 };
/// The kernel refuses to fill a smaller buffer.
const SMALLEST_BUFFER: usize = 8192;
/// `FUSE_INIT`.
const OPCODE_INIT: u32 = 26;
/// The second word of flags counts.
const INIT_EXT: u64 = 1 << 30;
/// `FUSE_PASSTHROUGH` (Linux 6.9).
const PASSTHROUGH: u64 = 1 << 37;
/// `FUSE_HAS_RESEND` (Linux 6.9).
const HAS_RESEND: u64 = 1 << 39;

/// What the kernel offers to a FUSE connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FuseOffer {
    /// Minor version of its protocol 7.
    pub minor: u32,
    /// Files that it reads itself.
    pub passthrough: bool,
    /// Requests that it sends again to another server.
    pub resend: bool,
    unique: u64,
    max_readahead: u32,
}

/// Reads what the kernel offers to the connection of `device`, which has just been mounted.
///
/// # Errors
/// `TimedOut` when the kernel asks nothing, `InvalidData` when it asks something else.
pub fn fuse_offer(device: BorrowedFd<'_>) -> io::Result<FuseOffer> {
    let mut ready = [PollFd::new(&device, PollFlags::IN)];
    if rustix::event::poll(&mut ready, Some(&INIT_PATIENCE))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut request = vec![0; SMALLEST_BUFFER];
    let length = rustix::io::read(device, &mut request)?;
    request.truncate(length);
    parse_offer(&request).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A `fuse_in_header`, then a `fuse_init_in`, which older kernels end after its first 16 bytes.
fn parse_offer(request: &[u8]) -> Option<FuseOffer> {
    let word = |at: usize| request.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    if word(4)? != OPCODE_INIT || word(40)? != 7 {
        return None;
    }
    let unique = u64::from_ne_bytes(request.get(8..16)?.try_into().ok()?);
    let low = u64::from(word(52)?);
    let high = if low & INIT_EXT == 0 { 0 } else { u64::from(word(56).unwrap_or(0)) };
    let flags = high << 32 | low;
    Some(FuseOffer {
        minor: word(44)?,
        passthrough: flags & PASSTHROUGH != 0,
        resend: flags & HAS_RESEND != 0,
        unique,
        max_readahead: word(48)?,
    })
}

/// Accepts passthrough and resend as they were offered; the connection of `device` is served from then on.
///
/// # Errors
/// Those of write(2) on the device.
pub fn fuse_accept(device: BorrowedFd<'_>, offer: &FuseOffer) -> io::Result<()> {
    let mut flags = INIT_EXT;
    flags |= if offer.passthrough { PASSTHROUGH } else { 0 };
    flags |= if offer.resend { HAS_RESEND } else { 0 };
    // A `fuse_out_header` and a `fuse_init_out`.
    let mut reply = [0; 80];
    let mut put = |at: usize, word: u32| reply[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    put(0, 80);
    put(16, 7);
    put(20, offer.minor);
    put(24, offer.max_readahead);
    let [b0, b1, b2, b3, b4, b5, b6, b7] = flags.to_le_bytes();
    put(28, u32::from_le_bytes([b0, b1, b2, b3]));
    put(36, 4096); // max_write
    put(40, 1); // time_gran
    put(48, u32::from_le_bytes([b4, b5, b6, b7]));
    put(52, u32::from(offer.passthrough)); // max_stack_depth
    reply[8..16].copy_from_slice(&offer.unique.to_ne_bytes());
    rustix::io::write(device, &reply)?;
    Ok(())
}

/// Whether system calls can be filtered so that they fail with an error.
///
/// # Errors
/// `ENOSYS` or `EINVAL` where the kernel has no such filters, `EOPNOTSUPP` where it lacks this action.
pub fn seccomp_filters() -> io::Result<()> {
    const GET_ACTION_AVAIL: libc::c_ulong = 2;
    let action: u32 = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the call reads one 32-bit number, which lives across it, and changes nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &raw const action) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The version of landlock.
///
/// # Errors
/// `ENOSYS` where the kernel is built without it, `EOPNOTSUPP` where it was switched off at boot.
pub fn landlock_version() -> io::Result<libc::c_long> {
    const VERSION: libc::c_ulong = 1;
    let nowhere = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call takes no attributes and only returns a number.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nowhere, 0_usize, VERSION) };
    if version < 0 { Err(io::Error::last_os_error()) } else { Ok(version) }
}

/// Whether the kernel keeps the exit code of a process for whoever holds its pidfd.
///
/// # Errors
/// `ENOTTY` or `EINVAL` where it does not; those of fork(2).
pub fn exit_codes_are_kept() -> io::Result<bool> {
    let pid = fork_for(|| 7)?;
    let pidfd = super::process::open_pidfd(pid);
    wait_for(pid)?;
    Ok(child::exit_of(pidfd?.as_fd())? == Some(Ended::Exited(7)))
}

/// Forks; the child ends with the number that `body` returns. The process may have threads, so `body` only makes system
/// calls, with values that were made before: it neither allocates nor takes a lock.
fn fork_for(body: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the child calls nothing that could wait for another thread, by the contract of this function.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = body();
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(pid),
    }
}

fn wait_for(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: the status is a valid place for the answer; the child is this caller's own.
        let result = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if result == pid {
            return Ok(status);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Whether an overlay can be mounted in a user namespace; tries it on a file system in memory, in namespaces that end
/// with the attempt. `place` is any directory.
///
/// # Errors
/// With the step that failed.
pub fn overlay_in_user_namespace(place: &Path) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let at = |name: &str| {
        let path = if name.is_empty() { place.to_path_buf() } else { place.join(name) };
        CString::new(path.as_os_str().as_bytes()).map_err(invalid)
    };
    let (root, lower, upper, work) = (at("")?, at("lower")?, at("upper")?, at("work")?);
    let shown = place.display();
    let options = CString::new(format!(
        "lowerdir={shown}/lower,upperdir={shown}/upper,workdir={shown}/work,userxattr"
    ))
    .map_err(invalid)?;
    let map =
        CString::new(format!("0 {} 1", rustix::process::geteuid().as_raw())).map_err(invalid)?;
    let groups =
        CString::new(format!("0 {} 1", rustix::process::getegid().as_raw())).map_err(invalid)?;
    let steps = || overlay_steps([&root, &lower, &upper, &work], &options, [&map, &groups]);
    let pid = fork_for(|| match steps() {
        Ok(()) => 0,
        Err(step) => step,
    })?;
    let status = wait_for(pid)?;
    let step = match libc::WEXITSTATUS(status) {
        0 if libc::WIFEXITED(status) => return Ok(()),
        1 => "a user namespace cannot be made",
        2 => "a user namespace cannot be given a user and a group",
        3 => "nothing can be mounted in a user namespace",
        4 => "no directory can be made in a user namespace",
        5 => "the kernel refuses to mount an overlay there",
        _ => "the attempt failed",
    };
    Err(io::Error::new(io::ErrorKind::Unsupported, step))
}

/// The number of the step that failed. Runs after a fork: system calls only, and no value that has to be freed.
fn overlay_steps(
    [root, lower, upper, work]: [&CStr; 4],
    options: &CStr,
    [map, groups]: [&CStr; 2],
) -> Result<(), i32> {
    let both = UnshareFlags::NEWUSER | UnshareFlags::NEWNS;
    // SAFETY: the process that moves is a fresh child of one thread, which shares no memory.
    unsafe { rustix::thread::unshare_unsafe(both) }.map_err(|_| 1)?;
    let file =
        rustix::fs::open(c"/proc/self/uid_map", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    file.and_then(|file| rustix::io::write(file, map.to_bytes())).map_err(|_| 2)?;
    // Nothing can be made by somebody whose group has no number there (EOVERFLOW); without privilege a group is only
    // given to who can never drop others.
    for (file, text) in [(c"/proc/self/setgroups", c"deny"), (c"/proc/self/gid_map", groups)] {
        let file = rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        file.and_then(|file| rustix::io::write(file, text.to_bytes())).map_err(|_| 2)?;
    }
    let flags = MountFlags::empty();
    rustix::mount::mount(c"tmpfs", root, c"tmpfs", flags, None::<&CStr>).map_err(|_| 3)?;
    for directory in [lower, upper, work] {
        rustix::fs::mkdir(directory, Mode::RWXU).map_err(|_| 4)?;
    }
    rustix::mount::mount(c"overlay", root, c"overlay", flags, Some(options)).map_err(|_| 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_of_an_old_kernel_has_no_second_word() {
        let mut request = vec![0_u8; 56];
        let mut put =
            |at: usize, word: u32| request[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        put(4, OPCODE_INIT);
        put(40, 7);
        put(44, 31);
        put(52, u32::MAX);
        let offer = parse_offer(&request).unwrap();
        assert_eq!((offer.minor, offer.passthrough, offer.resend), (31, false, false));
        request.extend_from_slice(&(1_u32 << 5).to_ne_bytes());
        let offer = parse_offer(&request).unwrap();
        assert_eq!((offer.passthrough, offer.resend), (true, false));
        assert_eq!(parse_offer(&request[..50]), None);
    }

    #[test]
    fn what_the_kernel_is_asked_leaves_no_child() {
        let children = || std::fs::read_to_string("/proc/thread-self/children").unwrap();
        let release = rustix::system::uname();
        let release = release.release().to_str().unwrap();
        let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
        let version = (numbers.next().unwrap(), numbers.next().unwrap());
        match exit_codes_are_kept() {
            Ok(true) => {}
            Ok(false) => assert!(version < (6, 15), "{release}"),
            Err(error) => {
                let refusals = [Some(libc::ENOTTY), Some(libc::EINVAL)];
                assert!(refusals.contains(&error.raw_os_error()), "{error}");
                assert!(version < (6, 15), "{release}");
            }
        }
        assert_eq!(children(), "");
        let place = tempfile::tempdir().unwrap();
        // Whether it works is this host's business; the test is about what is left.
        let _ = overlay_in_user_namespace(place.path());
        assert_eq!(children(), "");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
        assert!(seccomp_filters().is_ok());
    }
}
