//! Eviction as the engine sees it: when it happens, what is protected, and that every layer forgets what is gone.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::io::Errno;
use tokio::io::Interest;

use super::cache::{Place, Pressure, keys_of};
use super::engine::{Engine, Shared};
use super::layer::LazyLayer;
use crate::estargz::{ChunkNo, EntryNo};
use crate::image::Digest;
use crate::sys::readiness;
use crate::telemetry::Chain;

/// Names, of every file that is open, its layer and its entry.
type OpenFiles = Box<dyn Fn(&mut dyn FnMut(Digest, EntryNo)) + Send + Sync>;

/// What the engine knows about eviction.
#[derive(Default)]
pub(super) struct Eviction {
    open_files: Mutex<Option<OpenFiles>>,
    is_begun: AtomicBool,
    /// Whether the bell of the cache is listened to, by whoever has to.
    is_listening: AtomicBool,
    /// Held by the one who evicts: whoever waits finds most often that there is nothing left to do.
    running: Mutex<()>,
    spared: Mutex<Spared>,
    /// Whether `spared` is kept up to date.
    pub(super) is_sparing: AtomicBool,
    #[cfg(test)]
    pub(super) begun_for_tests: std::sync::atomic::AtomicU64,
    #[cfg(test)]
    pub(super) ended_for_tests: std::sync::atomic::AtomicU64,
}

/// What the last eviction left because it was open, if that was too much.
#[derive(Default)]
struct Spared {
    /// Open files, and what of the cache each of them keeps there.
    files: HashMap<(Digest, EntryNo), Option<Digest>>,
    /// That, by how many files it is kept, and its bytes.
    kept: HashMap<Digest, (u32, u64)>,
    /// Bytes that nobody keeps any more.
    freed: u64,
}

impl Spared {
    /// `file` keeps the content of `place`. False if it was closed meanwhile.
    fn note(&mut self, file: (Digest, EntryNo), place: &Place) -> bool {
        let Some(keeps) = self.files.get_mut(&file) else { return false };
        let (key, bytes) =
            place.slot.map_or((place.id, place.size), |slot| (slot.segment.id, slot.segment.size));
        *keeps = Some(key);
        self.kept.entry(key).or_insert((0, bytes)).0 += 1;
        true
    }

    /// `file` is closed. True if it was open.
    fn close(&mut self, file: (Digest, EntryNo)) -> bool {
        let Some(keeps) = self.files.remove(&file) else { return false };
        if let Some(key) = keeps
            && let Some((files, bytes)) = self.kept.get_mut(&key)
        {
            *files -= 1;
            if *files == 0 {
                self.freed += *bytes;
                self.kept.remove(&key);
            }
        }
        true
    }
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
        shared.answer_bell();
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
        drop(self.shared().eviction.running.lock());
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
        self.answer_bell();
    }

    /// Begins to evict when another process asks for it, if that is this one's business.
    fn answer_bell(self: &Arc<Self>) {
        if self.cache.budget().is_none() || self.eviction.is_listening.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let Some(bell) = self.cache.bell() else { return };
        let shared = Arc::downgrade(self);
        self.runtime.spawn(async move {
            let listen = async {
                let bell = readiness::watch(bell?, Interest::READABLE)?;
                let mut rung = [0; 4096];
                loop {
                    let mut ready = bell.readable().await?;
                    match rustix::io::read(bell.get_ref(), &mut rung) {
                        Ok(_) => {}
                        Err(Errno::WOULDBLOCK) => {
                            ready.clear_ready();
                            continue;
                        }
                        Err(error) => return Err(io::Error::from(error)),
                    }
                    let Some(shared) = shared.upgrade() else { return Ok(()) };
                    shared.cache.doubt_count();
                    shared.evict_later();
                }
            };
            if let Err(error) = listen.await {
                let error = Chain(&error).to_string();
                tracing::warn!(error, "what other processes write is evicted late");
            }
        });
    }

    /// Evicts in the background; one at a time.
    fn evict_later(self: &Arc<Self>) {
        if !self.eviction.is_begun.swap(true, Ordering::AcqRel) {
            #[cfg(test)]
            self.eviction.begun_for_tests.fetch_add(1, Ordering::AcqRel);
            let shared = Arc::clone(self);
            self.runtime.spawn_blocking(move || {
                shared.eviction.is_begun.store(false, Ordering::Release);
                shared.evict();
                #[cfg(test)]
                shared.eviction.ended_for_tests.fetch_add(1, Ordering::AcqRel);
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
        let _alone = self.eviction.running.lock().unwrap_or_else(PoisonError::into_inner);
        self.cache.count_with_others();
        if !self.cache.is_over_budget() {
            self.eviction.is_sparing.store(false, Ordering::Release);
            return;
        }
        // A guest closes nothing for the sake of an eviction that is its host's.
        if !self.cache.may_evict() {
            self.cache.ring();
            return;
        }
        let layers = self.open_layers();
        self.close_idle_files(&layers);
        let protected = self.protected(&layers);
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

    /// What is not evicted, since somebody has it open whom the engine does not know. From now on each that is
    /// closed is noted.
    fn protected(&self, layers: &[Arc<LazyLayer>]) -> HashSet<Digest> {
        let now = self.cache.clock().tick();
        let mut open = Vec::new();
        {
            let open_files =
                self.eviction.open_files.lock().unwrap_or_else(PoisonError::into_inner);
            // Locked before anybody is asked: who closes a file meanwhile waits until it is noted.
            let mut spared = self.spared();
            *spared = Spared::default();
            self.eviction.is_sparing.store(true, Ordering::Release);
            if let Some(open_files) = &*open_files {
                open_files(&mut |digest, entry| open.push((digest, entry)));
            }
            spared.files = open.iter().map(|file| (*file, None)).collect();
        }
        // Without the lock: to name a place may mean to hash all names of a segment, and others close files meanwhile.
        let places = open.into_iter().filter_map(|(digest, entry)| {
            let layer = layers.iter().find(|layer| layer.digest == digest)?;
            Some(((digest, entry), layer.place(entry).ok()?))
        });
        let places: Vec<_> = places.collect();
        let mut spared = self.spared();
        let mut protected = HashSet::new();
        for (file, place) in &places {
            self.cache.touch_at(place, now);
            if spared.note(*file, place) {
                protected.extend(keys_of(place));
            }
        }
        protected
    }

    fn spared(&self) -> MutexGuard<'_, Spared> {
        self.eviction.spared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody whom the engine does not know has closed the file. If the cache is over its budget because it was open,
    /// the next eviction begins, since nothing else may be written for long: when that gives enough back to be worth a
    /// look at every file, or nothing more is open.
    fn closed(self: &Arc<Self>, digest: Digest, entry: EntryNo) {
        if !self.eviction.is_sparing.load(Ordering::Acquire) {
            return;
        }
        let mut spared = self.spared();
        if !spared.close((digest, entry)) {
            return;
        }
        let enough = self.cache.excess().min(self.cache.budget().unwrap_or_default() / 16);
        if spared.files.is_empty() || spared.freed > enough {
            spared.freed = 0;
            drop(spared);
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
        // Nothing is counted of most layers that a worker serves, and nothing is known of where their files would be.
        if gone.is_empty() || self.local_bytes() == 0 {
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
