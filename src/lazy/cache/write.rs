//! Writing to the cache: chunks, publication of what became complete.
//!
//! Every write goes to a temporary or partial file and is renamed when it is whole.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::budget::Budget;
use super::partial::{self, Missing};
use super::whole::{hash, whole_name};
use super::{FileCache, Finished, Landing, Piece, Place, make_dir};
use crate::image::Digest;
use crate::lazy::event::LazyEvent;

/// Numbers of temporary files: of the process, not of the cache, whose directory two of them may share.
static NEXT_TEMPORARY: AtomicU64 = AtomicU64::new(0);

impl FileCache {
    /// Keeps one verified chunk of `place`: on disk, or in memory if that fails, and gives `None` then. What is on disk
    /// stays there until the answer is dropped. Beyond a budget this may wait for an eviction.
    pub(in crate::lazy) fn keep(
        &self,
        place: &Place,
        piece: &Piece,
        bytes: &[u8],
    ) -> Option<Landing<'_>> {
        self.budget.relieve();
        let landing = self.landing();
        let size = bytes.len() as u64;
        // What it adds to what is occupied.
        let kept = if let Some(slot) = &place.slot {
            let is_new = self.keep_packed(slot, piece, bytes);
            is_new.map(|is_new| if is_new { size } else { 0 })
        } else if place.chunks <= 1 {
            self.budget.touch(&piece.digest);
            self.write(&piece.digest, bytes).map(|()| Budget::occupied_by(size))
        } else {
            self.budget.touch(&place.id);
            self.writable().and_then(|()| {
                let partial = self.open_partial(&place.shape(), Missing::Create)?;
                let is_new =
                    partial.map_or(Ok(false), |partial| partial.write_piece(piece, bytes))?;
                Ok(if is_new { Budget::occupied_by(size) } else { 0 })
            })
        };
        match kept {
            Ok(occupied) => {
                if occupied > 0 {
                    self.budget.wrote(occupied);
                }
                if self.is_degraded.swap(false, Ordering::AcqRel) {
                    self.memory.clear();
                    self.events.send(LazyEvent::CacheRestored);
                }
                Some(landing)
            }
            Err(error) => {
                self.memory.insert(piece.digest, Bytes::copy_from_slice(bytes));
                self.degrade(&error);
                None
            }
        }
    }

    /// Hashes content whose chunks are all here and publishes it under its digest. Reads all of it.
    pub(in crate::lazy) fn finish(&self, place: &Place) -> Finished {
        let (Some(expected), Some(partial)) =
            (place.whole, self.partial(&place.shape(), Missing::Leave))
        else {
            return Finished::Unchanged;
        };
        if !partial.begin_finishing() {
            return Finished::Unchanged;
        }
        let finished = hash(&partial.readable()).and_then(|found| {
            if found != expected {
                partial.keep_private()?;
                return Ok(Finished::Mismatch { expected, found });
            }
            let (data, map) = partial::names(&partial.id);
            let _held = partial.hold(self.root.as_fd())?;
            let publishing = self.epoch.begin();
            publishing.mark(partial.data())?;
            self.rename_to_whole(&data, &expected)?;
            self.budget.touch(&expected);
            let _ = rustix::fs::unlinkat(&self.root, &*map, AtFlags::empty());
            Ok(Finished::Published)
        });
        let finished = finished.unwrap_or_else(|error| {
            partial.retry_finishing();
            // Gone: published by another process.
            if error.kind() != io::ErrorKind::NotFound {
                self.degrade(&error);
            }
            Finished::Unchanged
        });
        drop(partial);
        self.budget.released();
        finished
    }

    /// Writes complete content under its digest.
    fn write(&self, whole: &Digest, bytes: &[u8]) -> io::Result<()> {
        self.write_to(&whole_name(whole), bytes)
    }

    pub(super) fn write_to(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.writable()?;
        let publishing = self.epoch.begin();
        let number = NEXT_TEMPORARY.fetch_add(1, Ordering::Relaxed);
        let temporary = format!("tmp/{}-{number}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o400);
        let written = (|| {
            let mut file = File::from(rustix::fs::openat(&self.root, &*temporary, flags, mode)?);
            file.write_all(bytes)?;
            publishing.mark(&file)?;
            self.rename_into_dir(&temporary, name)
        })();
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&self.root, &*temporary, AtFlags::empty());
        }
        written
    }

    fn rename_to_whole(&self, from: &str, whole: &Digest) -> io::Result<()> {
        self.rename_into_dir(from, &whole_name(whole))
    }

    fn rename_into_dir(&self, from: &str, to: &str) -> io::Result<()> {
        match rustix::fs::renameat(&self.root, from, &self.root, to) {
            Err(Errno::NOENT) => {
                let dir = to.rsplit_once('/').map_or(".", |(dir, _)| dir);
                make_dir(&self.root, dir)?;
                Ok(rustix::fs::renameat(&self.root, from, &self.root, to)?)
            }
            renamed => Ok(renamed?),
        }
    }

    /// Leaves so many bytes of the disk free from now on.
    pub(in crate::lazy) fn keep_free(&self, bytes: u64) {
        self.reserve.store(bytes, Ordering::Release);
    }

    pub(super) fn writable(&self) -> io::Result<()> {
        #[cfg(any(test, feature = "testing"))]
        if self.is_full_for_tests.load(Ordering::Acquire) {
            return Err(Errno::NOSPC.into());
        }
        let reserve = self.reserve.load(Ordering::Acquire);
        if reserve > 0
            && let Ok(stat) = rustix::fs::fstatvfs(&self.root)
            && stat.f_bavail.saturating_mul(stat.f_frsize) <= reserve
        {
            return Err(Errno::NOSPC.into());
        }
        Ok(())
    }
}
