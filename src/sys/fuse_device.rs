//! `/dev/fuse` below the protocol: opening it, passthrough ioctls, the resend notification, and aborting a connection.
//!
//! Requests and replies are the business of the `fuse` module; nothing here reads one.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;

use super::mount::FsContext;

/// Where the device is.
pub const DEVICE: &str = "/dev/fuse";

/// `_IOW(229, 1, struct fuse_backing_map)`.
const BACKING_OPEN: libc::c_ulong = 0x4010_e501;
/// `_IOW(229, 2, uint32_t)`.
const BACKING_CLOSE: libc::c_ulong = 0x4004_e502;
/// Notification code that asks for all requests that were read and not answered (Linux 6.9).
const NOTIFY_RESEND: i32 = 7;

/// `struct fuse_backing_map` of the kernel's interface.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// A new, unconnected descriptor of the device.
///
/// # Errors
/// `NotFound` when the host has no such device, `ENODEV` or `ENXIO` when its kernel has no FUSE.
pub fn open() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes the number of `target` refer to the open file of `with`; what `target` was is closed.
///
/// # Errors
/// Those of dup3(2).
pub fn replace(target: BorrowedFd<'_>, with: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both numbers are open for the duration of the borrows. The number of `target` stays open and owned by
    // whoever owns it; only what it refers to changes, which no memory depends on.
    let result = unsafe { libc::dup3(with.as_raw_fd(), target.as_raw_fd(), libc::O_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Registers `file` for passthrough in the connection of `device` and returns its id, which stays valid until
/// [`close_backing`] or the end of the connection.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ELOOP` when the file lies on a stacked file system, `ENOTTY` before Linux 6.9,
/// `EOPNOTSUPP` when the connection did not negotiate passthrough.
pub fn open_backing(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<u32> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the ioctl reads one `fuse_backing_map`, which lives across the call.
    let id = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_OPEN as _, &raw const map) };
    if id < 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(id).map_err(io::Error::other)
}

/// Gives up the id of a backing file. Files that are open through it stay open.
///
/// # Errors
/// `ENOENT` for an id that the connection does not know.
pub fn close_backing(device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    // SAFETY: the ioctl reads one 32-bit number, which lives across the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE as _, &raw const id) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks the kernel to send every request again that was read from the connection and not answered.
///
/// # Errors
/// `EINVAL` before Linux 6.9.
pub fn resend(device: BorrowedFd<'_>) -> io::Result<()> {
    // A `fuse_out_header`: length, notification code in the place of the error, no request.
    let mut header = [0; 16];
    header[0..4].copy_from_slice(&16_u32.to_ne_bytes());
    header[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    match rustix::io::write(device.as_fd(), &header)? {
        16 => Ok(()),
        _ => Err(io::Error::from(io::ErrorKind::WriteZero)),
    }
}

/// Whether `device` is a descriptor of the connection whose mount has the device number `0:minor`, and that lives.
/// Which connection it is the kernel tells since Linux 6.15; before, only that it lives is known.
#[must_use]
pub fn is_connected(device: BorrowedFd<'_>, minor: u32) -> bool {
    let mut poll = [PollFd::from_borrowed_fd(device, PollFlags::IN)];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    let alive = rustix::event::poll(&mut poll, Some(&now)).is_ok()
        && !poll[0].revents().intersects(PollFlags::ERR | PollFlags::NVAL);
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd()));
    let connection = told.ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?;
        line.trim().parse::<u32>().ok()
    });
    alive && connection.is_none_or(|connection| connection == minor)
}

/// The control file system of FUSE, mounted attached to nothing, so that the host's mount table does not change.
fn control() -> io::Result<OwnedFd> {
    FsContext::open("fusectl")?.mount(
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
}

/// How many requests of the connection whose mount has the device number `0:minor` are not answered, taken by its
/// server or not; `None` when there is no such connection.
///
/// # Errors
/// `ENODEV` when the kernel has no fusectl; those of mounting and reading.
pub fn waiting(minor: u32) -> io::Result<Option<u64>> {
    let path = format!("{minor}/waiting");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&control()?, path, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let text = io::read_to_string(file)?;
    text.trim().parse().map(Some).map_err(io::Error::other)
}

/// Aborts the connection whose mount has the device number `0:minor`: every request on it, also one that waits
/// uninterruptibly, ends with an error at once. A connection that is gone is no error.
///
/// # Errors
/// `ENODEV` when the kernel has no fusectl; those of mounting and writing.
pub fn abort(minor: u32) -> io::Result<()> {
    let path = format!("{minor}/abort");
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(&control()?, path, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file).write_all(b"1"),
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_number_refers_to_the_other_file() {
        let (one, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        std::io::Write::write_all(&mut &other, b"other").unwrap();
        replace(one.as_fd(), other.as_fd()).unwrap();
        assert_eq!(one.metadata().unwrap().len(), 5);
    }
}
