//! The worker: serves every lazy layer of the host, confined, from the state of the connection.
//!
//! Its start is the same whether the connection is new or was served before, and refuses what it does not understand
//! before it touches the descriptor. In this order, because each step needs rights that the next one takes away:
//! lock, state, indexes and layout blobs, socket, confinement, threads, INIT, serve. One that succeeds a worker of
//! another build looks at state and indexes before that one goes, so that a build that cannot serve replaces nobody.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use super::connect::{self, ConnectError, Granted, Negotiation};
use super::handles::{DeviceBacking, Handles};
use super::keeper_worker::{CONNECTION_ENDED, DEVICE_FD, LEASH_FD, WORKER_LOCK, lock};
use super::options::{Place, RoleConfig};
use super::protocol::{ConnectionEvent, Leash, WORKER_SOCKET, decode, encode};
use super::served::{Served, Stripes};
use super::session::{Session, SessionError, SlotState};
use super::translator::Translator;
use super::tree::Tree;
use super::worker_layers::{Layers, LayersError, Prepared};
use super::worker_socket;
use crate::lazy::{Engine, EngineOptions, EventSink, Limits, OpenError};
use crate::registry::{Client, ClientError};
use crate::store::{Store, StoreError};
use crate::sys::confine::{self, Admin, Means, Rights};
use crate::sys::process::{ProcessIdentity, inherited};
use crate::sys::{process, signal, socket};
use crate::telemetry;

/// Threads that take requests from the kernel; none of them ever waits for the network.
const THREADS: usize = 3;
/// Events that wait for a reader.
const EVENT_ROOM: usize = 256;
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: rustix::time::Timespec =
    rustix::time::Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Why a worker cannot serve.
#[derive(Debug, thiserror::Error)]
enum WorkerError {
    #[error("another worker serves this connection")]
    Locked,
    #[error("there is no connection yet that could be taken over")]
    NotEstablished,
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Layers(#[from] LayersError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Engine(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("could not {step}")]
    Io {
        step: &'static str,
        #[source]
        source: std::io::Error,
    },
}

fn failed(step: &'static str) -> impl Fn(std::io::Error) -> WorkerError {
    move |source| WorkerError::Io { step, source }
}

/// Runs the role; its only argument is its configuration.
pub(crate) fn worker_main(args: Vec<OsString>) -> ExitCode {
    let config = args.first().and_then(|text| decode::<RoleConfig>(text.as_encoded_bytes()));
    let Some(config) = config else { return ExitCode::from(2) };
    let level = config.log_level();
    let _ = telemetry::init_logging(&telemetry::LogOptions {
        level,
        format: telemetry::LogFormat::Text,
    });
    signal::ignore_sigpipe();
    let (Ok(device), Ok(leash)) = (inherited(DEVICE_FD), inherited(LEASH_FD)) else {
        return ExitCode::from(2);
    };
    match serve(&config, &device, &leash) {
        Ok(()) => ExitCode::from(CONNECTION_ENDED),
        Err(error) => {
            let message = telemetry::Chain(&error).to_string();
            tracing::error!(error = message, "worker cannot serve");
            let _ = socket::send(leash.as_fd(), &encode(&Leash::Failed { message }), &[]);
            ExitCode::FAILURE
        }
    }
}

/// Serves until the connection ends.
fn serve(config: &RoleConfig, device: &OwnedFd, leash: &OwnedFd) -> Result<(), WorkerError> {
    if config.place == Place::Succeed {
        stand_by(config, leash)?;
    }
    let _lock = take_lock(config)?;
    let session = Arc::new(Session::open(&config.directory)?);
    let (negotiation, prepared) = prepare(config, &session)?;
    let store = Store::open_shared(&config.state_dir)?;
    let client = Client::new(config.registry.clone())?;
    let boot_id = process::boot_id().map_err(failed("read the boot id"))?;
    let identity = ProcessIdentity::current().map_err(failed("read /proc"))?;
    let directory = File::open(&config.directory).map_err(failed("open the directory"))?;
    let listener =
        socket::listen(directory.as_fd(), WORKER_SOCKET).map_err(failed("make the socket"))?;
    let open_files = open_files(process::raise_descriptor_limit());
    let gaps = confine(config)?;

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(failed("start the runtime"))?;
    let (sink, engine_events) = EventSink::channel(EVENT_ROOM);
    let mut limits = Limits { wait_limit: Some(config.read_deadline), ..Limits::default() };
    limits.cache_bytes = config.cache_bytes;
    limits.reserve_bytes = config.reserve_bytes;
    limits.open_files = limits.open_files.min(open_files);
    let options = EngineOptions { files_dir: store.files_dir(), boot_id, limits, events: sink };
    let engine = Engine::open(options, runtime.handle().clone())?;
    let (events, _) = tokio::sync::broadcast::channel(EVENT_ROOM);

    let spare = device.try_clone().map_err(failed("copy the descriptor"))?;
    let handles = Handles::new(Arc::clone(&session), Box::new(DeviceBacking(spare)));
    let degraded = events.clone();
    let served = Arc::new(Served {
        tree: Tree::new(config.opaque, session.xattrs()),
        handles,
        passthrough: AtomicBool::new(false),
        taken: AtomicU64::new(0),
        notifier: OnceLock::new(),
        opening: Stripes::default(),
        on_degraded: Box::new(move |error| {
            tracing::warn!(%error, "the kernel refuses passthrough");
            let reason = error.to_string();
            let _ = degraded.send(ConnectionEvent::PassthroughLost { reason });
        }),
    });
    let layers = Layers::new(Arc::clone(&session), engine, client, store, Arc::clone(&served));
    {
        let _context = runtime.enter();
        for prepared in prepared {
            layers.begin(prepared, &events);
        }
    }
    let translator =
        Translator { served: Arc::clone(&served), runtime: runtime.handle().clone(), negotiation };
    let (fuse, granted) =
        connect::begin(&session, device.as_fd(), translator, THREADS, |granted| {
            let may_pass = granted.passthrough && config.passthrough.is_wanted();
            served.passthrough.store(may_pass, std::sync::atomic::Ordering::Relaxed);
        })?;
    let _ = served.notifier.set(fuse.notifier());
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("fuse".to_owned())
        .spawn(move || drop(ended.send(fuse.run())))
        .map_err(failed("start a thread"))?;
    tracing::info!(?granted, ?gaps, "serving");
    let _ = socket::send(leash.as_fd(), &encode(&Leash::Ready), &[]);
    let shared = worker_socket::Shared {
        identity,
        build: config.build.clone(),
        device: device.try_clone().map_err(failed("copy the descriptor"))?,
        granted,
        gaps,
        layers,
        served,
        events,
    };
    let outcome = runtime.block_on(worker_socket::serve(shared, listener, engine_events, end));
    // Tasks may be waiting for the network; nobody waits for them any more.
    runtime.shutdown_background();
    outcome.map_err(failed("serve the connection"))
}

/// Looks whether this build can serve the connection, says so, and waits for the word to begin. Without a keeper there
/// is no word: then the lock decides, for this process may be the last that holds the connection.
fn stand_by(config: &RoleConfig, leash: &OwnedFd) -> Result<(), WorkerError> {
    let session = Session::open(&config.directory)?;
    if session.established().is_none() {
        return Err(WorkerError::NotEstablished);
    }
    prepare(config, &session)?;
    socket::send(leash.as_fd(), &encode(&Leash::Standby), &[])
        .map_err(failed("tell the keeper"))?;
    let _ = socket::receive(leash.as_fd());
    Ok(())
}

/// The lock may be held for a moment by a keeper that looks whether a worker lives.
fn take_lock(config: &RoleConfig) -> Result<File, WorkerError> {
    let path = config.directory.join(WORKER_LOCK);
    for _ in 0..LOCK_TRIES {
        if let Some(lock) = lock(&path).map_err(failed("open the lock"))? {
            return Ok(lock);
        }
        let _ = rustix::event::poll(&mut [], Some(&LOCK_PAUSE));
    }
    Err(WorkerError::Locked)
}

/// How INIT is to be answered, and the layers of the connection; an error when this build cannot serve one of them.
fn prepare(
    config: &RoleConfig,
    session: &Session,
) -> Result<(Negotiation, Vec<Prepared>), WorkerError> {
    let wanted =
        Granted { resend: config.resend.is_wanted(), passthrough: config.passthrough.is_wanted() };
    let negotiation = connect::negotiation(session, wanted)?;
    let slots = session.slots()?;
    let live = slots.into_iter().filter(|slot| slot.state == SlotState::Live);
    Ok((negotiation, live.map(Prepared::open).collect::<Result<Vec<_>, _>>()?))
}

/// How many files of the cache may stay open where a process can have `descriptors`: an incomplete file has three,
/// and as many again are left for requests that are under way, connections and the rest.
fn open_files(descriptors: u64) -> usize {
    usize::try_from(descriptors / 6).unwrap_or(usize::MAX)
}

/// Takes away what serving does not need.
fn confine(config: &RoleConfig) -> Result<Vec<String>, WorkerError> {
    if !config.confinement.is_wanted() {
        return Ok(vec!["confinement is switched off".to_owned()]);
    }
    let mut read: Vec<PathBuf> = [
        // Resolver, hosts, certificates and what they link to.
        "/etc",
        "/usr/share",
        "/usr/lib/ssl",
        "/usr/local/share",
        "/run/systemd/resolve",
        "/var/lib/ca-certificates",
        "/dev/urandom",
        "/proc/sys/kernel/random",
    ]
    .into_iter()
    .map(PathBuf::from)
    .collect();
    read.push(config.state_dir.join("layers"));
    // Its folder: a login replaces the file by another one.
    read.extend(config.registry.docker_config.as_deref().and_then(Path::parent).map(PathBuf::from));
    read.extend(crate::registry::readable(&config.registry));
    let without = [(config.landlock, Means::Landlock), (config.seccomp, Means::Seccomp)];
    let rights = Rights {
        read,
        write: vec![config.state_dir.join("files")],
        admin: if config.passthrough.is_wanted() { Admin::Keep } else { Admin::Drop },
        without: without
            .into_iter()
            .filter(|(feature, _)| !feature.is_wanted())
            .map(|(_, means)| means)
            .collect(),
    };
    confine::confine(&rights).map_err(failed("give up rights"))
}
