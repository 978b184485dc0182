//! What a layer has learnt from its reads: what of the files fetched along was used, and which reads follow each other.
//!
//! Nothing here is per cold file: one bit per chunk, and counts of directories and kinds that were touched.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::estargz::EntryNo;

/// Kinds and directories of which is known; the first ones win.
const KINDS: usize = 256;
const DIRECTORIES: usize = 4096;
/// Sequences of reads that are followed at a time.
const SEQUENCES: usize = 8;
/// Chunks that a sequence may skip.
const SKIPPED: u32 = 3;

/// Compressed bytes that were read, that were fetched along, and that of these were read later: of all layers, since
/// an image is several and its small files are seldom where its large ones are.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Account>);

#[derive(Debug, Default)]
struct Account {
    needed: u64,
    along: u64,
    used: u64,
}

/// Bytes after which the past counts half.
const MEMORY: u64 = 256 << 20;

impl Ledger {
    /// So much was needed, and so much of it had been fetched along.
    pub(super) fn needed(&self, length: u64, of_along: u64) {
        let mut account = self.lock();
        account.needed += length;
        account.used += of_along;
        if account.needed > MEMORY {
            *account = Account {
                needed: account.needed / 2,
                along: account.along / 2,
                used: account.used / 2,
            };
        }
    }

    pub(super) fn along(&self, length: u64) {
        self.lock().along += length;
    }

    /// How much of the value of a request may be spent, 1 to 0: less, the more was fetched in vain. `base` bytes may be
    /// in vain, and `share` of what was needed.
    #[expect(clippy::cast_precision_loss, reason = "a share needs no exact bytes")]
    pub(super) fn thrift(&self, base: u64, share: f64) -> f64 {
        let account = self.lock();
        let allowed = base as f64 + share * account.needed as f64;
        let wasted = account.along.saturating_sub(account.used) as f64;
        (1.0 - wasted / allowed.max(1.0)).max(0.0).sqrt()
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        // Counts that are a little off do no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One bit per chunk.
#[derive(Debug)]
pub(super) struct Bits(Box<[AtomicU64]>);

impl Bits {
    pub(super) fn new(chunks: u32) -> Self {
        Self((0..chunks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Sets the bit of `number`; true if it was not set.
    pub(super) fn set(&self, number: u32) -> bool {
        let bit = 1 << (number % 64);
        let word = self.0.get(number as usize / 64);
        word.is_some_and(|word| {
            word.load(Ordering::Relaxed) & bit == 0
                && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
        })
    }

    pub(super) fn is_set(&self, number: u32) -> bool {
        let word = self.0.get(number as usize / 64);
        word.is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (number % 64)) != 0)
    }

    /// Clears the bit of `number`; true if it was set.
    pub(super) fn clear(&self, number: u32) -> bool {
        let bit = 1 << (number % 64);
        let word = self.0.get(number as usize / 64);
        word.is_some_and(|word| {
            word.load(Ordering::Relaxed) & bit != 0
                && word.fetch_and(!bit, Ordering::Relaxed) & bit != 0
        })
    }
}

/// Files of one sort: how many were fetched, and how many of these were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Tally {
    pub(super) fetched: u32,
    pub(super) used: u32,
}

impl Tally {
    /// Share of files that were read, where `prior` files of which `expected` were read are taken for granted.
    pub(super) fn share(self, expected: f64, prior: f64) -> f64 {
        (f64::from(self.used) + expected * prior) / (f64::from(self.fetched) + prior)
    }
}

#[derive(Debug, Default)]
pub(super) struct Learned {
    kinds: HashMap<u32, Tally>,
    directories: HashMap<EntryNo, Tally>,
    /// Compressed bytes of chunks that were read, however they came.
    pub(super) touched: u64,
    /// The whole layer is being fetched.
    pub(super) is_bulk: bool,
    /// Chunks read of files of many.
    pub(super) files: HashMap<EntryNo, u32>,
    sequences: Vec<Sequence>,
}

/// Reads that follow each other in the blob.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sequence {
    /// The chunk that comes next.
    pub(super) next: u32,
    /// Compressed bytes of its chunks.
    pub(super) length: u64,
    pub(super) chunks: u32,
    /// The file that it began in.
    pub(super) entry: EntryNo,
    /// Whether it has gone on into another file.
    pub(super) is_crossing: bool,
    /// The first chunk that was not asked for ahead.
    pub(super) asked: u32,
}

/// [`Learned`], shared.
#[derive(Debug, Default)]
pub(super) struct Lessons(Mutex<Learned>);

impl Lessons {
    pub(super) fn lock(&self) -> MutexGuard<'_, Learned> {
        // Counts that are a little off do no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Learned {
    pub(super) fn kind(&self, kind: u32) -> Tally {
        self.kinds.get(&kind).copied().unwrap_or_default()
    }

    pub(super) fn directory(&self, directory: EntryNo) -> Tally {
        self.directories.get(&directory).copied().unwrap_or_default()
    }

    pub(super) fn fetched(&mut self, kind: u32, directory: EntryNo, is_used: bool) {
        for tally in self.tallies(kind, directory).into_iter().flatten() {
            tally.fetched = tally.fetched.saturating_add(1);
            tally.used = tally.used.saturating_add(u32::from(is_used));
        }
    }

    pub(super) fn used(&mut self, kind: u32, directory: EntryNo) {
        for tally in self.tallies(kind, directory).into_iter().flatten() {
            tally.used = tally.used.saturating_add(1).min(tally.fetched);
        }
    }

    fn tallies(&mut self, kind: u32, directory: EntryNo) -> [Option<&mut Tally>; 2] {
        let has_room = self.kinds.len() < KINDS;
        let kind = match has_room {
            true => Some(self.kinds.entry(kind).or_default()),
            false => self.kinds.get_mut(&kind),
        };
        let has_room = self.directories.len() < DIRECTORIES;
        let directory = match has_room {
            true => Some(self.directories.entry(directory).or_default()),
            false => self.directories.get_mut(&directory),
        };
        [kind, directory]
    }

    /// Follows the read of a chunk: the sequence that it continues or begins.
    pub(super) fn follow(&mut self, number: u32, entry: EntryNo, length: u64) -> &mut Sequence {
        let known = self.sequences.iter().position(|sequence| {
            (sequence.next..=sequence.next.saturating_add(SKIPPED)).contains(&number)
        });
        let sequence = match known {
            Some(place) => {
                let sequence = self.sequences.remove(place);
                Sequence {
                    next: number + 1,
                    length: sequence.length + length,
                    chunks: sequence.chunks + 1,
                    is_crossing: sequence.is_crossing || sequence.entry != entry,
                    ..sequence
                }
            }
            None => Sequence {
                next: number + 1,
                length,
                chunks: 1,
                entry,
                is_crossing: false,
                asked: number + 1,
            },
        };
        // The newest last; the oldest is forgotten.
        if self.sequences.len() >= SEQUENCES {
            self.sequences.remove(0);
        }
        self.sequences.push(sequence);
        self.sequences.last_mut().expect("one was added a moment ago")
    }
}

/// A number for what kind of file has this name: by its extension.
pub(super) fn kind_of_name(name: &[u8]) -> u32 {
    let is_library = name.windows(4).any(|part| part == b".so.");
    let extension: &[u8] = match name.iter().rposition(|byte| *byte == b'.') {
        _ if is_library => b"so",
        Some(dot) => &name[dot + 1..],
        None => b"",
    };
    // FNV-1a: any function would do.
    extension
        .iter()
        .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_extensions() {
        assert_eq!(kind_of_name(b"a.cpython-311.pyc"), kind_of_name(b"b.pyc"));
        assert_eq!(kind_of_name(b"libc.so.6"), kind_of_name(b"_ssl.so"));
        assert_ne!(kind_of_name(b"a.py"), kind_of_name(b"a.pyc"));
        assert_eq!(kind_of_name(b"LICENSE"), kind_of_name(b""));
    }

    #[test]
    fn what_was_fetched_in_vain_makes_thrifty() {
        let ledger = Ledger::default();
        assert!((ledger.thrift(1000, 0.5) - 1.0).abs() < 1e-9);
        ledger.along(500);
        let careful = ledger.thrift(1000, 0.5);
        assert!(careful < 0.8 && careful > 0.6, "{careful}");
        ledger.along(1500);
        assert!(ledger.thrift(1000, 0.5) < 1e-9);
        ledger.needed(2000, 2000);
        assert!((ledger.thrift(1000, 0.5) - 1.0).abs() < 1e-9);
        ledger.needed(MEMORY, 0);
        let Account { along, used, .. } = *ledger.lock();
        assert_eq!((along, used), (1000, 1000));
        let mut learned = Learned::default();
        learned.fetched(1, EntryNo(1), false);
        learned.used(1, EntryNo(1));
        assert_eq!(learned.kind(1), Tally { fetched: 1, used: 1 });
        assert_eq!(learned.directory(EntryNo(2)), Tally::default());
    }

    #[test]
    fn several_sequences_are_followed_at_a_time() {
        let mut learned = Learned::default();
        for n in 0..10 {
            for sequence in 0..5_u32 {
                let followed = *learned.follow(sequence * 1000 + n, EntryNo(sequence), 10);
                assert_eq!((followed.chunks, followed.length), (n + 1, u64::from(n + 1) * 10));
                assert!(!followed.is_crossing);
            }
        }
        assert!(learned.follow(1011, EntryNo(77), 10).is_crossing);
        assert_eq!(learned.follow(500, EntryNo(0), 10).chunks, 1);
        for n in 0..100 {
            learned.follow(10_000 + 100 * n, EntryNo(0), 10);
        }
        assert_eq!(learned.sequences.len(), SEQUENCES);
    }
}
