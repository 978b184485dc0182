//! One lazy layer: what it is made of, and opening its files. Reading them: `read`; how missing chunks get here: `flight`.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use tokio_util::sync::CancellationToken;

use super::cache::{Content, Piece, Place, Verify};
use super::engine::Shared;
use super::error::ReadError;
use super::fill::Fill;
use super::flight::Flights;
use super::health::Health;
use super::learned::{Bits, Lessons};
use super::pace::Pace;
use super::packing::Packing;
use super::progress::Progress;
use super::refusal::Refusals;
use super::source::RangeSource;
use crate::estargz::{Chunk, ChunkNo, EntryKind, EntryNo, Index};
use crate::image::{Digest, Hasher};
use crate::sys::MappedFile;

/// How a file can be served.
#[derive(Debug, Clone)]
pub enum Opened {
    /// All of its content is in this file, at the same offsets, verified and immutable: fit for passthrough. It is
    /// open for reading and stays readable when the cache drops its name.
    Complete(Arc<File>),
    /// [`LazyLayer::read`] gives its content.
    Partial,
}

/// An open layer. Methods that do not say otherwise neither block nor wait.
pub struct LazyLayer {
    pub(super) shared: Arc<Shared>,
    pub(super) lane: u64,
    pub(super) digest: Digest,
    fingerprint: Digest,
    pub(super) index: Index<MappedFile>,
    pub(super) source: Arc<dyn RangeSource>,
    pub(super) health: Health,
    pub(super) flights: Flights,
    pub(super) progress: Progress,
    /// [`LazyLayer::local_bytes`] when it was last noted on disk.
    pub(super) noted_bytes: AtomicU64,
    pub(super) fill: Fill,
    pub(super) closed: CancellationToken,
    pub(super) is_announced: AtomicBool,
    pub(super) refusals: Refusals,
    pub(super) pace: Pace,
    /// Chunks that were fetched along with others and not read yet.
    pub(super) ahead: Bits,
    /// Chunks that were read.
    pub(super) touched: Bits,
    pub(super) learned: Lessons,
    /// The first chunk behind what should be fetched first.
    pub(super) landmark: Option<u32>,
    pub(super) packing: OnceLock<Packing>,
    /// Places of files of several chunks, whose ids are a digest over all of these.
    places: Mutex<HashMap<u32, Place>>,
    pub(super) this: Weak<Self>,
}

impl std::fmt::Debug for LazyLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LazyLayer")
            .field("digest", &self.digest)
            .field("local_bytes", &self.local_bytes())
            .finish_non_exhaustive()
    }
}

impl LazyLayer {
    pub(super) fn start(
        shared: Arc<Shared>,
        lane: u64,
        (digest, fingerprint): (Digest, Digest),
        index: Index<MappedFile>,
        source: Arc<dyn RangeSource>,
    ) -> Arc<Self> {
        let progress = Progress::new(index.chunks());
        if let Some(hint) = shared.cache.load_hint(&digest) {
            let size = |number| {
                let (entry, n) = index.chunk_by_number(ChunkNo(number))?;
                index.chunk(entry, n).map(|chunk| chunk.size)
            };
            progress.take_hint(&hint, size);
        }
        let layer = Arc::new_cyclic(|this| Self {
            lane,
            digest,
            fingerprint,
            source,
            health: Health::new(&shared.limits),
            flights: Flights::default(),
            fill: Fill::default(),
            closed: CancellationToken::new(),
            is_announced: AtomicBool::new(progress.is_complete()),
            noted_bytes: AtomicU64::new(progress.local_bytes()),
            progress,
            refusals: Refusals::default(),
            pace: Pace::default(),
            ahead: Bits::new(index.chunks()),
            touched: Bits::new(index.chunks()),
            learned: Lessons::default(),
            landmark: index.prefetch_range().map(|range| first_from(&index, range.end)),
            packing: OnceLock::new(),
            places: Mutex::default(),
            this: Weak::clone(this),
            index,
            shared,
        });
        layer.start_pilot();
        layer
    }

    /// Digest of the layer's blob.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its tree and the places of its content.
    #[must_use]
    pub fn index(&self) -> &Index<MappedFile> {
        &self.index
    }

    /// Bytes of content that are local, as far as is known: what an earlier process left may be counted late.
    #[must_use]
    pub fn local_bytes(&self) -> u64 {
        self.progress.local_bytes()
    }

    /// Bytes of content of the layer.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.index.content_size()
    }

    /// Whether every chunk is local, so that reads need no network.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.progress.is_complete()
    }

    /// Whether the source did not answer when it was last asked.
    #[must_use]
    pub fn is_source_lost(&self) -> bool {
        self.health.is_lost()
    }

    /// Ends prefetch, fill and every read that waits. What runs already may still write to the cache.
    pub fn close(&self) {
        self.closed.cancel();
        self.shared.table.remove_lane(self.lane);
        if !self.is_complete() {
            self.save_hint();
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    pub(super) fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// How a file can be served, if that needs no network. Blocks on the disk for the time of an `open(2)`: made for
    /// the thread of the FUSE request, which asks [`LazyLayer::open`] only after `None`. A small file is `Partial`
    /// at once, whether it is here or not: it is never anything else, and reading it brings it.
    ///
    /// # Errors
    /// When `entry` is not a file.
    pub fn open_local(&self, entry: EntryNo) -> Result<Option<Opened>, ReadError> {
        if self.is_always_read(entry)? {
            return Ok(Some(Opened::Partial));
        }
        let place = self.place(entry)?;
        Ok(match self.shared.cache.find(&place, Verify::Later) {
            Some(Content::Complete(file)) => {
                self.count_whole(entry, place.chunks);
                self.touch(entry, 0..place.chunks);
                Some(Opened::Complete(file))
            }
            Some(Content::Partial(_) | Content::Packed(..)) => Some(Opened::Partial),
            None if place.chunks > 1 && !self.shared.cache.needs_verification(&place) => {
                Some(Opened::Partial)
            }
            None => None,
        })
    }

    /// How a file can be served. A file of one chunk that is not small is fetched first, so that it is `Complete`, except
    /// while the cache cannot be written. May wait for the network; dropping the future cancels nothing but the wait.
    ///
    /// # Errors
    /// When `entry` is not a file or the content of a file of one chunk cannot be had.
    pub async fn open(&self, entry: EntryNo) -> Result<Opened, ReadError> {
        if self.is_always_read(entry)? {
            return Ok(Opened::Partial);
        }
        let place = self.place(entry)?;
        let found = |layer: &Self| layer.shared.cache.find(&place, Verify::Now);
        let layer = self.strong()?;
        let at = place.clone();
        let content = layer.blocking(move |layer| layer.shared.cache.find(&at, Verify::Now));
        match content.await? {
            Some(Content::Complete(file)) => {
                self.count_whole(entry, place.chunks);
                self.touch(entry, 0..place.chunks);
                return Ok(Opened::Complete(file));
            }
            Some(Content::Partial(_) | Content::Packed(..)) => return Ok(Opened::Partial),
            None if place.chunks != 1 => return Ok(Opened::Partial),
            None => {}
        }
        self.touch(entry, 0..1);
        self.read_missing(entry, 0..1).await?;
        // One `open(2)` of a file that was written a moment ago.
        Ok(match found(&layer) {
            Some(Content::Complete(file)) => Opened::Complete(file),
            Some(Content::Partial(_) | Content::Packed(..)) | None => Opened::Partial,
        })
    }

    /// The content of `entry` as far as it is in the cache.
    pub(super) fn content(
        &self,
        entry: EntryNo,
        verify: Verify,
    ) -> Result<Option<Content>, ReadError> {
        let key = (self.lane, entry.0);
        if let Some(content) = self.shared.table.get(key)
            && self.shared.cache.is_current(&content)
        {
            return Ok(Some(content));
        }
        let place = self.place(entry)?;
        let Some(content) = self.shared.cache.find(&place, verify) else { return Ok(None) };
        if matches!(content, Content::Complete(_)) {
            self.count_whole(entry, place.chunks);
        }
        // A segment is kept open by the cache, for all of its files.
        if !matches!(content, Content::Packed(..)) {
            self.shared.table.insert(key, content.clone());
        }
        Ok(Some(content))
    }

    /// Where the content of `entry` is kept.
    pub(super) fn place(&self, entry: EntryNo) -> Result<Place, ReadError> {
        let size = match self.index.entry(entry) {
            Some(found) if found.kind == EntryKind::Regular => found.size,
            Some(_) | None => return Err(self.not_a_file(entry)),
        };
        let chunks = self.index.chunk_count(entry);
        if chunks <= 1 {
            // A digest that was verified, whatever the table of contents says about the whole file.
            let digest =
                self.index.chunk(entry, 0).map_or_else(|| Digest::of(b""), |chunk| chunk.digest);
            let slot = self.is_packed(size, chunks).then(|| self.slot(entry, size)).flatten();
            return Ok(Place { whole: Some(digest), id: digest, size, chunks, slot });
        }
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(entry.0).or_insert_with(|| Place {
            whole: self.index.file_digest(entry),
            id: self.partial_id(entry, chunks),
            size,
            chunks,
            slot: None,
        });
        Ok(place.clone())
    }

    /// What a file of several chunks is called until it is complete.
    pub(super) fn partial_id(&self, entry: EntryNo, chunks: u32) -> Digest {
        partial_id(&self.index, entry, chunks)
    }

    /// Runs `work` where it may block.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let layer = Arc::clone(self);
        // Fails when the runtime shuts down.
        let done = self.shared.runtime.spawn_blocking(move || work(&layer)).await;
        done.map_err(|_| ReadError::Closed(self.digest))
    }

    pub(super) fn strong(&self) -> Result<Arc<Self>, ReadError> {
        if self.is_closed() {
            return Err(ReadError::Closed(self.digest));
        }
        self.this.upgrade().ok_or(ReadError::Closed(self.digest))
    }

    /// Why `number` is not fetched at present.
    pub(super) fn refusal(&self, number: u32) -> Option<ReadError> {
        self.refusals.of(number, &self.shared.limits)
    }

    /// Whether nothing can be passed through of `entry`: it is small, or empty.
    fn is_always_read(&self, entry: EntryNo) -> Result<bool, ReadError> {
        match self.index.entry(entry) {
            Some(found) if found.kind == EntryKind::Regular => {
                let chunks = self.index.chunk_count(entry);
                Ok(chunks == 0 || self.is_packed(found.size, chunks))
            }
            Some(_) | None => Err(self.not_a_file(entry)),
        }
    }

    pub(super) fn not_a_file(&self, entry: EntryNo) -> ReadError {
        ReadError::NotAFile { layer: self.digest, entry: entry.0 }
    }
}

/// What a file of several chunks is called until it is complete.
pub(super) fn partial_id(index: &Index<MappedFile>, entry: EntryNo, chunks: u32) -> Digest {
    let mut hasher = Hasher::new();
    for chunk in (0..chunks).filter_map(|n| index.chunk(entry, n)) {
        hasher.update(&chunk.size.to_le_bytes());
        hasher.update(chunk.digest.as_bytes());
    }
    hasher.finish()
}

/// The first chunk whose member begins at `offset` of the blob or later.
pub(super) fn first_from(index: &Index<MappedFile>, offset: u64) -> u32 {
    let start = |number| {
        let (entry, n) = index.chunk_by_number(ChunkNo(number))?;
        Some(index.chunk(entry, n)?.member.start)
    };
    let (mut low, mut high) = (0, index.chunks());
    while low < high {
        let middle = low + (high - low) / 2;
        if start(middle).is_some_and(|start| start < offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// The cache's view of the `n`th chunk of a file.
pub(super) fn piece(chunk: &Chunk, n: u32) -> Piece {
    Piece { n, offset: chunk.file_offset, size: u64::from(chunk.size), digest: chunk.digest }
}
