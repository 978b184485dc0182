//! What happens to lazy mounts, in words for people.

use super::report::EventLevel;
use crate::fuse::ConnectionEvent;
use crate::lazy::LazyEvent;

/// Level, kind and message of an event.
pub(super) fn describe(event: &ConnectionEvent) -> (EventLevel, &'static str, String) {
    use EventLevel::{Error, Info, Warning};
    match event {
        ConnectionEvent::WorkerStarted { restarts: 0 } => {
            (Info, "worker-started", "lazy layers are served".to_owned())
        }
        ConnectionEvent::WorkerStarted { restarts } => {
            (Info, "worker-started", format!("lazy layers are served again (restart {restarts})"))
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
        ConnectionEvent::WorkerKept { reason } => (
            Warning,
            "worker-kept",
            format!("the worker of another build goes on serving lazy layers: {reason}"),
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
        LazyEvent::CacheFull { budget } => (
            Info,
            "cache-full",
            format!(
                "kept content has reached its budget of {} MiB; no more is fetched ahead in the background",
                budget >> 20
            ),
        ),
        LazyEvent::CacheRepaired { content } => (
            Warning,
            "cache-repaired",
            format!("kept content {} was damaged and is fetched again", content.short()),
        ),
    }
}
