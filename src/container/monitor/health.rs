//! The checks of a container's health, one after the other: when the next one is due, what runs for it, and what
//! became of it.

use std::io::{self, PipeReader, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{info, warn};

use super::super::health::{Change, HealthStatus, Probe, Pulse};
use super::super::probe::{self, Probed};
use super::super::record::{self, RunRecord};
use super::super::wire::Message;
use super::super::{ExecRequest, Launch};
use super::children::Child;
use super::run::Monitor;
use super::session::Session;
use crate::sys::process::Ended;

/// Bytes of a check's output that are kept: its last words, which say why.
const OUTPUT_KEPT: usize = 4096;
/// Characters of them that are told.
const OUTPUT_TOLD: usize = 300;
/// Who asks for a check; clients are counted from 1.
const NOBODY: u64 = 0;

/// The health of a running container.
#[derive(Debug)]
pub(super) struct Health {
    pulse: Pulse,
    began: Instant,
    /// When the next check is due, if none is under way.
    next_at: Instant,
    probing: Option<Probing>,
}

/// A check that is under way.
#[derive(Debug)]
enum Probing {
    /// A program in the container.
    Program { session: Session, output: Option<PipeReader>, said: Vec<u8> },
    /// A child that looks at a port.
    Port(Child),
}

/// Something of a check that has something to say.
#[derive(Debug, Clone, Copy)]
pub(super) enum ProbeSource {
    Child,
    Output,
}

impl Monitor {
    /// The program runs: it is checked from now on. `known` is what the monitor before this one has told.
    pub(super) fn begin_health(&mut self, started_at: Timestamp, known: Option<HealthStatus>) {
        let Some(check) = self.launch.health.clone() else { return };
        let age = Timestamp::now().duration_since(started_at);
        let age = Duration::try_from(age).unwrap_or_default();
        let began = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        let pulse = Pulse::new(check, started_at, known);
        let next_at = Instant::now() + Duration::from_millis(pulse.pause_ms());
        self.status.health = Some(pulse.status.clone());
        self.health = Some(Health { pulse, began, next_at, probing: None });
    }

    /// Begins the check that is due, and ends what takes too long.
    pub(super) fn check_health(&mut self, now: Instant) {
        let Some(health) = &mut self.health else { return };
        match &mut health.probing {
            Some(Probing::Program { session, .. }) => session.check_deadlines(now),
            Some(Probing::Port(child)) if child.deadline <= now => child.kill(),
            Some(Probing::Port(_)) => {}
            None if health.next_at > now => {}
            None => {
                let Some(init) = self.init.as_ref().map(|init| init.process.pid) else { return };
                match begin(&self.launch, self.identity.pid, init, &health.pulse) {
                    Ok(probing) => health.probing = Some(probing),
                    Err(error) => self.checked(Err(format!("it could not be checked: {error}"))),
                }
            }
        }
    }

    pub(super) fn on_probe(&mut self, source: ProbeSource) {
        let Some(probing) = self.health.as_mut().and_then(|health| health.probing.as_mut()) else {
            return;
        };
        let outcome = match (probing, source) {
            (Probing::Program { output, said, .. }, ProbeSource::Output) => {
                read(output, said);
                None
            }
            (Probing::Program { session, .. }, ProbeSource::Child) => {
                session.on_report().and_then(|(message, _)| outcome(&message, &[]))
            }
            (Probing::Port(child), _) => {
                child.report::<Probed>().map(|(Probed(failure), _)| failure.map_or(Ok(()), Err))
            }
        };
        if let Some(outcome) = outcome {
            self.checked(outcome);
        }
    }

    /// The end of a child of the monitor, which may be that of a check.
    pub(super) fn on_probe_ended(&mut self, pid: i32, ended: Ended) {
        self.on_probe(ProbeSource::Child);
        let Some(probing) = self.health.as_mut().and_then(|health| health.probing.as_mut()) else {
            return;
        };
        let outcome = match probing {
            Probing::Program { session, output, said } => {
                let message = session.on_ended(pid, ended);
                if message.is_some() {
                    read(output, said);
                }
                message.and_then(|message| outcome(&message, said))
            }
            Probing::Port(child) if child.pid == pid => {
                Some(Err("it did not answer in time".to_owned()))
            }
            Probing::Port(_) => None,
        };
        if let Some(outcome) = outcome {
            self.checked(outcome);
        }
    }

    /// Takes in the outcome of a check.
    fn checked(&mut self, outcome: Result<(), String>) {
        let Some(health) = &mut self.health else { return };
        health.probing = None;
        let elapsed = u64::try_from(health.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let change = health.pulse.take_in(outcome, elapsed, Timestamp::now());
        health.next_at = Instant::now() + Duration::from_millis(health.pulse.pause_ms());
        if change == Change::None {
            return;
        }
        let status = health.pulse.status.clone();
        info!(state = ?status.state, reason = status.reason, "health");
        self.status.health = Some(status.clone());
        // For the monitor that replaces this one: what was healthy once is not new to it.
        let noted = record::read_json::<RunRecord>(&self.paths.process).and_then(|run| match run {
            Some(run) => {
                let run = RunRecord { health: Some(status), ..run };
                record::write_json(&self.paths.process, &run)
            }
            None => Ok(()),
        });
        if let Err(error) = noted {
            warn!(%error, "its health could not be noted");
        }
        self.tell_status();
    }

    /// Whether `pid` is about to run a check in the container.
    pub(super) fn is_joining_probe(&self, pid: i32) -> bool {
        let probing = self.health.as_ref().and_then(|health| health.probing.as_ref());
        matches!(probing, Some(Probing::Program { session, .. }) if session.is_joining(pid))
    }

    /// Nothing is checked any more; what was last told stays.
    pub(super) fn end_health(&mut self) {
        match self.health.take().and_then(|health| health.probing) {
            Some(Probing::Port(child)) => child.kill(),
            Some(Probing::Program { mut session, .. }) => session.kill(),
            None => {}
        }
    }
}

impl Health {
    /// What of a check is waited for.
    pub(super) fn polled(&self) -> Vec<(ProbeSource, BorrowedFd<'_>)> {
        match &self.probing {
            Some(Probing::Program { session, output, .. }) => {
                let child = session.child.iter().map(|child| (ProbeSource::Child, child.as_fd()));
                let output = output.iter().map(|output| (ProbeSource::Output, output.as_fd()));
                child.chain(output).collect()
            }
            Some(Probing::Port(child)) => vec![(ProbeSource::Child, child.as_fd())],
            None => Vec::new(),
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match &self.probing {
            Some(Probing::Program { session, .. }) => session.next_deadline(),
            Some(Probing::Port(child)) => Some(child.deadline),
            None => Some(self.next_at),
        }
    }
}

fn begin(launch: &Launch, monitor: i32, init: i32, pulse: &Pulse) -> io::Result<Probing> {
    let check = pulse.check();
    let timeout = Duration::from_millis(check.timeout_ms);
    let Probe::Exec(args) = &check.probe else {
        // The child gives up by itself; this is for the case that it cannot.
        let deadline = Instant::now() + timeout + Duration::from_secs(1);
        let child = Child::fork(deadline, |probed| {
            probe::run(launch, monitor, init, &check.probe, timeout, probed)
        })?;
        return Ok(Probing::Port(child));
    };
    let mut request = ExecRequest::new(args.clone());
    request.timeout_ms = Some(check.timeout_ms);
    let (output, theirs) = io::pipe()?;
    rustix::io::ioctl_fionbio(&output, true)?;
    let nothing = std::fs::File::open("/dev/null")?;
    let streams: Vec<OwnedFd> = vec![nothing.into(), theirs.try_clone()?.into(), theirs.into()];
    let session = Session::begin(launch, monitor, init, NOBODY, &request, streams)?;
    Ok(Probing::Program { session, output: Some(output), said: Vec::new() })
}

/// Reads what there is, and keeps the end of it.
fn read(output: &mut Option<PipeReader>, said: &mut Vec<u8>) {
    let Some(reader) = output else { return };
    let mut piece = [0; OUTPUT_KEPT];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => break *output = None,
            Ok(length) => {
                said.extend_from_slice(&piece[..length]);
                let surplus = said.len().saturating_sub(OUTPUT_KEPT);
                said.drain(..surplus);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => break *output = None,
        }
    }
}

/// What a message about the program of a check says of the health; `None` while it runs.
fn outcome(message: &Message, said: &[u8]) -> Option<Result<(), String>> {
    match message {
        Message::ExecEnded { code: 0 } => Some(Ok(())),
        Message::ExecEnded { code } => {
            let text = String::from_utf8_lossy(said);
            let last = text.trim().lines().last().unwrap_or_default();
            let last: String = last.chars().take(OUTPUT_TOLD).collect();
            Some(Err(match (*code, last.is_empty()) {
                (137, true) => "the check was killed, or took too long".to_owned(),
                (_, true) => format!("the check ended with code {code}"),
                (_, false) => format!("the check ended with code {code}: {last}"),
            }))
        }
        Message::ExecFailed { reason, .. } => Some(Err(format!("the check did not run: {reason}"))),
        _ => None,
    }
}
