//! Which connection a starting keeper serves: that of a living worker, one that was kept, or a new one. And whose place
//! it takes: nobody's, or that of a keeper of another build.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::connect;
use super::keeper_mount::{self, MountError};
use super::keeper_worker::{self, RunningWorker};
use super::options::{Place, RoleConfig};
use super::protocol::{
    Answer, FailedStep, KEEPER_SOCKET, Request, WORKER_SOCKET, check_versions, decode, encode,
    hello,
};
use super::session::Session;
use crate::sys::process::{self, ProcessIdentity};
use crate::sys::{fuse_device, socket};

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
    #[error("the keeper of another build could not be succeeded: {0}")]
    Predecessor(String),
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
            Self::Locked | Self::WorkerSilent | Self::Predecessor(_) | Self::Io { .. } => {
                FailedStep::Keeper
            }
        }
    }
}

pub(super) fn failed(step: &'static str) -> impl Fn(io::Error) -> KeeperError {
    move |source| KeeperError::Io { step, source }
}

/// A connection to serve.
pub(super) struct Found {
    pub(super) device: OwnedFd,
    pub(super) minor: u32,
    /// The worker that serves it already.
    pub(super) worker: Option<RunningWorker>,
}

/// Takes the lock of the keeper; from a keeper of another build, if told to, with its descriptor. Nothing is touched
/// before it is known that this build understands the state of the connection.
pub(super) fn take_place(config: &RoleConfig) -> Result<(File, Option<OwnedFd>), KeeperError> {
    let path = config.directory.join("keeper.lock");
    let try_lock = || keeper_worker::lock(&path).map_err(failed("open the lock"));
    if let Some(lock) = try_lock()? {
        return Ok((lock, None));
    }
    if config.place == Place::Free {
        return Err(KeeperError::Locked);
    }
    let refused = |reason: String| KeeperError::Predecessor(reason);
    Session::open(&config.directory).map_err(|error| refused(error.to_string()))?;
    let before = ask(config, KEEPER_SOCKET, &config.build).map_err(refused)?;
    if before.build == config.build {
        return Err(KeeperError::Locked);
    }
    tracing::info!(pid = before.process.pid, build = before.build, "takes the place of a keeper");
    if let Some(pidfd) = before.process.open() {
        // It holds nothing that this process does not have by now, so its end changes nothing.
        let _ = process::send_signal(pidfd.as_fd(), 15);
        let deadline = Instant::now() + HANDOVER_PATIENCE;
        while !process::has_ended(pidfd.as_fd()) {
            if Instant::now() >= deadline {
                let _ = process::send_signal(pidfd.as_fd(), 9);
            }
            wait(Duration::from_millis(5));
        }
    }
    // Another may have been started in its place meanwhile; then that one is good enough for now.
    Ok((try_lock()?.ok_or(KeeperError::Locked)?, Some(before.device)))
}

/// The connection that lives, or a new one.
pub(super) fn find_connection(
    config: &RoleConfig,
    stored: Option<OwnedFd>,
) -> Result<Found, KeeperError> {
    let mount_point = config.mount_point();
    let source = config.mount_source();
    let mounted = keeper_mount::minor(&mount_point, &source).map_err(failed("read /proc"))?;
    let stored = stored.zip(mounted).filter(|(device, minor)| is_usable(config, device, *minor));
    match ask_worker(config, stored.is_some())? {
        Worker::None => {}
        Worker::HandedOver(Holder { device, process, build }) => {
            tracing::info!(pid = process.pid, "took the connection over from the worker");
            let worker =
                RunningWorker::adopt(process, build).map_err(failed("watch the worker"))?;
            let minor = mounted.unwrap_or_default();
            return Ok(Found { device, minor, worker: Some(worker) });
        }
        Worker::Silent(process) => {
            // The watchdog looks whether it hangs.
            if let Some((device, minor)) = stored {
                let worker = RunningWorker::adopt(process, String::new())
                    .map_err(failed("watch the worker"))?;
                return Ok(Found { device, minor, worker: Some(worker) });
            }
            return Err(KeeperError::WorkerSilent);
        }
    }
    if let Some((device, minor)) = stored {
        tracing::info!("took over a connection that was kept");
        return Ok(Found { device, minor, worker: None });
    }
    let (device, minor) = keeper_mount::mount(config)?;
    Ok(Found { device, minor, worker: None })
}

/// Whether a descriptor that somebody kept is of the connection that is mounted, and that can be taken over.
fn is_usable(config: &RoleConfig, device: &OwnedFd, minor: u32) -> bool {
    let resend = Session::open(&config.directory)
        .is_ok_and(|session| connect::granted(&session).is_some_and(|granted| granted.resend));
    resend && fuse_device::is_connected(device.as_fd(), minor)
}

/// Whether a worker lives that another keeper started.
enum Worker {
    None,
    HandedOver(Holder),
    /// It lives and does not answer.
    Silent(ProcessIdentity),
}

/// Somebody who handed the descriptor over.
struct Holder {
    device: OwnedFd,
    process: ProcessIdentity,
    build: String,
}

/// The descriptor from a worker that lives without a keeper.
fn ask_worker(config: &RoleConfig, have_descriptor: bool) -> Result<Worker, KeeperError> {
    let path = config.directory.join(keeper_worker::WORKER_LOCK);
    let lives = || keeper_worker::lock(&path).map(|lock| lock.is_none());
    if !lives().map_err(failed("open the worker's lock"))? {
        return Ok(Worker::None);
    }
    let deadline = Instant::now() + HANDOVER_PATIENCE;
    loop {
        match ask(config, WORKER_SOCKET, &config.build) {
            Ok(holder) => return Ok(Worker::HandedOver(holder)),
            Err(reason) => tracing::debug!(reason, "the worker does not hand over yet"),
        }
        // It may be starting, or ending.
        if lives().is_ok_and(|lives| !lives) {
            return Ok(Worker::None);
        }
        if Instant::now() >= deadline {
            let listener = listener_of(config).filter(|_| have_descriptor);
            return listener.map(Worker::Silent).ok_or(KeeperError::WorkerSilent);
        }
        wait(Duration::from_millis(50));
    }
}

/// Asks whoever listens at `name` for the descriptor.
fn ask(config: &RoleConfig, name: &str, build: &str) -> Result<Holder, String> {
    let told = |error: io::Error| error.to_string();
    let directory = File::open(&config.directory).map_err(told)?;
    let connection = socket::connect_now(directory.as_fd(), name).map_err(told)?;
    let patience = Some(Duration::from_secs(2));
    rustix::io::ioctl_fionbio(&connection, false).map_err(|error| told(error.into()))?;
    set_socket_timeout(&connection, Timeout::Recv, patience).map_err(|error| told(error.into()))?;
    socket::send(connection.as_fd(), &encode(&hello(build)), &[]).map_err(told)?;
    let (packet, _) = socket::receive(connection.as_fd()).map_err(told)?;
    let (process, build) = match decode(&packet) {
        Some(Answer::Hello { process, build, protocol, oldest }) => {
            check_versions(protocol, oldest)?;
            (process, build)
        }
        Some(Answer::Failed { message, .. }) => return Err(message),
        _ => return Err("it does not say hello".to_owned()),
    };
    socket::send(connection.as_fd(), &encode(&Request::Descriptor), &[]).map_err(told)?;
    let (_, mut descriptors) = socket::receive(connection.as_fd()).map_err(told)?;
    let device = descriptors.pop().ok_or("it has no descriptor")?;
    Ok(Holder { device, process, build })
}

/// Whoever listens on the worker's socket.
fn listener_of(config: &RoleConfig) -> Option<ProcessIdentity> {
    let directory = File::open(&config.directory).ok()?;
    let connection = socket::connect_now(directory.as_fd(), WORKER_SOCKET).ok()?;
    ProcessIdentity::of(socket::peer(&connection).ok()?.pid).ok()
}

/// A pause in a process that has nothing else to do yet.
fn wait(pause: Duration) {
    if let Ok(pause) = rustix::time::Timespec::try_from(pause) {
        let _ = rustix::event::poll(&mut [], Some(&pause));
    }
}
