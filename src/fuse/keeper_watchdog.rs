//! Whether a worker that lives also serves: the keeper asks it now and then, and replaces it on clear evidence.
//!
//! Evidence is one of two. It does not answer on its socket, which is served by the runtime that also fetches content;
//! or requests wait in the kernel and it takes none of them. Both are counted in looks and not in time, so that a
//! host that slept, or a keeper that was stopped itself, accuses nobody. A worker that computes or waits for a disk
//! (state `R` or `D`) is not stopped and not deadlocked, and gets several times as long.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::keeper::Keeper;
use super::protocol::{Answer, Request, WORKER_SOCKET, decode, encode};
use crate::sys::{process, socket};

/// Looks without a sign of life that are evidence against a worker that sleeps.
const LOOKS: u32 = 4;
/// The same for one that computes or waits for a disk.
const BUSY_LOOKS: u32 = 3 * LOOKS;
/// The same for one that starts: it reads the indexes of all layers.
const START_LOOKS: u32 = 3 * LOOKS;

/// What was seen of the worker.
#[derive(Debug)]
pub(super) struct Watchdog {
    interval: Duration,
    pub(super) next: Instant,
    /// The connection on which the worker is asked.
    pub(super) connection: Option<OwnedFd>,
    silent: u32,
    stuck: u32,
    starting: u32,
    taken: Option<u64>,
}

impl Watchdog {
    pub(super) fn new(patience: Duration) -> Self {
        let interval = (patience / LOOKS).max(Duration::from_millis(10));
        Self {
            interval,
            next: Instant::now() + interval,
            connection: None,
            silent: 0,
            stuck: 0,
            starting: 0,
            taken: None,
        }
    }

    /// Begins anew with another worker.
    pub(super) fn reset(&mut self) {
        *self = Self { next: self.next, ..Self::new(self.interval * LOOKS) };
    }

    /// Takes an answer in. `waits` says whether requests wait in the kernel.
    fn hear(&mut self, answer: Option<&Answer>, waits: bool) {
        self.silent = 0;
        let Some(Answer::Alive { taken }) = answer else { return };
        if waits && self.taken == Some(*taken) {
            self.stuck += 1;
        } else {
            self.stuck = 0;
        }
        self.taken = Some(*taken);
    }

    /// What there is against the worker, given whether it computes or waits for a disk.
    fn evidence(&self, is_busy: bool) -> Option<&'static str> {
        let limit = if is_busy { BUSY_LOOKS } else { LOOKS };
        if self.starting >= START_LOOKS.max(limit) {
            Some("it did not begin to serve")
        } else if self.silent >= limit {
            Some("it did not answer")
        } else if self.stuck >= limit {
            Some("it took no requests from the kernel")
        } else {
            None
        }
    }

    fn is_suspicious(&self) -> bool {
        self.silent >= LOOKS || self.stuck >= LOOKS || self.starting >= START_LOOKS
    }
}

impl Keeper {
    /// One look at the worker.
    pub(super) fn look_at_worker(&mut self) {
        self.watchdog.next = Instant::now() + self.watchdog.interval;
        let Some(worker) = &mut self.worker else { return self.watchdog.reset() };
        if worker.is_ready {
            self.watchdog.starting = 0;
            // Asked and not answered, or not even to be asked.
            self.watchdog.silent += 1;
            if self.watchdog.connection.is_none() {
                let connect =
                    |directory: File| socket::connect_now(directory.as_fd(), WORKER_SOCKET);
                self.watchdog.connection =
                    File::open(&self.config.directory).and_then(connect).ok();
            }
            if let Some(connection) = &self.watchdog.connection
                && let Err(error) = socket::send(connection.as_fd(), &encode(&Request::Ping), &[])
                && error.kind() != std::io::ErrorKind::WouldBlock
            {
                self.watchdog.connection = None;
            }
        } else {
            self.watchdog.starting += 1;
        }
        if !self.watchdog.is_suspicious() {
            return;
        }
        let Some(evidence) = self.watchdog.evidence(is_busy(worker.identity.pid)) else { return };
        tracing::error!(pid = worker.identity.pid, evidence, "worker hangs and is killed");
        worker.reason = Some(evidence.to_owned());
        let _ = process::send_signal(worker.pidfd.as_fd(), 9);
        self.watchdog.reset();
    }

    /// The worker answered.
    pub(super) fn hear_answer(&mut self) {
        let Some(connection) = &self.watchdog.connection else { return };
        let waits = is_readable(&self.device);
        match socket::receive(connection.as_fd()) {
            Ok((packet, _)) if !packet.is_empty() => {
                self.watchdog.hear(decode::<Answer>(&packet).as_ref(), waits);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => self.watchdog.connection = None,
        }
    }
}

/// Whether requests wait that nobody has taken.
fn is_readable(device: &OwnedFd) -> bool {
    let mut poll = [PollFd::new(device, PollFlags::IN)];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut poll, Some(&now)), Ok(1..))
        && poll[0].revents().contains(PollFlags::IN)
}

/// Whether a thread of the process computes or waits for a disk.
fn is_busy(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().any(|thread| matches!(state_of(&thread.path()), Some('R' | 'D')))
}

fn state_of(thread: &Path) -> Option<char> {
    let text = std::fs::read_to_string(thread.join("stat")).ok()?;
    // The name before it is in brackets and may contain any character.
    text.rsplit_once(") ")?.1.chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_evidence_after_some_looks_and_later_against_one_that_is_busy() {
        let mut watchdog = Watchdog::new(Duration::from_secs(20));
        assert_eq!(watchdog.interval, Duration::from_secs(5));
        watchdog.silent = LOOKS;
        assert!(watchdog.evidence(false).is_some());
        assert_eq!(watchdog.evidence(true), None);
        watchdog.silent = BUSY_LOOKS;
        assert!(watchdog.evidence(true).is_some());
        // Any answer is a sign of life, also that of a build that does not know the question.
        watchdog.hear(None, true);
        assert_eq!(watchdog.evidence(false), None);
    }

    #[test]
    fn requests_that_nobody_takes_are_evidence_unless_others_are_taken() {
        let mut watchdog = Watchdog::new(Duration::from_secs(20));
        for taken in [7, 8, 9, 10, 11, 12] {
            watchdog.hear(Some(&Answer::Alive { taken }), true);
        }
        assert_eq!(watchdog.evidence(false), None, "it is loaded and works");
        for _ in 0..LOOKS {
            watchdog.hear(Some(&Answer::Alive { taken: 12 }), true);
        }
        assert!(watchdog.evidence(false).is_some());
        watchdog.hear(Some(&Answer::Alive { taken: 12 }), false);
        assert_eq!(watchdog.evidence(false), None, "nothing waits");
    }

    #[test]
    fn the_state_of_a_thread_is_read_behind_its_name() {
        assert_eq!(state_of(Path::new("/proc/thread-self")), Some('R'));
    }
}
