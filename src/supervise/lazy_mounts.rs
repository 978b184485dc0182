//! Lazy layers from control's side: the connection is made when the first layer needs it, and why it cannot be made
//! is a reason that people see, never a failure.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, broadcast};
use tokio::time::Instant;

use super::ControlOptions;
use super::events::{EventLog, Subject};
use super::report::EventLevel;
use crate::fuse::{ConnectionEvent, Feature, LayerMount, LayerStatus, Lazy, LazyOptions, Stop};
use crate::host;
use crate::image::Digest;
use crate::lazy::LazyEvent;
use crate::store::LayerDir;
use crate::sys::process::SealedExe;
use crate::telemetry::Chain;

/// A refusal is believed for so long: services that start together do not each try, and a module that was loaded
/// meanwhile is found.
const REFUSAL_HOLDS: Duration = Duration::from_secs(30);
/// Statuses of layers are asked for at most this often: one `ps` asks for many layers.
const STATUS_HOLDS: Duration = Duration::from_millis(200);

/// The lazy mounts of one run directory.
#[derive(Debug)]
pub(super) struct LazyMounts {
    run_dir: PathBuf,
    state_dir: PathBuf,
    exe: Arc<SealedExe>,
    options: LazyOptions,
    events: EventLog,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    lazy: Option<Lazy>,
    refused: Option<(String, Instant)>,
    statuses: Option<(Vec<LayerStatus>, Instant)>,
}

impl LazyMounts {
    pub(super) fn new(
        options: &ControlOptions,
        run_dir: &Path,
        state_dir: &Path,
        instance: &str,
        exe: Arc<SealedExe>,
        events: EventLog,
    ) -> Self {
        let mut lazy = LazyOptions::new(instance);
        let features = &options.features;
        lazy.cgroup = features.cgroup.is_present().then(|| format!("/supervisor-{instance}/lazy"));
        lazy.registry = options.registry.clone();
        lazy.log_level.clone_from(&options.log_level);
        lazy.fuse = wanted(&features.fuse);
        lazy.passthrough = wanted(&features.passthrough);
        lazy.resend = wanted(&features.resend);
        lazy.landlock = wanted(&features.landlock);
        lazy.seccomp = wanted(&features.seccomp);
        lazy.mount_api = wanted(&features.mount_api);
        Self {
            run_dir: run_dir.to_path_buf(),
            state_dir: state_dir.to_path_buf(),
            exe,
            options: lazy,
            events,
            state: Mutex::default(),
        }
    }

    /// The instance whose mounts these are.
    pub(super) fn instance(&self) -> &str {
        &self.options.instance
    }

    /// Makes sure that layers can be mounted; the error is the reason why not.
    pub(super) async fn ensure(&self) -> Result<(), String> {
        self.connected().await.map(drop)
    }

    async fn connected(&self) -> Result<Lazy, String> {
        let mut state = self.state.lock().await;
        if let Some(lazy) = &state.lazy {
            return Ok(lazy.clone());
        }
        if let Some((reason, at)) = &state.refused
            && at.elapsed() < REFUSAL_HOLDS
        {
            return Err(reason.clone());
        }
        let exe = Arc::clone(&self.exe);
        let options = self.options.clone();
        match Lazy::ensure(&self.run_dir, &self.state_dir, exe, options, None).await {
            Ok(lazy) => {
                tokio::spawn(tell(lazy.events(), self.events.clone()));
                state.lazy = Some(lazy.clone());
                state.refused = None;
                Ok(lazy)
            }
            Err(error) => {
                let reason = Chain(&error).to_string();
                let hint = error.hint().unwrap_or_default().to_owned();
                let message = format!("layers are pulled fully: {reason}");
                self.events.emit(
                    Subject::Host,
                    EventLevel::Warning,
                    "lazy-unavailable",
                    message,
                    [("hint", hint)],
                );
                state.refused = Some((reason.clone(), Instant::now()));
                Err(reason)
            }
        }
    }

    /// Mounts an indexed layer, or finds it mounted, and returns its directory.
    pub(super) async fn mount(&self, layer: &LayerDir) -> Result<PathBuf, String> {
        let lazy = self.connected().await?;
        let source = layer
            .read_source()
            .map_err(|error| Chain(&error).to_string())?
            .ok_or("where its content comes from is not recorded")?;
        let mount = LayerMount {
            digest: layer.digest(),
            blob_size: source.size,
            index: layer.index_path(),
            source: serde_json::from_value(source.blob).map_err(|error| error.to_string())?,
        };
        let mounted = lazy.mount_layer(mount).await.map_err(|error| Chain(&error).to_string())?;
        Ok(mounted.directory)
    }

    /// Starts to fetch what the layer marks as needed first.
    pub(super) async fn prefetch(&self, layer: &LayerDir) -> Result<(), String> {
        self.mount(layer).await?;
        let lazy = self.connected().await?;
        lazy.prefetch(layer.digest()).await.map_err(|error| Chain(&error).to_string())
    }

    /// Share of the layer's content that is here, 0 to 1; zero where nothing can be mounted to find out.
    pub(super) async fn share(&self, layer: &LayerDir) -> f64 {
        if let Some(share) = self.known_share(layer.digest()).await {
            return share;
        }
        // Not mounted, so only its reader can tell: the cache is shared between layers.
        if self.mount(layer).await.is_err() {
            return 0.0;
        }
        self.state.lock().await.statuses = None;
        self.known_share(layer.digest()).await.unwrap_or(0.0)
    }

    async fn known_share(&self, digest: Digest) -> Option<f64> {
        let mut state = self.state.lock().await;
        let lazy = state.lazy.clone()?;
        let fresh = state.statuses.as_ref().is_some_and(|(_, at)| at.elapsed() < STATUS_HOLDS);
        if !fresh {
            let layers = lazy.status().await.ok()?.layers;
            state.statuses = Some((layers, Instant::now()));
        }
        let (layers, _) = state.statuses.as_ref()?;
        let status = layers.iter().find(|status| status.digest == digest)?;
        if status.is_complete || status.total_bytes == 0 {
            return Some(1.0);
        }
        #[expect(clippy::cast_precision_loss, reason = "a share needs no exact bytes")]
        let share = status.local_bytes as f64 / status.total_bytes as f64;
        // What is not complete is never shown as all.
        Some(share.min(0.999))
    }

    /// Watches over a connection that an earlier control left. Its keeper may have died with that control, and then
    /// the worker is the last one that holds the descriptor.
    pub(super) async fn resume(&self) {
        if self.run_dir.join("lazy").exists()
            && let Err(reason) = self.connected().await
        {
            tracing::warn!(
                reason,
                "the lazy mounts of an earlier run have nobody to watch over them"
            );
        }
    }

    /// Takes the connection down if nothing uses it.
    pub(super) async fn stop_if_unused(&self) {
        // One that an earlier control left is found first.
        if !self.run_dir.join("lazy").exists() {
            return;
        }
        let Ok(lazy) = self.connected().await else { return };
        if let Err(error) = lazy.stop(Stop::IfUnused).await {
            tracing::debug!(error = %Chain(&error), "the lazy mount stays");
            return;
        }
        self.state.lock().await.lazy = None;
    }
}

/// What is missing is tried again by those who use it, because a module may be loaded later; what is switched off
/// stays so.
fn wanted(feature: &host::Feature) -> Feature {
    if feature.is_forced_off() { Feature::Off } else { Feature::Probe }
}

/// Passes on what happens to the connection until it is taken down.
async fn tell(mut receiver: broadcast::Receiver<ConnectionEvent>, events: EventLog) {
    loop {
        let event = match receiver.recv().await {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        let (level, kind, message) = describe(&event);
        events.emit(Subject::Host, level, kind, message, []);
    }
}

fn describe(event: &ConnectionEvent) -> (EventLevel, &'static str, String) {
    use EventLevel::{Error, Info, Warning};
    match event {
        ConnectionEvent::WorkerStarted { restarts: 0 } => {
            (Info, "worker-started", "lazy layers are served".to_owned())
        }
        ConnectionEvent::WorkerStarted { restarts } => {
            (Info, "worker-started", format!("lazy layers are served again ({restarts} restarts)"))
        }
        ConnectionEvent::WorkerEnded { reason } => (
            Warning,
            "worker-ended",
            format!("the worker of lazy layers ended ({reason}); it is replaced and reads wait"),
        ),
        ConnectionEvent::WorkerFailing { attempts, reason } => (
            Error,
            "worker-failing",
            format!(
                "the worker of lazy layers failed {attempts} times in a row, reads wait: {reason}"
            ),
        ),
        ConnectionEvent::ConnectionLost { reason } => (
            Error,
            "lazy-connection-lost",
            format!("lazy mounts were lost and made anew: {reason}"),
        ),
        ConnectionEvent::KeeperReplaced => {
            (Warning, "keeper-replaced", "the keeper of lazy mounts was replaced".to_owned())
        }
        ConnectionEvent::KeeperFailing { reason } => {
            (Error, "keeper-failing", format!("no keeper of lazy mounts can be started: {reason}"))
        }
        ConnectionEvent::PassthroughLost { reason } => (
            Warning,
            "passthrough-lost",
            format!("complete files are read through the worker: {reason}"),
        ),
        ConnectionEvent::LayerBroken { digest, reason } => {
            (Error, "layer-broken", format!("layer {} cannot be served: {reason}", digest.short()))
        }
        ConnectionEvent::Content { content } => describe_content(content),
        other => (Info, "lazy-connection", format!("{other:?}")),
    }
}

fn describe_content(event: &LazyEvent) -> (EventLevel, &'static str, String) {
    use EventLevel::{Error, Info, Warning};
    match event {
        LazyEvent::ChunkCorrupt { layer, path, offset, reason } => {
            let layer = layer.short();
            (
                Error,
                "chunk-corrupt",
                format!(
                    "`{path}` at byte {offset} of layer {layer} is corrupt, reads of it fail: {reason}"
                ),
            )
        }
        LazyEvent::FileMismatch { layer, expected, found } => {
            let (layer, expected, found) = (layer.short(), expected.short(), found.short());
            (
                Warning,
                "file-mismatch",
                format!(
                    "a file of layer {layer} has digest {found} instead of {expected}; it is not shared"
                ),
            )
        }
        LazyEvent::SourceLost { layer, reason } => (
            Warning,
            "registry-lost",
            format!("layer {} waits for its registry: {reason}", layer.short()),
        ),
        LazyEvent::SourceBack { layer, after } => (
            Info,
            "registry-back",
            format!(
                "the registry of layer {} answers again after {} s",
                layer.short(),
                after.as_secs()
            ),
        ),
        LazyEvent::SourceRefused { layer, reason } => (
            Error,
            "registry-refused",
            format!("the registry refused content of layer {}: {reason}", layer.short()),
        ),
        LazyEvent::PrefetchDone { layer, .. } => {
            (Info, "prefetch-done", format!("layer {} is prefetched", layer.short()))
        }
        LazyEvent::LayerComplete { layer } => {
            (Info, "layer-complete", format!("layer {} is here completely", layer.short()))
        }
        LazyEvent::CacheDegraded { reason } => (
            Error,
            "cache-degraded",
            format!("content cannot be kept and is fetched again when it is needed: {reason}"),
        ),
        LazyEvent::CacheRestored => (Info, "cache-restored", "content is kept again".to_owned()),
        LazyEvent::CacheRepaired { content } => (
            Warning,
            "cache-repaired",
            format!("kept content {} was damaged and is fetched again", content.short()),
        ),
    }
}
