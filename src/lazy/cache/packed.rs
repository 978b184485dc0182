//! Small files in their segments: which segments stay open, and finding and keeping what is in them.
//!
//! A segment is a [`Partial`] that is never published. It is opened once for all of its files, not for each; that one
//! is not there is remembered too, since the fill asks that of every file in it. A guest (see `tenure`) is not told what
//! its host makes and evicts: it looks each time whether a segment that it has open still has a name, keeps few of
//! them open, and remembers of none that it is not there.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::files::has_whole_file_up_to;
use super::partial::{Missing, Partial, Shape, is_linked};
use super::{Content, FileCache, Piece};
use crate::image::Digest;

/// Segments that stay open at least.
const OPEN: usize = 4;
/// Segments of which is known whether they are there.
const KNOWN: usize = 4096;

/// Where a small file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::lazy) struct Slot {
    pub(in crate::lazy) segment: Shape,
    /// Its number in the segment.
    pub(in crate::lazy) n: u32,
    /// Where it begins there.
    pub(in crate::lazy) offset: u64,
}

impl Slot {
    /// The only piece of the file, as a piece of the segment.
    pub(super) fn piece(&self, piece: &Piece) -> Piece {
        Piece { n: self.n, offset: self.offset, ..*piece }
    }
}

#[derive(Debug, Default)]
pub(super) struct Segments {
    /// How many stay open, at three descriptors each.
    capacity: AtomicUsize,
    /// Files up to this size are packed.
    largest: AtomicU64,
    /// Whether files of such sizes have files of their own all the same, from an earlier version.
    has_small_files: OnceLock<bool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// `None`: it is not there. Else with the time of its last use.
    known: HashMap<Digest, Option<(Arc<Partial>, u64)>>,
    open: usize,
    clock: u64,
}

impl Segments {
    fn get(&self, id: &Digest) -> Option<Option<Arc<Partial>>> {
        let mut state = self.lock();
        state.clock += 1;
        let clock = state.clock;
        let known = state.known.get_mut(id)?;
        Some(known.as_mut().map(|(segment, used)| {
            *used = clock;
            Arc::clone(segment)
        }))
    }

    fn insert(&self, id: Digest, found: Option<&Arc<Partial>>) {
        let mut state = self.lock();
        state.clock += 1;
        let clock = state.clock;
        if state.known.len() >= KNOWN {
            state.known.retain(|_, known| known.is_some());
        }
        let Some(segment) = found else {
            // Who has just made it knows better.
            state.known.entry(id).or_insert(None);
            return;
        };
        if state.known.insert(id, Some((Arc::clone(segment), clock))).flatten().is_none() {
            state.open += 1;
        }
        if state.open > self.capacity.load(Ordering::Relaxed).max(OPEN) {
            // A quarter at a time, so that the search for the oldest is rare.
            let mut uses: Vec<u64> =
                state.known.values().flatten().map(|(_, used)| *used).collect();
            let quarter = uses.len() / 4;
            let (_, &mut oldest, _) = uses.select_nth_unstable(quarter);
            state.known.retain(|_, known| known.as_ref().is_none_or(|(_, used)| *used > oldest));
            state.open = state.known.values().flatten().count();
        }
    }

    fn remove(&self, id: &Digest) {
        let mut state = self.lock();
        if state.known.remove(id).flatten().is_some() {
            state.open -= 1;
        }
    }

    /// Closes all that nobody uses at the moment.
    pub(super) fn close(&self) {
        // Closed without the lock.
        let state = std::mem::take(&mut *self.lock());
        drop(state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileCache {
    /// The file at `slot`, if it is here as far as the segment's map knows.
    pub(super) fn find_packed(&self, slot: Slot) -> Option<Content> {
        let _landing = self.landing();
        let segment = self.segment(&slot.segment, Missing::Leave).unwrap_or_else(|error| {
            self.degrade(&error);
            None
        })?;
        if !segment.may_have(slot.n) {
            return None;
        }
        self.budget.touch(&slot.segment.id);
        Some(Content::Packed(segment, slot))
    }

    /// Keeps the verified content of a small file. False if it was there. To be called behind the gate.
    pub(super) fn keep_packed(&self, slot: &Slot, piece: &Piece, bytes: &[u8]) -> io::Result<bool> {
        self.budget.touch(&slot.segment.id);
        self.writable()?;
        let segment = self.segment(&slot.segment, Missing::Create)?;
        segment.map_or(Ok(false), |segment| segment.write_piece(&slot.piece(piece), bytes))
    }

    /// Bounds how many segments stay open, and says what is packed: files of one chunk and up to `largest` bytes.
    pub(in crate::lazy) fn bound_segments(&self, open: usize, largest: u32) {
        let open = if self.tenure.is_owner() { open } else { OPEN };
        self.segments.capacity.store(open, Ordering::Relaxed);
        self.segments.largest.store(largest.into(), Ordering::Relaxed);
    }

    /// Whether a small file may be here that is not packed. One look at all files tells it for good, since none is
    /// added: a failing `open(2)` for each small file that is not here would cost as much as bringing it.
    pub(super) fn may_have_small_files(&self) -> bool {
        *self.segments.has_small_files.get_or_init(|| {
            let largest = self.segments.largest.load(Ordering::Relaxed);
            has_whole_file_up_to(self.root.as_fd(), largest).unwrap_or(true)
        })
    }

    /// Whether what is open here has not been evicted by another process.
    pub(in crate::lazy) fn is_current(&self, content: &Content) -> bool {
        self.tenure.is_owner()
            || match content {
                Content::Complete(file) => is_linked(file),
                Content::Partial(partial) | Content::Packed(partial, _) => partial.is_linked(),
            }
    }

    /// Closes the segments that are open only because they may be used again.
    pub(in crate::lazy) fn close_segments(&self) {
        self.segments.close();
    }

    fn segment(&self, shape: &Shape, missing: Missing) -> io::Result<Option<Arc<Partial>>> {
        let is_alone = self.tenure.is_owner();
        match self.segments.get(&shape.id) {
            Some(Some(segment)) if is_alone || segment.is_linked() => return Ok(Some(segment)),
            Some(None) if is_alone && missing == Missing::Leave => return Ok(None),
            Some(_) | None => {}
        }
        let segment = self.open_partial(shape, missing)?;
        if is_alone || segment.is_some() {
            self.segments.insert(shape.id, segment.as_ref());
        } else {
            self.segments.remove(&shape.id);
        }
        Ok(segment)
    }
}
