//! Identities of processes that survive the reuse of a pid.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use serde::{Deserialize, Serialize};

use super::process::{has_ended, open_pidfd};

/// The id of this boot: pids and start times mean nothing across boots.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// A process, told apart from any later one that gets its pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessIdentity {
    /// Process id in the initial pid namespace of this host.
    pub pid: i32,
    /// Clock ticks between boot and its start (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
    /// See [`boot_id`].
    pub boot_id: String,
}

impl ProcessIdentity {
    /// The identity of the process that has `pid` now.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, start_time: start_time(pid)?, boot_id: boot_id()? })
    }

    /// The identity of this process.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::of(i32::try_from(std::process::id()).expect("a pid fits its kernel type"))
    }

    /// A pidfd of the process if it still exists.
    #[must_use]
    pub fn open(&self) -> Option<OwnedFd> {
        if boot_id().ok()? != self.boot_id {
            return None;
        }
        let pidfd = open_pidfd(self.pid).ok()?;
        // Compared after opening: the pid cannot change hands behind an open pidfd. A zombie is not alive.
        (start_time(self.pid).ok()? == self.start_time && !has_ended(pidfd.as_fd()))
            .then_some(pidfd)
    }
}

fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses and may hold anything, parentheses too.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19)?.parse().ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_finds_its_process_and_no_other() {
        let identity = ProcessIdentity::current().unwrap();
        assert!(identity.open().is_some());
        assert!(
            ProcessIdentity { start_time: identity.start_time + 1, ..identity.clone() }
                .open()
                .is_none()
        );
        assert!(ProcessIdentity { boot_id: "another".to_owned(), ..identity }.open().is_none());
    }
}
