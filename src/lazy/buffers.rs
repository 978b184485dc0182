//! Buffers for inflating, used again and again while something is on its way and given back when nothing is.
//!
//! New memory is the dearest part of writing into it: a fault and a page of zeros for every 4 KiB.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Buffers that are kept; where more are in use at a time, the others are made anew.
const KEPT: usize = 2;

/// What inflating needs besides what it makes.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Compressed bytes that came in several pieces.
    pub(super) joined: Vec<u8>,
    /// Content that nobody waits for, until it is in the cache.
    pub(super) content: Vec<u8>,
}

/// The buffers that nobody uses at the moment.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    transfers: usize,
    kept: Vec<Buffers>,
}

/// Something is on its way, until this is dropped.
#[derive(Debug)]
pub(super) struct AtWork(Arc<Pool>);

impl Pool {
    pub(super) fn at_work(self: &Arc<Self>) -> AtWork {
        self.lock().transfers += 1;
        AtWork(Arc::clone(self))
    }

    pub(super) fn take(&self) -> Buffers {
        self.lock().kept.pop().unwrap_or_default()
    }

    pub(super) fn give_back(&self, buffers: Buffers) {
        let mut state = self.lock();
        if state.transfers > 0 && state.kept.len() < KEPT {
            state.kept.push(buffers);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Any state of it is a sound one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.transfers -= 1;
        if state.transfers == 0 {
            state.kept = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_kept_while_something_is_on_its_way() {
        let pool = Arc::new(Pool::default());
        let used = || Buffers { joined: Vec::new(), content: vec![0; 10] };
        pool.give_back(used());
        assert_eq!(pool.take().content.len(), 0, "nothing is on its way");
        let (first, second) = (pool.at_work(), pool.at_work());
        for _ in 0..=KEPT {
            pool.give_back(used());
        }
        assert_eq!(pool.lock().kept.len(), KEPT);
        drop(first);
        assert_eq!(pool.take().content.len(), 10);
        drop(second);
        assert_eq!(pool.take().content.len(), 0);
    }
}
