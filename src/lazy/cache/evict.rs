//! Eviction: what was used longest ago goes, until there is some room below the budget.
//!
//! Files go whole, complete and incomplete ones alike. Punching holes would give back the cold chunks of one large
//! file, but a reader between its look at the map and its `pread` would take the hole's zeros for content; keeping
//! it out costs a lock on every read. A file that is removed stays what it is for whoever has it open.
//!
//! Not removed is what is open: by somebody in this process, or through the mount (the engine is told by whoever knows;
//! see `Engine::protect`), what is being written, and what was used after it had been chosen.
//!
//! A process may die between any two steps. Before the first removal the notes about layers go, so none is left
//! that counts what is gone; each removal is one `unlink`, or two of which the first takes the map and so all that
//! anybody knows of the second (see `partial`); the count of bytes is made anew by the next process.

use std::collections::{BinaryHeap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, PoisonError, RwLockReadGuard, Weak};

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::budget::{Budget, Pressure, Room, UseClock};
use super::files::{Candidate, directory, each_file};
use super::tenure::Tenure;
use super::whole::whole_name;
use super::{FileCache, Found, Place, Survey, partial};
use crate::image::Digest;
use crate::lazy::event::LazyEvent;
use crate::telemetry::Chain;

/// Content that was kept, and is not evicted before this is dropped: time to count it as local.
#[derive(Debug)]
pub(in crate::lazy) struct Landing<'a> {
    _gate: RwLockReadGuard<'a, ()>,
}

/// The coldest files that together have the bytes that are wanted, found in one pass over all of them.
#[derive(Debug)]
struct Coldest {
    wanted: u64,
    bytes: u64,
    files: BinaryHeap<Candidate>,
}

impl Coldest {
    fn offer(&mut self, candidate: Candidate) {
        self.bytes += candidate.bytes;
        self.files.push(candidate);
        while let Some(warmest) = self.files.peek()
            && self.bytes - warmest.bytes >= self.wanted
        {
            self.bytes -= warmest.bytes;
            self.files.pop();
        }
    }
}

impl FileCache {
    /// Bounds what the files occupy. Who evicts: see [`FileCache::on_pressure`].
    pub(in crate::lazy) fn set_budget(&self, bytes: Option<u64>) {
        self.budget.set_limit(bytes);
    }

    /// The bound.
    pub(in crate::lazy) fn budget(&self) -> Option<u64> {
        self.budget.limit()
    }

    /// Whether there is too much, as far as is known.
    pub(in crate::lazy) fn is_over_budget(&self) -> bool {
        self.budget.limit().is_some_and(|limit| self.budget.used().is_none_or(|used| used > limit))
    }

    /// What the files occupy; `None` before it was counted.
    pub(in crate::lazy) fn used(&self) -> Option<u64> {
        self.budget.used()
    }

    /// `relief` is called when there is too much: from within a write for [`Pressure::Over`], and must not evict then;
    /// before one for [`Pressure::Far`].
    pub(in crate::lazy) fn on_pressure(&self, relief: impl Fn(Pressure) + Send + Sync + 'static) {
        self.budget.on_pressure(Box::new(relief));
    }

    /// By which uses are counted.
    pub(in crate::lazy) fn clock(&self) -> Arc<UseClock> {
        self.budget.clock()
    }

    /// `place` was used then.
    pub(in crate::lazy) fn touch_at(&self, place: &Place, when: u64) {
        for key in keys_of(place) {
            self.budget.touch_at(&key, when);
        }
    }

    /// Room for `size` bytes of the background fill, which tells once when there is none. Blocks.
    pub(in crate::lazy) fn reserve(&self, size: u64) -> Option<Room> {
        let is_unknown = self.budget.used().is_none() || self.budget.is_doubtful();
        if self.budget.limit().is_some()
            && is_unknown
            && let Err(error) = self.count()
        {
            self.degrade(&error);
            return None;
        }
        let room = self.budget.reserve(size);
        if room.is_none()
            && let Some(budget) = self.budget.limit()
            && self.budget.tells_that_fill_ends()
        {
            self.events.send(LazyEvent::CacheFull { budget });
        }
        room
    }

    /// Evicts what is over the budget, except what is `protected`; `forget` is told what is gone. Blocks. One at a
    /// time: a second caller waits for the first one.
    pub(in crate::lazy) fn evict(
        &self,
        protected: &HashSet<Digest>,
        forget: impl FnOnce(&HashSet<Digest>),
    ) {
        let _alone = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(limit) = self.budget.limit() else { return };
        if !self.is_over_budget() {
            return;
        }
        // What another process has open is not known here.
        if !self.may_evict() {
            return;
        }
        // They stay open only because they may be read again.
        self.segments.close();
        #[cfg(test)]
        self.scans_for_tests.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        let chosen = self.count().and_then(|total| match total > limit {
            true => self.choose(total - Budget::low_mark(limit), protected),
            false => Ok(Vec::new()),
        });
        match chosen {
            Ok(chosen) if chosen.is_empty() => {}
            Ok(chosen) => self.remove_all(&chosen, forget),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "could not look for content to evict")
            }
        }
        self.budget.evicted();
    }

    /// Whether this process may evict at present. One that may not is not asked again before more was written.
    pub(in crate::lazy) fn may_evict(&self) -> bool {
        let may = self.tenure.leave().is_some();
        if let (false, Some(limit)) = (may, self.budget.limit()) {
            self.budget.put_off(limit);
        }
        may
    }

    /// Asks the owner, whose business it is, to evict.
    pub(in crate::lazy) fn ring(&self) {
        self.tenure.ring(&self.root);
    }

    /// What becomes readable when a guest rings; of the owner only.
    pub(in crate::lazy) fn bell(&self) -> Option<io::Result<OwnedFd>> {
        self.tenure.is_owner().then(|| Tenure::bell(&self.root))
    }

    /// The count may be wrong by any amount.
    pub(in crate::lazy) fn doubt_count(&self) {
        self.budget.doubt();
    }

    /// Counts anew if another process may have written so much that it matters. Blocks.
    pub(in crate::lazy) fn count_with_others(&self) {
        let is_due = match self.budget.used() {
            // The owner counts when it evicts.
            None => !self.tenure.is_owner() || self.budget.is_doubtful(),
            Some(_) => self.budget.is_old(),
        };
        if self.budget.limit().is_none() || !is_due {
            return;
        }
        if !self.budget.is_doubtful() && !self.tenure.has_company() {
            self.budget.looked();
        } else if let Err(error) = self.count() {
            tracing::warn!(error = %Chain(&error), "could not count what the cache holds");
        }
    }

    /// How much there is too much, as far as is known.
    pub(in crate::lazy) fn excess(&self) -> u64 {
        let used = self.budget.used().unwrap_or_default();
        self.budget.limit().map_or(0, |limit| used.saturating_sub(limit))
    }

    /// Evicts content that no layer has but those that nobody uses; `choose` takes out of all files what others have.
    /// Given `bytes`, only so much goes as is needed for them, the coldest first. Gives what went, in files and bytes;
    /// `None` while another process uses the cache. Blocks.
    pub(in crate::lazy) fn evict_unused(
        &self,
        kept: &HashSet<Digest>,
        bytes: Option<u64>,
        choose: impl FnOnce(&mut Survey),
    ) -> io::Result<Option<Found>> {
        let _alone = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.tenure.leave().is_none() {
            return Ok(None);
        }
        // What was known of layers that are closed by now.
        self.segments.close();
        let mut survey = Survey::default();
        self.each_file(|candidate| survey.add(candidate))?;
        choose(&mut survey);
        self.remove_hints(|layer| !kept.contains(layer));
        let mut gone = Found::default();
        let mut keys = HashSet::new();
        let mut unused: Vec<Candidate> = survey.into_rest().collect();
        unused.sort_unstable();
        for candidate in unused {
            if bytes.is_some_and(|wanted| gone.bytes >= wanted) {
                break;
            }
            let key = Digest::from_bytes(candidate.key);
            let Some(_leave) = self.tenure.leave() else { break };
            if !self.is_written(&key) && self.remove(&candidate) {
                gone += Found { files: 1, bytes: candidate.bytes };
                keys.insert(key);
            }
        }
        self.budget.removed(gone.bytes);
        self.budget.forget(&keys);
        tracing::debug!(files = gone.files, bytes = gone.bytes, "evicted unused content");
        Ok(Some(gone))
    }

    fn remove_all(&self, chosen: &[Candidate], forget: impl FnOnce(&HashSet<Digest>)) {
        {
            let Some(_leave) = self.tenure.leave() else { return };
            self.begin_without_hints();
        }
        let mut gone = HashSet::new();
        let mut bytes = 0;
        for candidate in chosen {
            let Some(_leave) = self.tenure.leave() else { break };
            #[cfg(test)]
            if self.dies_after_for_tests.fetch_sub(1, std::sync::atomic::Ordering::AcqRel) <= 0 {
                return;
            }
            if self.remove(candidate) {
                gone.insert(Digest::from_bytes(candidate.key));
                bytes += candidate.bytes;
            }
        }
        self.budget.removed(bytes);
        self.budget.forget(&gone);
        forget(&gone);
        self.end_without_hints();
        tracing::debug!(files = gone.len(), bytes, "evicted content");
    }

    /// True if it is gone.
    fn remove(&self, candidate: &Candidate) -> bool {
        let key = Digest::from_bytes(candidate.key);
        let _gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        if self.is_open(&key) || self.budget.last_use(&key) != candidate.last_use.0 {
            return false;
        }
        let unlink = |name: &str| match rustix::fs::unlinkat(&self.root, name, AtFlags::empty()) {
            Ok(()) => true,
            // Published meanwhile.
            Err(Errno::NOENT) => false,
            Err(error) => {
                tracing::debug!(%error, name, "could not evict");
                false
            }
        };
        if !candidate.is_partial {
            return unlink(&whole_name(&key));
        }
        // Held throughout: whoever opens it afterwards begins a new one.
        let partials = self.partials.lock().unwrap_or_else(PoisonError::into_inner);
        if partials.get(&key).is_some_and(|partial| partial.strong_count() > 0) {
            return false;
        }
        let (data, map) = partial::names(&key);
        let Some(_held) = partial::hold_to_remove(self.root.as_fd(), &data) else { return false };
        unlink(&map);
        unlink(&data)
    }

    /// Looks at every file and gives what they occupy.
    fn count(&self) -> io::Result<u64> {
        let then = self.budget.running_count();
        let mut total = 0;
        self.each_file(|candidate| total += candidate.bytes)?;
        self.budget.counted(total, then);
        Ok(total)
    }

    fn choose(&self, wanted: u64, protected: &HashSet<Digest>) -> io::Result<Vec<Candidate>> {
        let mut coldest = Coldest { wanted, bytes: 0, files: BinaryHeap::new() };
        self.each_file(|candidate| {
            let key = Digest::from_bytes(candidate.key);
            let is_free = !protected.contains(&key) && !self.is_open(&key);
            if candidate.bytes > 0 && is_free && !(candidate.is_partial && self.is_written(&key)) {
                coldest.offer(candidate);
            }
        })?;
        Ok(coldest.files.into_sorted_vec())
    }

    fn each_file(&self, found: impl FnMut(Candidate)) -> io::Result<()> {
        each_file(self.root.as_fd(), |key| self.budget.last_use(key), found)
    }

    pub(super) fn directory(&self, name: &str) -> io::Result<OwnedFd> {
        directory(self.root.as_fd(), name)
    }

    /// Notes that somebody has `file`, which is the content `key`, for as long as anybody has it. Called behind the
    /// gate through which evicting goes too.
    pub(super) fn note_open(&self, key: Digest, file: &Arc<File>) {
        self.budget.touch(&key);
        if self.budget.limit().is_none() {
            return;
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let before = open.len();
        let files = open.entry(key).or_default();
        files.retain(|file: &Weak<File>| file.strong_count() > 0);
        if !files.iter().any(|known| known.as_ptr() == Arc::as_ptr(file)) {
            files.push(Arc::downgrade(file));
        }
        if open.len() > before && open.len() >= 1024 && open.len().is_power_of_two() {
            open.retain(|_, files| files.iter().any(|file| file.strong_count() > 0));
        }
    }

    fn is_open(&self, key: &Digest) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(key).is_some_and(|files| files.iter().any(|file| file.strong_count() > 0))
    }

    /// Whether somebody has the incomplete file `key`: reads, writes or publishes it.
    fn is_written(&self, key: &Digest) -> bool {
        let partials = self.partials.lock().unwrap_or_else(PoisonError::into_inner);
        partials.get(key).is_some_and(|partial| partial.strong_count() > 0)
    }

    /// Keeps evictions away.
    pub(super) fn landing(&self) -> Landing<'_> {
        Landing { _gate: self.gate.read().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// What of `place` may be in the cache: complete content, incomplete, and the segment that it is in.
pub(in crate::lazy) fn keys_of(place: &Place) -> impl Iterator<Item = Digest> {
    let segment = place.slot.map(|slot| slot.segment.id);
    place.whole.into_iter().chain(std::iter::once(place.id)).chain(segment)
}
