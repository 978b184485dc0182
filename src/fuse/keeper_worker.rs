//! The worker as its keeper sees it: started or adopted, watched, reaped, and how often it failed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::FlockOperation;

use super::keeper_clients::END_PATIENCE;
use super::options::{Place, RoleConfig};
use super::protocol::{Leash, decode, encode};
use crate::role::ROLE_ARGUMENT;
use crate::sys::process::{self, Ended, ProcessIdentity, RoleChild, RoleCommand, SealedExe};
use crate::sys::socket;

/// The connection's descriptor in a worker.
pub(super) const DEVICE_FD: i32 = 3;
/// Where a worker tells its keeper that it serves.
pub(super) const LEASH_FD: i32 = 4;
/// Held by the worker that serves.
pub(super) const WORKER_LOCK: &str = "worker.lock";
/// Exit code of a worker whose connection has ended.
pub(super) const CONNECTION_ENDED: u8 = 10;

/// After so many failures in a row it is a state.
const FAILING: u32 = 3;
/// While it lasts, every so many failures are told again.
const REMINDER: u32 = 60;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A worker that dies sooner of its own doing has not really started.
const SETTLED: Duration = Duration::from_secs(2);
/// A log that has grown beyond this begins anew.
const LOG_LIMIT: u64 = 1 << 20;

/// Failures to start, in a row.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    failures: u32,
    reason: String,
}

impl Attempts {
    /// Counts one and says how long to wait before the next attempt.
    pub(super) fn fail(&mut self, reason: String) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.reason = reason;
        let factor = 1_u32.checked_shl(self.failures - 1).unwrap_or(u32::MAX);
        FIRST_PAUSE.saturating_mul(factor).min(LONGEST_PAUSE)
    }

    pub(super) fn succeed(&mut self) {
        *self = Self::default();
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failures >= FAILING
    }

    /// Whether the last failure is worth an event: the one that makes it a state, and later ones now and then.
    pub(super) fn is_news(&self) -> bool {
        self.failures == FAILING || self.failures.is_multiple_of(REMINDER)
    }

    pub(super) fn count(&self) -> u32 {
        self.failures
    }

    pub(super) fn reason(&self) -> &str {
        &self.reason
    }
}

/// How a worker ended.
pub(super) struct End {
    pub(super) reason: String,
    /// It could not start, or fell over; not killed by somebody.
    pub(super) is_own_fault: bool,
    pub(super) connection_ended: bool,
}

/// A worker that runs.
#[derive(Debug)]
pub(super) struct RunningWorker {
    pub(super) identity: ProcessIdentity,
    pub(super) pidfd: OwnedFd,
    /// `None` for one that another keeper started.
    child: Option<RoleChild>,
    pub(super) leash: Option<OwnedFd>,
    pub(super) is_ready: bool,
    /// It waits for the place of the worker before it.
    pub(super) stands_by: bool,
    pub(super) build: String,
    pub(super) reason: Option<String>,
    since: Instant,
}

impl RunningWorker {
    /// Starts one.
    pub(super) fn start(
        config: &RoleConfig,
        exe: &SealedExe,
        device: BorrowedFd<'_>,
        place: Place,
    ) -> io::Result<Self> {
        let (leash, theirs) = socket::pair()?;
        let config = RoleConfig { place, ..config.clone() };
        let text = String::from_utf8(encode(&config)).map_err(io::Error::other)?;
        let log = open_log(&config.directory.join("worker.log"))?;
        let child = RoleCommand::new([ROLE_ARGUMENT, "worker", &text])
            .descriptor(device.try_clone_to_owned()?, DEVICE_FD)
            .descriptor(theirs, LEASH_FD)
            .log_to(&log)?
            .spawn(exe)?;
        let identity = ProcessIdentity::of(child.pid)?;
        rustix::io::ioctl_fionbio(&leash, true)?;
        Ok(Self {
            identity,
            pidfd: child.pidfd.try_clone()?,
            child: Some(child),
            leash: Some(leash),
            is_ready: false,
            stands_by: false,
            build: config.build,
            reason: None,
            since: Instant::now(),
        })
    }

    /// Watches one that an earlier keeper started.
    pub(super) fn adopt(identity: ProcessIdentity, build: String) -> io::Result<Self> {
        let pidfd = identity.open().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Self {
            identity,
            pidfd,
            child: None,
            leash: None,
            is_ready: true,
            stands_by: false,
            build,
            reason: None,
            since: Instant::now(),
        })
    }

    /// Tells one that stands by to begin.
    pub(super) fn begin(&mut self) {
        self.stands_by = false;
        self.since = Instant::now();
        if let Some(leash) = &self.leash {
            let _ = socket::send(leash.as_fd(), b"begin", &[]);
        }
    }

    /// What it says, if anything.
    pub(super) fn hear(&mut self) -> Option<Leash> {
        let leash = self.leash.as_ref()?;
        match socket::receive(leash.as_fd()) {
            Ok((packet, _)) if !packet.is_empty() => decode(&packet),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            _ => {
                self.leash = None;
                None
            }
        }
    }

    /// Waits for its end.
    pub(super) fn ends_within(&self, patience: Duration) -> bool {
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let Ok(patience) = rustix::time::Timespec::try_from(patience) else { return false };
        matches!(rustix::event::poll(&mut ended, Some(&patience)), Ok(1..))
    }

    /// Ends it and waits until it has.
    pub(super) fn kill(&self) {
        let _ = process::send_signal(self.pidfd.as_fd(), 9);
        self.ends_within(END_PATIENCE);
        let _ = self.child.as_ref().map(RoleChild::try_wait);
    }

    /// How it ended.
    pub(super) fn reap(&self) -> End {
        let status = self.child.as_ref().and_then(|child| child.try_wait().ok().flatten());
        let connection_ended = status == Some(Ended::Exited(i32::from(CONNECTION_ENDED)));
        let how = match status {
            Some(Ended::Exited(code)) => format!("exited with code {code}"),
            Some(Ended::Signaled(signal)) => format!("was ended by signal {signal}"),
            None => "ended".to_owned(),
        };
        let reason = match &self.reason {
            Some(reason) => format!("{how}: {reason}"),
            None => how,
        };
        let was_killed = matches!(status, None | Some(Ended::Signaled(9 | 15)));
        let is_own_fault = !connection_ended
            && (!self.is_ready || (!was_killed && self.since.elapsed() < SETTLED));
        End { reason, is_own_fault, connection_ended }
    }
}

/// A log file that is appended to and has a limit.
pub(super) fn open_log(path: &Path) -> io::Result<File> {
    let file = File::options().append(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.len() > LOG_LIMIT {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Takes the lock at `path`, or nothing when somebody has it.
pub(super) fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_are_a_state_and_pauses_grow() {
        let mut attempts = Attempts::default();
        let pauses: Vec<_> = (0..8).map(|_| attempts.fail("why".to_owned())).collect();
        assert!(pauses.is_sorted());
        assert_eq!(pauses[7], LONGEST_PAUSE);
        assert!(attempts.is_failing());
        attempts.succeed();
        attempts.fail("again".to_owned());
        attempts.fail("again".to_owned());
        assert!(!attempts.is_failing());
    }

    #[test]
    fn a_lock_is_held_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(&path).unwrap().unwrap();
        assert!(lock(&path).unwrap().is_none());
        drop(held);
        assert!(lock(&path).unwrap().is_some());
    }
}
