//! Files of the cache that stay open between reads: the most recently used, over all layers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::cache::{Content, UseClock};

/// Which file: the lane of its layer and the number of its entry.
pub(super) type Key = (u64, u32);

#[derive(Debug)]
pub(super) struct OpenTable {
    capacity: usize,
    clock: Arc<UseClock>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<Key, (Content, u64)>,
}

impl OpenTable {
    pub(super) fn new(capacity: usize, clock: Arc<UseClock>) -> Self {
        Self { capacity: capacity.max(4), clock, state: Mutex::default() }
    }

    pub(super) fn get(&self, key: Key) -> Option<Content> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let clock = self.clock.tick();
        let (content, used) = state.files.get_mut(&key)?;
        *used = clock;
        Some(content.clone())
    }

    pub(super) fn insert(&self, key: Key, content: Content) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let clock = self.clock.tick();
        state.files.insert(key, (content, clock));
        if state.files.len() > self.capacity {
            // A quarter at a time, so that the search for the oldest is rare.
            let mut uses: Vec<u64> = state.files.values().map(|(_, used)| *used).collect();
            let quarter = uses.len() / 4;
            let (_, &mut oldest, _) = uses.select_nth_unstable(quarter);
            state.files.retain(|_, (_, used)| *used > oldest);
        }
    }

    /// Closes all files and says when each was last used.
    pub(super) fn close_all(&self) -> Vec<(Key, u64)> {
        let files = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut state.files)
        };
        files.into_iter().map(|(key, (_, used))| (key, used)).collect()
    }

    /// Closes the files of a layer.
    pub(super) fn remove_lane(&self, lane: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.files.retain(|(of, _), _| *of != lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_files_are_closed_first() {
        let table = OpenTable::new(8, Arc::default());
        let content = Content::Complete(Arc::new(tempfile::tempfile().unwrap()));
        for entry in 0..20 {
            table.insert((1, entry), content.clone());
            assert!(table.get((1, 0)).is_some());
        }
        assert!(table.get((1, 19)).is_some());
        assert!(table.get((1, 1)).is_none());
        assert!(table.state.lock().unwrap().files.len() <= 8);
        table.remove_lane(1);
        assert!(table.get((1, 0)).is_none());
    }
}
