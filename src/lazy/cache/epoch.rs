//! Which content of the cache may be used without looking at it: what was written in this boot, and what is known to
//! have reached the disk.
//!
//! Content is renamed into place without fsync, since a lazy layer is thousands of small files. A process that dies
//! loses nothing by that, a power cut may leave files of the right length with wrong bytes. So every file carries a
//! *stamp* in its modification time, which no one sees (attributes come from the index): the seconds are a counter,
//! the nanoseconds come from the id of the boot that wrote it. A stamp is trusted when it is of this boot, or when
//! its counter is one that a `syncfs` of the same boot made durable. The counter moves on before each `syncfs`, and the record
//! is durable before anything is stamped with it.
//!
//! One process at a time owns the record (see `tenure`). Another one that opens the cache meanwhile (its predecessor is
//! still dying, say) is a *guest*: it stamps with the counter 0, which is never synced, and so trusts and is trusted
//! within this boot only. So does an owner that cannot write the record, since the disk is full: whoever reads from
//! the layers must be served all the same.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::image::Digest;
use crate::telemetry::Chain;

const RECORD: &str = "epoch";
const RECORD_NEXT: &str = "epoch.next";
/// The copy from before the last write.
const RECORD_PREVIOUS: &str = "epoch.prev";
/// The last record that could not be used.
const RECORD_ASIDE: &str = "epoch.unreadable-last";

/// When, in the life of a cache, something was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    counter: u64,
    nonce: u64,
}

/// Leave to publish content under the current stamp; a sync point waits for these.
#[derive(Debug)]
pub(super) struct Publishing<'a> {
    stamp: RwLockReadGuard<'a, Stamp>,
}

#[derive(Debug)]
pub(super) struct Epoch {
    current: RwLock<Stamp>,
    nonce: u64,
    synced: RwLock<Vec<(u64, u64)>>,
    /// Of the owner the record, if it could be written.
    record: Option<Mutex<Record>>,
}

/// What is on disk. Counters of one boot are consecutive: `boot_start` to `counter`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    version: u32,
    boot_id: String,
    boot_start: u64,
    counter: u64,
    /// Counters, first and last, whose content was made durable in the boot that wrote it.
    synced: Vec<(u64, u64)>,
}

/// Ranges of counters that are remembered; content under older ones is verified, and stamped anew, when it is used.
const MAX_SYNCED: usize = 64;

impl Epoch {
    /// Reads the record below `dir` and begins a counter of its own if this process owns it.
    pub(super) fn open(dir: &OwnedFd, boot_id: &str, is_owner: bool) -> Self {
        let mut record = find_record(dir, is_owner);
        let synced = record.synced.clone();
        let mut is_recorded = false;
        if is_owner {
            record.counter += 1;
            if record.boot_id != boot_id {
                boot_id.clone_into(&mut record.boot_id);
                record.boot_start = record.counter;
            }
            match write_record(dir, &record) {
                Ok(()) => is_recorded = true,
                Err(error) => {
                    let error = Chain(&error).to_string();
                    tracing::warn!(error, "what is kept from now on is verified after a reboot");
                }
            }
        }
        let hash = Digest::of(boot_id.as_bytes());
        let mut word = [0; 8];
        word.copy_from_slice(&hash.as_bytes()[..8]);
        // Never 0, which is what a file system without fractions of a second gives back.
        let nonce = 1 + u64::from_le_bytes(word) % 999_999_999;
        Self {
            current: RwLock::new(Stamp {
                counter: if is_recorded { record.counter } else { 0 },
                nonce,
            }),
            nonce,
            synced: RwLock::new(synced),
            record: is_recorded.then(|| Mutex::new(record)),
        }
    }

    /// Marks this boot: differs between any two.
    pub(super) fn nonce(&self) -> u64 {
        self.nonce
    }

    /// Whether what carries `stamp` can be used unseen.
    pub(super) fn is_trusted(&self, stamp: Stamp) -> bool {
        let synced = self.synced.read().unwrap_or_else(PoisonError::into_inner);
        stamp.nonce == self.nonce
            || synced.iter().any(|(first, last)| (*first..=*last).contains(&stamp.counter))
    }

    /// The current stamp, held until the content is in its place.
    pub(super) fn begin(&self) -> Publishing<'_> {
        Publishing { stamp: self.current.read().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Makes everything published before this call durable, and trusted after any later boot. Takes as long as the
    /// disk needs.
    pub(super) fn sync(&self, dir: &OwnedFd) -> io::Result<()> {
        let Some(record) = &self.record else { return Ok(()) };
        // Held throughout: sync points follow each other.
        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
        let closing = record.counter;
        // The next counter is durable before it is used, or a later boot could use it again.
        let next = Record { counter: closing + 1, ..record.clone() };
        write_record(dir, &next)?;
        *record = next;
        self.current.write().unwrap_or_else(PoisonError::into_inner).counter = closing + 1;
        rustix::fs::syncfs(dir)?;
        let boot_start = record.boot_start;
        record.synced.retain(|(first, _)| *first != boot_start);
        record.synced.push((boot_start, closing));
        if record.synced.len() > MAX_SYNCED {
            record.synced.remove(0);
        }
        write_record(dir, &record)?;
        self.synced.write().unwrap_or_else(PoisonError::into_inner).clone_from(&record.synced);
        Ok(())
    }
}

impl Publishing<'_> {
    pub(super) fn mark(&self, file: impl AsFd) -> io::Result<()> {
        let time = Timespec {
            tv_sec: i64::try_from(self.stamp.counter).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(self.stamp.nonce).unwrap_or(0),
        };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(rustix::fs::futimens(file, &times)?)
    }
}

/// The record, its previous copy, or one that knows of nothing: then everything from other boots is verified.
fn find_record(dir: &OwnedFd, is_owner: bool) -> Record {
    if let Some(record) = read_record(dir, RECORD) {
        return record;
    }
    let is_there = rustix::fs::statat(dir, RECORD, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    if is_there && is_owner {
        tracing::warn!(
            "the record of what has reached the disk cannot be used; it is kept as `{RECORD_ASIDE}`"
        );
        let _ = rustix::fs::renameat(dir, RECORD, dir, RECORD_ASIDE);
    }
    if let Some(previous) = read_record(dir, RECORD_PREVIOUS) {
        // What was synced then still is. One write came after it, and a write moves the counter on by one at most.
        return Record { counter: previous.counter + 1, ..previous };
    }
    // Content may carry stamps of counters that nobody remembers. Counters grow far slower than the clock, so none of
    // them is used again, and none becomes trusted by what is synced from now on.
    let counter = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(1);
    Record { version: 1, boot_id: String::new(), boot_start: counter, counter, synced: Vec::new() }
}

fn read_record(dir: &OwnedFd, name: &str) -> Option<Record> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty()).ok()?;
    let text = io::read_to_string(File::from(file)).ok()?;
    let record: Record = serde_json::from_str(&text).ok()?;
    // A counter from nowhere could make everything trusted; ours grow by one.
    (record.version == 1
        && record.boot_start <= record.counter
        && record.synced.iter().all(|(_, last)| *last <= record.counter)
        && record.counter < u64::from(u32::MAX))
    .then_some(record)
}

fn write_record(dir: &OwnedFd, record: &Record) -> io::Result<()> {
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(dir, RECORD_NEXT, flags, Mode::from_raw_mode(0o600))?;
    let mut file = File::from(file);
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()?;
    match rustix::fs::renameat(dir, RECORD, dir, RECORD_PREVIOUS) {
        // A crash here leaves only the previous copy, which is found.
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::fs::renameat(dir, RECORD_NEXT, dir, RECORD)?;
    rustix::fs::fsync(dir)?;
    Ok(())
}

/// The stamp that `stat` carries.
pub(super) fn stamp_of(stat: &rustix::fs::Stat) -> Stamp {
    Stamp { counter: u64::try_from(stat.st_mtime).unwrap_or(u64::MAX), nonce: stat.st_mtime_nsec }
}
