//! Contents of files on disk: complete ones by the digest of their content, incomplete ones sparse with a map, small ones
//! packed into segments; shared by all layers.
//!
//! ```text
//! files/
//!   epoch               which stamps are trusted (see `epoch`)
//!   lock, turn, guests, evictions, bell   who uses the cache, and who evicts (see `tenure`)
//!   sha256/aa/<hex>     complete; the digest of the content is <hex>
//!   partial/<id>[.map]  sparse (see `partial`): an incomplete file, or a segment of small ones (see `packed`); <id> is a
//!                       digest over the sizes and digests of all chunks that belong there
//!   layers/<hex>        which chunks of a layer are local: a hint for `ps`, never the base of a read
//!   tmp/                being written
//! ```
//!
//! Nothing stands under `sha256/` that was not hashed as a whole by this cache, so a table of contents that lies
//! about a file's digest cannot put wrong content before other layers. Everything here blocks on the disk, never
//! on the network. Errors of the disk make content absent and are reported; they never reach a reader.
//!
//! With a budget (`budget`), what was used longest ago is evicted (`evict`).
//!
//! Files of one chunk and up to [`Limits::packed_file_bytes`](super::Limits) have no file of their own. Writing the
//! 69,536 small files of a node layer (151 MB, median 361 bytes; ext4 with a journal, one thread), and reading them:
//!
//! | | create | CPU | on disk | read again | read after a drop of the page cache |
//! |---|---|---|---|---|---|
//! | a file each: create, write, stamp, rename | 3.9 s | 2.5 s | 396 MB | 0.70 s | 9.9 s |
//! | packed: one write each | 0.3 s | 0.15 s | 148 MB | 0.11 s | 0.6 s |
//!
//! The background fill of 70,000 such files (133 MB) through the whole engine takes 3.1 s and 2.0 s of a processor instead of 9.1 s
//! and 7.0 s, and 135 MB on disk instead of 372. Opening and reading what is in the page cache costs an open and a release in both
//! forms, and no registration of a backing file in this one. `what_many_small_files_cost` of the integration tests measures it.
//!
//! What the packed form lacks is worth less than that: a packed file cannot be opened in passthrough mode (the kernel
//! takes no offset into a backing file), so its first read goes through the worker, once, into the page cache of the
//! mount, where further reads, mappings and programs find it without the worker; two layers share small content only
//! where they have whole segments in common; and small files are evicted together with their neighbours in the blob.
//! Small files that an earlier version of the program kept under `sha256/` are found there until they are evicted.

mod budget;
mod epoch;
mod evict;
mod files;
mod map;
mod memory;
mod notes;
mod packed;
mod partial;
mod tenure;
mod whole;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use bytes::Bytes;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use self::budget::Budget;
pub(super) use self::budget::{Pressure, Room, UseClock};
use self::epoch::Epoch;
pub(super) use self::evict::{Landing, keys_of};
pub use self::files::{Found, Survey};
use self::memory::MemoryCache;
use self::packed::Segments;
pub(super) use self::packed::Slot;
use self::partial::Missing;
pub(super) use self::partial::{Partial, Shape};
use self::tenure::{Seat, Tenure};
use super::event::{EventSink, LazyEvent};
use crate::image::Digest;
use crate::telemetry::Chain;

/// Which content: where it stands when complete, and where until then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Digest of the whole content, if the table of contents tells it.
    pub(super) whole: Option<Digest>,
    /// Digest over the chunk list; only for files of more than one chunk.
    pub(super) id: Digest,
    pub(super) size: u64,
    pub(super) chunks: u32,
    /// Of a small file: where it is packed.
    pub(super) slot: Option<Slot>,
}

impl Place {
    /// The sparse file of a file of several chunks.
    fn shape(&self) -> Shape {
        Shape { id: self.id, size: self.size, chunks: self.chunks }
    }
}

/// One chunk of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Number within the file.
    pub(super) n: u32,
    /// Where it begins in the file.
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) digest: Digest,
}

/// Content that is at least in part here.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Complete(Arc<File>),
    Partial(Arc<Partial>),
    /// A small file, in its segment.
    Packed(Arc<Partial>, Slot),
}

/// What may be done about content that another boot left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verify {
    /// Read all of it and decide.
    Now,
    /// Nothing: it counts as absent.
    Later,
}

/// What became of complete content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finished {
    Published,
    /// Its digest is another one than the table of contents says.
    Mismatch {
        expected: Digest,
        found: Digest,
    },
    /// Someone else does it, or it has no digest to be published under.
    Unchanged,
}

const LOCKS: usize = 16;

#[derive(Debug)]
pub(super) struct FileCache {
    root: OwnedFd,
    tenure: Tenure,
    epoch: Epoch,
    partials: Mutex<HashMap<Digest, Weak<Partial>>>,
    segments: Segments,
    memory: MemoryCache,
    verifying: [Mutex<()>; LOCKS],
    is_degraded: AtomicBool,
    events: EventSink,
    budget: Arc<Budget>,
    /// Bytes of the disk that are left free.
    reserve: AtomicU64,
    /// Held by the one who evicts.
    evicting: Mutex<()>,
    /// Shared by whoever opens or writes content, alone for each that is evicted.
    gate: RwLock<()>,
    /// Files that were handed out, by content.
    open: Mutex<HashMap<Digest, Vec<Weak<File>>>>,
    /// Whether notes about layers are not to be written, since content goes.
    hints: Mutex<bool>,
    /// After so many removals an eviction ends as if the process had died.
    #[cfg(test)]
    pub(super) dies_after_for_tests: std::sync::atomic::AtomicI64,
    /// Evictions that looked at every file.
    #[cfg(test)]
    pub(super) scans_for_tests: std::sync::atomic::AtomicU64,
    /// Every write fails as on a full disk.
    #[cfg(any(test, feature = "testing"))]
    pub(super) is_full_for_tests: AtomicBool,
}

impl FileCache {
    /// Opens the cache in `dir`, an existing directory, and removes what a dead process left half written.
    pub(super) fn open(
        dir: &Path,
        boot_id: &str,
        memory: u64,
        events: EventSink,
    ) -> io::Result<Self> {
        Self::open_as(Seat::Any, dir, boot_id, memory, events)
    }

    /// Opens it for a moment, in which another process may become its owner.
    pub(super) fn visit(dir: &Path, boot_id: &str) -> io::Result<Self> {
        Self::open_as(Seat::Guest, dir, boot_id, 0, EventSink::none())
    }

    fn open_as(
        seat: Seat,
        dir: &Path,
        boot_id: &str,
        memory: u64,
        events: EventSink,
    ) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(dir, flags, Mode::empty())?;
        for name in ["sha256", "partial", "layers", "tmp"] {
            make_dir(&root, name)?;
        }
        let temporary = rustix::fs::openat(&root, "tmp", flags, Mode::empty())?;
        let tenure = Tenure::open(&root, seat)?;
        let epoch = Epoch::open(&root, boot_id, tenure.is_owner());
        // What another living process writes is not rubbish.
        let entries =
            (!tenure.has_company()).then(|| rustix::fs::Dir::read_from(&temporary)).transpose()?;
        for entry in entries.into_iter().flatten().flatten() {
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                let _ = rustix::fs::unlinkat(&temporary, entry.file_name(), AtFlags::empty());
            }
        }
        Ok(Self {
            root,
            tenure,
            epoch,
            partials: Mutex::default(),
            segments: Segments::default(),
            memory: MemoryCache::new(memory),
            verifying: Default::default(),
            is_degraded: AtomicBool::new(false),
            events,
            budget: Arc::default(),
            reserve: AtomicU64::new(0),
            evicting: Mutex::default(),
            gate: RwLock::default(),
            open: Mutex::default(),
            hints: Mutex::default(),
            #[cfg(test)]
            dies_after_for_tests: i64::MAX.into(),
            #[cfg(test)]
            scans_for_tests: 0.into(),
            #[cfg(any(test, feature = "testing"))]
            is_full_for_tests: AtomicBool::new(false),
        })
    }

    /// The content of `place`, as far as it is here.
    pub(super) fn find(&self, place: &Place, verify: Verify) -> Option<Content> {
        if let Some(found) = place.slot.and_then(|slot| self.find_packed(slot)) {
            return Some(found);
        }
        let whole = place.whole.filter(|_| place.slot.is_none() || self.may_have_small_files());
        if let Some(file) = whole.and_then(|whole| self.find_whole(whole, place.size, verify)) {
            return Some(Content::Complete(file));
        }
        let _landing = self.landing();
        let partial =
            (place.chunks > 1).then(|| self.partial(&place.shape(), Missing::Leave))??;
        if partial.is_complete() {
            let file = partial.readable();
            self.note_open(place.id, &file);
            return Some(Content::Complete(file));
        }
        self.budget.touch(&place.id);
        Some(Content::Partial(partial))
    }

    /// One chunk, if it is on disk.
    pub(super) fn read_piece(&self, piece: &Piece, content: &Content) -> Option<Bytes> {
        let read = match content {
            Content::Complete(file) => read_at(file, piece.offset, piece.size).map(Some),
            Content::Partial(partial) => partial.read_piece(piece),
            Content::Packed(segment, slot) => segment.read_piece(&slot.piece(piece)),
        };
        read.unwrap_or_else(|error| {
            self.degrade(&error);
            None
        })
    }

    /// Whether a chunk is on disk; one that another boot left is verified for that.
    pub(super) fn has_piece(&self, piece: &Piece, content: &Content) -> bool {
        match content {
            Content::Complete(_) => true,
            Content::Partial(partial) => {
                partial.has(piece.n)
                    || (partial.may_have(piece.n) && self.read_piece(piece, content).is_some())
            }
            Content::Packed(segment, slot) => {
                segment.has(slot.n) || self.read_piece(piece, content).is_some()
            }
        }
    }

    /// A chunk that could not be written.
    pub(super) fn remembered(&self, digest: &Digest) -> Option<Bytes> {
        self.memory.get(digest)
    }

    /// Whether the last attempt to write failed.
    pub(super) fn is_degraded(&self) -> bool {
        self.is_degraded.load(Ordering::Acquire)
    }

    /// Makes everything that is here durable. Blocks for as long as the disk needs.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.epoch.sync(&self.root)
    }

    fn partial(&self, shape: &Shape, missing: Missing) -> Option<Arc<Partial>> {
        self.open_partial(shape, missing).unwrap_or_else(|error| {
            self.degrade(&error);
            None
        })
    }

    fn open_partial(&self, shape: &Shape, missing: Missing) -> io::Result<Option<Arc<Partial>>> {
        // Held while opening: two maps of one file in memory would each lack the bits of the other.
        let mut partials = self.partials.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(partial) = partials.get(&shape.id).and_then(Weak::upgrade)
            && (self.tenure.is_owner() || partial.is_linked())
        {
            return Ok(Some(partial));
        }
        let Some(partial) =
            Partial::open(self.root.as_fd(), shape, self.epoch.nonce(), missing)?.map(Arc::new)
        else {
            return Ok(None);
        };
        partials.retain(|_, partial| partial.strong_count() > 0);
        partials.insert(shape.id, Arc::downgrade(&partial));
        Ok(Some(partial))
    }

    fn degrade(&self, error: &io::Error) {
        if !self.is_degraded.swap(true, Ordering::AcqRel) {
            let reason = Chain(error).to_string();
            self.events.send(LazyEvent::CacheDegraded { reason });
        }
    }
}

/// Reads exactly `len` bytes at `offset`.
pub(super) fn read_at(file: &File, offset: u64, len: u64) -> io::Result<Bytes> {
    use std::os::unix::fs::FileExt as _;
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes.into())
}

fn make_dir(root: &OwnedFd, name: &str) -> io::Result<()> {
    match rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod evict_tests;
#[cfg(test)]
mod tests;
