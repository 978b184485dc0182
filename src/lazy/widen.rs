//! What a read fetches along: neighbours in the blob that are likely to be read next.
//!
//! A request costs a round trip, and so as much as the bytes that the link could have carried meanwhile. A neighbour is
//! worth fetching when its size is less than that, times the probability that it is read. The probability is learnt
//! per layer, from what became of files of the same directory and of the same kind (extension): imports read compiled
//! files and leave sources, whole packages and leave tests. Among all windows around the wanted chunk the best is
//! taken. What was fetched and not used lowers the value of a request, so that waste stays below a share of
//! what was needed.

use std::collections::HashMap;
use std::time::Duration;

use super::extent::Extent;
use super::flight::Flight;
use super::layer::LazyLayer;
use super::learned::{Learned, Tally, kind_of_name};
use crate::estargz::EntryNo;

/// Compressed bytes that one request less is worth while nothing was wasted. Of a link of 100 Mbit/s and 20 ms it is a
/// tenth of that; but a neighbour seldom stands alone, and each that is used saves a wait of the reader too.
const REQUEST: f64 = 2_000_000.0;
/// What a request costs besides its round trip: the reader and the worker are woken.
const OVERHEAD: Duration = Duration::from_millis(1);
/// How far the value of a window may fall behind that of a smaller one before the search ends.
const SLACK: f64 = 32_768.0;
/// How long the link may be busy with neighbours on one side, and how much less with those in front: the reader waits
/// for these.
const SIDE_TIME: Duration = Duration::from_millis(100);
const IN_FRONT: u64 = 2;
/// A neighbour larger than this is asked for on its own.
const LARGEST: u64 = 512 << 10;
/// A file of so many chunks or fewer is fetched as a whole.
const WHOLE_FILE: u32 = 4;
/// Names of a directory that are looked at.
const NAMES: u32 = 4096;

/// Weights of what is known of a file's kind, in files.
const KIND_PRIOR: f64 = 4.0;
const KIND_USED: f64 = 0.1;
/// Weight of what is expected of a directory, in files.
const DIRECTORY_PRIOR: f64 = 16.0;
/// How much likelier than the average of its kind is a file of the same directory, of a neighbouring one, of another.
const SAME: f64 = 1.3;
const NEIGHBOUR: f64 = 0.2;
const OTHER: f64 = 0.1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Back,
}

/// Kinds of files, by their directories.
#[derive(Debug, Default)]
struct Kinds(HashMap<EntryNo, HashMap<EntryNo, u32>>);

/// What was looked up during one search.
struct Search<'a> {
    layer: &'a LazyLayer,
    learned: &'a Learned,
    flights: &'a HashMap<u64, Flight>,
    directory: EntryNo,
    request: f64,
    kinds: &'a mut Kinds,
    chances: HashMap<(u32, EntryNo), f64>,
}

impl LazyLayer {
    /// Adds the neighbours of a read that are worth it to `extent`, and notes what is fetched.
    pub(super) fn widen(&self, extent: &mut Extent, flights: &HashMap<u64, Flight>) {
        let limits = &self.shared.limits;
        let is_believed_local = extent.numbers.iter().all(|number| self.progress.is_set(*number));
        if limits.widen_bytes == 0
            || is_believed_local
            || self.health.is_lost()
            || self.shared.cache.is_degraded()
        {
            return;
        }
        let Some((first, last)) =
            extent.numbers.first().copied().zip(extent.numbers.last().copied())
        else {
            return;
        };
        let Some((_, entry, _)) = self.chunk_of(first) else { return };
        let mut learned = self.learned.lock();
        let needed = extent.numbers.clone();
        let mut kinds = Kinds::default();
        for number in &needed {
            let (kind, directory) = kinds.of(self, *number);
            learned.fetched(kind, directory, true);
        }
        let ledger = &self.shared.ledger;
        let spare = REQUEST * ledger.thrift(limits.widen_base, limits.widen_share);
        let request = spare.max(self.round_trip());
        let (low, high) = {
            let mut search = Search {
                layer: self,
                learned: &learned,
                flights,
                directory: self.index.parent(entry),
                request,
                kinds: &mut kinds,
                chances: HashMap::new(),
            };
            let end = search.end_of_file(last);
            (search.best(first, Direction::Back), search.best(end, Direction::Forward))
        };
        let mut wide: Option<Extent> = None;
        let mut at = low;
        while at <= high {
            let Some(member) = self.member_of(at) else { break };
            at = member.numbers.last().map_or(at, |last| *last) + 1;
            let is_needed = member.numbers.iter().any(|number| needed.contains(number));
            if !is_needed && member.numbers.iter().all(|number| self.progress.is_set(*number)) {
                continue;
            }
            if !is_needed {
                ledger.along(member.length());
                for number in &member.numbers {
                    self.ahead.set(*number);
                    let (kind, directory) = kinds.of(self, *number);
                    learned.fetched(kind, directory, false);
                }
            }
            match wide.as_mut() {
                Some(wide) => wide.append(member),
                None => wide = Some(member),
            }
        }
        if let Some(wide) = wide {
            *extent = wide;
        }
    }

    /// Compressed bytes that the link carries while a request is answered. They cost a reader no more than the request
    /// that they save, so they are spent however much was fetched in vain.
    #[expect(clippy::cast_precision_loss, reason = "a value needs no exact bytes")]
    fn round_trip(&self) -> f64 {
        self.shared.link.bytes_in(self.pace.least() + OVERHEAD).unwrap_or_default() as f64
    }

    /// Counts a chunk that was fetched along and is read now.
    pub(super) fn note_used(&self, number: u32) {
        let Some((_, entry, _)) = self.chunk_of(number) else { return };
        let directory = self.index.parent(entry);
        let names = (0..self.index.child_count(directory).min(NAMES))
            .filter_map(|n| self.index.child(directory, n));
        let mut names = names.filter(|(_, child)| *child == entry);
        let kind = names.next().map_or(0, |(name, _)| kind_of_name(name));
        self.learned.lock().used(kind, directory);
    }
}

impl Kinds {
    /// What kind of file a chunk belongs to, and the directory of that.
    fn of(&mut self, layer: &LazyLayer, number: u32) -> (u32, EntryNo) {
        let Some((_, entry, _)) = layer.chunk_of(number) else { return (0, EntryNo::ROOT) };
        let directory = layer.index.parent(entry);
        let kinds = self.0.entry(directory).or_insert_with(|| {
            let names = 0..layer.index.child_count(directory).min(NAMES);
            let names = names.filter_map(|n| layer.index.child(directory, n));
            names.map(|(name, child)| (child, kind_of_name(name))).collect()
        });
        (kinds.get(&entry).copied().unwrap_or_default(), directory)
    }
}

impl Search<'_> {
    /// The last chunk that is fetched in any case: the rest of a file that is not large.
    fn end_of_file(&self, last: u32) -> u32 {
        let Some((_, entry, n)) = self.layer.chunk_of(last) else { return last };
        let count = self.layer.index.chunk_count(entry);
        if count > WHOLE_FILE {
            return last;
        }
        let mut end = last;
        for n in n + 1..count {
            let Some(chunk) = self.layer.index.chunk(entry, n) else { break };
            let is_next = chunk.number.0 == end + 1;
            if !is_next || self.is_taken(chunk.number.0, chunk.member.start) {
                break;
            }
            end = chunk.number.0;
        }
        end
    }

    fn is_taken(&self, number: u32, start: u64) -> bool {
        self.layer.progress.is_set(number)
            || self.flights.contains_key(&start)
            || self.layer.refusal(number).is_some()
    }

    /// How far from `edge` it pays to go.
    fn best(&mut self, edge: u32, direction: Direction) -> u32 {
        let limits = &self.layer.shared.limits;
        // A worker that begins anew on a narrow link must not let everybody wait until it knows.
        let carried = self.layer.shared.link.bytes_in(SIDE_TIME).unwrap_or(limits.widen_bytes / 2);
        let most = limits.widen_bytes.min(match direction {
            Direction::Forward => carried,
            Direction::Back => carried / IN_FRONT,
        });
        let (mut at, mut best) = (edge, edge);
        let (mut value, mut best_value, mut total) = (0.0_f64, 0.0_f64, 0_u64);
        loop {
            let next = match direction {
                Direction::Forward => at.checked_add(1),
                Direction::Back => at.checked_sub(1),
            };
            let Some(member) = next.and_then(|next| self.layer.member_of(next)) else { break };
            let ends = (member.numbers.first().copied(), member.numbers.last().copied());
            let (Some(first), Some(last)) = ends else { break };
            at = if direction == Direction::Forward { last } else { first };
            let length = member.length();
            total += length;
            if total > most || self.flights.contains_key(&member.range.start) {
                break;
            }
            let is_local = member.numbers.iter().all(|n| self.layer.progress.is_set(*n));
            if is_local && length > limits.extent_gap {
                break;
            }
            #[expect(clippy::cast_precision_loss, reason = "at most a few hundred thousand")]
            let cost = length as f64;
            value -= cost;
            if !is_local {
                if length > LARGEST || self.layer.refusal(first).is_some() {
                    break;
                }
                let chance: f64 = member.numbers.iter().map(|n| self.chance(*n)).sum();
                value += chance * self.request;
            }
            if value > best_value {
                (best, best_value) = (at, value);
            } else if value < best_value - SLACK {
                break;
            }
        }
        best
    }

    /// How likely it is that `number` is read.
    fn chance(&mut self, number: u32) -> f64 {
        let index = &self.layer.index;
        let (kind, directory) = self.kinds.of(self.layer, number);
        if let Some(known) = self.chances.get(&(kind, directory)) {
            return *known;
        }
        let of_kind = self.learned.kind(kind).share(KIND_USED, KIND_PRIOR);
        let (here, there) = (self.directory, directory);
        let relation = if here == there {
            SAME
        } else if there == index.parent(here)
            || index.parent(there) == here
            || index.parent(there) == index.parent(here)
        {
            NEIGHBOUR
        } else {
            OTHER
        };
        let Tally { fetched, used } = self.learned.directory(directory);
        let expected = of_kind * relation * DIRECTORY_PRIOR;
        let chance =
            (f64::from(used) * of_kind + expected) / (f64::from(fetched) + DIRECTORY_PRIOR);
        self.chances.insert((kind, directory), chance);
        chance
    }
}
