//! Eviction as the engine sees it: when it happens, what is protected, and that every layer forgets what is gone.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::cache::{Pressure, keys_of};
use super::engine::{Engine, Shared};
use super::layer::LazyLayer;
use crate::estargz::{ChunkNo, EntryNo};
use crate::image::Digest;

/// Names, of every file that is open, its layer and its entry.
type OpenFiles = Box<dyn Fn(&mut dyn FnMut(Digest, EntryNo)) + Send + Sync>;

/// What the engine knows about eviction.
#[derive(Default)]
pub(super) struct Eviction {
    open_files: Mutex<Option<OpenFiles>>,
    is_begun: AtomicBool,
    /// What the last eviction left because it was open, if that was too much.
    spared: Mutex<HashSet<(Digest, EntryNo)>>,
    is_sparing: AtomicBool,
}

impl std::fmt::Debug for Eviction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Eviction").field("is_begun", &self.is_begun).finish_non_exhaustive()
    }
}

impl Engine {
    /// What the cache may occupy on disk from now on; `None`: as much as there is. Evicts in the background what is
    /// over it. Layers whose background fill had ended for want of room go on with it.
    pub fn set_cache_budget(&self, bytes: Option<u64>) {
        let shared = self.shared();
        shared.cache.set_budget(bytes);
        shared.evict_later();
        for layer in shared.open_layers() {
            layer.look_again();
        }
    }

    /// What the cache occupies on disk; `None` before there was a budget.
    #[must_use]
    pub fn cache_bytes(&self) -> Option<u64> {
        self.shared().cache.used()
    }

    /// Has `open_files` asked before each eviction which files somebody has open whom the engine does not know, as the
    /// kernel that reads a file itself: none of them is evicted. It must not call the engine.
    pub fn protect(
        &self,
        open_files: impl Fn(&mut dyn FnMut(Digest, EntryNo)) + Send + Sync + 'static,
    ) {
        let mut kept =
            self.shared().eviction.open_files.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = Some(Box::new(open_files));
    }

    /// Waits for the end of an eviction that is under way.
    #[cfg(test)]
    pub(super) fn wait_for_eviction(&self) {
        self.shared().cache.wait_for_eviction();
    }
}

impl Shared {
    /// Begins to keep the budget of the limits.
    pub(super) fn begin_budget(self: &Arc<Self>) {
        let shared: Weak<Self> = Arc::downgrade(self);
        self.cache.on_pressure(move |pressure| {
            let Some(shared) = shared.upgrade() else { return };
            match pressure {
                Pressure::Over => shared.evict_later(),
                Pressure::Far => shared.evict(),
            }
        });
        self.cache.set_budget(self.limits.cache_bytes);
    }

    /// Evicts in the background; one at a time.
    fn evict_later(self: &Arc<Self>) {
        if !self.eviction.is_begun.swap(true, Ordering::AcqRel) {
            let shared = Arc::clone(self);
            self.runtime.spawn_blocking(move || {
                shared.eviction.is_begun.store(false, Ordering::Release);
                shared.evict();
            });
        }
    }

    /// Nothing stays open only because it may be read again; when it was, counts.
    pub(super) fn close_idle_files(&self, layers: &[Arc<LazyLayer>]) {
        self.cache.close_segments();
        for ((lane, entry), used) in self.table.close_all() {
            let layer = layers.iter().find(|layer| layer.lane == lane);
            if let Some(Ok(place)) = layer.map(|layer| layer.place(EntryNo(entry))) {
                self.cache.touch_at(&place, used);
            }
        }
    }

    /// Evicts what is over the budget. Blocks.
    pub(super) fn evict(&self) {
        if !self.cache.is_over_budget() {
            return;
        }
        let layers = self.open_layers();
        self.close_idle_files(&layers);
        let now = self.cache.clock().tick();
        let mut protected = HashSet::new();
        let open_files = self.eviction.open_files.lock().unwrap_or_else(PoisonError::into_inner);
        // Locked before anybody is asked: who closes a file meanwhile waits until it is noted.
        let mut spared = self.eviction.spared.lock().unwrap_or_else(PoisonError::into_inner);
        spared.clear();
        self.eviction.is_sparing.store(true, Ordering::Release);
        if let Some(open_files) = &*open_files {
            open_files(&mut |digest, entry| {
                spared.insert((digest, entry));
                let layer = layers.iter().find(|layer| layer.digest == digest);
                if let Some(Ok(place)) = layer.map(|layer| layer.place(entry)) {
                    self.cache.touch_at(&place, now);
                    protected.extend(keys_of(&place));
                }
            });
        }
        drop((open_files, spared));
        let mut forgetful = Vec::new();
        self.cache.evict(&protected, |gone| {
            // Asked anew: one that was opened meanwhile may have taken its note before the notes went.
            forgetful = self.open_layers();
            forgetful.iter().for_each(|layer| layer.forget_content(gone));
        });
        forgetful.iter().for_each(|layer| layer.save_hint());
        if !self.cache.is_over_budget() {
            self.eviction.is_sparing.store(false, Ordering::Release);
        }
    }

    /// Somebody whom the engine does not know has closed the file. If the cache is over its budget because it was open,
    /// the next eviction begins: nothing else may be written for long.
    fn closed(self: &Arc<Self>, digest: Digest, entry: EntryNo) {
        if !self.eviction.is_sparing.load(Ordering::Acquire) {
            return;
        }
        let mut spared = self.eviction.spared.lock().unwrap_or_else(PoisonError::into_inner);
        if spared.remove(&(digest, entry)) {
            self.evict_later();
        }
    }
}

impl LazyLayer {
    /// Tells that nobody has `entry` open any more of whom [`Engine::protect`] asks.
    pub fn closed(&self, entry: EntryNo) {
        self.shared.closed(self.digest, entry);
    }

    /// Counts what was in the content `gone` as not local. One pass over the index, since the cache knows no layers.
    fn forget_content(&self, gone: &HashSet<Digest>) {
        if gone.is_empty() {
            return;
        }
        for number in self.packed_in(gone) {
            if let Some((chunk, _, _)) = self.chunk_of(number) {
                self.forget(number, chunk.size);
            }
        }
        let mut file = None;
        for number in 0..self.index.chunks() {
            if !self.progress.is_set(number) {
                continue;
            }
            let Some((entry, n)) = self.index.chunk_by_number(ChunkNo(number)) else { continue };
            let Some(chunk) = self.index.chunk(entry, n) else { continue };
            let count = self.index.chunk_count(entry);
            let is_gone = match file {
                Some((known, is_gone)) if known == entry => is_gone,
                _ if count <= 1 => gone.contains(&chunk.digest),
                _ => {
                    let whole = self.index.file_digest(entry);
                    whole.is_some_and(|whole| gone.contains(&whole))
                        || gone.contains(&self.partial_id(entry, count))
                }
            };
            file = Some((entry, is_gone));
            if is_gone {
                self.forget(number, chunk.size);
            }
        }
    }
}
