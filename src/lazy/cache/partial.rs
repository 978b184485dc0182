//! A sparse file and a map of the pieces that are in it (see `map`): a file of several chunks that is not complete, or a
//! segment, which is many small files.
//!
//! Two processes may share the files (see `tenure`), and one of them evicts: names come and go between any two steps of
//! the other, which then has the data of one generation and the map of the next. So a map says which data it
//! vouches for, and no map that somebody may have open is ever made to vouch for other data: one that does not fit is
//! replaced by a new file. What is written by whoever still has a file without a name is lost, and harms nobody.
//! Whoever looks up the names, or removes or changes them, holds a lock on the data meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::Piece;
use super::map::{Bits, Loaded, Map, Vouching};
use crate::image::Digest;

/// An incomplete, or complete and unpublished, file.
#[derive(Debug)]
pub(in crate::lazy) struct Partial {
    pub(super) id: Digest,
    data: File,
    readable: Arc<File>,
    map: Map,
    bits: Mutex<Bits>,
    is_private: AtomicBool,
    is_finishing: AtomicBool,
}

/// What a sparse file is for: a file of several chunks, or many small files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::lazy) struct Shape {
    /// Digest over the list of its pieces.
    pub(in crate::lazy) id: Digest,
    pub(in crate::lazy) size: u64,
    pub(in crate::lazy) chunks: u32,
}

/// Names of the two files below the root of the cache.
pub(super) fn names(id: &Digest) -> (String, String) {
    let hex = id.hex();
    (format!("partial/{hex}"), format!("partial/{hex}.map"))
}

impl Partial {
    /// Opens the file of `shape` below `root`, in the boot marked by `nonce`; with `Missing::Create` a missing or
    /// unusable one is made anew, otherwise it is `None`.
    pub(super) fn open(
        root: BorrowedFd<'_>,
        shape: &Shape,
        nonce: u64,
        missing: Missing,
    ) -> io::Result<Option<Self>> {
        for _ in 0..TRIES {
            match Self::try_open(root, shape, nonce, missing)? {
                Tried::Opened(partial) => return Ok(Some(partial)),
                Tried::Absent => return Ok(None),
                Tried::Changed => {}
            }
        }
        Err(io::Error::other(format!("`{}` is always another file", names(&shape.id).0)))
    }

    fn try_open(
        root: BorrowedFd<'_>,
        shape: &Shape,
        nonce: u64,
        missing: Missing,
    ) -> io::Result<Tried> {
        let (data_name, map_name) = names(&shape.id);
        let base = OFlags::RDWR;
        let create = match missing {
            Missing::Create => OFlags::CREATE,
            Missing::Leave => OFlags::empty(),
        };
        let Some(data) = open(root, &data_name, base | create)? else { return Ok(Tried::Absent) };
        // Given back at the end, or with the descriptor.
        hold(&data, FlockOperation::LockExclusive)?;
        let Some(readable) = open(root, &data_name, OFlags::RDONLY)? else {
            return Ok(Tried::Changed);
        };
        let (found, named) = (data.metadata()?, readable.metadata()?);
        if (found.dev(), found.ino()) != (named.dev(), named.ino()) {
            return Ok(Tried::Changed);
        }
        // Data that is new, or was cut, has none of what a map says.
        let is_sized = found.len() == shape.size;
        let map = open(root, &map_name, base)?.filter(|_| is_sized);
        let vouching = Vouching { shape, nonce, device: found.dev(), inode: found.ino() };
        let (map, bits) = match map.map(|map| vouching.load(map)).transpose()? {
            Some(Loaded::Fits(map, bits)) => (map, bits),
            Some(Loaded::OfOther(claims)) => vouching.create(root, &map_name, &claims)?,
            None | Some(Loaded::Useless) if missing == Missing::Leave => return Ok(Tried::Absent),
            None | Some(Loaded::Useless) => vouching.create(root, &map_name, &[])?,
        };
        if !is_sized {
            data.set_len(shape.size)?;
        }
        // Another build of the program may evict without a look at the lock.
        if !is_linked(&data) {
            return Ok(Tried::Changed);
        }
        let is_private = map.is_private()?;
        hold(&data, FlockOperation::Unlock)?;
        Ok(Tried::Opened(Self {
            id: shape.id,
            data,
            readable: Arc::new(readable),
            map,
            bits: Mutex::new(bits),
            is_private: AtomicBool::new(is_private),
            is_finishing: AtomicBool::new(false),
        }))
    }

    /// Keeps everybody from opening it, to give it another name than the one below `root`.
    ///
    /// # Errors
    /// `NotFound` when that is of other data, or of none.
    pub(super) fn hold(&self, root: BorrowedFd<'_>) -> io::Result<Held<'_>> {
        hold(&self.data, FlockOperation::LockExclusive)?;
        let held = Held(&self.data);
        let named = rustix::fs::statat(root, &*names(&self.id).0, AtFlags::SYMLINK_NOFOLLOW)?;
        let found = self.data.metadata()?;
        if (named.st_dev, named.st_ino) != (found.dev(), found.ino()) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(held)
    }

    /// The content of `piece`, if it is here; a suspect one is verified first.
    pub(super) fn read_piece(&self, piece: &Piece) -> io::Result<Option<Bytes>> {
        let is_suspect = {
            let bits = self.lock();
            match (bits.is_present(piece.n), bits.is_suspect(piece.n)) {
                (true, _) => false,
                (false, true) => true,
                (false, false) => return Ok(None),
            }
        };
        let bytes = self.read(piece.offset, piece.size)?;
        if is_suspect {
            if Digest::of(&bytes) != piece.digest {
                self.forget(piece.n)?;
                return Ok(None);
            }
            self.mark(piece.n)?;
        }
        Ok(Some(bytes))
    }

    /// Whether `n` is here and needs no verification.
    pub(super) fn has(&self, n: u32) -> bool {
        self.lock().is_present(n)
    }

    /// Whether `n` is here, as far as the map knows.
    pub(super) fn may_have(&self, n: u32) -> bool {
        let bits = self.lock();
        bits.is_present(n) || bits.is_suspect(n)
    }

    /// `len` bytes at `offset`, which must lie in chunks that [`Partial::has`].
    pub(in crate::lazy) fn read(&self, offset: u64, len: u64) -> io::Result<Bytes> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut bytes = vec![0; len];
        self.readable.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.into())
    }

    /// Keeps the verified content of `piece`. False if it was there.
    pub(super) fn write_piece(&self, piece: &Piece, bytes: &[u8]) -> io::Result<bool> {
        if self.has(piece.n) {
            return Ok(false);
        }
        self.data.write_all_at(bytes, piece.offset)?;
        self.mark(piece.n)?;
        Ok(true)
    }

    /// Whether it still has a name: another process may have evicted it.
    pub(super) fn is_linked(&self) -> bool {
        is_linked(&self.data)
    }

    /// Whether every chunk is here and verified.
    pub(in crate::lazy) fn is_complete(&self) -> bool {
        self.lock().is_full()
    }

    /// The content for reading only, to be handed out once it is complete.
    pub(in crate::lazy) fn readable(&self) -> Arc<File> {
        Arc::clone(&self.readable)
    }

    /// The same content, to be stamped.
    pub(super) fn data(&self) -> &File {
        &self.data
    }

    /// True for the one caller that is to hash and publish the complete content.
    pub(super) fn begin_finishing(&self) -> bool {
        self.is_complete()
            && !self.is_private.load(Ordering::Acquire)
            && !self.is_finishing.swap(true, Ordering::AcqRel)
    }

    /// Publishing failed for a reason that may pass.
    pub(super) fn retry_finishing(&self) {
        self.is_finishing.store(false, Ordering::Release);
    }

    /// The content is complete and not what the file's digest says.
    pub(super) fn keep_private(&self) -> io::Result<()> {
        self.is_private.store(true, Ordering::Release);
        self.map.keep_private()
    }

    fn mark(&self, n: u32) -> io::Result<()> {
        self.map.mark(&mut self.lock(), n)
    }

    fn forget(&self, n: u32) -> io::Result<()> {
        self.map.forget(&mut self.lock(), n)
    }

    fn lock(&self) -> MutexGuard<'_, Bits> {
        self.bits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What to do about a file that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Create,
    Leave,
}

/// What came of an attempt to open.
enum Tried {
    Opened(Partial),
    Absent,
    /// The names are of something else meanwhile.
    Changed,
}

/// Attempts to open: each that fails is an eviction, or a publication, that happened just then.
const TRIES: u32 = 16;

/// The lock that [`Partial::hold`] gives.
#[derive(Debug)]
pub(super) struct Held<'a>(&'a File);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let _ = hold(self.0, FlockOperation::Unlock);
    }
}

/// Takes or gives back the lock of data, which is held while its names are looked up or change. Nobody has it for
/// longer than a few system calls.
fn hold(data: &File, operation: FlockOperation) -> io::Result<()> {
    Ok(rustix::io::retry_on_intr(|| rustix::fs::flock(data, operation))?)
}

/// The lock of data that is to lose its name `name`, until the answer is dropped; `None` if somebody opens it at the
/// moment.
pub(super) fn hold_to_remove(root: BorrowedFd<'_>, name: &str) -> Option<Option<File>> {
    // What cannot be opened, nobody opens.
    let Ok(Some(data)) = open(root, name, OFlags::RDONLY) else { return Some(None) };
    let locked = hold(&data, FlockOperation::NonBlockingLockExclusive);
    let is_busy = locked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    (!is_busy).then_some(Some(data))
}

fn open(root: BorrowedFd<'_>, name: &str, flags: OFlags) -> io::Result<Option<File>> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::openat(root, name, flags, Mode::from_raw_mode(0o600)) {
        Ok(file) => Ok(Some(file.into())),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether an open file has a name.
pub(super) fn is_linked(file: &File) -> bool {
    // One that cannot be asked is not held on to.
    rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink > 0)
}
