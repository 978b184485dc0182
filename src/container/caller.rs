//! Containers in the foreground of a caller: they have its standard streams instead of a log.
//!
//! The descriptors are taken out of the caller's process, so that they need to travel through nobody in between. A
//! caller that has a terminal makes another one for the container and copies between the two.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use rustix::pty::OpenptFlags;
use serde::{Deserialize, Serialize};

use super::TerminalSize;
use super::terminal::Session;
use super::user::ResolvedUser;
use crate::sys::process::ProcessIdentity;

/// Descriptors of another process that a container's first process gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerStreams {
    /// Who has them.
    pub process: ProcessIdentity,
    /// Numbers of standard input, output and error there.
    pub numbers: [i32; 3],
    /// They are a terminal, which is to be the container's own.
    #[serde(default)]
    pub terminal: bool,
}

impl CallerStreams {
    /// Takes the descriptors. A terminal becomes the container's user's.
    pub(super) fn take(&self, user: &ResolvedUser) -> io::Result<[OwnedFd; 3]> {
        let pidfd = self.process.open().ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "the caller has ended meanwhile")
        })?;
        let take = |place: usize| self.take_one(pidfd.as_fd(), place);
        let streams = [take(0)?, take(1)?, take(2)?];
        if self.terminal {
            // Whose word that was could have named a file of somebody else's.
            if !rustix::termios::isatty(&streams[0]) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no terminal"));
            }
            let (uid, gid) = (user.uid, user.gid);
            std::os::unix::fs::fchown(&streams[0], Some(uid), Some(gid))?;
        }
        Ok(streams)
    }

    fn take_one(&self, pidfd: BorrowedFd<'_>, place: usize) -> io::Result<OwnedFd> {
        let number = self.numbers[place];
        match pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty()) {
            // Linux before 5.6. Opened anew a file begins at its start, and a socket cannot be.
            Err(Errno::NOSYS) => {
                let access = if place == 0 { OFlags::RDONLY } else { OFlags::WRONLY };
                let access = if self.terminal { OFlags::RDWR } else { access };
                let path = format!("/proc/{}/fd/{number}", self.process.pid);
                let flags = access | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOCTTY;
                Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
            }
            other => Ok(other?),
        }
    }
}

/// A terminal of the caller's making, one side of which a container gets.
#[derive(Debug)]
pub struct CallerTerminal {
    master: OwnedFd,
    slave: OwnedFd,
}

impl CallerTerminal {
    /// Makes one of this size.
    ///
    /// # Errors
    /// Those of posix_openpt(3).
    pub fn open(size: TerminalSize) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let path = rustix::pty::ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::openat(CWD, path.as_c_str(), flags, Mode::empty())?;
        let TerminalSize { rows, columns } = size;
        let size =
            rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size)?;
        Ok(Self { master, slave })
    }

    /// The side that the container gets.
    #[must_use]
    pub fn slave(&self) -> BorrowedFd<'_> {
        self.slave.as_fd()
    }

    /// Copies between the caller's terminal, which is raw meanwhile, and this one, until `ended` can be read or
    /// nobody in the container has it open. Blocks.
    ///
    /// # Errors
    /// Those of the caller's streams.
    pub fn copy(
        self,
        stdin: BorrowedFd<'_>,
        stdout: BorrowedFd<'_>,
        ended: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let Self { master, slave } = self;
        // While it is open here, its end is never seen.
        drop(slave);
        Session::begin(master, stdin, stdout)?.copy_until(ended)
    }
}
