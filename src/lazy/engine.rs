//! The engine: what all lazy layers of a process share, and the door to each of them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::buffers::Pool;
use super::cache::FileCache;
use super::error::OpenError;
use super::event::EventSink;
use super::evict::Eviction;
use super::layer::LazyLayer;
use super::learned::Ledger;
use super::limits::Limits;
use super::link::Link;
use super::pace::{Counters, Traffic};
use super::scheduler::Scheduler;
use super::sequence::Walked;
use super::source::RangeSource;
use super::table::OpenTable;
use crate::estargz::Index;
use crate::image::Digest;
use crate::sys::MappedFile;

/// What an engine needs to start.
#[derive(Debug)]
pub struct EngineOptions {
    /// Existing directory of the content cache. One engine of the host writes to it at a time.
    pub files_dir: PathBuf,
    /// The id of this boot, which decides what content is trusted without being read.
    pub boot_id: String,
    /// Bounds.
    pub limits: Limits,
    /// Where events go.
    pub events: EventSink,
}

/// What identifies a layer and its content.
#[derive(Debug)]
pub struct LayerSpec {
    /// Digest of the layer's blob.
    pub digest: Digest,
    /// Its index. The numbers of its entries are an interface with the kernel for as long as it is mounted.
    pub index: MappedFile,
}

impl LayerSpec {
    /// Opens the index at `path`; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be told what the layer has.
    pub fn open(digest: Digest, path: &std::path::Path) -> std::io::Result<Option<Self>> {
        let index = match std::fs::File::open(path) {
            Ok(index) => MappedFile::open(&index)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Self { digest, index }))
    }
}

/// All lazy layers of a process: content cache, scheduler, events. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) cache: FileCache,
    pub(super) scheduler: Arc<Scheduler>,
    pub(super) link: Arc<Link>,
    pub(super) limits: Limits,
    pub(super) events: EventSink,
    pub(super) runtime: Handle,
    /// Inflating and hashing: as many at a time as there are processors.
    pub(super) decoders: Semaphore,
    pub(super) table: OpenTable,
    pub(super) counters: Traffic,
    pub(super) ledger: Ledger,
    pub(super) walked: Walked,
    pub(super) buffers: Arc<Pool>,
    pub(super) eviction: Eviction,
    layers: Mutex<HashMap<Digest, Weak<LazyLayer>>>,
    next_lane: AtomicU64,
}

impl Engine {
    /// Opens the content cache. Blocks on the disk; fetches run on `runtime`, which must have its timer and its
    /// drivers enabled and must outlive the engine.
    ///
    /// # Errors
    /// When the cache's directory cannot be used.
    pub fn open(options: EngineOptions, runtime: Handle) -> Result<Self, OpenError> {
        let EngineOptions { files_dir, boot_id, limits, events } = options;
        let cache =
            FileCache::open(&files_dir, &boot_id, limits.memory_cache_bytes, events.clone())
                .map_err(|source| OpenError::Cache {
                    path: files_dir.display().to_string(),
                    source,
                })?;
        cache.keep_free(limits.reserve_bytes);
        cache.bound_segments(limits.open_files / 4, limits.packed_file_bytes);
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let table = OpenTable::new(limits.open_files, cache.clock());
        let link = Link::new(limits.narrow_rate);
        let shared = Arc::new(Shared {
            cache,
            scheduler: Scheduler::new(&limits, Arc::clone(&link)),
            link,
            events,
            runtime,
            decoders: Semaphore::new(processors.max(2)),
            table,
            counters: Traffic::default(),
            ledger: Ledger::default(),
            walked: Walked::default(),
            buffers: Arc::default(),
            eviction: Eviction::default(),
            layers: Mutex::default(),
            next_lane: AtomicU64::new(1),
            limits,
        });
        shared.begin_budget();
        Ok(Self(shared))
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// Opens a layer, or gives the open one with the same digest (its source stays). Blocks on the disk, briefly.
    /// Nothing is fetched until something is read or told to begin; see [`Limits::background_after`].
    ///
    /// # Errors
    /// When the index is damaged, or is not the one that the layer is already open with.
    pub fn open_layer(
        &self,
        spec: LayerSpec,
        source: Arc<dyn RangeSource>,
    ) -> Result<Arc<LazyLayer>, OpenError> {
        let LayerSpec { digest, index } = spec;
        // Its last bytes are a checksum over all of it.
        let bytes = index.as_ref();
        let fingerprint = Digest::of(&bytes[bytes.len().saturating_sub(256)..]);
        let mut layers = self.0.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.retain(|_, layer| layer.strong_count() > 0);
        if let Some(open) =
            layers.get(&digest).and_then(Weak::upgrade).filter(|open| !open.is_closed())
        {
            return if open.fingerprint() == fingerprint {
                Ok(open)
            } else {
                Err(OpenError::OtherIndex(digest))
            };
        }
        let index =
            Index::open(index).map_err(|source| OpenError::Index { layer: digest, source })?;
        let lane = self.0.next_lane.fetch_add(1, Ordering::Relaxed);
        let layer =
            LazyLayer::start(Arc::clone(&self.0), lane, (digest, fingerprint), index, source);
        layers.insert(digest, Arc::downgrade(&layer));
        Ok(layer)
    }

    /// What was asked of all sources so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.counters.counters()
    }

    /// Closes the files of the cache that nobody reads right now. They stay open because they may be read again, up
    /// to [`Limits::open_files`]; for when this process has run out of descriptors all the same.
    pub fn close_idle_files(&self) {
        self.0.close_idle_files(&self.0.open_layers());
    }

    /// Closes every layer and makes what is in the cache durable. Blocks on the disk; for an orderly end only, since
    /// an engine that is killed loses nothing either, except that a power cut later has more to verify.
    ///
    /// # Errors
    /// When the disk reports an error; the content is then verified before its next use.
    pub fn close(&self) -> std::io::Result<()> {
        let layers =
            std::mem::take(&mut *self.0.layers.lock().unwrap_or_else(PoisonError::into_inner));
        for layer in layers.values().filter_map(Weak::upgrade) {
            layer.close();
        }
        self.0.cache.sync()
    }

    /// Makes every further write to the cache fail as on a full disk, or succeed again.
    #[cfg(any(test, feature = "testing"))]
    pub fn pretend_full_disk(&self, full: bool) {
        self.0.cache.is_full_for_tests.store(full, Ordering::Release);
    }
}

impl Shared {
    /// The layers that are open.
    pub(super) fn open_layers(&self) -> Vec<Arc<LazyLayer>> {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.values().filter_map(Weak::upgrade).collect()
    }
}
