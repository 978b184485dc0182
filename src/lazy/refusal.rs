//! What is not fetched at present because it was corrupt or refused: the bound on the load of a broken blob.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::{Limits, ReadError};

/// Chunks, and the whole source, by when and why they were refused.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    chunks: Mutex<HashMap<u32, (Instant, ReadError)>>,
    source: Mutex<Option<(Instant, ReadError)>>,
}

impl Refusals {
    /// Why `number` is not fetched at present.
    pub(super) fn of(&self, number: u32, limits: &Limits) -> Option<ReadError> {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, error)) = chunks.get(&number) {
            if when.elapsed() < limits.refusal_memory {
                return Some(error.clone());
            }
            chunks.remove(&number);
        }
        drop(chunks);
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        source
            .as_ref()
            .filter(|(when, _)| when.elapsed() < limits.retry_max)
            .map(|(_, error)| error.clone())
    }

    pub(super) fn refuse_chunk(&self, number: u32, error: ReadError) {
        let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        chunks.insert(number, (Instant::now(), error));
    }

    pub(super) fn refuse_source(&self, error: ReadError) {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        *source = Some((Instant::now(), error));
    }
}
