//! Control for one run directory: what it needs, its lock, its start and its end.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::bridges::{Bridges, BridgesOptions};
use super::driver::Driver;
use super::events::{EventLog, Subject};
use super::execute::Host;
use super::exits::Exits;
use super::handle::{ControlHandle, REQUEST_QUEUE};
use super::heartbeat::ServiceManager;
use super::images::Images;
use super::lazy_mounts::LazyMounts;
use super::report::EventLevel;
use super::room::{DiskLimits, Room};
use crate::host::Features;
use crate::image::Digest;
use crate::layer::Layers;
use crate::registry::{Client, ClientError, ClientOptions};
use crate::store::{self, NewerState, Store, StoreError};
use crate::sys::notify::Notifier;
use crate::sys::process::SealedExe;

/// Settings of control.
#[derive(Debug, Clone)]
pub struct ControlOptions {
    /// Where images, layers and writable data are kept.
    pub state_dir: PathBuf,
    /// Where sockets and mounts are.
    pub run_dir: PathBuf,
    /// How registries are reached.
    pub registry: ClientOptions,
    /// What the content of lazy layers may occupy on disk; as much as there is without it.
    pub lazy_cache_bytes: Option<u64>,
    /// What images, layers and their content may occupy together, and what stays free.
    pub disk: DiskLimits,
    /// Log directives of the other roles.
    pub log_level: String,
    /// What this host offers, and what of it is not to be used: [`crate::host::probe`].
    pub features: Features,
    /// End after so long without anything to supervise; never when `None`.
    pub idle_limit: Option<Duration>,
    /// The service manager that started this process, to tell how it is.
    pub service_manager: Option<Arc<Notifier>>,
    /// How often the service manager must hear that all is well, when it asks for that.
    pub watchdog: Option<Duration>,
    /// What the service manager kept for us since the last control, by name.
    pub descriptors: Vec<(String, Arc<OwnedFd>)>,
}

impl ControlOptions {
    /// Everything at its default: features as the host has them, which is looked at now, no credentials, no end by itself, no service manager.
    #[must_use]
    pub fn new(state_dir: PathBuf, run_dir: PathBuf) -> Self {
        let features = crate::host::probe(&crate::host::Forced::default(), &state_dir);
        Self::with_features(state_dir, run_dir, features)
    }

    /// The same where it is known what the host has.
    #[must_use]
    pub fn with_features(state_dir: PathBuf, run_dir: PathBuf, features: Features) -> Self {
        Self {
            state_dir,
            run_dir,
            registry: ClientOptions::default(),
            lazy_cache_bytes: None,
            disk: DiskLimits::default(),
            log_level: "warn".to_owned(),
            features,
            idle_limit: None,
            service_manager: None,
            watchdog: None,
            descriptors: Vec::new(),
        }
    }
}

/// Control could not start.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The run directory cannot be made or locked.
    #[error("could not use the run directory `{}`", path.display())]
    RunDir {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another control has this run directory.
    #[error("another supervisor runs with the run directory `{}`", .0.display())]
    Running(PathBuf),
    /// A newer program has used the state directory; nothing was touched.
    #[error(transparent)]
    Newer(#[from] NewerState),
    /// The state directory cannot be used.
    #[error("could not use the state directory")]
    Store(#[from] StoreError),
    /// The registry settings are not valid.
    #[error("could not set up the registry client")]
    Registry(#[from] ClientError),
    /// The executable could not be copied into memory.
    #[error("could not copy the executable into memory")]
    Executable(#[source] io::Error),
}

/// A running control.
#[derive(Debug)]
pub struct Control {
    handle: ControlHandle,
    driver: JoinHandle<()>,
    shutdown: CancellationToken,
    /// Held until the end.
    _lock: File,
}

impl Control {
    /// Takes the run directory, finds what runs there, and begins to drive. Must be called in a Tokio runtime with
    /// several threads or one that is only ours.
    ///
    /// # Errors
    /// When the directories cannot be used, another control uses them, or a newer program has used the state directory.
    pub fn start(mut options: ControlOptions) -> Result<Self, ControlError> {
        // Before anything is touched; again when the directory is ours.
        store::check_version(&options.state_dir)?;
        let lock = take_run_dir(&options.run_dir)?;
        // Paths are compared and shown to the kernel by other processes, so links in them are resolved once, here.
        let run_dir = resolved(&options.run_dir)?;
        let store = Store::open(&options.state_dir)?;
        options.disk = options.disk.on(store.root());
        let exe = Arc::new(SealedExe::of_current().map_err(ControlError::Executable)?);
        let instance: Arc<str> = instance_of(&run_dir).into();
        let client = Client::new(options.registry.clone())?;
        let events = EventLog::open(&store.root().join("events"));
        tell_what_is_lost(&options.features, &events);
        let layers = Layers::new(store.clone(), client.clone(), Arc::clone(&exe))
            .keep_free(options.disk.reserve.unwrap_or(0));
        let lazy = LazyMounts::new(
            &options,
            &run_dir,
            store.root(),
            &instance,
            Arc::clone(&exe),
            events.clone(),
        );
        let (requests, queue) = mpsc::channel(REQUEST_QUEUE);
        let mut images = Images::new(client, layers, lazy, events.clone());
        images.room = Room::new(
            options.disk,
            options.disk.content(options.lazy_cache_bytes),
            options.features.fuse.is_present(),
            requests.downgrade(),
        );
        let images = Arc::new(images);
        let handle = ControlHandle {
            requests,
            events: events.clone(),
            images: Arc::clone(&images),
            instance: Arc::clone(&instance),
            on_demand: options.idle_limit.is_some(),
        };
        let shutdown = CancellationToken::new();
        let bridges = Bridges::start(BridgesOptions {
            store: store.clone(),
            run_dir: run_dir.clone(),
            instance: Arc::clone(&instance),
            exe: Arc::clone(&exe),
            log_level: options.log_level.clone(),
            events: events.clone(),
        });
        let host = {
            let (features, expecting) = (options.features, Arc::default());
            let exits = Exits::start(store.clone());
            Arc::new(Host {
                store,
                images,
                exe,
                run_dir,
                instance,
                features,
                bridges,
                exits,
                expecting,
            })
        };
        let mut driver = Driver::new(host, events, shutdown.clone());
        driver.on_demand = options.idle_limit;
        driver.service_manager =
            ServiceManager::new(options.service_manager, options.watchdog, Instant::now());
        let driver = tokio::spawn(driver.run(queue));
        Ok(Self { handle, driver, shutdown, _lock: lock })
    }

    /// A handle to give away.
    #[must_use]
    pub fn handle(&self) -> ControlHandle {
        self.handle.clone()
    }

    /// Cancelled when control ends, whoever ended it.
    #[must_use]
    pub fn ended(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Ends control and leaves everything running; waits until it has.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.wait().await;
    }

    /// Waits until control has ended.
    pub async fn wait(self) {
        let _ = self.driver.await;
    }
}

/// The instance of a run directory: eight hex digits of the digest of its path. It names everything of ours outside
/// our directories, and so is the proof that it is ours.
#[must_use]
pub fn instance_of(run_dir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    Digest::of(run_dir.as_os_str().as_bytes()).hex()[..8].to_owned()
}

/// Each thing that this host lacks and somebody will notice, once per start of control.
fn tell_what_is_lost(features: &Features, events: &EventLog) {
    for (name, message) in features.losses() {
        let attributes = [("feature", name.to_string()), ("hint", name.remedy().to_owned())];
        let level = EventLevel::Warning;
        events.emit(Subject::Host, level, "feature-missing", message, attributes);
    }
}

fn resolved(run_dir: &Path) -> Result<PathBuf, ControlError> {
    std::fs::canonicalize(run_dir)
        .map_err(|source| ControlError::RunDir { path: run_dir.to_path_buf(), source })
}

fn take_run_dir(run_dir: &Path) -> Result<File, ControlError> {
    let failed = |source| ControlError::RunDir { path: run_dir.to_path_buf(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(run_dir).map_err(failed)?;
    let lock = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(run_dir.join("control.lock"))
        .map_err(failed)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ControlError::Running(run_dir.to_path_buf())),
        Err(error) => Err(failed(error.into())),
    }
}
