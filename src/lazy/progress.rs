//! Which chunks of a layer are local: one bit each, for display and for the fill. A read never relies on it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::image::Digest;

const MAGIC: &[u8; 8] = b"SVHINT1\n";

#[derive(Debug)]
pub(super) struct Progress {
    words: Box<[AtomicU64]>,
    chunks: u32,
    local_chunks: AtomicU32,
    local_bytes: AtomicU64,
}

impl Progress {
    pub(super) fn new(chunks: u32) -> Self {
        let words = (0..chunks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { words, chunks, local_chunks: AtomicU32::new(0), local_bytes: AtomicU64::new(0) }
    }

    /// Chunk `number`, of `size` bytes, is local.
    pub(super) fn set(&self, number: u32, size: u32) {
        let bit = 1 << (number % 64);
        let Some(word) = self.words.get(number as usize / 64) else { return };
        if word.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.local_bytes.fetch_add(u64::from(size), Ordering::Relaxed);
            self.local_chunks.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Chunk `number` is not local, although it once was.
    pub(super) fn unset(&self, number: u32, size: u32) {
        let bit = 1 << (number % 64);
        let Some(word) = self.words.get(number as usize / 64) else { return };
        if word.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
            self.local_bytes.fetch_sub(u64::from(size), Ordering::Relaxed);
            self.local_chunks.fetch_sub(1, Ordering::AcqRel);
        }
    }

    pub(super) fn is_set(&self, number: u32) -> bool {
        self.words
            .get(number as usize / 64)
            .is_some_and(|word| word.load(Ordering::Acquire) & (1 << (number % 64)) != 0)
    }

    pub(super) fn local_bytes(&self) -> u64 {
        self.local_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.local_chunks.load(Ordering::Acquire) == self.chunks
    }

    /// The bits as bytes: magic, number of chunks, words, digest over all that.
    pub(super) fn to_hint(&self) -> Vec<u8> {
        let mut hint = MAGIC.to_vec();
        hint.extend(self.chunks.to_le_bytes());
        for word in &self.words {
            hint.extend(word.load(Ordering::Acquire).to_le_bytes());
        }
        let digest = Digest::of(&hint);
        hint.extend(digest.as_bytes());
        hint
    }

    /// Takes the bits of an earlier process; `size` gives the size of a chunk. A hint of anything else is ignored.
    pub(super) fn take_hint(&self, hint: &[u8], size: impl Fn(u32) -> Option<u32>) {
        let Some((body, digest)) = hint.split_last_chunk::<32>() else { return };
        let Some(words) =
            body.strip_prefix(MAGIC).and_then(|rest| rest.strip_prefix(&self.chunks.to_le_bytes()))
        else {
            return;
        };
        if Digest::of(body).as_bytes() != digest || words.len() != self.words.len() * 8 {
            return;
        }
        for number in 0..self.chunks {
            let byte = words.get(number as usize / 8).copied().unwrap_or(0);
            if byte & (1 << (number % 8)) != 0
                && let Some(size) = size(number)
            {
                self.set(number, size);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_counted_once_and_survive_as_a_hint() {
        let progress = Progress::new(100);
        progress.set(3, 10);
        progress.set(3, 10);
        progress.set(99, 5);
        progress.unset(50, 7);
        assert_eq!(progress.local_bytes(), 15);
        let other = Progress::new(100);
        other.take_hint(&progress.to_hint(), |n| Some(if n == 3 { 10 } else { 5 }));
        assert!(other.is_set(3) && other.is_set(99) && !other.is_set(4));
        assert_eq!(other.local_bytes(), 15);
        other.unset(3, 10);
        assert_eq!(other.local_bytes(), 5);
    }

    #[test]
    fn a_hint_of_another_layer_or_a_damaged_one_is_ignored() {
        let progress = Progress::new(8);
        (0..8).for_each(|n| progress.set(n, 1));
        assert!(progress.is_complete());
        let mut hint = progress.to_hint();
        let other = Progress::new(9);
        other.take_hint(&hint, |_| Some(1));
        hint[12] ^= 1;
        let same = Progress::new(8);
        same.take_hint(&hint, |_| Some(1));
        same.take_hint(&hint[..3], |_| Some(1));
        assert_eq!((other.local_bytes(), same.local_bytes()), (0, 0));
    }
}
