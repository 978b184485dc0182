//! How much the cache holds, how much it may hold, and what of it was used when. What goes is `evict`'s business.
//!
//! Bytes are those that files occupy. They are counted by a look at the directories, once, when a budget has to be
//! kept for the first time; from then on every write adds what it will occupy, without asking the file system. Each
//! eviction looks at the directories again, and so corrects what went astray. So does, now and then, who shares the cache
//! with another process (see `tenure`), which counts only what it writes itself.
//!
//! Uses are noted in memory, 16 bytes for each file that was used since the process began. What was used before
//! that is older than all of it, in the order in which it was written: a use leaves no trace on the disk, since a
//! file's times carry its stamp (see `epoch`).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::image::Digest;

/// No budget.
const UNBOUNDED: u64 = u64::MAX;

/// Uses that are remembered; of more, the older half is forgotten.
const MAX_USES: usize = 1 << 18;

/// What files occupy is a multiple of this, mostly.
const BLOCK: u64 = 4096;

/// Counts uses: a later one has a larger number.
#[derive(Debug, Default)]
pub(in crate::lazy) struct UseClock(AtomicU64);

impl UseClock {
    pub(in crate::lazy) fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// How much there is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::lazy) enum Pressure {
    /// More than the budget: it is time to evict, elsewhere.
    Over,
    /// Far more: whoever writes should evict first.
    Far,
}

/// Told of pressure.
type Relief = Box<dyn Fn(Pressure) + Send + Sync>;

pub(super) struct Budget {
    limit: AtomicU64,
    used: AtomicU64,
    is_counted: AtomicBool,
    /// What the count was when it was last known to be right.
    looked_at: AtomicU64,
    /// Whether another process has changed what is there.
    is_doubtful: AtomicBool,
    /// Content that the background fill is about to bring.
    reserved: AtomicU64,
    /// Below this nothing is tried: what is over the budget cannot be evicted.
    retry_at: AtomicU64,
    is_fill_told: AtomicBool,
    clock: Arc<UseClock>,
    uses: Mutex<HashMap<u64, u64>>,
    relief: OnceLock<Relief>,
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budget")
            .field("limit", &self.limit())
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            limit: AtomicU64::new(UNBOUNDED),
            used: AtomicU64::new(0),
            is_counted: AtomicBool::new(false),
            looked_at: AtomicU64::new(0),
            is_doubtful: AtomicBool::new(false),
            reserved: AtomicU64::new(0),
            retry_at: AtomicU64::new(0),
            is_fill_told: AtomicBool::new(false),
            clock: Arc::default(),
            uses: Mutex::default(),
            relief: OnceLock::new(),
        }
    }
}

impl Budget {
    pub(super) fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Acquire)).filter(|limit| *limit != UNBOUNDED)
    }

    pub(super) fn set_limit(&self, limit: Option<u64>) {
        self.limit.store(limit.unwrap_or(UNBOUNDED), Ordering::Release);
        self.retry_at.store(0, Ordering::Release);
        self.is_fill_told.store(false, Ordering::Release);
    }

    /// Who evicts. The first one stays.
    pub(super) fn on_pressure(&self, relief: Relief) {
        let _ = self.relief.set(relief);
    }

    /// What is occupied, as far as is known.
    pub(super) fn used(&self) -> Option<u64> {
        self.is_counted.load(Ordering::Acquire).then(|| self.used.load(Ordering::Acquire))
    }

    /// The count without the question whether it began with what was there.
    pub(super) fn running_count(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Takes a count that began when the running one stood at `then`.
    pub(super) fn counted(&self, total: u64, then: u64) {
        let since = self.running_count().saturating_sub(then);
        self.used.store(total + since, Ordering::Release);
        self.is_counted.store(true, Ordering::Release);
        self.looked();
    }

    /// The count is right.
    pub(super) fn looked(&self) {
        self.looked_at.store(self.running_count(), Ordering::Release);
        self.is_doubtful.store(false, Ordering::Release);
    }

    /// The count may be wrong by any amount.
    pub(super) fn doubt(&self) {
        self.is_doubtful.store(true, Ordering::Release);
    }

    pub(super) fn is_doubtful(&self) -> bool {
        self.is_doubtful.load(Ordering::Acquire)
    }

    /// Whether so much was written since the count was right that another process may have written too much by now.
    pub(super) fn is_old(&self) -> bool {
        let since = self.running_count().saturating_sub(self.looked_at.load(Ordering::Acquire));
        self.is_doubtful() || self.limit().is_some_and(|limit| since > limit / 16)
    }

    /// What a file, or a part of one, of `size` bytes occupies.
    pub(super) fn occupied_by(size: u64) -> u64 {
        size.next_multiple_of(BLOCK)
    }

    /// Something that occupies `size` bytes was written.
    pub(super) fn wrote(&self, size: u64) {
        self.used.fetch_add(size, Ordering::AcqRel);
        self.tell_if(Pressure::Over);
    }

    /// Something that could not be evicted can be now.
    pub(super) fn released(&self) {
        self.retry_at.store(0, Ordering::Release);
        if self.used().is_some() {
            self.tell_if(Pressure::Over);
        }
    }

    /// Something that occupied `size` bytes was removed.
    pub(super) fn removed(&self, size: u64) {
        let less = |used: u64| Some(used.saturating_sub(size));
        let _ = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        let _ = self.looked_at.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// Makes room before something is written, if there is far too much. Blocks; must be called without any lock.
    pub(super) fn relieve(&self) {
        self.tell_if(Pressure::Far);
    }

    /// Nothing can be evicted at present.
    pub(super) fn put_off(&self, limit: u64) {
        self.retry_at.store(self.running_count() + limit / 16, Ordering::Release);
    }

    /// Evicting ended with `used` bytes left. What is still too much is in use: that does not change soon.
    pub(super) fn evicted(&self) {
        let Some(limit) = self.limit() else { return };
        self.retry_at.store(0, Ordering::Release);
        if self.running_count() > limit {
            self.put_off(limit);
        }
    }

    /// Down to where an eviction goes, and up to where the background fill goes: it never causes one.
    pub(super) fn low_mark(limit: u64) -> u64 {
        limit - limit / 10
    }

    fn tell_if(&self, pressure: Pressure) {
        let Some(limit) = self.limit() else { return };
        let (used, is_counted) = (self.running_count(), self.is_counted.load(Ordering::Acquire));
        let mark = match pressure {
            // The first write after the start has what is there counted.
            Pressure::Over if !is_counted => 0,
            Pressure::Over => limit,
            Pressure::Far => limit.saturating_add(limit / 8),
        };
        let is_over = used > mark && used > self.retry_at.load(Ordering::Acquire);
        if (is_over || (pressure == Pressure::Over && is_counted && self.is_old()))
            && let Some(relief) = self.relief.get()
        {
            relief(pressure);
        }
    }

    /// Room for `size` bytes of the background fill, until the answer is dropped. The count must have been made.
    pub(super) fn reserve(self: &Arc<Self>, size: u64) -> Option<Room> {
        let Some(limit) = self.limit() else { return Some(Room::unbounded()) };
        let reserved = self.reserved.fetch_add(size, Ordering::AcqRel) + size;
        let room = Room { budget: Some(Arc::clone(self)), size };
        let wanted = self.running_count().saturating_add(reserved);
        (wanted <= Self::low_mark(limit)).then_some(room)
    }

    /// True for the first who finds that there is no room for the fill.
    pub(super) fn tells_that_fill_ends(&self) -> bool {
        !self.is_fill_told.swap(true, Ordering::AcqRel)
    }

    pub(super) fn clock(&self) -> Arc<UseClock> {
        Arc::clone(&self.clock)
    }

    /// `key` is used.
    pub(super) fn touch(&self, key: &Digest) {
        if self.limit().is_some() {
            self.touch_at(key, self.clock.tick());
        }
    }

    /// `key` was used then.
    pub(super) fn touch_at(&self, key: &Digest, when: u64) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        let last = uses.entry(short(key)).or_default();
        *last = when.max(*last);
        if uses.len() > MAX_USES {
            let mut times: Vec<u64> = uses.values().copied().collect();
            let half = times.len() / 2;
            let (_, &mut median, _) = times.select_nth_unstable(half);
            uses.retain(|_, when| *when > median);
        }
    }

    /// When `key` was last used; `None`: not in the life of this process, as far as is remembered.
    pub(super) fn last_use(&self, key: &Digest) -> Option<u64> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner).get(&short(key)).copied()
    }

    /// Forgets the uses of what is gone.
    pub(super) fn forget(&self, gone: &HashSet<Digest>) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        for key in gone {
            uses.remove(&short(key));
        }
    }
}

/// Enough of a digest: two that are taken for one another are evicted a little late or early.
fn short(key: &Digest) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&key.as_bytes()[..8]);
    u64::from_le_bytes(word)
}

/// Leave to bring content in the background.
#[derive(Debug)]
pub(in crate::lazy) struct Room {
    budget: Option<Arc<Budget>>,
    size: u64,
}

impl Room {
    /// Without a bound.
    pub(in crate::lazy) fn unbounded() -> Self {
        Self { budget: None, size: 0 }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.reserved.fetch_sub(self.size, Ordering::AcqRel);
        }
    }
}
