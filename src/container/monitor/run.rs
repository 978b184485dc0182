//! The loop, and what each event does to the container's state.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags};
use tracing::{info, warn};

use super::super::finish::{self, Finished};
use super::super::record::{self, RECORD_VERSION};
use super::super::start::{self, Progress};
use super::super::wire::{Message, PROTOCOL_VERSION, Request};
use super::super::{ExecRequest, ExitRecord, Launch, Outcome, Phase, RunPaths, Signal, Status};
use super::Begin;
use super::children::Child;
use super::client::{Client, Heard};
use super::output::Output;
use super::poll::Source;
use super::session::Session;
use crate::sys::process::{self, Ended, ProcessIdentity, send_signal};
use crate::sys::{cgroup, child, socket};

/// The signal's number.
pub(super) const SIGKILL: i32 = 9;
/// The signal's number.
const SIGCHLD: i32 = 17;

/// How the kernel names the sealed copy that every role runs from.
const OWN_EXECUTABLE: &[u8] = b"/memfd:supervisor";

/// How long cleaning up may take; longer than it waits for processes to die.
const FINISH_DEADLINE: Duration = Duration::from_secs(60);
/// Between two kills of what does not die.
const KILL_AGAIN: Duration = Duration::from_millis(500);
/// How long the end of a process that is nobody's child is asked for.
const EXIT_PATIENCE: Duration = Duration::from_secs(2);
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

fn stopping(process: ProcessIdentity, started_at: Timestamp) -> Phase {
    Phase::Stopping { process: Some(process), started_at: Some(started_at) }
}

/// One monitor.
pub(super) struct Monitor {
    pub(super) launch: Launch,
    pub(super) paths: RunPaths,
    pub(super) identity: ProcessIdentity,
    begin: Held,
    pub(super) status: Status,
    pub(super) started_at: Option<Timestamp>,
    pub(super) init: Option<Init>,
    output: Option<Output>,
    clients: Vec<Client>,
    next_client: u64,
    starting: Option<Child>,
    sessions: Vec<Session>,
    finishing: Option<Child>,
    outcome: Option<Outcome>,
    ended_at: Option<Timestamp>,
    stop_requested: bool,
    /// When everything in the container is killed.
    kill_at: Option<Instant>,
    /// Until when an adopted process that has ended is asked how.
    exit_until: Option<Instant>,
    farewell_until: Option<Instant>,
}

/// What is only held.
struct Held {
    signals: crate::sys::signal::SignalFd,
    listener: OwnedFd,
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
        match Child::fork(deadline, |progress| start::run(launch, monitor, progress)) {
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
            Source::Finishing => self.on_finished(),
            Source::Init => self.on_init_ready(),
        }
    }

    fn on_signals(&mut self) {
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
        if self.starting.as_ref().is_some_and(|child| child.pid == pid) {
            self.starting = None;
            let reason = "it did not start in time".to_owned();
            self.end_with(Outcome::NotStarted { reason, code: 125 });
        }
        if self.finishing.as_ref().is_some_and(|child| child.pid == pid) {
            self.finishing = None;
            let left_behind = vec!["cleaning up took too long, or failed".to_owned()];
            self.complete(Finished { left_behind, oom_killed: false });
        }
        let mut answers = Vec::new();
        for session in &mut self.sessions {
            answers.extend(session.on_ended(pid, ended).map(|message| (session.client, message)));
        }
        for (client, message) in answers {
            self.send(client, &message, Vec::new());
        }
        self.end_if_over();
    }

    fn on_progress(&mut self) {
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
                    self.tell_status();
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

    fn on_joined(&mut self, number: usize) {
        let Some(session) = self.sessions.get_mut(number) else { return };
        let client = session.client;
        if let Some((message, descriptors)) = session.on_report() {
            self.send(client, &message, descriptors);
        }
    }

    fn on_finished(&mut self) {
        let report = self.finishing.as_ref().and_then(Child::report::<Finished>);
        if let Some((finished, _)) = report {
            self.finishing = None;
            self.complete(finished);
        }
    }

    /// An adopted first process has ended; it is asked how until the kernel knows.
    fn on_init_ready(&mut self) {
        let until = *self.exit_until.get_or_insert_with(|| Instant::now() + EXIT_PATIENCE);
        let ended_at = *self.ended_at.get_or_insert_with(Timestamp::now);
        let Some(init) = &mut self.init else { return };
        if init.is_child || init.ended.is_some() {
            return;
        }
        let ended = match child::exit_of_zombie(&init.process) {
            Some(ended) => Some(ended.into()),
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

    /// It has ended, or will not run: from here on only cleaning up remains.
    pub(super) fn end_with(&mut self, outcome: Outcome) {
        if self.outcome.is_some() {
            return;
        }
        self.outcome = Some(outcome);
        self.ended_at.get_or_insert_with(Timestamp::now);
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

    /// Nothing of it is left: writes down how it ended and tells everybody.
    fn complete(&mut self, finished: Finished) {
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
            left_behind: finished.left_behind,
        };
        for left in &record.left_behind {
            warn!(left, "left behind");
        }
        info!(outcome = ?record.outcome, "ended");
        let copy = self.launch.state_dir.join("exit.json");
        for path in [&copy, &self.paths.exit] {
            if let Err(error) = record::write_json(path, &record) {
                warn!(%error, path = %path.display(), "the exit record cannot be written");
            }
        }
        // After the record: who finds neither knows that the monitor died in between.
        let _ = fs::remove_file(&self.paths.process);
        self.init = None;
        self.status.phase = Phase::Ended(record);
        for session in std::mem::take(&mut self.sessions) {
            self.send(session.client, &Message::ExecEnded { code: 128 + SIGKILL }, Vec::new());
        }
        self.tell_status();
        self.farewell_until = Some(Instant::now() + FAREWELL);
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
        if self.kill_at.is_some_and(|at| at <= now) {
            let _ = cgroup::kill(&self.launch.cgroup);
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
            .chain(self.kill_at)
            .chain(self.farewell_until)
            .chain(ask_again)
            .min()
    }

    fn add_client(&mut self, connection: OwnedFd) {
        self.next_client += 1;
        self.clients.extend(Client::new(connection, self.next_client));
    }

    fn send(&mut self, client: u64, message: &Message, descriptors: Vec<OwnedFd>) {
        if let Some(client) = self.clients.iter_mut().find(|other| other.number == client) {
            client.send(message, descriptors);
        }
    }

    fn tell_status(&mut self) {
        let message = Message::Status { status: self.status.clone() };
        for client in self.clients.iter_mut().filter(|client| client.watches) {
            client.send(&message, Vec::new());
        }
    }

    fn on_client(&mut self, number: u64) {
        loop {
            let Some(client) = self.clients.iter_mut().find(|client| client.number == number)
            else {
                return;
            };
            client.flush();
            let answer = match client.hear() {
                Heard::Nothing => return,
                Heard::Unknown(words) => {
                    Some(Message::Refused { reason: format!("unknown request: {words}") })
                }
                Heard::Request(request, descriptors) => {
                    self.on_request(number, request, descriptors)
                }
            };
            if let Some(message) = answer {
                self.send(number, &message, Vec::new());
            }
        }
    }

    fn on_request(
        &mut self,
        client: u64,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Message> {
        let done = |result: Result<(), String>| match result {
            Ok(()) => Some(Message::Done),
            Err(reason) => Some(Message::Refused { reason }),
        };
        match request {
            Request::Hello { version: _ } => Some(Message::Hello {
                version: PROTOCOL_VERSION,
                id: self.launch.id.clone(),
                software: env!("CARGO_PKG_VERSION").to_owned(),
            }),
            Request::Status => Some(Message::Status { status: self.status.clone() }),
            Request::Watch => {
                if let Some(client) = self.clients.iter_mut().find(|c| c.number == client) {
                    client.watches = true;
                }
                Some(Message::Status { status: self.status.clone() })
            }
            Request::Stop { signal, grace_ms } => {
                self.stop(signal, grace_ms);
                Some(Message::Done)
            }
            Request::Signal { signal } => done(self.signal(signal)),
            Request::Exec { exec } => self.exec(client, &exec, descriptors),
        }
    }

    fn stop(&mut self, signal: Option<Signal>, grace_ms: Option<u64>) {
        if self.outcome.is_some() {
            return;
        }
        self.stop_requested = true;
        if self.starting.is_some() && !self.init.as_ref().is_some_and(Init::has_begun) {
            let _ = cgroup::kill(&self.launch.cgroup);
            let reason = "it was stopped before it had started".to_owned();
            self.end_with(Outcome::NotStarted { reason, code: 125 });
            return;
        }
        let grace = Duration::from_millis(grace_ms.unwrap_or(self.launch.stop.grace_ms));
        let now = Instant::now();
        let kill_at = now.checked_add(grace);
        self.kill_at = match (self.kill_at, kill_at) {
            (Some(earlier), Some(at)) => Some(earlier.min(at)),
            (known, at) => known.or(at),
        };
        if grace.is_zero() {
            self.kill_at = Some(now);
        } else {
            let _ = self.signal(signal.unwrap_or(self.launch.stop.signal));
        }
        if let Phase::Running { process, started_at } = &self.status.phase {
            self.status.phase = stopping(process.clone(), *started_at);
            self.tell_status();
        }
    }

    fn signal(&self, signal: Signal) -> Result<(), String> {
        // The program may run although the child that has started it did not come to say so.
        let init = self
            .init
            .as_ref()
            .filter(|init| self.outcome.is_none() && (self.starting.is_none() || init.has_begun()));
        let init = init.ok_or("the container does not run")?;
        send_signal(init.pidfd.as_fd(), signal.number())
            .map_err(|error| format!("could not send {signal}: {error}"))
    }

    fn exec(
        &mut self,
        client: u64,
        request: &ExecRequest,
        streams: Vec<OwnedFd>,
    ) -> Option<Message> {
        let failed =
            |reason: &str| Some(Message::ExecFailed { reason: reason.to_owned(), code: 125 });
        let expected = if request.terminal.is_some() { 0 } else { 3 };
        if request.args.first().is_none_or(String::is_empty) {
            return failed("no command is given");
        }
        if streams.len() != expected {
            return failed("the standard streams did not come along");
        }
        let init = match &self.init {
            Some(init) if self.starting.is_none() && self.outcome.is_none() => init.process.pid,
            _ => return failed("the container does not run"),
        };
        let monitor = self.identity.pid;
        match Session::begin(&self.launch, monitor, init, client, request, streams) {
            Ok(session) => {
                self.sessions.push(session);
                None
            }
            Err(error) => failed(&format!("could not fork: {error}")),
        }
    }

    /// The last steps: no socket, and no groups that nobody else uses.
    fn leave(self) {
        let _ = fs::remove_file(self.paths.socket_dir.join(&self.paths.socket_name));
        let alone = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        if rustix::fs::flock(&self.begin.groups_lock, alone).is_ok() {
            // A group that a process is in cannot be removed, and this process is in one of them.
            let _ = cgroup::enter("/");
            finish::remove_parent_groups(&self.launch);
        }
    }

    /// Everything that the loop waits for.
    pub(super) fn polled(&self) -> Vec<(Source, PollFd<'_>)> {
        let input = PollFlags::IN;
        let mut all = vec![
            (Source::Signals, PollFd::new(&self.begin.signals, input)),
            (Source::Listener, PollFd::new(&self.begin.listener, input)),
        ];
        for (number, fd) in self.output.iter().flat_map(Output::descriptors).enumerate() {
            all.push((Source::Output(number), PollFd::from_borrowed_fd(fd, input)));
        }
        for client in &self.clients {
            let mut flags = input;
            flags.set(PollFlags::OUT, client.has_waiting());
            all.push((Source::Client(client.number), PollFd::new(client, flags)));
        }
        all.extend(self.starting.iter().map(|child| (Source::Starting, PollFd::new(child, input))));
        all.extend(
            self.finishing.iter().map(|child| (Source::Finishing, PollFd::new(child, input))),
        );
        for (number, session) in self.sessions.iter().enumerate() {
            let child = session.child.iter();
            all.extend(child.map(|child| (Source::Session(number), PollFd::new(child, input))));
        }
        // One that is being asked how it ended is ready all the time.
        let init = self.init.iter().filter(|init| !init.is_child && self.exit_until.is_none());
        all.extend(init.map(|init| (Source::Init, PollFd::new(&init.pidfd, input))));
        all
    }
}
