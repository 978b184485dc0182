//! Reading files of a layer.

use bytes::{Bytes, BytesMut};

use super::cache::{self, Content, Verify};
use super::error::ReadError;
use super::layer::{LazyLayer, piece};
use crate::estargz::{Chunk, EntryKind, EntryNo};

impl LazyLayer {
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

    /// All of a small file that is local and is opened for the first time: whoever opens it reads it next, mostly. `None`
    /// for every other. Blocks on the disk.
    #[must_use]
    pub fn first_content(&self, entry: EntryNo) -> Option<Bytes> {
        let size = self.index.entry(entry).filter(|found| found.kind == EntryKind::Regular)?.size;
        let chunk = self.index.chunk(entry, 0)?.number.0;
        if !self.is_packed(size, self.index.chunk_count(entry))
            || !self.progress.is_set(chunk)
            || self.touched.is_set(chunk)
        {
            return None;
        }
        let content = self.read_cached(entry, 0, u32::try_from(size).ok()?, Verify::Later);
        // Of a complete layer nobody else notes it.
        self.touched.set(chunk);
        content.ok().flatten().filter(|content| content.len() as u64 == size)
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
        self.touch(entry, first..last + 1);
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
        let (Some(first), Some(last)) =
            (self.index.chunk_at(entry, offset), self.index.chunk_at(entry, end - 1))
        else {
            return Ok(None);
        };
        let read = match &content {
            Content::Complete(file) => cache::read_at(file, offset, end - offset),
            Content::Partial(partial) => {
                for n in first..=last {
                    let Some(chunk) = self.index.chunk(entry, n) else { return Ok(None) };
                    if !self.shared.cache.has_piece(&piece(&chunk, n), &content) {
                        return Ok(None);
                    }
                }
                partial.read(offset, end - offset)
            }
            Content::Packed(segment, slot) => {
                let Some(chunk) = self.index.chunk(entry, 0) else { return Ok(None) };
                if !self.shared.cache.has_piece(&piece(&chunk, 0), &content) {
                    return Ok(None);
                }
                self.count_whole(entry, 1);
                segment.read(slot.offset + offset, end - offset)
            }
        };
        self.touch(entry, first..last + 1);
        // A disk that cannot be read has the same content as one that is empty.
        Ok(read.ok())
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
}

/// The part of a chunk that lies between `offset` and `end` of its file.
fn cut(chunk: &Chunk, bytes: &Bytes, offset: u64, end: u64) -> Bytes {
    let inside = |at: u64| {
        let within = at.saturating_sub(chunk.file_offset);
        usize::try_from(within).map_or(bytes.len(), |within| within.min(bytes.len()))
    };
    bytes.slice(inside(offset)..inside(end))
}
