//! One connection of lazy layers from control's side: it is made when the first layer needs it, and why it cannot be
//! made is a reason that people see, never a failure.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::ControlOptions;
use super::events::{EventLog, Subject};
use super::lazy_link::{
    Generations, Link, Users, lazy_options, store_name, tell, tell_kept_keeper,
};
use super::report::EventLevel;
use crate::fuse::{
    self, FailureKind, LayerMount, LayerStatus, Lazy, LazyError, LazyOptions, Side, Stop,
    WorkerState,
};
use crate::image::Digest;
use crate::spec::Prefetch;
use crate::store::LayerDir;
use crate::sys::process::SealedExe;
use crate::telemetry::Chain;

/// A refusal is believed for so long: services that start together do not each try, and a module that was loaded
/// meanwhile is found.
const REFUSAL_HOLDS: Duration = Duration::from_secs(30);
/// The same where the connection of an earlier control exists.
const LOST_REFUSAL_HOLDS: Duration = Duration::from_secs(1);
/// How long keeper and worker may take to answer somebody who is about to end them.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// Statuses of layers are asked for at most this often: one `ps` asks for many layers.
const STATUS_HOLDS: Duration = Duration::from_millis(200);

/// One connection of a run directory.
#[derive(Debug)]
pub(super) struct LazySide {
    run_dir: PathBuf,
    state_dir: PathBuf,
    exe: Arc<SealedExe>,
    options: LazyOptions,
    link: Arc<Link>,
    /// What the service manager kept over the end of everybody.
    received: std::sync::Mutex<Option<OwnedFd>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    lazy: Option<Arc<Lazy>>,
    refused: Option<(String, Instant)>,
    statuses: Option<Statuses>,
}

#[derive(Debug)]
struct Statuses {
    layers: Vec<LayerStatus>,
    /// The layers are those of before: nobody is there who knows.
    is_failing: bool,
    at: Instant,
}

/// Whose connections they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Home<'a> {
    pub(super) run_dir: &'a Path,
    pub(super) state_dir: &'a Path,
    pub(super) instance: &'a str,
}

/// Why a layer is not mounted on a connection.
#[derive(Debug)]
pub(super) enum MountRefusal {
    /// It has extended attributes, for which this connection does not answer.
    Xattrs,
    /// Anything else.
    Other(String),
}

impl From<String> for MountRefusal {
    fn from(reason: String) -> Self {
        Self::Other(reason)
    }
}

impl LazySide {
    pub(super) fn new(
        options: &ControlOptions,
        home: &Home<'_>,
        side: Side,
        generations: watch::Sender<Generations>,
        exe: Arc<SealedExe>,
        events: EventLog,
    ) -> Self {
        let Home { run_dir, state_dir, instance } = *home;
        let lazy = lazy_options(options, instance, side);
        let name = store_name(instance, side);
        let received = options.descriptors.iter().find(|(given, _)| *given == name);
        let received = received.and_then(|(_, descriptor)| descriptor.try_clone().ok());
        Self {
            run_dir: run_dir.to_path_buf(),
            state_dir: state_dir.to_path_buf(),
            exe,
            options: lazy,
            link: Arc::new(Link::new(
                name,
                side,
                generations,
                options.service_manager.clone(),
                events,
            )),
            received: std::sync::Mutex::new(received),
            state: Mutex::default(),
        }
    }

    /// As if somebody waited for a keeper that does not answer.
    #[cfg(test)]
    pub(super) async fn hold(&self) -> tokio::sync::MutexGuard<'_, impl Sized> {
        self.state.lock().await
    }

    /// Makes sure that layers can be mounted, and does `work` meanwhile: where nothing is mounted yet, whoever serves
    /// the mounts takes longer to start than a registry to answer. The error is the reason why they cannot; `work` was
    /// dropped then, and was not even begun on a host that is known to be unable.
    pub(super) async fn ensure_during<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, String> {
        let ready = self.connected();
        tokio::pin!(ready, work);
        tokio::select! {
            // Cancel-safe: whichever ends later is waited for.
            biased;
            ready = &mut ready => {
                ready?;
                Ok(work.await)
            }
            done = &mut work => {
                ready.await?;
                Ok(done)
            }
        }
    }

    pub(super) async fn connected(&self) -> Result<Arc<Lazy>, String> {
        let mut state = self.state.lock().await;
        if let Some(lazy) = &state.lazy {
            return Ok(Arc::clone(lazy));
        }
        // What a connection is there for was possible a moment ago.
        let holds = if self.is_there() { LOST_REFUSAL_HOLDS } else { REFUSAL_HOLDS };
        if let Some((reason, at)) = &state.refused
            && at.elapsed() < holds
        {
            return Err(reason.clone());
        }
        let exe = Arc::clone(&self.exe);
        let options = self.options.clone();
        let stored = self.received.lock().unwrap_or_else(PoisonError::into_inner).take();
        match Lazy::ensure(&self.run_dir, &self.state_dir, exe, options, stored).await {
            Ok(lazy) => {
                let lazy = Arc::new(lazy);
                let (events, watched) = (lazy.events(), Arc::downgrade(&lazy));
                tokio::spawn(tell(events, Arc::clone(&self.link), watched));
                tell_kept_keeper(&lazy, &self.link.events);
                self.link.refresh(&lazy);
                state.lazy = Some(Arc::clone(&lazy));
                state.refused = None;
                Ok(lazy)
            }
            Err(error) => {
                let reason = Chain(&error).to_string();
                let hint = error.hint().unwrap_or_default().to_owned();
                let message = format!("layers are pulled fully: {reason}");
                // Once for each reason, however often it is tried.
                if state.refused.as_ref().is_none_or(|(told, _)| *told != reason) {
                    self.link.events.emit(
                        Subject::Host,
                        EventLevel::Warning,
                        "lazy-unavailable",
                        message,
                        [("hint", hint)],
                    );
                }
                state.refused = Some((reason.clone(), Instant::now()));
                Err(reason)
            }
        }
    }

    /// Mounts an indexed layer, or finds it mounted, and returns its directory.
    pub(super) async fn mount(&self, layer: &LayerDir) -> Result<PathBuf, MountRefusal> {
        let lazy = self.connected().await?;
        let source = layer
            .read_source()
            .map_err(|error| Chain(&error).to_string())?
            .ok_or_else(|| "where its content comes from is not recorded".to_owned())?;
        let mount = LayerMount {
            digest: layer.digest(),
            blob_size: source.size,
            index: layer.index_path(),
            source: serde_json::from_value(source.blob).map_err(|error| error.to_string())?,
        };
        match lazy.mount_layer(mount).await {
            Ok(mounted) => Ok(mounted.directory),
            Err(LazyError::Refused { kind: FailureKind::Xattrs, .. }) => Err(MountRefusal::Xattrs),
            Err(error) => Err(MountRefusal::Other(Chain(&error).to_string())),
        }
    }

    /// Starts to fetch what the layer, which is mounted here, marks as needed first.
    pub(super) async fn prefetch(&self, layer: Digest) -> Result<(), String> {
        let lazy = self.connected().await?;
        lazy.prefetch(layer).await.map_err(|error| Chain(&error).to_string())
    }

    /// Fetches what a service reads first from mounted layers, the uppermost first, as its file says, or as `reads` does
    /// (see [`super::first_reads`]); returns when it may start.
    pub(super) async fn prefetch_for(
        &self,
        layers: &[Digest],
        wish: &crate::spec::Lazy,
        reads: Vec<Vec<String>>,
    ) {
        if layers.is_empty() || wish.prefetch() == Prefetch::Off {
            return;
        }
        let begun = async {
            let lazy = self.connected().await?;
            let begun = match wish.prefetch_paths() {
                [] => lazy.begin(layers, reads).await,
                paths => {
                    let mut begun = Ok(());
                    for digest in layers {
                        begun = begun.and(lazy.prefetch_paths(*digest, paths).await);
                    }
                    begun
                }
            };
            begun.map_err(|error| Chain(&error).to_string())?;
            match wish.prefetch() {
                Prefetch::Before => lazy.prefetched(layers).await,
                Prefetch::Overlap | Prefetch::Off => Ok(()),
            }
            .map_err(|error| Chain(&error).to_string())
        };
        // What is not fetched ahead is fetched when it is read.
        if let Err(reason) = begun.await {
            tracing::debug!(reason, "could not prefetch");
        }
    }

    /// Forgets what was known of the layers, because there is a new one.
    pub(super) async fn forget_statuses(&self) {
        self.state.lock().await.statuses = None;
    }

    /// Share of a mounted layer's content that is here, 0 to 1; nothing of one that is not mounted here.
    pub(super) async fn known_share(&self, digest: Digest) -> Option<f64> {
        let mut state = self.state.lock().await;
        let lazy = state.lazy.clone()?;
        let fresh = state.statuses.as_ref().is_some_and(|known| known.at.elapsed() < STATUS_HOLDS);
        if !fresh {
            let status = lazy.status().await.ok()?;
            let is_failing = matches!(status.keeper.worker, WorkerState::Failing { .. });
            let known = state.statuses.take().filter(|_| is_failing);
            let layers = known.map_or(status.layers, |known| known.layers);
            state.statuses = Some(Statuses { layers, is_failing, at: Instant::now() });
        }
        let known = state.statuses.as_ref()?;
        let Some(status) = known.layers.iter().find(|status| status.digest == digest) else {
            // A mount to find out would be waited for as long as a worker may take to come back.
            return known.is_failing.then_some(0.0);
        };
        if status.is_complete || status.total_bytes == 0 {
            return Some(1.0);
        }
        #[expect(clippy::cast_precision_loss, reason = "a share needs no exact bytes")]
        let share = status.local_bytes as f64 / status.total_bytes as f64;
        // What is not complete is never shown as all.
        Some(share.min(0.999))
    }

    /// Watches over a connection that an earlier control left. Its keeper may have died with that control, and then
    /// the worker is the last one that holds the descriptor. False if there is one and it cannot be done at present.
    pub(super) async fn resume(&self) -> bool {
        if !self.is_there() {
            return true;
        }
        match self.connected().await {
            Ok(_) => true,
            Err(reason) => {
                tracing::warn!(
                    reason,
                    "the lazy mounts of an earlier run have nobody to watch over them"
                );
                false
            }
        }
    }

    /// Whether there is a connection, or was one that nobody took down.
    pub(super) fn is_there(&self) -> bool {
        self.options.side.is_there(&self.run_dir)
    }

    /// Takes the connection down if nothing uses it.
    pub(super) async fn stop_if_unused(&self) {
        // One that an earlier control left is found first.
        if !self.is_there() {
            return;
        }
        let Ok(lazy) = self.connected().await else { return };
        if let Err(error) = lazy.stop(Stop::IfUnused).await {
            tracing::debug!(error = %Chain(&error), "the lazy mount stays");
            return;
        }
        self.link.forget();
        self.state.lock().await.lazy = None;
    }

    /// Gives up the slots of mounted layers of which `is_needed` says no. The caller sees to it that nobody mounts one
    /// meanwhile.
    pub(super) async fn release_unless(&self, is_needed: impl Fn(&Digest) -> bool) {
        let Some(lazy) = self.state.lock().await.lazy.clone() else { return };
        let Ok(status) = lazy.status().await else { return };
        for layer in status.layers.iter().filter(|layer| !is_needed(&layer.digest)) {
            match lazy.release(layer.digest).await {
                Ok(()) => tracing::debug!(layer = %layer.digest, "slot released"),
                Err(error) => tracing::debug!(error = %Chain(&error), "slot not released"),
            }
        }
        self.state.lock().await.statuses = None;
    }

    /// Why reads of lazy layers wait for more than their content, if they do.
    pub(super) async fn trouble(&self) -> Option<String> {
        let lazy = self.state.lock().await.lazy.clone()?;
        match lazy.status().await.ok()?.keeper.worker {
            WorkerState::Failing { attempts, reason } => Some(format!(
                "reads wait: the worker of lazy layers failed {attempts} times: {reason}"
            )),
            WorkerState::Starting | WorkerState::Running { .. } => None,
        }
    }

    /// Ends the connection by force if nobody serves those who wait for it, or if somebody waits and nothing but what is
    /// being taken down uses it. Says what was done, if anything.
    ///
    /// # Errors
    /// What could not be ended.
    pub(super) async fn free(&self, users: Users) -> Result<Option<String>, String> {
        let (run_dir, instance) = (self.run_dir.clone(), self.options.instance.clone());
        let side = self.options.side;
        let examined = {
            let (run_dir, instance) = (run_dir.clone(), instance.clone());
            tokio::task::spawn_blocking(move || {
                fuse::examine(&run_dir, &instance, side, ANSWER_PATIENCE)
            })
        };
        let health = examined.await.map_err(|error| error.to_string())?;
        let health = health.map_err(|error| error.to_string())?;
        let blocks = health.waiting.is_none_or(|waiting| waiting > 0);
        if health.connection.is_none()
            || !(health.is_wedged() || (users == Users::OnlyThis && blocks))
        {
            return Ok(None);
        }
        // Whoever has the lock may be waiting for a keeper that does not answer; its end frees it too.
        let locked = tokio::time::timeout(LOCK_PATIENCE, self.state.lock()).await;
        if let Ok(mut state) = locked
            && let Some(lazy) = state.lazy.take()
        {
            lazy.abandon();
        }
        self.link.forget();
        let group = self.options.cgroup.clone();
        let aborted = tokio::task::spawn_blocking(move || {
            fuse::abort(&run_dir, &instance, side, group.as_deref())
        });
        let aborted = aborted.await.map_err(|error| error.to_string())?;
        let aborted = aborted.map_err(|error| Chain(&error).to_string())?;
        let message = format!(
            "the connection of lazy layers was ended by force ({} processes killed); reads of it fail",
            aborted.killed.len()
        );
        let level = EventLevel::Warning;
        self.link.events.emit(Subject::Host, level, "lazy-connection-freed", &*message, []);
        Ok(Some(message))
    }
}
