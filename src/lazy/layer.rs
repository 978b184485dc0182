//! One lazy layer: opening and reading its files. How missing chunks get here is `flight`'s business.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::{Bytes, BytesMut};
use tokio_util::sync::CancellationToken;

use super::cache::{self, Content, Piece, Place, Verify};
use super::engine::Shared;
use super::error::ReadError;
use super::fill::Fill;
use super::flight::Flights;
use super::health::Health;
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
    /// the thread of the FUSE request, which asks [`LazyLayer::open`] only after `None`.
    ///
    /// # Errors
    /// When `entry` is not a file.
    pub fn open_local(&self, entry: EntryNo) -> Result<Option<Opened>, ReadError> {
        let place = self.place(entry)?;
        Ok(match self.shared.cache.find(&place, Verify::Later) {
            Some(Content::Complete(file)) => {
                self.count_whole(entry, place.chunks);
                Some(Opened::Complete(file))
            }
            Some(Content::Partial(_)) => Some(Opened::Partial),
            None if place.chunks > 1 && !self.shared.cache.needs_verification(&place) => {
                Some(Opened::Partial)
            }
            None => None,
        })
    }

    /// How a file can be served. A file of one chunk is fetched first, so that it is `Complete`, except while the
    /// cache cannot be written. May wait for the network; dropping the future cancels nothing but the wait.
    ///
    /// # Errors
    /// When `entry` is not a file or the content of a file of one chunk cannot be had.
    pub async fn open(&self, entry: EntryNo) -> Result<Opened, ReadError> {
        let place = self.place(entry)?;
        let found = |layer: &Self| layer.shared.cache.find(&place, Verify::Now);
        let layer = self.strong()?;
        let at = place.clone();
        let content = layer.blocking(move |layer| {
            if at.chunks == 0 {
                layer.keep_empty(&at);
            }
            layer.shared.cache.find(&at, Verify::Now)
        });
        match content.await? {
            Some(Content::Complete(file)) => {
                self.count_whole(entry, place.chunks);
                return Ok(Opened::Complete(file));
            }
            Some(Content::Partial(_)) => return Ok(Opened::Partial),
            None if place.chunks != 1 => return Ok(Opened::Partial),
            None => {}
        }
        self.read_missing(entry, 0..1).await?;
        // One `open(2)` of a file that was written a moment ago.
        Ok(match found(&layer) {
            Some(Content::Complete(file)) => Opened::Complete(file),
            Some(Content::Partial(_)) | None => Opened::Partial,
        })
    }

    /// Content of a file, if it is local: up to `len` bytes at `offset`, fewer only at the end of the file. Blocks
    /// on the disk: made for the thread of the FUSE request, like [`LazyLayer::open_local`].
    ///
    /// # Errors
    /// When `entry` is not a file.
    pub fn read_local(
        &self,
        entry: EntryNo,
        offset: u64,
        len: u32,
    ) -> Result<Option<Bytes>, ReadError> {
        self.read_cached(entry, offset, len, Verify::Later)
    }

    /// Content of a file: up to `len` bytes at `offset`, fewer only at the end of the file. Missing chunks are
    /// fetched, once for all who want them; may wait for the network. Dropping the future cancels nothing but the
    /// wait.
    ///
    /// # Errors
    /// When `entry` is not a file or a chunk cannot be had.
    pub async fn read(&self, entry: EntryNo, offset: u64, len: u32) -> Result<Bytes, ReadError> {
        let layer = self.strong()?;
        let cached =
            layer.blocking(move |layer| layer.read_cached(entry, offset, len, Verify::Now));
        if let Some(bytes) = cached.await?? {
            return Ok(bytes);
        }
        let end = self.end_of(entry, offset, len)?;
        let (Some(first), Some(last)) =
            (self.index.chunk_at(entry, offset), self.index.chunk_at(entry, end - 1))
        else {
            return Err(self.not_a_file(entry));
        };
        let chunks = self.read_missing(entry, first..last + 1).await?;
        if let [(chunk, bytes)] = &*chunks {
            return Ok(cut(chunk, bytes, offset, end));
        }
        let capacity = usize::try_from(end - offset).unwrap_or_default();
        let mut joined = BytesMut::with_capacity(capacity);
        for (chunk, bytes) in &chunks {
            joined.extend_from_slice(&cut(chunk, bytes, offset, end));
        }
        Ok(joined.freeze())
    }

    fn read_cached(
        &self,
        entry: EntryNo,
        offset: u64,
        len: u32,
        verify: Verify,
    ) -> Result<Option<Bytes>, ReadError> {
        let end = self.end_of(entry, offset, len)?;
        if end <= offset {
            return Ok(Some(Bytes::new()));
        }
        let Some(content) = self.content(entry, verify)? else { return Ok(None) };
        let read = match &content {
            Content::Complete(file) => cache::read_at(file, offset, end - offset),
            Content::Partial(partial) => {
                let (Some(first), Some(last)) =
                    (self.index.chunk_at(entry, offset), self.index.chunk_at(entry, end - 1))
                else {
                    return Ok(None);
                };
                for n in first..=last {
                    let Some(chunk) = self.index.chunk(entry, n) else { return Ok(None) };
                    if !self.shared.cache.has_piece(&piece(&chunk, n), &content) {
                        return Ok(None);
                    }
                }
                partial.read(offset, end - offset)
            }
        };
        // A disk that cannot be read has the same content as one that is empty.
        Ok(read.ok())
    }

    /// The content of `entry` as far as it is in the cache.
    fn content(&self, entry: EntryNo, verify: Verify) -> Result<Option<Content>, ReadError> {
        let key = (self.lane, entry.0);
        if let Some(content) = self.shared.table.get(key) {
            return Ok(Some(content));
        }
        let place = self.place(entry)?;
        let Some(content) = self.shared.cache.find(&place, verify) else { return Ok(None) };
        if matches!(content, Content::Complete(_)) {
            self.count_whole(entry, place.chunks);
        }
        self.shared.table.insert(key, content.clone());
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
            return Ok(Place { whole: Some(digest), id: digest, size, chunks });
        }
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(entry.0).or_insert_with(|| {
            let mut hasher = Hasher::new();
            for chunk in (0..chunks).filter_map(|n| self.index.chunk(entry, n)) {
                hasher.update(&chunk.size.to_le_bytes());
                hasher.update(chunk.digest.as_bytes());
            }
            Place { whole: self.index.file_digest(entry), id: hasher.finish(), size, chunks }
        });
        Ok(place.clone())
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

    fn keep_empty(&self, place: &Place) {
        if self.shared.cache.find(place, Verify::Now).is_none() {
            let piece = Piece { n: 0, offset: 0, size: 0, digest: place.id };
            self.shared.cache.keep(place, &piece, &Bytes::new());
        }
    }

    /// Where a read of `len` bytes at `offset` ends.
    fn end_of(&self, entry: EntryNo, offset: u64, len: u32) -> Result<u64, ReadError> {
        match self.index.entry(entry) {
            Some(found) if found.kind == EntryKind::Regular => {
                Ok(found.size.min(offset.saturating_add(u64::from(len))))
            }
            Some(_) | None => Err(self.not_a_file(entry)),
        }
    }

    fn not_a_file(&self, entry: EntryNo) -> ReadError {
        ReadError::NotAFile { layer: self.digest, entry: entry.0 }
    }
}

/// The cache's view of the `n`th chunk of a file.
pub(super) fn piece(chunk: &Chunk, n: u32) -> Piece {
    Piece { n, offset: chunk.file_offset, size: u64::from(chunk.size), digest: chunk.digest }
}

/// The part of a chunk that lies between `offset` and `end` of its file.
fn cut(chunk: &Chunk, bytes: &Bytes, offset: u64, end: u64) -> Bytes {
    let inside = |at: u64| {
        let within = at.saturating_sub(chunk.file_offset);
        usize::try_from(within).map_or(bytes.len(), |within| within.min(bytes.len()))
    };
    bytes.slice(inside(offset)..inside(end))
}
