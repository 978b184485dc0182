//! What children report, and how they and the container's first process end.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{info, warn};

use super::super::finish::Finished;
use super::super::join;
use super::super::start::Progress;
use super::super::{Lack, Outcome, Phase};
use super::children::Child;
use super::run::{Init, Monitor, stopping};
use crate::boundary::Boundary;
use crate::sys::child;
use crate::sys::process::{self, Ended};

/// The signal's number.
const SIGCHLD: i32 = 17;
/// How long the end of a process that is nobody's child is asked for.
const EXIT_PATIENCE: Duration = Duration::from_secs(2);

impl Monitor {
    pub(super) fn on_signals(&mut self) {
        while let Ok(Some(signal)) = self.begin.signals.next() {
            if signal != SIGCHLD {
                info!(signal, "ignored: a monitor ends with its container");
            }
        }
        while let Ok(Some((pid, ended))) = process::reap_any() {
            self.on_child(pid, ended);
        }
    }

    fn on_child(&mut self, pid: i32, ended: Ended) {
        // What a child has reported before it ended is heard first.
        self.on_progress();
        for number in 0..self.sessions.len() {
            self.on_joined(number);
        }
        self.on_finished();
        if let Some(init) = &mut self.init
            && init.is_child
            && init.process.pid == pid
        {
            init.ended = Some(ended.into());
            self.ended_at = Some(Timestamp::now());
        }
        if let Some(child) = self.starting.take_if(|child| child.pid == pid) {
            // A runtime that fails ends everybody in the container's group, the one that would tell of it too.
            let reason = if Instant::now() < child.deadline {
                "the runtime could not make it, or its start was killed"
            } else {
                "it did not start in time"
            };
            let reason = reason.to_owned();
            self.end_with(Outcome::NotStarted { reason, code: 125 });
        }
        if self.finishing.as_ref().is_some_and(|child| child.pid == pid) {
            self.finishing = None;
            let left_behind = vec!["cleaning up took too long, or failed".to_owned()];
            self.complete(Finished { left_behind, oom_killed: false });
        }
        if self.sessions.iter().any(|session| session.is_joining(pid)) || self.is_joining_probe(pid)
        {
            join::clear_up(&self.paths, pid);
        }
        self.on_probe_ended(pid, ended);
        let mut answers = Vec::new();
        for session in &mut self.sessions {
            answers.extend(session.on_ended(pid, ended).map(|message| (session.client, message)));
        }
        for (client, message) in answers {
            self.send(client, &message, Vec::new());
        }
        self.end_if_over();
    }

    pub(super) fn on_progress(&mut self) {
        while let Some((progress, _)) = self.starting.as_ref().and_then(Child::report) {
            match progress {
                Progress::Mounted(writable) => self.status.writable = Some(writable),
                Progress::Created(process) => match process::open_pidfd(process.pid) {
                    Ok(pidfd) => {
                        self.init = Some(Init { process, pidfd, is_child: true, ended: None });
                    }
                    Err(error) => warn!(%error, "the first process is gone already"),
                },
                Progress::Started(started_at) => {
                    self.starting = None;
                    self.started_at = Some(started_at);
                    if let Some(init) = &self.init {
                        let process = init.process.clone();
                        info!(pid = process.pid, "running");
                        self.status.phase = if self.stop_requested {
                            stopping(process, started_at)
                        } else {
                            Phase::Running { process, started_at }
                        };
                    }
                    if !self.stop_requested {
                        self.begin_health(started_at, None);
                    }
                    self.tell_status();
                    Boundary::RUNNING.reach(&self.launch.run_dir);
                    self.end_if_over();
                }
                Progress::Failed(failure) => {
                    self.starting = None;
                    let (reason, code) = (failure.reason, failure.code);
                    warn!(reason, code, "not started");
                    self.end_with(Outcome::NotStarted { reason, code });
                }
            }
        }
    }

    pub(super) fn on_joined(&mut self, number: usize) {
        let Some(session) = self.sessions.get_mut(number) else { return };
        let client = session.client;
        if let Some((message, descriptors)) = session.on_report() {
            self.send(client, &message, descriptors);
        }
    }

    pub(super) fn on_finished(&mut self) {
        let report = self.finishing.as_ref().and_then(Child::report::<Finished>);
        if let Some((finished, _)) = report {
            self.finishing = None;
            self.complete(finished);
        }
    }

    /// An adopted first process has ended; it is asked how until the kernel knows.
    pub(super) fn on_init_ready(&mut self) {
        let until = *self.exit_until.get_or_insert_with(|| Instant::now() + EXIT_PATIENCE);
        let ended_at = *self.ended_at.get_or_insert_with(Timestamp::now);
        let Some(init) = &mut self.init else { return };
        if init.is_child || init.ended.is_some() {
            return;
        }
        let ended = match child::exit_of_zombie(&init.process) {
            Some(ended) => Some(ended.into()),
            None if self.launch.lacks(Lack::ExitCodes) => Some(Outcome::Unknown),
            None => match child::exit_of(init.pidfd.as_fd()) {
                Ok(Some(ended)) => Some(ended.into()),
                Ok(None) if Instant::now() < until => None,
                Ok(None) | Err(_) => Some(Outcome::Unknown),
            },
        };
        if ended.is_some() {
            init.ended = ended;
            self.ended_at = Some(ended_at);
            self.end_if_over();
        }
    }

    /// The container is over when its first process is, and nobody still starts it.
    fn end_if_over(&mut self) {
        if self.starting.is_some() || self.outcome.is_some() {
            return;
        }
        if let Some(outcome) = self.init.as_ref().and_then(|init| init.ended.clone()) {
            self.end_with(outcome);
        }
    }
}
