//! A monitor from control's side: start one, find one, replace a dead one, watch it, tell it to stop.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::connection::{self, Call, Connection};
use super::record::{self, ExitRecord, Phase, RunRecord, Status};
use super::wire::{CONNECTION_DESCRIPTOR, PROCESS_DESCRIPTOR, Request};
use super::{ContainerId, Launch, LaunchProblem, RunPaths, Signal};
use crate::boundary::Boundary;
use crate::sys::process::{ProcessIdentity, RoleChild, RoleCommand, SealedExe};
use crate::sys::socket;

/// The action of a monitor that gets a pidfd of the container's first process along.
pub(super) const ADOPT_WITH_PROCESS: &str = "adopt-with-process";

/// Requests that wait for the connection; each caller waits for its answer, so more means many callers.
const QUEUE: usize = 16;

/// A monitor, and through it a container. Clones speak to the same monitor; the connection closes with the last.
/// The monitor and its container do not notice.
#[derive(Debug, Clone)]
pub struct MonitorHandle {
    id: ContainerId,
    run_dir: PathBuf,
    seen: watch::Receiver<Seen>,
    calls: mpsc::Sender<Call>,
}

/// What is known of a monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What it last said.
    pub status: Status,
    /// Whether it can say more.
    pub link: Link,
}

/// Whether a monitor can be spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It answers.
    Alive,
    /// It has closed the connection: after [`Phase::Ended`] it is done, else it is dead and must be replaced with
    /// [`MonitorHandle::attach`].
    Closed,
}

/// Why there is no monitor.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The launch can never work.
    #[error("container `{id}` cannot be launched")]
    Launch {
        /// Which container.
        id: ContainerId,
        /// Why.
        #[source]
        source: LaunchProblem,
    },
    /// Its directory or process could not be made.
    #[error("could not start a monitor for container `{id}`")]
    Spawn {
        /// Which container.
        id: ContainerId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody answers on its socket.
    #[error("could not connect to the monitor of container `{id}`")]
    Connect {
        /// Which container.
        id: ContainerId,
        /// Why: `NotFound` and `ConnectionRefused` mean that there is none.
        #[source]
        source: io::Error,
    },
    /// The monitor said no.
    #[error("monitor of container `{id}` refuses: {reason}")]
    Refused {
        /// Which container.
        id: ContainerId,
        /// Its words.
        reason: String,
    },
    /// The monitor went away before it answered.
    #[error("monitor of container `{0}` was lost")]
    Lost(ContainerId),
}

impl MonitorHandle {
    /// Starts a container: a new monitor that carries out `launch`. Returns as soon as the monitor has accepted it;
    /// the container is [`Phase::Starting`] then. The same id may be launched again after it has ended.
    ///
    /// # Errors
    /// When the launch is impossible, the monitor cannot be started, or one of this id is alive.
    pub async fn launch(exe: &SealedExe, launch: &Launch) -> Result<Self, MonitorError> {
        launch.check().map_err(|source| MonitorError::Launch { id: launch.id.clone(), source })?;
        WaitingMonitor::start(exe, &launch.run_dir, &launch.id)?.launch(exe, launch).await
    }

    /// Connects to the living monitor of `id`.
    ///
    /// # Errors
    /// [`MonitorError::Connect`] when there is none.
    pub async fn connect(run_dir: &Path, id: &ContainerId) -> Result<Self, MonitorError> {
        let socket = open_socket(run_dir, id)
            .map_err(|source| MonitorError::Connect { id: id.clone(), source })?;
        Self::begin(run_dir, id, Connection { socket, child: None }).await
    }

    /// Starts a monitor for a container whose own has died. It takes over what runs, or finds out how it ended.
    ///
    /// # Errors
    /// When the monitor cannot be started, one is alive, or nothing is known of such a container.
    pub async fn adopt(
        exe: &SealedExe,
        run_dir: &Path,
        id: &ContainerId,
    ) -> Result<Self, MonitorError> {
        let connection = spawn(exe, run_dir, id, "adopt", None)?;
        Self::begin(run_dir, id, connection).await
    }

    /// Connects to the monitor of `id`, or replaces it if it is dead. For a container that has ended cleanly, read
    /// [`exit_record`] instead.
    ///
    /// # Errors
    /// As [`MonitorHandle::adopt`].
    pub async fn attach(
        exe: &SealedExe,
        run_dir: &Path,
        id: &ContainerId,
    ) -> Result<Self, MonitorError> {
        Self::attach_with(exe, run_dir, id, None).await
    }

    /// As [`MonitorHandle::attach`]. `process` is a pidfd of the container's first process, opened while that ran: with
    /// it an exit code is not lost that nobody saw (Linux 6.15).
    ///
    /// # Errors
    /// As [`MonitorHandle::adopt`].
    pub async fn attach_with(
        exe: &SealedExe,
        run_dir: &Path,
        id: &ContainerId,
        process: Option<OwnedFd>,
    ) -> Result<Self, MonitorError> {
        match Self::connect(run_dir, id).await {
            Err(MonitorError::Connect { .. } | MonitorError::Lost(_)) => {
                let action = if process.is_some() { ADOPT_WITH_PROCESS } else { "adopt" };
                let connection = spawn(exe, run_dir, id, action, process)?;
                Self::begin(run_dir, id, connection).await
            }
            other => other,
        }
    }

    async fn begin(
        run_dir: &Path,
        id: &ContainerId,
        connection: Connection,
    ) -> Result<Self, MonitorError> {
        let (calls, queue) = mpsc::channel(QUEUE);
        let mut seen = connection::begin(id, connection, queue).await?;
        seen.mark_changed();
        Ok(Self { id: id.clone(), run_dir: run_dir.to_owned(), seen, calls })
    }

    /// Which container.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// What is known now.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits for a change since the last call on this clone and returns what is known then. The first call returns at
    /// once, and so does every call when the link is closed. Cancel-safe.
    pub async fn changed(&mut self) -> Seen {
        if self.seen.borrow().link == Link::Alive {
            let _ = self.seen.changed().await;
        }
        self.seen.borrow_and_update().clone()
    }

    /// Waits until the container has ended. `None`: the monitor was lost before that.
    pub async fn ended(&self) -> Option<ExitRecord> {
        let mut seen = self.seen.clone();
        let ended =
            |seen: &Seen| seen.link == Link::Closed || matches!(seen.status.phase, Phase::Ended(_));
        let last = match seen.wait_for(ended).await {
            Ok(seen) => seen.status.phase.clone(),
            Err(_) => self.seen.borrow().status.phase.clone(),
        };
        match last {
            Phase::Ended(record) => Some(record),
            // It may have written the record and died before it could say so.
            Phase::Starting | Phase::Running { .. } | Phase::Stopping { .. } => {
                exit_record(&self.run_dir, &self.id).ok().flatten()
            }
        }
    }

    /// Asks the container to end: `signal` now, the kill of everything in it after `grace`; the launch's own values
    /// where `None`. Returns when the monitor has begun; a second call may only shorten the grace.
    ///
    /// # Errors
    /// When the monitor is gone.
    pub async fn stop(
        &self,
        signal: Option<Signal>,
        grace: Option<Duration>,
    ) -> Result<(), MonitorError> {
        let grace_ms = grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        self.call(Request::Stop { signal, grace_ms }).await
    }

    /// Sends a signal to the container's first process; nothing else follows from it.
    ///
    /// # Errors
    /// When the container does not run, or the monitor is gone.
    pub async fn signal(&self, signal: Signal) -> Result<(), MonitorError> {
        self.call(Request::Signal { signal }).await
    }

    async fn call(&self, request: Request) -> Result<(), MonitorError> {
        let (answer, answered) = oneshot::channel();
        let lost = || MonitorError::Lost(self.id.clone());
        self.calls.send(Call { request, answer }).await.map_err(|_| lost())?;
        match answered.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(MonitorError::Refused { id: self.id.clone(), reason }),
            Err(_) => Err(lost()),
        }
    }
}

/// A monitor that has no container yet. It can be started before all that a launch needs is known: whatever a new
/// process does first is done by then. Dropped, it goes.
#[derive(Debug)]
pub struct WaitingMonitor {
    id: ContainerId,
    run_dir: PathBuf,
    connection: Option<Connection>,
}

impl WaitingMonitor {
    /// Starts one for the container `id`.
    ///
    /// # Errors
    /// When its directories or the process cannot be made.
    pub fn start(exe: &SealedExe, run_dir: &Path, id: &ContainerId) -> Result<Self, MonitorError> {
        let connection = Some(spawn(exe, run_dir, id, "launch", None)?);
        Ok(Self { id: id.clone(), run_dir: run_dir.to_owned(), connection })
    }

    /// As [`MonitorHandle::launch`], for a launch of the same container. One that has died while it waited is replaced.
    ///
    /// # Errors
    /// As there.
    pub async fn launch(
        mut self,
        exe: &SealedExe,
        launch: &Launch,
    ) -> Result<MonitorHandle, MonitorError> {
        let id = self.id.clone();
        launch.check().map_err(|source| MonitorError::Launch { id: id.clone(), source })?;
        // Taken over by the monitor once it holds the container's lock: a living one keeps its own.
        record::write_json(&next_launch(&launch.paths()), launch)
            .map_err(|source| MonitorError::Spawn { id: id.clone(), source })?;
        Boundary::LAUNCH_WRITTEN.reach(&self.run_dir);
        let has_ended = |child: &RoleChild| matches!(child.try_wait(), Ok(Some(_)));
        let connection = match self.connection.take() {
            Some(connection) if !connection.child.as_ref().is_some_and(has_ended) => connection,
            _ => spawn(exe, &self.run_dir, &id, "launch", None)?,
        };
        MonitorHandle::begin(&self.run_dir, &id, connection).await
    }
}

impl Drop for WaitingMonitor {
    fn drop(&mut self) {
        self.connection.take().into_iter().for_each(connection::abandon);
    }
}

fn spawn(
    exe: &SealedExe,
    run_dir: &Path,
    id: &ContainerId,
    action: &str,
    process: Option<OwnedFd>,
) -> Result<Connection, MonitorError> {
    let failed = |source| MonitorError::Spawn { id: id.clone(), source };
    let paths = RunPaths::new(run_dir, id);
    for dir in [&paths.dir, &paths.socket_dir] {
        make_private_dir(dir).map_err(failed)?;
    }
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&paths.monitor_log)
        .map_err(failed)?;
    let (socket, theirs) = socket::pair().map_err(failed)?;
    let arguments: [&OsStr; 5] = [
        crate::ROLE_ARGUMENT.as_ref(),
        "monitor".as_ref(),
        action.as_ref(),
        run_dir.as_os_str(),
        id.as_str().as_ref(),
    ];
    let mut command = RoleCommand::new(arguments).descriptor(theirs, CONNECTION_DESCRIPTOR);
    if let Some(process) = process {
        command = command.descriptor(process, PROCESS_DESCRIPTOR);
    }
    let child = command.log_to(&log).and_then(|command| command.spawn(exe)).map_err(failed)?;
    Ok(Connection { socket, child: Some(child) })
}

/// Where a launch waits for its monitor.
pub(super) fn next_launch(paths: &RunPaths) -> PathBuf {
    paths.dir.join("launch.next.json")
}

/// A connection to the monitor of `id`.
pub(super) fn open_socket(run_dir: &Path, id: &ContainerId) -> io::Result<OwnedFd> {
    let paths = RunPaths::new(run_dir, id);
    let dir = File::open(&paths.socket_dir)?;
    socket::connect(dir.as_fd(), &paths.socket_name)
}

fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// The containers that `run_dir` knows: running, ended, or left by a dead monitor.
///
/// # Errors
/// When the directory cannot be read; its absence is an empty list.
pub fn list(run_dir: &Path) -> io::Result<Vec<ContainerId>> {
    let entries = match fs::read_dir(run_dir.join("containers")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry?;
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        ids.extend(id.filter(|_| entry.path().join("launch.json").exists()));
    }
    ids.sort();
    Ok(ids)
}

/// What `id` was last launched with; `None` when nothing is known of it.
///
/// # Errors
/// When the record cannot be read.
pub fn launch_record(run_dir: &Path, id: &ContainerId) -> io::Result<Option<Launch>> {
    record::read_json(&RunPaths::new(run_dir, id).launch)
}

/// The first process of the run of `id` that is under way, as its monitor wrote it down; it may have ended since.
///
/// # Errors
/// When the record cannot be read.
pub fn running_process(run_dir: &Path, id: &ContainerId) -> io::Result<Option<ProcessIdentity>> {
    let run: Option<RunRecord> = record::read_json(&RunPaths::new(run_dir, id).process)?;
    Ok(run.map(|run| run.process))
}

/// How the last run of `id` ended; `None` while it runs, or when its monitor died and none has replaced it.
///
/// # Errors
/// When the record cannot be read.
pub fn exit_record(run_dir: &Path, id: &ContainerId) -> io::Result<Option<ExitRecord>> {
    record::read_json(&RunPaths::new(run_dir, id).exit)
}
