//! Content that could not be written to the cache: the newest few, so that a reader who takes a chunk in many small
//! pieces does not fetch it as many times while the disk is full.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::image::Digest;

#[derive(Debug)]
pub(super) struct MemoryCache {
    capacity: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    chunks: HashMap<Digest, Bytes>,
    order: VecDeque<Digest>,
    bytes: u64,
}

impl MemoryCache {
    pub(super) fn new(capacity: u64) -> Self {
        Self { capacity, state: Mutex::default() }
    }

    /// Keeps `chunk`; forgets the oldest ones for it. The newest is kept even when it alone is larger than allowed.
    pub(super) fn insert(&self, digest: Digest, chunk: Bytes) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let size = chunk.len() as u64;
        if state.chunks.insert(digest, chunk).is_some() {
            return;
        }
        state.order.push_back(digest);
        state.bytes += size;
        while state.bytes > self.capacity && state.order.len() > 1 {
            let Some(oldest) = state.order.pop_front() else { break };
            if let Some(chunk) = state.chunks.remove(&oldest) {
                state.bytes -= chunk.len() as u64;
            }
        }
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Bytes> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.chunks.get(digest).cloned()
    }

    /// Forgets everything, once the disk takes content again.
    pub(super) fn clear(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_chunks_make_room() {
        let cache = MemoryCache::new(10);
        for byte in 0..4_u8 {
            let chunk = Bytes::from(vec![byte; 4]);
            cache.insert(Digest::of(&chunk), chunk);
        }
        assert!(cache.get(&Digest::of(&[0; 4])).is_none());
        assert!(cache.get(&Digest::of(&[1; 4])).is_none());
        assert_eq!(cache.get(&Digest::of(&[3; 4])).unwrap(), vec![3; 4]);
        let large = Bytes::from(vec![9; 100]);
        cache.insert(Digest::of(&large), large.clone());
        assert_eq!(cache.get(&Digest::of(&large)).unwrap(), large);
        assert!(cache.get(&Digest::of(&[3; 4])).is_none());
    }
}
