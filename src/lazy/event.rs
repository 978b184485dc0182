//! What the engine has to tell: data for the API and the log of the worker, never needed to go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::image::Digest;

/// Something that happened in the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LazyEvent {
    /// A chunk did not match its digest, nor did it when fetched a second time. Reads of it fail from now on.
    ChunkCorrupt {
        /// The layer.
        layer: Digest,
        /// The file, relative to the root of the layer.
        path: String,
        /// Where in the file the chunk begins.
        offset: u64,
        /// What was wrong with it.
        reason: String,
    },
    /// All chunks of a file are right, but the file's own digest in the table of contents is not the digest of its
    /// content. It is served from its chunks and never shared with other layers.
    FileMismatch {
        /// The layer.
        layer: Digest,
        /// The digest that the table of contents gives.
        expected: Digest,
        /// The digest of the content.
        found: Digest,
    },
    /// The source of a layer does not answer; reads that need it wait.
    SourceLost {
        /// The layer.
        layer: Digest,
        /// The error with its causes.
        reason: String,
    },
    /// The source of a layer answers again.
    SourceBack {
        /// The layer.
        layer: Digest,
        /// How long it did not.
        after: Duration,
    },
    /// The source of a layer refused a range; the reads that needed it failed.
    SourceRefused {
        /// The layer.
        layer: Digest,
        /// The error with its causes.
        reason: String,
    },
    /// The prefetch of a layer has ended.
    PrefetchDone {
        /// The layer.
        layer: Digest,
        /// How much of the layer's content is local now.
        local_bytes: u64,
    },
    /// Every chunk of a layer is in the cache.
    LayerComplete {
        /// The layer.
        layer: Digest,
    },
    /// The cache cannot be written (a full disk, mostly); content is served from memory and fetched again.
    CacheDegraded {
        /// The error.
        reason: String,
    },
    /// The cache can be written again.
    CacheRestored,
    /// The cache holds as much as it may: the background fill has ended, and only what is read is fetched.
    CacheFull {
        /// What it may occupy, in bytes.
        budget: u64,
    },
    /// Content in the cache was not what its name says, after an unclean boot; it was thrown away.
    CacheRepaired {
        /// The content.
        content: Digest,
    },
}

/// Where events go. Never blocks the engine: events that the receiver leaves no room for are counted and dropped.
#[derive(Debug, Clone, Default)]
pub struct EventSink {
    sender: Option<mpsc::Sender<LazyEvent>>,
    dropped: Arc<AtomicU64>,
}

impl EventSink {
    /// A sink that forgets everything.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// A sink with room for `capacity` events, and its other end.
    #[must_use]
    pub fn channel(capacity: usize) -> (Self, mpsc::Receiver<LazyEvent>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (Self { sender: Some(sender), dropped: Arc::default() }, receiver)
    }

    /// How many events found no room.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn send(&self, event: LazyEvent) {
        tracing::debug!(?event, "lazy engine");
        if let Some(sender) = &self.sender
            && sender.try_send(event).is_err()
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}
