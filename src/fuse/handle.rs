//! Control's side: start or find the keeper, mount and release layers, hear what happens, replace a dead keeper.
//!
//! All requests are idempotent and tried again while a worker is being replaced, so a caller sees a pause and no
//! error. Nothing here looks below the mount either.
//!
//! Control holds a copy of the connection's descriptor, so that keeper and worker may die together. It is one more
//! holder and never the only one: the death of control changes nothing.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::copy::HeldCopy;
use super::handle_error::{LazyError, LazyUnavailable};
use super::options::{LazyOptions, MOUNT, Side};
use super::protocol::{
    Answer, ConnectionEvent, FailureKind, KEEPER_SOCKET, KeeperStatus, LayerStatus, Request, Stop,
    WORKER_SOCKET, WorkerStatus,
};
use super::session::LayerMount;
use super::watch;
use crate::image::Digest;
use crate::lazy::Found;
use crate::registry::Blob;
use crate::sys::fuse_device;
use crate::sys::process::SealedExe;

/// How long a request is tried while nobody answers: longer than any restart that succeeds.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// Between two tries.
pub(super) const RETRY: Duration = Duration::from_millis(20);
/// Events that wait for a reader.
const EVENT_ROOM: usize = 1024;

/// Layers that one request names at most.
const MOST_KEPT: usize = 1000;

/// Whose content stays, beside that of layers that are named or mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spare {
    /// That of all layers in the state directory.
    Stored,
    /// Nobody's.
    Nothing,
}

/// Where a layer is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedLayer {
    /// Its slot; never used for another layer.
    pub slot: u32,
    /// Its directory: a lower directory for an overlay.
    pub directory: PathBuf,
}

/// What keeper and worker tell about themselves.
#[derive(Debug, Clone)]
pub struct LazyStatus {
    /// The keeper.
    pub keeper: KeeperStatus,
    /// The worker, when it serves.
    pub worker: Option<WorkerStatus>,
    /// The mounted layers; empty while no worker serves.
    pub layers: Vec<LayerStatus>,
}

/// The lazy side of one run directory. Cheap to clone. Dropping it stops nothing; see [`Lazy::stop`].
#[derive(Debug, Clone)]
pub struct Lazy {
    pub(super) shared: Arc<Shared>,
    /// Ends the watching when the last handle is dropped.
    _watching: Arc<DropGuard>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) directory: PathBuf,
    pub(super) events: broadcast::Sender<ConnectionEvent>,
    pub(super) stopped: CancellationToken,
    /// Held while a keeper is replaced or stopped, so that nobody replaces the one that was told to stop.
    pub(super) changing: tokio::sync::Mutex<()>,
    pub(super) state_dir: PathBuf,
    pub(super) exe: Arc<SealedExe>,
    pub(super) options: LazyOptions,
    pub(super) handle: OwnedFd,
    pub(super) copy: HeldCopy,
    /// Why a keeper of another build was left in its place.
    pub(super) kept_keeper: std::sync::Mutex<Option<String>>,
}

impl Lazy {
    /// Finds the keeper of `run_dir` or starts one, and watches it from here on. `stored` is a descriptor of the
    /// connection that somebody kept over the death of everybody else. Call it on a Tokio runtime.
    ///
    /// # Errors
    /// Why layers cannot be mounted lazily here; nothing is left behind then.
    pub async fn ensure(
        run_dir: &Path,
        state_dir: &Path,
        exe: Arc<SealedExe>,
        options: LazyOptions,
        stored: Option<OwnedFd>,
    ) -> Result<Self, LazyUnavailable> {
        if !options.fuse.is_wanted() {
            return Err(LazyUnavailable::Off);
        }
        if let Err(error) = fuse_device::open() {
            return Err(LazyUnavailable::NoDevice { message: error.to_string() });
        }
        let (directory, state_dir, handle) = open_directories(run_dir, state_dir, options.side)?;
        let (events, _) = broadcast::channel(EVENT_ROOM);
        let shared = Arc::new(Shared {
            directory,
            events,
            stopped: CancellationToken::new(),
            changing: tokio::sync::Mutex::new(()),
            state_dir,
            exe,
            options,
            handle,
            copy: HeldCopy::default(),
            kept_keeper: std::sync::Mutex::default(),
        });
        let (keeper, child) = shared.find_or_start_keeper(stored).await?;
        shared.refresh_copy().await;
        // It may be waiting for a better moment to start its worker.
        let _ = shared.ask(KEEPER_SOCKET, &Request::Retry, &[]).await;
        watch::begin(&shared, keeper, child);
        let watching = Arc::new(shared.stopped.clone().drop_guard());
        Ok(Self { shared, _watching: watching })
    }

    /// The directory below which the layers' directories are.
    #[must_use]
    pub fn mount_point(&self) -> PathBuf {
        self.shared.directory.join(MOUNT)
    }

    /// Mounts a layer, or finds it mounted.
    ///
    /// # Errors
    /// When the index cannot be used, every slot is taken, or nobody answers.
    pub async fn mount_layer(&self, layer: LayerMount) -> Result<MountedLayer, LazyError> {
        // The confined worker may not open it.
        let blob = Blob::open_layout_file(&layer.source, &layer.digest)
            .map_err(|source| LazyError::LayoutBlob { digest: layer.digest, source })?;
        let blobs: Vec<_> = blob.iter().map(|file| file.as_fd()).collect();
        match self.shared.worker(&Request::Mount { layer }, &blobs).await? {
            Answer::Mounted { slot, name } => {
                Ok(MountedLayer { slot, directory: self.mount_point().join(name) })
            }
            other => Err(unexpected(other)),
        }
    }

    /// Gives up the slot of a layer that nothing uses any more. One that is not mounted is no error.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn release(&self, digest: Digest) -> Result<(), LazyError> {
        match self.shared.worker(&Request::Release { digest }, &[]).await {
            Err(LazyError::Refused { kind: FailureKind::NotMounted, .. }) => Ok(()),
            other => done(other?),
        }
    }

    /// Begins to fetch the whole layer, giving way to reads.
    ///
    /// # Errors
    /// When the layer is not mounted or nobody answers.
    pub async fn background(&self, digest: Digest) -> Result<(), LazyError> {
        done(self.shared.worker(&Request::Background { digest }, &[]).await?)
    }

    /// Removes content that neither a mounted layer of this connection nor one of `keep` has, nor, for
    /// [`Spare::Stored`], any layer of the state directory; given `bytes`, only as much as is needed for them, the coldest
    /// first. `None` where another process has the cache, which then is
    /// to be asked.
    ///
    /// # Errors
    /// When nobody answers, the worker is of an older build, or the cache cannot be read.
    pub async fn evict(
        &self,
        keep: &[Digest],
        spare: Spare,
        bytes: Option<u64>,
    ) -> Result<Option<Found>, LazyError> {
        // More would not fit into a message; whose content stays then is the next one's to find.
        let stored = spare == Spare::Stored || keep.len() > MOST_KEPT;
        let keep = keep.iter().take(MOST_KEPT).copied().collect();
        match self.shared.worker(&Request::Evict { keep, stored, bytes }, &[]).await? {
            Answer::Evicted { found } => Ok(found),
            other => Err(unexpected(other)),
        }
    }

    /// How it goes. Does not wait for a worker that is being replaced.
    ///
    /// # Errors
    /// When the keeper does not answer.
    pub async fn status(&self) -> Result<LazyStatus, LazyError> {
        let keeper = match self.shared.keeper(&Request::Status { after: 0 }).await?.0 {
            Answer::Keeper { status } => status,
            other => return Err(unexpected(other)),
        };
        let mut all = Vec::new();
        let mut seen = None;
        let mut after = 0;
        while let Ok((Answer::Worker { status, layers, more }, _)) =
            self.shared.ask(WORKER_SOCKET, &Request::Status { after }, &[]).await
        {
            after = layers.last().map_or(u32::MAX, |layer| layer.slot);
            all.extend(layers);
            seen = Some(status);
            if !more {
                break;
            }
        }
        Ok(LazyStatus { keeper, worker: seen, layers: all })
    }

    /// What happens from now on. A reader that falls behind loses the oldest.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<ConnectionEvent> {
        self.shared.events.subscribe()
    }

    /// A copy of the connection's descriptor, for somebody who keeps it (a service manager).
    ///
    /// # Errors
    /// When the keeper does not answer.
    pub async fn descriptor(&self) -> Result<OwnedFd, LazyError> {
        let (answer, descriptors) = self.shared.keeper(&Request::Descriptor).await?;
        descriptors.into_iter().next().ok_or_else(|| unexpected(answer))
    }

    /// The copy of the connection's descriptor that is held here; `None` where nobody could go on with it, because the
    /// kernel cannot send requests again.
    #[must_use]
    pub fn held_copy(&self) -> Option<OwnedFd> {
        self.shared.copy.get_of(self.generation()?)
    }

    /// Tells this connection apart from every other of the run directory; `None` when its state cannot be read.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        watch::born(&self.shared)
    }

    /// Why the keeper is one of another build, if it is.
    #[must_use]
    pub fn kept_keeper(&self) -> Option<String> {
        self.shared.kept_keeper.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has a worker that cannot be started tried again at once, whatever pause is running.
    ///
    /// # Errors
    /// When the keeper does not answer.
    pub async fn retry(&self) -> Result<(), LazyError> {
        match self.shared.keeper(&Request::Retry).await {
            // One of an older build tries again every five seconds.
            Err(LazyError::Refused { kind: FailureKind::Unsupported, .. }) => Ok(()),
            other => done(other?.0),
        }
    }

    /// Gives the connection up without asking anybody: nothing is watched or replaced any more, and the copy of the
    /// descriptor is closed. What is left is for [`super::abort`].
    pub fn abandon(&self) {
        self.shared.stopped.cancel();
        self.shared.copy.close();
    }

    /// Ends the connection, keeper and worker, and removes the mount and their control group. A second time it does
    /// nothing.
    ///
    /// # Errors
    /// [`FailureKind::Busy`] when files are open and it was not told to force it; when the keeper does not answer.
    pub async fn stop(&self, how: Stop) -> Result<(), LazyError> {
        let _changing = self.shared.changing.lock().await;
        if self.shared.stopped.is_cancelled() {
            return Ok(());
        }
        let keeper = watch::keeper_of(&self.shared);
        done(self.shared.keeper(&Request::Stop { how }).await?.0)?;
        self.shared.stopped.cancel();
        self.shared.copy.close();
        watch::wait_for_end(keeper).await;
        self.shared.remove_cgroup().await;
        Ok(())
    }
}

pub(super) fn done(answer: Answer) -> Result<(), LazyError> {
    match answer {
        Answer::Done => Ok(()),
        other => Err(unexpected(other)),
    }
}

fn unexpected(answer: Answer) -> LazyError {
    match answer {
        Answer::Failed { kind, message } => LazyError::Refused { kind, message },
        other => LazyError::Refused {
            kind: FailureKind::Unsupported,
            message: format!("unexpected answer {other:?}"),
        },
    }
}

fn open_directories(
    run_dir: &Path,
    state_dir: &Path,
    side: Side,
) -> Result<(PathBuf, PathBuf, OwnedFd), LazyUnavailable> {
    let directory = run_dir.join(side.directory());
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| LazyUnavailable::RunDirectory { path, source }
    };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    made.map_err(at(&directory))?;
    // The mount table has paths without links.
    let directory = std::fs::canonicalize(&directory).map_err(at(&directory))?;
    let state_dir = std::fs::canonicalize(state_dir).map_err(at(state_dir))?;
    let handle = File::open(&directory).map_err(at(&directory))?;
    Ok((directory, state_dir, handle.into()))
}
