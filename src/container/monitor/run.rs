//! The loop, and what each event does to the container's state.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{info, warn};

use super::super::finish::{self, Finished};
use super::super::record::{self, RECORD_VERSION, RunEnd, RunRecord};
use super::super::start;
use super::super::wire::Message;
use super::super::{ExitRecord, Lack, Launch, Outcome, Phase, RunPaths, Status};
use super::Begin;
use super::children::Child;
use super::client::Client;
use super::health::Health;
use super::output::Output;
use super::poll::Source;
use super::session::Session;
use crate::boundary::Boundary;
use crate::sys::process::{ProcessIdentity, send_signal};
use crate::sys::{cgroup, socket};

/// The signal's number.
pub(super) const SIGKILL: i32 = 9;

/// How the kernel names the sealed copy that every role runs from.
const OWN_EXECUTABLE: &[u8] = b"/memfd:supervisor";

/// How long cleaning up may take; longer than it waits for processes to die.
const FINISH_DEADLINE: Duration = Duration::from_secs(60);
/// Between two kills of what does not die.
const KILL_AGAIN: Duration = Duration::from_millis(500);
/// How long clients may take to read the last messages.
const FAREWELL: Duration = Duration::from_secs(1);

/// The container's first process.
#[derive(Debug)]
pub(super) struct Init {
    pub(super) process: ProcessIdentity,
    pub(super) pidfd: OwnedFd,
    /// Ours to reap; an adopted one is not.
    pub(super) is_child: bool,
    pub(super) ended: Option<Outcome>,
}

impl Init {
    /// Whether it has executed its program: it has our own executable until then.
    pub(super) fn has_begun(&self) -> bool {
        fs::read_link(format!("/proc/{}/exe", self.process.pid))
            .is_ok_and(|exe| !exe.as_os_str().as_encoded_bytes().starts_with(OWN_EXECUTABLE))
    }
}

pub(super) fn stopping(process: ProcessIdentity, started_at: Timestamp) -> Phase {
    Phase::Stopping { process: Some(process), started_at: Some(started_at) }
}

/// One monitor.
pub(super) struct Monitor {
    pub(super) launch: Launch,
    pub(super) paths: RunPaths,
    pub(super) identity: ProcessIdentity,
    pub(super) begin: Held,
    pub(super) status: Status,
    pub(super) started_at: Option<Timestamp>,
    pub(super) init: Option<Init>,
    pub(super) output: Option<Output>,
    pub(super) clients: Vec<Client>,
    next_client: u64,
    pub(super) starting: Option<Child>,
    pub(super) sessions: Vec<Session>,
    pub(super) health: Option<Health>,
    pub(super) finishing: Option<Child>,
    pub(super) outcome: Option<Outcome>,
    pub(super) ended_at: Option<Timestamp>,
    pub(super) stop_requested: bool,
    /// When everything in the container is killed.
    pub(super) kill_at: Option<Instant>,
    /// Until when an adopted process that has ended is asked how.
    pub(super) exit_until: Option<Instant>,
    pub(super) farewell_until: Option<Instant>,
}

/// What is only held.
pub(super) struct Held {
    pub(super) signals: crate::sys::signal::SignalFd,
    pub(super) listener: OwnedFd,
    _lock: fs::File,
    groups_lock: fs::File,
}

impl Monitor {
    pub(super) fn new(begin: Begin, first: Option<OwnedFd>) -> Self {
        let Begin { launch, paths, identity, signals, listener, lock, groups_lock } = begin;
        let status = Status {
            version: RECORD_VERSION,
            id: launch.id.clone(),
            monitor: identity.clone(),
            phase: Phase::Starting,
            writable: None,
            health: None,
        };
        let mut monitor = Self {
            launch,
            paths,
            identity,
            begin: Held { signals, listener, _lock: lock, groups_lock },
            status,
            started_at: None,
            init: None,
            output: None,
            clients: Vec::new(),
            next_client: 0,
            starting: None,
            sessions: Vec::new(),
            health: None,
            finishing: None,
            outcome: None,
            ended_at: None,
            stop_requested: false,
            kill_at: None,
            exit_until: None,
            farewell_until: None,
        };
        if let Some(first) = first {
            monitor.add_client(first);
        }
        monitor
    }

    /// Begins to start the container.
    pub(super) fn launch(mut self) -> Self {
        // Leftovers of a run whose monitor and container both died: nobody has removed them.
        if !cgroup::processes(&self.launch.cgroup).unwrap_or_default().is_empty() {
            let _ = cgroup::kill(&self.launch.cgroup);
        }
        match Output::create(&self.launch, &self.paths) {
            Ok(output) => self.output = Some(output),
            Err(error) => {
                let reason = format!("could not make the output FIFOs: {error}");
                self.end_with(Outcome::NotStarted { reason, code: 125 });
                return self;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(self.launch.start_timeout_secs);
        let (launch, monitor) = (&self.launch, self.identity.pid);
        let body = |progress: BorrowedFd<'_>| start::run(launch, monitor, progress);
        match Child::fork_inside(launch, deadline, body) {
            Ok(child) => self.starting = Some(child),
            Err(error) => {
                let reason = format!("could not fork: {error}");
                self.end_with(Outcome::NotStarted { reason, code: 125 });
            }
        }
        self
    }

    /// Only tells how it ended, to who is connected.
    pub(super) fn over(mut self, record: ExitRecord) -> Self {
        self.status.phase = Phase::Ended(record);
        self.farewell_until = Some(Instant::now() + FAREWELL);
        self
    }

    pub(super) fn open_output(&mut self) {
        match Output::open(&self.launch, &self.paths) {
            Ok(output) => self.output = Some(output),
            Err(error) => warn!(%error, "the output of the container cannot be read"),
        }
    }

    /// Runs until the container has ended and everybody knows.
    pub(super) fn run(mut self) -> ExitCode {
        while !self.is_done() {
            for source in self.wait() {
                self.on_ready(source);
            }
            self.on_time();
            self.clients.retain(|client| !client.is_gone);
            self.sessions.retain(|session| !session.is_over);
        }
        self.leave();
        ExitCode::SUCCESS
    }

    fn is_done(&self) -> bool {
        self.farewell_until.is_some_and(|until| {
            until <= Instant::now() || self.clients.iter().all(Client::has_heard_all)
        })
    }

    fn on_ready(&mut self, source: Source) {
        match source {
            Source::Signals => self.on_signals(),
            Source::Listener => {
                while let Ok(connection) = socket::accept(self.begin.listener.as_fd()) {
                    self.add_client(connection);
                }
            }
            Source::Output(number) => {
                if let Some(output) = &mut self.output {
                    output.pump(number);
                }
            }
            Source::Client(number) => self.on_client(number),
            Source::Starting => self.on_progress(),
            Source::Session(number) => self.on_joined(number),
            Source::Probe(source) => self.on_probe(source),
            Source::Finishing => self.on_finished(),
            Source::Init => self.on_init_ready(),
        }
    }

    /// It has ended, or will not run: from here on only cleaning up remains.
    pub(super) fn end_with(&mut self, outcome: Outcome) {
        if self.outcome.is_some() {
            return;
        }
        let at = *self.ended_at.get_or_insert_with(Timestamp::now);
        self.end_health();
        self.note_end(RunEnd { outcome: outcome.clone(), at });
        self.outcome = Some(outcome);
        self.kill_at = None;
        if let Some(child) = self.starting.take() {
            child.kill();
        }
        let (launch, monitor) = (&self.launch, self.identity.pid);
        let deadline = Instant::now() + FINISH_DEADLINE;
        match Child::fork(deadline, |done| finish::run(launch, monitor, done)) {
            Ok(child) => self.finishing = Some(child),
            // Better late than not at all, and nothing else is left to do here.
            Err(_) => {
                let finished = finish::finish(&self.launch);
                self.complete(finished);
            }
        }
    }

    /// Keeps how the first process ended where the next monitor finds it: cleaning up takes a while, and nobody can be
    /// asked again.
    fn note_end(&self, end: RunEnd) {
        let noted = record::read_json::<RunRecord>(&self.paths.process).and_then(|run| match run {
            Some(run) if run.ended.is_none() => {
                let stop_requested = self.stop_requested;
                let run = RunRecord { ended: Some(end), stop_requested, ..run };
                record::write_json(&self.paths.process, &run)
            }
            Some(_) | None => Ok(()),
        });
        if let Err(error) = noted {
            warn!(%error, "how it ended could not be noted yet");
        }
        Boundary::END_NOTED.reach(&self.launch.run_dir);
    }

    /// Nothing of it is left: writes down how it ended and tells everybody.
    pub(super) fn complete(&mut self, finished: Finished) {
        if self.farewell_until.is_some() {
            return;
        }
        if let Some(output) = &mut self.output {
            output.finish();
        }
        let record = ExitRecord {
            version: RECORD_VERSION,
            id: self.launch.id.clone(),
            started_at: self.started_at,
            ended_at: self.ended_at.unwrap_or_else(Timestamp::now),
            outcome: self.outcome.clone().unwrap_or(Outcome::Unknown),
            oom_killed: finished.oom_killed,
            stop_requested: self.stop_requested,
            health: self.status.health.clone(),
            left_behind: finished.left_behind,
        };
        Boundary::FINISHED.reach(&self.launch.run_dir);
        for left in &record.left_behind {
            warn!(left, "left behind");
        }
        info!(outcome = ?record.outcome, "ended");
        let copy = self.launch.state_dir.join("exit.json");
        let written = [(&copy, Boundary::EXIT_COPIED), (&self.paths.exit, Boundary::EXIT_RECORDED)];
        for (path, boundary) in written {
            if let Err(error) = record::write_json(path, &record) {
                warn!(%error, path = %path.display(), "the exit record cannot be written");
            }
            boundary.reach(&self.launch.run_dir);
        }
        // After the record: who finds neither knows that the monitor died in between.
        let _ = fs::remove_file(&self.paths.process);
        Boundary::RUN_FORGOTTEN.reach(&self.launch.run_dir);
        self.init = None;
        self.status.phase = Phase::Ended(record);
        for session in std::mem::take(&mut self.sessions) {
            self.send(session.client, &Message::ExecEnded { code: 128 + SIGKILL }, Vec::new());
        }
        self.tell_status();
        self.farewell_until = Some(Instant::now() + FAREWELL);
    }

    /// Ends every process of the container.
    pub(super) fn kill_all(&self) {
        let _ = cgroup::kill(&self.launch.cgroup);
        // Without groups it is the pid namespace that ends all others: with its first process.
        if let Some(init) = &self.init
            && init.ended.is_none()
            && self.launch.lacks(Lack::Cgroup)
        {
            let _ = send_signal(init.pidfd.as_fd(), 9);
        }
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        for child in self.starting.iter().chain(&self.finishing) {
            if child.deadline <= now {
                child.kill();
            }
        }
        for session in &mut self.sessions {
            session.check_deadlines(now);
        }
        self.check_health(now);
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_all();
            self.kill_at = Some(now + KILL_AGAIN);
        }
        if self.exit_until.is_some() {
            self.on_init_ready();
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let children = self.starting.iter().chain(&self.finishing).map(|child| child.deadline);
        let sessions = self.sessions.iter().filter_map(Session::next_deadline);
        let asking = self.init.as_ref().is_some_and(|init| init.ended.is_none());
        let ask_again =
            self.exit_until.filter(|_| asking).map(|_| Instant::now() + Duration::from_millis(20));
        children
            .chain(sessions)
            .chain(self.health.as_ref().and_then(Health::next_deadline))
            .chain(self.kill_at)
            .chain(self.farewell_until)
            .chain(ask_again)
            .min()
    }

    pub(super) fn add_client(&mut self, connection: OwnedFd) {
        self.next_client += 1;
        self.clients.extend(Client::new(connection, self.next_client));
    }

    pub(super) fn send(&mut self, client: u64, message: &Message, descriptors: Vec<OwnedFd>) {
        if let Some(client) = self.clients.iter_mut().find(|other| other.number == client) {
            client.send(message, descriptors);
        }
    }

    pub(super) fn tell_status(&mut self) {
        let message = Message::Status { status: Box::new(self.status.clone()) };
        for client in self.clients.iter_mut().filter(|client| client.watches) {
            client.send(&message, Vec::new());
        }
    }

    /// The last steps: no socket, and no groups that nobody else uses.
    fn leave(self) {
        let _ = fs::remove_file(self.paths.socket_dir.join(&self.paths.socket_name));
        let alone = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        if rustix::fs::flock(&self.begin.groups_lock, alone).is_ok() {
            // A group that a process is in cannot be removed, and this process is in one of them.
            let _ = cgroup::enter("/");
            // The child that has cleaned up may still be on its way out of them.
            for _ in 0..100 {
                if finish::remove_parent_groups(&self.launch) {
                    break;
                }
                finish::wait_ms(5);
            }
        }
    }
}
