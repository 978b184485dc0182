//! What a layer notes of itself: chunks that others brought, and on disk what is local.

use std::sync::atomic::Ordering;

use super::layer::LazyLayer;
use crate::estargz::EntryNo;

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
}
