//! Which connection a starting keeper serves: that of a living worker, one that was kept, or a new one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use super::connect;
use super::keeper_mount::{self, MountError};
use super::keeper_worker::{self, RunningWorker};
use super::options::RoleConfig;
use super::protocol::{Answer, FailedStep, Request, WORKER_SOCKET, decode, encode, hello};
use super::session::Session;
use crate::sys::process::ProcessIdentity;
use crate::sys::socket;

/// How long a living worker has to hand the descriptor over.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(5);

/// Why a keeper cannot do its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeeperError {
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
    pub(super) fn step(&self) -> FailedStep {
        match self {
            Self::Mount(MountError::Device { .. }) => FailedStep::Device,
            Self::Mount(_) => FailedStep::Mount,
            Self::Worker(_) => FailedStep::Worker,
            Self::Locked | Self::WorkerSilent | Self::Io { .. } => FailedStep::Keeper,
        }
    }
}

pub(super) fn failed(step: &'static str) -> impl Fn(io::Error) -> KeeperError {
    move |source| KeeperError::Io { step, source }
}

/// The connection that lives, or a new one.
pub(super) fn find_connection(
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
