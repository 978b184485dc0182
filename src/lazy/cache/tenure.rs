//! Who uses the cache besides this process, and leave to remove content from it.
//!
//! One process, the *owner*, has `lock` for as long as it lives; every other one, a *guest*, shares `guests`. The owner alone
//! evicts, since only it knows what it has open; a guest does while there is no owner. Nobody takes `lock`, or looks
//! whether somebody has it, without `turn`, and a guest gives both back after each removal: so it keeps no process that
//! starts meanwhile from being the owner, which is decided once, and stops when there is one.
//!
//! `evictions` counts: odd while content goes, two more with each time. That is how a guest learns that it may count what
//! has gone (see `notes`). It rings for the owner by opening `bell` for writing, which needs no space on the disk.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, Mode, OFlags, inotify};
use rustix::io::Errno;

use crate::telemetry::Chain;

const LOCK: &str = "lock";
const TURN: &str = "turn";
const GUESTS: &str = "guests";
const EVICTIONS: &str = "evictions";
const BELL: &str = "bell";

/// What a process may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seat {
    /// The owner if there is none.
    Any,
    /// A guest: it is there for a moment, and whoever comes meanwhile is the owner.
    Guest,
}

#[derive(Debug)]
pub(super) struct Tenure {
    is_owner: bool,
    lock: OwnedFd,
    turn: OwnedFd,
    guests: OwnedFd,
    /// Held by the thread of this process that has the turn.
    turning: Mutex<()>,
    evictions: File,
    /// The last number of `evictions` that this process has acted on.
    seen: AtomicU64,
}

/// Leave to remove a file.
#[derive(Debug)]
pub(super) struct Leave<'a> {
    guest: Option<(&'a Tenure, MutexGuard<'a, ()>)>,
}

impl Tenure {
    pub(super) fn open(root: &OwnedFd, seat: Seat) -> io::Result<Self> {
        let open = |name: &str| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(root, name, flags, Mode::from_raw_mode(0o600))
        };
        let (lock, turn, guests) = (open(LOCK)?, open(TURN)?, open(GUESTS)?);
        let is_owner = seat == Seat::Any && {
            flock(&turn, FlockOperation::LockExclusive)?;
            let taken = take(&lock);
            flock(&turn, FlockOperation::Unlock)?;
            taken?
        };
        if !is_owner {
            tracing::debug!("the content cache is in use by another process");
            flock(&guests, FlockOperation::LockShared)?;
        }
        open(BELL)?;
        let tenure = Self {
            is_owner,
            lock,
            turn,
            guests,
            turning: Mutex::default(),
            evictions: open(EVICTIONS)?.into(),
            seen: AtomicU64::new(0),
        };
        let mut evictions = tenure.evictions();
        if is_owner && !evictions.is_multiple_of(2) {
            // Whoever began has died.
            evictions += 1;
            tenure.set_evictions(evictions);
        }
        tenure.seen.store(evictions, Ordering::Release);
        Ok(tenure)
    }

    pub(super) fn is_owner(&self) -> bool {
        self.is_owner
    }

    /// Whether another process may write to the cache.
    pub(super) fn has_company(&self) -> bool {
        if !self.is_owner {
            return true;
        }
        let is_alone = take(&self.guests).unwrap_or(false);
        if is_alone {
            let _ = flock(&self.guests, FlockOperation::Unlock);
        }
        !is_alone
    }

    /// Leave to remove a file; the owner always has it, a guest while there is no owner. Short: whoever starts waits.
    pub(super) fn leave(&self) -> Option<Leave<'_>> {
        if self.is_owner {
            return Some(Leave { guest: None });
        }
        // Of one process, all threads have the lock that one of them has.
        let turning = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        flock(&self.turn, FlockOperation::LockExclusive).ok()?;
        let taken = take(&self.lock);
        if !matches!(taken, Ok(true)) {
            let _ = flock(&self.turn, FlockOperation::Unlock);
            return None;
        }
        Some(Leave { guest: Some((self, turning)) })
    }

    /// Content is about to go. To be called with leave.
    pub(super) fn begin_eviction(&self) {
        let odd = (self.evictions() + 1) | 1;
        self.set_evictions(odd);
        self.seen.store(odd, Ordering::Release);
    }

    /// All of it has gone. To be called with leave.
    pub(super) fn end_eviction(&self) {
        let odd = self.seen.load(Ordering::Acquire);
        // Or an owner has come that has ended it.
        if self.evictions() == odd {
            self.set_evictions(odd + 1);
            self.seen.store(odd + 1, Ordering::Release);
        }
    }

    /// How far evictions were when this process last acted on them, if that is still so.
    pub(super) fn settled(&self) -> Option<u64> {
        let seen = self.seen.load(Ordering::Acquire);
        (seen.is_multiple_of(2) && (self.is_owner || self.evictions() == seen)).then_some(seen)
    }

    /// Whether content went of which nobody told this process. True once for each time.
    pub(super) fn notices_eviction(&self) -> bool {
        if self.is_owner {
            return false;
        }
        let now = self.evictions();
        self.seen.swap(now, Ordering::AcqRel) != now
    }

    /// Asks the owner to look whether there is too much.
    pub(super) fn ring(&self, root: &OwnedFd) {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if let Err(error) = rustix::fs::openat(root, BELL, flags, Mode::empty()) {
            tracing::debug!(%error, "the owner of the content cache cannot be asked to evict");
        }
    }

    /// What becomes readable when somebody rings.
    pub(super) fn bell(root: &OwnedFd) -> io::Result<OwnedFd> {
        let bell = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let path = format!("/proc/self/fd/{}/{BELL}", root.as_raw_fd());
        inotify::add_watch(&bell, path, inotify::WatchFlags::CLOSE_WRITE)?;
        Ok(bell)
    }

    fn evictions(&self) -> u64 {
        let mut number = [0; 8];
        match self.evictions.read_exact_at(&mut number, 0) {
            Ok(()) => u64::from_le_bytes(number),
            // New.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "evictions by others are not noticed");
                self.seen.load(Ordering::Acquire)
            }
        }
    }

    fn set_evictions(&self, number: u64) {
        // What is gone makes room on a full disk, whether it is counted or not.
        if let Err(error) = self.evictions.write_all_at(&number.to_le_bytes(), 0) {
            tracing::warn!(error = %Chain(&error), "other processes may count what is evicted");
        }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if let Some((tenure, _turning)) = &self.guest {
            let _ = flock(&tenure.lock, FlockOperation::Unlock);
            let _ = flock(&tenure.turn, FlockOperation::Unlock);
        }
    }
}

fn flock(file: &OwnedFd, operation: FlockOperation) -> io::Result<()> {
    Ok(rustix::io::retry_on_intr(|| rustix::fs::flock(file, operation))?)
}

/// Whether a lock could be had.
fn take(file: &OwnedFd) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
