//! Descriptors whose readiness the async runtime watches.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches `descriptor` on the current runtime.
///
/// # Errors
/// Those of epoll_ctl(2): `EPERM` for descriptors that are always ready.
///
/// # Panics
/// Without a runtime that has its drivers enabled.
pub fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` refers to the same open file until it is dropped, and it is given out by reference only.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}
