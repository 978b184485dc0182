//! The connection of a run directory without anybody's help: how it is, and its end. For `doctor` and `down --force`,
//! when keeper or worker may be stopped, hung or gone.
//!
//! Ours is what is mounted at our mount point under our instance's name, and who listens on our two sockets. Nothing
//! else is touched, and nothing here looks below the mount. All functions block; each wait has a limit.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::keeper_mount::{self, MountError};
use super::options::{LazyOptions, RoleConfig, Side};
use super::protocol::{Answer, KEEPER_SOCKET, WORKER_SOCKET, decode, encode, hello};
use crate::sys::process::{self, ProcessIdentity};
use crate::sys::{cgroup, fuse_device, mount, socket};

/// How long a process that was killed may take to go.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// How a role answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoleHealth {
    /// Nobody listens on its socket.
    Gone,
    /// It answers.
    Answers(ProcessIdentity),
    /// It lives and does not answer.
    Silent(ProcessIdentity),
}

/// How a connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionHealth {
    /// Number of the connection in fusectl; `None` when nothing is mounted.
    pub connection: Option<u32>,
    /// Requests that are not answered; `None` when the kernel does not tell.
    pub waiting: Option<u64>,
    /// The keeper.
    pub keeper: RoleHealth,
    /// The worker.
    pub worker: RoleHealth,
}

impl ConnectionHealth {
    /// Whether readers wait for somebody who does not serve. A worker that waits for a registry answers, and so is
    /// none.
    #[must_use]
    pub fn is_wedged(&self) -> bool {
        let unserved = !matches!(self.worker, RoleHealth::Answers(_));
        self.connection.is_some() && unserved && self.waiting.is_none_or(|waiting| waiting > 0)
    }
}

/// What an abort ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aborted {
    /// Connections, by their number in fusectl.
    pub connections: Vec<u32>,
    /// Keeper and worker.
    pub killed: Vec<ProcessIdentity>,
}

/// A connection could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum AbortError {
    /// The mount table cannot be read.
    #[error("could not read the mount table")]
    Table(#[source] io::Error),
    /// The mount stays.
    #[error("could not take the lazy mount away")]
    Mount(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A process does not go.
    #[error(
        "process {pid} of the lazy mount does not end after a kill; it waits for something in the kernel"
    )]
    Stays {
        /// Which.
        pid: i32,
    },
}

/// Looks how a connection of `run_dir` is. Each role is given `patience` to answer.
///
/// # Errors
/// When the mount table cannot be read.
pub fn examine(
    run_dir: &Path,
    instance: &str,
    side: Side,
    patience: Duration,
) -> io::Result<ConnectionHealth> {
    let Some(config) = config_of(run_dir, instance, side) else {
        return Ok(ConnectionHealth {
            connection: None,
            waiting: None,
            keeper: RoleHealth::Gone,
            worker: RoleHealth::Gone,
        });
    };
    let connection = keeper_mount::minor(&config.mount_point(), &config.mount_source())?;
    Ok(ConnectionHealth {
        connection,
        waiting: connection.and_then(|minor| fuse_device::waiting(minor).ok().flatten()),
        keeper: ask(&config, KEEPER_SOCKET, patience),
        worker: ask(&config, WORKER_SOCKET, patience),
    })
}

/// Ends a connection of `run_dir` whatever state it is in: every read of it gets an error at once, keeper and worker
/// are killed, the mount is taken away, and so is the control group `cgroup` of both. Whoever holds a copy of the
/// descriptor closes it before ([`super::Lazy::abandon`]).
///
/// # Errors
/// When something of it stays; the rest is done all the same.
pub fn abort(
    run_dir: &Path,
    instance: &str,
    side: Side,
    group: Option<&str>,
) -> Result<Aborted, AbortError> {
    let mut aborted = Aborted::default();
    let Some(config) = config_of(run_dir, instance, side) else { return Ok(aborted) };
    // First the processes: the keeper would mount another connection in place of one that is aborted.
    let mut roles: Vec<ProcessIdentity> =
        [KEEPER_SOCKET, WORKER_SOCKET].iter().filter_map(|name| listener(&config, name)).collect();
    for pid in group.and_then(|group| cgroup::processes(group).ok()).into_iter().flatten() {
        roles.extend(ProcessIdentity::of(pid).ok());
    }
    roles.sort_by_key(|role| role.pid);
    roles.dedup();
    let mut doomed = Vec::new();
    for role in roles {
        if role.pid != std::process::id().cast_signed()
            && let Some(pidfd) = role.open()
        {
            let _ = process::send_signal(pidfd.as_fd(), 9);
            doomed.push((role, pidfd));
        }
    }
    let mounts = mount::mounts().map_err(AbortError::Table)?;
    for mount in mounts {
        if mount.mount_point == config.mount_point()
            && mount.source == config.mount_source()
            && mount.fs_type.starts_with("fuse")
            && let Some(minor) =
                mount.device.strip_prefix("0:").and_then(|minor| minor.parse().ok())
        {
            // Without fusectl it ends with the last of its holders, who were killed above.
            if let Err(error) = fuse_device::abort(minor) {
                tracing::warn!(minor, %error, "could not abort the connection");
            }
            aborted.connections.push(minor);
        }
    }
    let detached = keeper_mount::detach(&config);
    let deadline = Instant::now() + END_PATIENCE;
    let mut stays = None;
    for (role, pidfd) in doomed {
        if ends_before(&pidfd, deadline) {
            reap(&pidfd);
            aborted.killed.push(role);
        } else {
            stays = Some(role.pid);
        }
    }
    detached.map_err(|error: MountError| AbortError::Mount(error.into()))?;
    if let Some(pid) = stays {
        return Err(AbortError::Stays { pid });
    }
    keeper_mount::sweep(&config);
    if let Some(group) = group {
        let _ = cgroup::remove(group);
    }
    Ok(aborted)
}

/// Only names and places matter here; `None` when there is no such directory, and so nothing of ours.
fn config_of(run_dir: &Path, instance: &str, side: Side) -> Option<RoleConfig> {
    let directory = std::fs::canonicalize(run_dir.join(side.directory())).ok()?;
    Some(RoleConfig::new(&directory, Path::new("/"), &LazyOptions::new(instance)))
}

/// Who listens on a socket.
fn listener(config: &RoleConfig, name: &str) -> Option<ProcessIdentity> {
    let directory = File::open(&config.directory).ok()?;
    let connection = socket::connect_now(directory.as_fd(), name).ok()?;
    // The credentials of a listening socket are those of whoever listens.
    ProcessIdentity::of(socket::peer(&connection).ok()?.pid).ok()
}

fn ask(config: &RoleConfig, name: &str, patience: Duration) -> RoleHealth {
    let connected = File::open(&config.directory)
        .and_then(|directory| socket::connect_now(directory.as_fd(), name));
    let Ok(connection) = connected else { return RoleHealth::Gone };
    let role = socket::peer(&connection).and_then(|peer| ProcessIdentity::of(peer.pid));
    let Ok(role) = role else { return RoleHealth::Gone };
    let deadline = Instant::now() + patience;
    let said = socket::send(connection.as_fd(), &encode(&hello(&config.build)), &[]).is_ok()
        && ends_before(&connection, deadline)
        && socket::receive(connection.as_fd())
            .is_ok_and(|(packet, _)| decode::<Answer>(&packet).is_some());
    if said { RoleHealth::Answers(role) } else { RoleHealth::Silent(role) }
}

/// Waits until a descriptor is readable: a process has ended, a message has come.
fn ends_before(descriptor: &OwnedFd, deadline: Instant) -> bool {
    let rest = deadline.saturating_duration_since(Instant::now());
    let Ok(rest) = rustix::time::Timespec::try_from(rest) else { return false };
    let mut poll = [PollFd::new(descriptor, PollFlags::IN)];
    matches!(rustix::event::poll(&mut poll, Some(&rest)), Ok(1..))
}

/// Takes the exit status if the process is a child of this one.
fn reap(pidfd: &OwnedFd) {
    let _ = rustix::process::waitid(
        rustix::process::WaitId::PidFd(pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOHANG,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_a_connection_is_neither_wedged_nor_touched() {
        let dir = tempfile::tempdir().unwrap();
        let health =
            examine(dir.path(), "00000000", Side::Main, Duration::from_millis(10)).unwrap();
        assert_eq!(health.connection, None);
        assert!(!health.is_wedged());
        assert_eq!(abort(dir.path(), "00000000", Side::Main, None).unwrap(), Aborted::default());
    }

    #[test]
    fn only_readers_of_somebody_who_does_not_serve_are_wedged() {
        let process = ProcessIdentity::current().unwrap();
        let mut health = ConnectionHealth {
            connection: Some(40),
            waiting: Some(3),
            keeper: RoleHealth::Answers(process.clone()),
            worker: RoleHealth::Answers(process.clone()),
        };
        assert!(!health.is_wedged(), "it waits for its registry");
        health.worker = RoleHealth::Silent(process);
        assert!(health.is_wedged());
        health.waiting = Some(0);
        assert!(!health.is_wedged());
    }
}
