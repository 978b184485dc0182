//! The keeper: mounts, holds the connection's descriptor, and keeps a worker running. It does nothing else.
//!
//! It is one thread around one poll, parses nothing that came from a network, and never opens, stats or executes
//! anything below the mount: that would wait for a worker that only it can start. It starts in one of three ways:
//!
//! * a worker lives: the descriptor comes from it, and nothing else changes (the keeper before was killed);
//! * it is given a descriptor that somebody kept (a service manager): it starts a worker on it;
//! * neither: what is left of an earlier connection is dead; it is detached, and a new one is mounted.
//!
//! A keeper of another build is succeeded: it hands its descriptor over and goes. Then a worker of another build is
//! succeeded too, once one of this build has seen that it can serve the connection.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use super::keeper_clients::{Client, Step};
use super::keeper_start::{Found, KeeperError, failed, find_connection, take_place};
use super::keeper_watchdog::Watchdog;
use super::keeper_worker::{Attempts, RunningWorker};
use super::options::{Place, RoleConfig};
use super::protocol::{ConnectionEvent, KEEPER_SOCKET, Leash, Report, Stop, decode, encode};
use super::session::Session;
use super::{connect, keeper_mount};
use crate::sys::process::{ProcessIdentity, SealedExe, inherited};
use crate::sys::signal::SignalFd;
use crate::sys::{cgroup, fuse_device, socket};
use crate::telemetry;

/// Where control listens for the report.
pub(super) const REPORT_FD: i32 = 3;
/// A descriptor of the connection that somebody kept.
pub(super) const STORED_FD: i32 = 4;

pub(super) struct Keeper {
    pub(super) config: RoleConfig,
    pub(super) exe: SealedExe,
    pub(super) identity: ProcessIdentity,
    pub(super) device: OwnedFd,
    pub(super) minor: u32,
    pub(super) worker: Option<RunningWorker>,
    /// A worker of this build that is to succeed the one of another build.
    pub(super) next: Option<RunningWorker>,
    /// Why the worker is one of another build.
    pub(super) worker_kept: Option<String>,
    pub(super) watchdog: Watchdog,
    pub(super) attempts: Attempts,
    pub(super) restart_at: Option<Instant>,
    pub(super) restarts: u64,
    pub(super) report: Option<OwnedFd>,
    pub(super) clients: Vec<Client>,
    /// Held so that there is one keeper.
    _lock: File,
}

/// Runs the role; its only argument is its configuration.
pub(crate) fn keeper_main(args: Vec<OsString>) -> ExitCode {
    let config = args.first().and_then(|text| decode::<RoleConfig>(text.as_encoded_bytes()));
    let Some(config) = config else { return ExitCode::from(2) };
    let level = config.log_level();
    let _ = telemetry::init_logging(&telemetry::LogOptions {
        level,
        format: telemetry::LogFormat::Text,
    });
    let report = inherited(REPORT_FD).ok();
    let stored = inherited(STORED_FD).ok();
    match run(config, report.as_ref(), stored) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = telemetry::Chain(&error).to_string();
            tracing::error!(error = message, "keeper gives up");
            if let Some(report) = report {
                let failed = match error {
                    KeeperError::Locked => Report::Locked,
                    _ => Report::Failed { step: error.step(), message },
                };
                let _ = socket::send(report.as_fd(), &encode(&failed), &[]);
            }
            ExitCode::FAILURE
        }
    }
}

fn run(
    config: RoleConfig,
    report: Option<&OwnedFd>,
    stored: Option<OwnedFd>,
) -> Result<(), KeeperError> {
    let (lock, handed) = take_place(&config)?;
    // A service that stops its keeper with a signal wants it gone, not the mount.
    let signals = SignalFd::block(&[15, 2]).map_err(failed("block signals"))?;
    if let Some(group) = &config.cgroup {
        for (path, error) in cgroup::enter(group).map_err(failed("list control groups"))? {
            tracing::warn!(path = %path.display(), %error, "not in this control group");
        }
    }
    let exe = SealedExe::of_current().map_err(failed("copy the executable"))?;
    let identity = ProcessIdentity::current().map_err(failed("read /proc"))?;
    let Found { device, minor, worker } = find_connection(&config, handed.or(stored))?;
    let directory = File::open(&config.directory).map_err(failed("open the directory"))?;
    let listener =
        socket::listen(directory.as_fd(), KEEPER_SOCKET).map_err(failed("make the socket"))?;
    let patience = config.worker_patience;
    let mut keeper = Keeper {
        config,
        exe,
        identity,
        device,
        minor,
        worker,
        next: None,
        worker_kept: None,
        watchdog: Watchdog::new(patience),
        attempts: Attempts::default(),
        restart_at: None,
        restarts: 0,
        report: report.and_then(|report| report.try_clone().ok()),
        clients: Vec::new(),
        _lock: lock,
    };
    if keeper.worker.is_some() {
        keeper.tell_started();
        keeper.succeed_worker();
    } else {
        keeper.start_worker();
    }
    keeper.serve(&listener, &signals)
}

impl Keeper {
    fn serve(&mut self, listener: &OwnedFd, signals: &SignalFd) -> Result<(), KeeperError> {
        loop {
            let ready = self.poll(listener, signals).map_err(failed("poll"))?;
            let mut clients = Vec::new();
            for source in ready {
                match source {
                    Source::Signals => {
                        if signals.next().map_err(failed("read a signal"))?.is_some() {
                            // The worker goes on, and the next keeper takes the descriptor from it.
                            return Ok(());
                        }
                    }
                    Source::Leash => self.hear_worker(),
                    Source::Probe => self.hear_answer(),
                    Source::Worker => self.worker_ended()?,
                    Source::Next => self.hear_next(),
                    Source::Listener => {
                        if let Ok(connection) = socket::accept(listener.as_fd()) {
                            self.clients.push(Client { connection, wants_events: false });
                        }
                    }
                    Source::Client(place) => clients.push(place),
                }
            }
            let now = Instant::now();
            if self.restart_at.is_some_and(|at| at <= now) {
                self.restart_at = None;
                self.start_worker();
            }
            if self.watchdog.next <= now {
                self.look_at_worker();
            }
            self.give_up_if_useless()?;
            for place in clients.into_iter().rev() {
                match self.answer(place) {
                    Step::Keep => {}
                    Step::Drop => drop(self.clients.swap_remove(place)),
                    Step::End => return Ok(()),
                }
            }
        }
    }

    /// Waits for somebody to say something, or for the next thing that is due.
    fn poll(&self, listener: &OwnedFd, signals: &SignalFd) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Listener, Source::Signals];
        let mut fds =
            vec![PollFd::new(listener, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        let mut others: Vec<(Source, Option<&OwnedFd>)> = Vec::new();
        // What a process says comes before its end.
        if let Some(worker) = &self.worker {
            others.push((Source::Leash, worker.leash.as_ref()));
            others.push((Source::Probe, self.watchdog.connection.as_ref()));
            others.push((Source::Worker, Some(&worker.pidfd)));
        }
        if let Some(next) = &self.next {
            others.push((Source::Next, next.leash.as_ref()));
            others.push((Source::Next, Some(&next.pidfd)));
        }
        for (place, client) in self.clients.iter().enumerate() {
            others.push((Source::Client(place), Some(&client.connection)));
        }
        for (source, fd) in others {
            if let Some(fd) = fd {
                sources.push(source);
                fds.push(PollFd::new(fd, PollFlags::IN));
            }
        }
        let due = self.restart_at.map_or(self.watchdog.next, |at| at.min(self.watchdog.next));
        let pause = due.saturating_duration_since(Instant::now());
        let timeout = rustix::time::Timespec::try_from(pause).ok();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = sources.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(source, _)| source).collect())
    }

    fn start_worker(&mut self) {
        let device = self.device.as_fd();
        match RunningWorker::start(&self.config, &self.exe, device, Place::Free) {
            Ok(worker) => {
                self.worker = Some(worker);
                self.watchdog.reset();
            }
            Err(error) => self.count_failure(format!("could not be started: {error}")),
        }
    }

    fn hear_worker(&mut self) {
        let Some(worker) = &mut self.worker else { return };
        match worker.hear() {
            Some(Leash::Ready) => {
                worker.is_ready = true;
                tracing::info!(pid = worker.identity.pid, "worker serves");
                self.tell_started();
                self.publish(&ConnectionEvent::WorkerStarted { restarts: self.restarts });
            }
            Some(Leash::Failed { message }) => worker.reason = Some(message),
            Some(Leash::Standby) | None => {}
        }
    }

    /// The worker is gone: the next one, or the next connection.
    fn worker_ended(&mut self) -> Result<(), KeeperError> {
        // What it said last may be behind its end in the same poll.
        self.hear_worker();
        let Some(worker) = self.worker.take() else { return Ok(()) };
        self.watchdog.reset();
        let end = worker.reap();
        self.publish(&ConnectionEvent::WorkerEnded { reason: end.reason.clone() });
        tracing::warn!(pid = worker.identity.pid, reason = end.reason, "worker ended");
        self.restarts += 1;
        let granted =
            Session::open(&self.config.directory).ok().map(|session| connect::granted(&session));
        let lost = match granted {
            _ if end.connection_ended => Some("the connection was ended from outside"),
            // Never answered, so nobody has seen it.
            Some(None) => Some(""),
            Some(Some(granted)) if !granted.resend => {
                Some("this kernel cannot send requests again (it needs Linux 6.9)")
            }
            // With a damaged state the connection is kept: whatever reads it stays blocked rather than broken, and
            // somebody may repair or abort it.
            Some(Some(_)) | None => None,
        };
        if let Some(reason) = lost {
            self.reconnect()?;
            if !reason.is_empty() {
                let reason = reason.to_owned();
                self.publish(&ConnectionEvent::ConnectionLost { reason });
            }
        }
        if self.next.is_some() {
            // It begins as soon as it is ready, or fails and is counted then.
            self.promote();
        } else if end.is_own_fault {
            self.count_failure(end.reason);
        } else {
            self.attempts.succeed();
            self.start_worker();
        }
        Ok(())
    }

    fn reconnect(&mut self) -> Result<(), KeeperError> {
        if let Err(error) = fuse_device::abort(self.minor) {
            tracing::debug!(%error, "the old connection could not be aborted; it ends with its descriptor");
        }
        let (device, minor) = keeper_mount::mount(&self.config)?;
        self.device = device;
        self.minor = minor;
        Ok(())
    }

    pub(super) fn count_failure(&mut self, reason: String) {
        let pause = self.attempts.fail(reason.clone());
        self.restart_at = Some(Instant::now() + pause);
        if self.attempts.is_failing() {
            let attempts = self.attempts.count();
            tracing::error!(attempts, reason, "worker cannot be started; reads wait");
            if self.attempts.is_news() {
                self.publish(&ConnectionEvent::WorkerFailing { attempts, reason });
            }
        }
    }

    /// A connection that never served is of no use to anybody; control falls back to full pulls.
    fn give_up_if_useless(&mut self) -> Result<(), KeeperError> {
        if !self.attempts.is_failing() || self.report.is_none() {
            return Ok(());
        }
        let never_served = Session::open(&self.config.directory)
            .is_ok_and(|session| session.established().is_none());
        if never_served {
            let reason = self.attempts.reason().to_owned();
            self.end(Stop::Force);
            return Err(KeeperError::Worker(reason));
        }
        // Somebody depends on the connection: it is kept, and control must not wait.
        self.tell_started();
        Ok(())
    }

    fn tell_started(&mut self) {
        if let Some(report) = self.report.take() {
            let _ = socket::send(report.as_fd(), &encode(&Report::Started), &[]);
        }
    }
}

/// Who has something to say.
#[derive(Debug, Clone, Copy)]
enum Source {
    Listener,
    Signals,
    Leash,
    Probe,
    Worker,
    Next,
    Client(usize),
}
