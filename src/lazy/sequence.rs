//! Fetching ahead of readers: sequences of reads, and files and layers of which most is read.
//!
//! Reads that follow each other in the blob, within a file or through a directory, are run ahead of with a window that
//! grows with them: the reader finds what it wants, over several connections. When most of a large file or of a
//! layer has been read, the rest is fetched in large ranges: a workload that reads everything is then no
//! slower than a full pull. So it is when half as much as is left of a layer has just been read from one file to the
//! next, of this layer and of others: who walks through an image is believed sooner in each further layer. What only
//! looks like one costs no more than what was read before, and such a walk no more than twice that.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::layer::{LazyLayer, first_from};
use super::learned::Learned;
use super::scheduler::Priority;
use crate::estargz::EntryNo;

/// Compressed bytes of a sequence of small files before it is believed.
const SEQUENCE: u64 = 256 << 10;
/// A file of at least so many chunks is fetched whole when half of it was read.
const LARGE_FILE: u32 = 8;
/// A layer of at least so many compressed bytes is fetched whole when the share below was read.
const LARGE_LAYER: u64 = 4 << 20;
/// Five eighths: a Python program reads close to one half of its standard library and never the rest.
const BULK: (u64, u64) = (5, 8);

/// And when a sequence that has crossed from one file to the next has this share of it.
const BELIEVED: u64 = 64;
/// A walk is over when so much was read that does not follow what was read before; half of what does follow is forgiven.
const ASTRAY: u64 = 4 << 20;

/// What was read lately from one file to the next, of all layers.
#[derive(Debug, Default)]
pub(super) struct Walked(Mutex<Walk>);

#[derive(Debug, Default)]
struct Walk {
    /// Compressed bytes.
    bytes: u64,
    astray: u64,
}

impl Walked {
    /// So much was read in order; gives the length of the walk.
    fn goes_on(&self, length: u64) -> u64 {
        let mut walk = self.lock();
        walk.bytes += length;
        walk.astray = walk.astray.saturating_sub(length / 2);
        walk.bytes
    }

    fn goes_astray(&self, length: u64) {
        let mut walk = self.lock();
        walk.astray += length;
        if walk.astray > ASTRAY {
            *walk = Walk::default();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Walk> {
        // Counts that are a little off do no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LazyLayer {
    /// Notes that the chunks `wanted` of a file are read; runs ahead where that looks worth it.
    pub(super) fn touch(&self, entry: EntryNo, wanted: Range<u32>) {
        // Who walks through a layer goes on when the fetching has ended.
        if self.is_complete() && !self.learned.lock().is_bulk {
            return;
        }
        for n in wanted {
            let Some(chunk) = self.index.chunk(entry, n) else { return };
            let number = chunk.number.0;
            let was_ahead = self.ahead.clear(number);
            if was_ahead {
                self.note_used(number);
            }
            if self.touched.set(number) {
                let length = chunk.member.end.saturating_sub(chunk.member.start);
                self.shared.ledger.needed(length, if was_ahead { length } else { 0 });
                let ahead = self.follow(entry, n, number, chunk.member);
                for numbers in ahead.into_iter().flatten() {
                    self.run_ahead(numbers);
                }
            }
        }
    }

    /// What should be fetched because of the first read of a chunk.
    fn follow(
        &self,
        entry: EntryNo,
        n: u32,
        number: u32,
        member: Range<u64>,
    ) -> [Option<Range<u32>>; 2] {
        let window = self.shared.limits.read_ahead_bytes;
        if window == 0 || self.health.is_lost() || self.shared.cache.is_degraded() {
            return [None, None];
        }
        let length = member.end.saturating_sub(member.start);
        let mut learned = self.learned.lock();
        learned.touched += length;
        let (content, touched) = (self.index.toc_offset(), learned.touched);
        let most = self.most_is_read(&mut learned, entry);
        let walked = &self.shared.walked;
        if learned.is_bulk {
            walked.goes_on(length);
            return [None, most];
        }
        let count = self.index.chunk_count(entry);
        let file_end =
            self.index.chunk(entry, count.saturating_sub(1)).map_or(number, |chunk| chunk.number.0);
        let sequence = learned.follow(number, entry, length);
        let begins_large = count > 1 && n == 0;
        if sequence.chunks == 1 {
            walked.goes_astray(length);
        }
        // What the maker of a layer put in front is read in its order by everybody.
        let is_marked = self.landmark.is_some_and(|landmark| number < landmark);
        if sequence.is_crossing && !is_marked {
            let walked = walked.goes_on(length);
            let is_walk = sequence.length >= SEQUENCE.max(content / BELIEVED);
            if is_walk && content >= LARGE_LAYER && walked >= content.saturating_sub(touched) / 2 {
                learned.is_bulk = true;
                return [None, Some(0..self.index.chunks())];
            }
        }
        if !begins_large && (sequence.chunks < 2 || sequence.length < SEQUENCE) {
            return [None, most];
        }
        // Not beyond the file before it has been seen to go on into others; and never beyond what the maker of the
        // layer put in front because it is read in this order.
        let landmark = self.landmark.filter(|landmark| number < *landmark).unwrap_or(u32::MAX);
        let limit = match sequence.is_crossing {
            true => landmark,
            false => landmark.min(file_end.saturating_add(1)),
        };
        let window = sequence.length.min(window);
        let from = sequence.asked.max(number + 1);
        let until = first_from(&self.index, member.end + window).min(limit);
        let asked = self.chunk_of(from).map_or(member.end, |(chunk, _, _)| chunk.member.start);
        // In pieces worth a request: half of the window has been used up.
        if until <= from || asked.saturating_sub(member.end) > window / 2 {
            return [None, most];
        }
        sequence.asked = until;
        [Some(from..until), most]
    }

    /// The rest of a file, or of the layer, of which most has been read.
    fn most_is_read(&self, learned: &mut Learned, entry: EntryNo) -> Option<Range<u32>> {
        let content = self.index.toc_offset();
        let is_most = learned.touched >= content / BULK.1 * BULK.0;
        if is_most && content >= LARGE_LAYER && !learned.is_bulk {
            learned.is_bulk = true;
            return Some(0..self.index.chunks());
        }
        let count = self.index.chunk_count(entry);
        if count < LARGE_FILE {
            return None;
        }
        let read = learned.files.entry(entry).or_default();
        *read += 1;
        let first = self.index.chunk(entry, 0)?.number.0;
        let last = self.index.chunk(entry, count - 1)?.number.0;
        (*read == count / 2).then_some(first..last + 1)
    }

    fn run_ahead(&self, numbers: Range<u32>) {
        let Ok(layer) = self.strong() else { return };
        tracing::trace!(layer = %self.digest, ?numbers, "running ahead");
        self.shared.runtime.spawn(async move {
            // A failure is met by the reader, if it gets there.
            let _ = Arc::clone(&layer).walk(numbers, Priority::Prefetch).await;
        });
    }
}
