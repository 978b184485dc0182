//! Forked children of a monitor and what they report.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use serde::de::DeserializeOwned;

use super::super::{Lack, Launch};
use crate::sys::process::{Forked, fork_child_into, send_signal};
use crate::sys::{cgroup, socket};

/// A child that does one thing that may block.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: i32,
    pidfd: OwnedFd,
    socket: OwnedFd,
    /// When it is killed.
    pub(super) deadline: Instant,
}

impl Child {
    /// Forks a child that runs `body` with its end of a socket; its exit code is what that returns.
    pub(super) fn fork(
        deadline: Instant,
        body: impl FnOnce(BorrowedFd<'_>) -> u8,
    ) -> io::Result<Self> {
        Self::fork_into(None, deadline, body)
    }

    /// As [`Child::fork`], with a child that is in the control group of `launch`'s container from its first moment on,
    /// as far as that is possible.
    pub(super) fn fork_inside(
        launch: &Launch,
        deadline: Instant,
        body: impl FnOnce(BorrowedFd<'_>) -> u8,
    ) -> io::Result<Self> {
        let group = if launch.lacks(Lack::Cgroup) { None } else { cgroup::open(&launch.cgroup)? };
        Self::fork_into(group.as_ref().map(OwnedFd::as_fd), deadline, body)
    }

    fn fork_into(
        group: Option<BorrowedFd<'_>>,
        deadline: Instant,
        body: impl FnOnce(BorrowedFd<'_>) -> u8,
    ) -> io::Result<Self> {
        let (socket, theirs) = socket::pair()?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        let Forked { pid, pidfd } = fork_child_into(group, || body(theirs.as_fd()))?;
        Ok(Self { pid, pidfd, socket, deadline })
    }

    /// The next report, with its descriptors; `None` when there is none now.
    pub(super) fn report<T: DeserializeOwned>(&self) -> Option<(T, Vec<OwnedFd>)> {
        let (bytes, descriptors) = socket::receive(self.socket.as_fd()).ok()?;
        Some((serde_json::from_slice(&bytes).ok()?, descriptors))
    }

    pub(super) fn kill(&self) {
        let _ = send_signal(self.pidfd.as_fd(), super::run::SIGKILL);
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
