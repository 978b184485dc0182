//! The keeper: mounts, holds the connection's descriptor, and keeps a worker running. It does nothing else.
//!
//! It is one thread around one poll, parses nothing that came from a network, and never opens, stats or executes
//! anything below the mount: that would wait for a worker that only it can start. It starts in one of three ways:
//!
//! * a worker lives: the descriptor comes from it, and nothing else changes (the keeper before was killed);
//! * it is given a descriptor that somebody kept (a service manager): it starts a worker on it;
//! * neither: what is left of an earlier connection is dead; it is detached, and a new one is mounted.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::keeper_mount::{self, MountError};
use super::keeper_worker::{Attempts, RunningWorker};
use super::options::RoleConfig;
use super::protocol::{
    Answer, ConnectionEvent, FailedStep, FailureKind, KEEPER_SOCKET, KeeperStatus, Leash, Report,
    Request, Stop, WORKER_SOCKET, WorkerState, decode, encode, hello, hello_answer,
};
use super::session::Session;
use super::{connect, keeper_worker};
use crate::sys::process::{ProcessIdentity, SealedExe, inherited};
use crate::sys::signal::SignalFd;
use crate::sys::{cgroup, fuse_device, process, socket};
use crate::telemetry;

/// Where control listens for the report.
pub(super) const REPORT_FD: i32 = 3;
/// A descriptor of the connection that somebody kept.
pub(super) const STORED_FD: i32 = 4;
/// How long the last worker has to notice that the connection has ended.
const END_PATIENCE: Duration = Duration::from_secs(3);
/// How long a living worker has to hand the descriptor over.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(5);

/// Why a keeper cannot do its work.
#[derive(Debug, thiserror::Error)]
enum KeeperError {
    #[error("another keeper serves this run directory")]
    Locked,
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("a worker lives and does not hand over the connection")]
    WorkerSilent,
    #[error("worker could not be started: {0}")]
    Worker(String),
    #[error("could not {step}")]
    Io {
        step: &'static str,
        #[source]
        source: io::Error,
    },
}

impl KeeperError {
    fn step(&self) -> FailedStep {
        match self {
            Self::Mount(MountError::Device { .. }) => FailedStep::Device,
            Self::Mount(_) => FailedStep::Mount,
            Self::Worker(_) => FailedStep::Worker,
            Self::Locked | Self::WorkerSilent | Self::Io { .. } => FailedStep::Keeper,
        }
    }
}

struct Client {
    connection: OwnedFd,
    wants_events: bool,
}

struct Keeper {
    config: RoleConfig,
    exe: SealedExe,
    identity: ProcessIdentity,
    device: OwnedFd,
    minor: u32,
    worker: Option<RunningWorker>,
    attempts: Attempts,
    restart_at: Option<Instant>,
    restarts: u64,
    report: Option<OwnedFd>,
    clients: Vec<Client>,
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

fn failed(step: &'static str) -> impl Fn(io::Error) -> KeeperError {
    move |source| KeeperError::Io { step, source }
}

fn run(
    config: RoleConfig,
    report: Option<&OwnedFd>,
    stored: Option<OwnedFd>,
) -> Result<(), KeeperError> {
    let lock = keeper_worker::lock(&config.directory.join("keeper.lock"))
        .map_err(failed("open the lock"))?
        .ok_or(KeeperError::Locked)?;
    // A service that stops its keeper with a signal wants it gone, not the mount.
    let signals = SignalFd::block(&[15, 2]).map_err(failed("block signals"))?;
    if let Some(group) = &config.cgroup {
        for (path, error) in cgroup::enter(group).map_err(failed("list control groups"))? {
            tracing::warn!(path = %path.display(), %error, "not in this control group");
        }
    }
    let exe = SealedExe::of_current().map_err(failed("copy the executable"))?;
    let identity = ProcessIdentity::current().map_err(failed("read /proc"))?;
    let (device, minor, worker) = find_connection(&config, stored)?;
    let directory = File::open(&config.directory).map_err(failed("open the directory"))?;
    let listener =
        socket::listen(directory.as_fd(), KEEPER_SOCKET).map_err(failed("make the socket"))?;
    let mut keeper = Keeper {
        config,
        exe,
        identity,
        device,
        minor,
        worker,
        attempts: Attempts::default(),
        restart_at: None,
        restarts: 0,
        report: report.and_then(|report| report.try_clone().ok()),
        clients: Vec::new(),
        _lock: lock,
    };
    if keeper.worker.is_some() {
        keeper.tell_started();
    } else {
        keeper.start_worker();
    }
    keeper.serve(&listener, &signals)
}

/// The connection that lives, or a new one.
fn find_connection(
    config: &RoleConfig,
    stored: Option<OwnedFd>,
) -> Result<(OwnedFd, u32, Option<RunningWorker>), KeeperError> {
    let mount_point = config.mount_point();
    let source = config.mount_source();
    let mounted = keeper_mount::minor(&mount_point, &source).map_err(failed("read /proc"))?;
    if let Some((device, process)) = ask_worker(config)? {
        tracing::info!(pid = process.pid, "took the connection over from the worker");
        let worker = RunningWorker::adopt(process).map_err(failed("watch the worker"))?;
        return Ok((device, mounted.unwrap_or_default(), Some(worker)));
    }
    if let (Some(device), Some(minor)) = (stored, mounted) {
        let usable = Session::open(&config.directory)
            .is_ok_and(|session| connect::granted(&session).is_some_and(|granted| granted.resend));
        if usable {
            tracing::info!("took over a connection that was kept");
            return Ok((device, minor, None));
        }
    }
    let (device, minor) = keeper_mount::mount(config)?;
    Ok((device, minor, None))
}

/// The descriptor from a worker that lives without a keeper.
fn ask_worker(config: &RoleConfig) -> Result<Option<(OwnedFd, ProcessIdentity)>, KeeperError> {
    let lives = keeper_worker::lock(&config.directory.join(keeper_worker::WORKER_LOCK))
        .map_err(failed("open the worker's lock"))?
        .is_none();
    if !lives {
        return Ok(None);
    }
    let deadline = Instant::now() + HANDOVER_PATIENCE;
    loop {
        if let Some(answer) = try_ask_worker(config) {
            return Ok(Some(answer));
        }
        // It may be starting, or ending.
        let lock = config.directory.join(keeper_worker::WORKER_LOCK);
        if keeper_worker::lock(&lock).is_ok_and(|lock| lock.is_some()) {
            return Ok(None);
        }
        if Instant::now() >= deadline {
            return Err(KeeperError::WorkerSilent);
        }
        wait(Duration::from_millis(50));
    }
}

fn try_ask_worker(config: &RoleConfig) -> Option<(OwnedFd, ProcessIdentity)> {
    let directory = File::open(&config.directory).ok()?;
    let connection = socket::connect(directory.as_fd(), WORKER_SOCKET).ok()?;
    let patience = Some(Duration::from_secs(2));
    rustix::net::sockopt::set_socket_timeout(
        &connection,
        rustix::net::sockopt::Timeout::Recv,
        patience,
    )
    .ok()?;
    socket::send(connection.as_fd(), &encode(&hello()), &[]).ok()?;
    let Some(Answer::Hello { process, .. }) = decode(&socket::receive(connection.as_fd()).ok()?.0)
    else {
        return None;
    };
    socket::send(connection.as_fd(), &encode(&Request::Descriptor), &[]).ok()?;
    let (_, mut descriptors) = socket::receive(connection.as_fd()).ok()?;
    Some((descriptors.pop()?, process))
}

/// A pause in a process that has nothing else to do yet.
fn wait(pause: Duration) {
    if let Ok(pause) = rustix::time::Timespec::try_from(pause) {
        let _ = rustix::event::poll(&mut [], Some(&pause));
    }
}

impl Keeper {
    fn serve(&mut self, listener: &OwnedFd, signals: &SignalFd) -> Result<(), KeeperError> {
        loop {
            let ready = self.poll(listener, signals).map_err(failed("poll"))?;
            if ready.signals && signals.next().map_err(failed("read a signal"))?.is_some() {
                // The worker goes on, and the next keeper takes the descriptor from it.
                return Ok(());
            }
            if ready.leash {
                self.hear_worker();
            }
            if ready.worker {
                self.worker_ended()?;
            }
            if self.restart_at.is_some_and(|at| at <= Instant::now()) {
                self.restart_at = None;
                self.start_worker();
            }
            self.give_up_if_useless()?;
            if ready.listener
                && let Ok(connection) = socket::accept(listener.as_fd())
            {
                self.clients.push(Client { connection, wants_events: false });
            }
            for place in ready.clients.into_iter().rev() {
                match self.answer(place) {
                    Step::Keep => {}
                    Step::Drop => drop(self.clients.swap_remove(place)),
                    Step::End => return Ok(()),
                }
            }
        }
    }

    fn poll(&self, listener: &OwnedFd, signals: &SignalFd) -> io::Result<Ready> {
        let mut fds =
            vec![PollFd::new(listener, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        let leash = self.worker.as_ref().and_then(|worker| worker.leash.as_ref());
        if let Some(worker) = &self.worker {
            fds.push(PollFd::new(&worker.pidfd, PollFlags::IN));
        }
        if let Some(leash) = leash {
            fds.push(PollFd::new(leash, PollFlags::IN));
        }
        let first_client = fds.len();
        for client in &self.clients {
            fds.push(PollFd::new(&client.connection, PollFlags::IN));
        }
        let timeout = self
            .restart_at
            .map(|at| at.saturating_duration_since(Instant::now()))
            .and_then(|pause| rustix::time::Timespec::try_from(pause).ok());
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |place: usize| !fds[place].revents().is_empty();
        Ok(Ready {
            listener: is_ready(0),
            signals: is_ready(1),
            worker: self.worker.is_some() && is_ready(2),
            leash: leash.is_some() && is_ready(3),
            clients: (0..self.clients.len()).filter(|n| is_ready(first_client + n)).collect(),
        })
    }

    fn start_worker(&mut self) {
        match RunningWorker::start(&self.config, &self.exe, self.device.as_fd()) {
            Ok(worker) => self.worker = Some(worker),
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
            None => {}
        }
    }

    /// The worker is gone: the next one, or the next connection.
    fn worker_ended(&mut self) -> Result<(), KeeperError> {
        // What it said last may be behind its end in the same poll.
        self.hear_worker();
        let Some(worker) = self.worker.take() else { return Ok(()) };
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
        if end.is_own_fault {
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

    fn count_failure(&mut self, reason: String) {
        let pause = self.attempts.fail(reason.clone());
        self.restart_at = Some(Instant::now() + pause);
        if self.attempts.is_failing() {
            let attempts = self.attempts.count();
            tracing::error!(attempts, reason, "worker cannot be started; reads wait");
            self.publish(&ConnectionEvent::WorkerFailing { attempts, reason });
        }
    }

    /// A connection that never served is of no use to anybody; control falls back to full pulls.
    fn give_up_if_useless(&mut self) -> Result<(), KeeperError> {
        let never_served = Session::open(&self.config.directory)
            .is_ok_and(|session| session.established().is_none());
        if self.attempts.is_failing() && self.report.is_some() && never_served {
            let reason = self.attempts.reason().to_owned();
            self.end(Stop::Force);
            return Err(KeeperError::Worker(reason));
        }
        if self.attempts.is_failing() {
            // Somebody depends on the connection: it is kept, and control must not wait.
            self.tell_started();
        }
        Ok(())
    }

    fn tell_started(&mut self) {
        if let Some(report) = self.report.take() {
            let _ = socket::send(report.as_fd(), &encode(&Report::Started), &[]);
        }
    }

    fn publish(&mut self, event: &ConnectionEvent) {
        let message = encode(&Answer::Event { event: event.clone() });
        // A reader that does not keep up is dropped; it asks for the state when it comes back.
        self.clients.retain(|client| {
            !client.wants_events || socket::send(client.connection.as_fd(), &message, &[]).is_ok()
        });
    }

    fn answer(&mut self, place: usize) -> Step {
        let Some(client) = self.clients.get_mut(place) else { return Step::Keep };
        let Ok((packet, _)) = socket::receive(client.connection.as_fd()) else {
            return Step::Drop;
        };
        if packet.is_empty() {
            return Step::Drop;
        }
        let mut step = Step::Keep;
        let mut descriptor = None;
        let answer = match decode(&packet) {
            Some(Request::Hello { .. }) => hello_answer(&self.identity),
            Some(Request::Status { .. }) => Answer::Keeper { status: self.status() },
            Some(Request::Descriptor) => {
                descriptor = Some(self.device.as_fd());
                Answer::Done
            }
            Some(Request::Events) => {
                client.wants_events = true;
                Answer::Done
            }
            Some(Request::Stop { how }) => match self.may_end(how) {
                Ok(()) => {
                    self.end(how);
                    step = Step::End;
                    Answer::Done
                }
                Err(answer) => answer,
            },
            _ => Answer::Failed {
                kind: FailureKind::Unsupported,
                message: "the keeper does not know this request".to_owned(),
            },
        };
        let Some(client) = self.clients.get(place) else { return step };
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        match socket::send(client.connection.as_fd(), &encode(&answer), &descriptors) {
            Err(_) if matches!(step, Step::Keep) => Step::Drop,
            _ => step,
        }
    }

    fn status(&self) -> KeeperStatus {
        let worker = match &self.worker {
            Some(worker) if worker.is_ready => {
                WorkerState::Running { process: worker.identity.clone() }
            }
            _ if self.attempts.is_failing() => WorkerState::Failing {
                attempts: self.attempts.count(),
                reason: self.attempts.reason().to_owned(),
            },
            _ => WorkerState::Starting,
        };
        KeeperStatus {
            process: self.identity.clone(),
            worker,
            restarts: self.restarts,
            connection: self.minor,
        }
    }

    fn may_end(&self, how: Stop) -> Result<(), Answer> {
        let open = Session::open(&self.config.directory).map_or(0, |session| session.open_files());
        if how == Stop::IfUnused && open > 0 {
            return Err(Answer::Failed {
                kind: FailureKind::Busy,
                message: format!("{open} files on the mount are open"),
            });
        }
        Ok(())
    }

    /// Ends the connection, the worker and the files of both.
    fn end(&mut self, how: Stop) {
        if how == Stop::Force
            && let Err(error) = fuse_device::abort(self.minor)
        {
            tracing::warn!(%error, "could not abort the connection; it ends with its descriptor");
        }
        if let Err(error) = keeper_mount::detach(&self.config) {
            tracing::warn!(%error, "could not detach the mount");
        }
        if let Some(worker) = self.worker.take() {
            if how == Stop::IfUnused && !worker.ends_within(END_PATIENCE) {
                // An overlay still has the file system; whoever stops us was to take care of that.
                let _ = fuse_device::abort(self.minor);
            }
            if !worker.ends_within(END_PATIENCE) {
                let _ = process::send_signal(worker.pidfd.as_fd(), 9);
                worker.ends_within(END_PATIENCE);
            }
            worker.reap();
        }
        keeper_mount::sweep(&self.config);
    }
}

struct Ready {
    listener: bool,
    signals: bool,
    worker: bool,
    leash: bool,
    clients: Vec<usize>,
}

enum Step {
    Keep,
    Drop,
    End,
}
