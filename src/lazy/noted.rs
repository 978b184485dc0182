//! What a layer notes of itself: chunks that others brought, and on disk what is local.

use std::sync::atomic::Ordering;

use super::engine::Engine;
use super::layer::LazyLayer;
use crate::estargz::EntryNo;

impl Engine {
    /// Looks whether another process has evicted content that layers count as local. What they have left is counted anew
    /// in the background, and until then as nothing. One read of eight bytes, and none where this process is the one who
    /// evicts.
    pub fn notice_evictions(&self) {
        let shared = self.shared();
        if !shared.cache.notices_eviction() {
            return;
        }
        for layer in shared.open_layers() {
            if layer.forget_all() {
                shared.runtime.spawn_blocking(move || layer.count_anew());
            }
        }
    }
}

impl LazyLayer {
    /// Counts a file as local that was found whole: another file, another layer or an earlier process brought it.
    pub(super) fn count_whole(&self, entry: EntryNo, chunks: u32) {
        if self.is_complete() {
            return;
        }
        for chunk in (0..chunks).filter_map(|n| self.index.chunk(entry, n)) {
            self.progress.set(chunk.number.0, chunk.size);
        }
        if self.is_complete()
            && let Ok(layer) = self.strong()
        {
            self.shared.runtime.spawn_blocking(move || layer.settle(&[]));
        }
    }

    /// Notes what is local after each fiftieth of the layer: a worker that is killed then forgets next to nothing of
    /// what it would show, and the notes cost next to nothing. Blocks.
    pub(super) fn save_hint_if_grown(&self) {
        let (local, noted) = (self.local_bytes(), self.noted_bytes.load(Ordering::Relaxed));
        if local.saturating_sub(noted) > self.total_bytes() / 50 {
            self.save_hint();
        }
    }

    pub(super) fn save_hint(&self) {
        self.noted_bytes.store(self.local_bytes(), Ordering::Relaxed);
        self.shared.cache.save_hint(&self.digest, || self.progress.to_hint());
    }

    /// Counts nothing as local. False if nothing was.
    fn forget_all(&self) -> bool {
        let had = self.local_bytes() > 0;
        for number in (0..self.index.chunks()).filter(|number| self.progress.is_set(*number)) {
            if let Some((chunk, _, _)) = self.chunk_of(number) {
                self.forget(number, chunk.size);
            }
        }
        had
    }

    /// Counts what is in the cache. Blocks.
    fn count_anew(&self) {
        let (mut at, end) = (0, self.index.chunks());
        while at < end && !self.is_closed() {
            at = self.look_for_local(at..end);
        }
        self.save_hint();
    }
}
