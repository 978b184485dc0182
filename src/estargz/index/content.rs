//! Where the content of each file lies in the blob: chunks, and the compressed members that hold them.

use super::node::digest;
use crate::estargz::limit;
use crate::estargz::toc::{Problem, RawEntry, TocError};
use crate::image::Digest;

/// A chunk as written, checked on its own and against the other chunks of its file.
#[derive(Debug, Clone)]
pub(super) struct RawChunk {
    /// Beginning of its member in the blob.
    pub(super) offset: u64,
    /// Bytes before it in the inflated member.
    pub(super) inner_offset: u32,
    pub(super) file_offset: u64,
    pub(super) size: u32,
    pub(super) digest: Digest,
}

/// All chunks of a layer, in the order of its table of contents.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) chunks: Vec<RawChunk>,
    /// Beginnings of members; also those of chunks that no path shows, since a member ends where any begins.
    starts: Vec<u64>,
    toc_offset: u64,
    first: usize,
    file_size: u64,
}

impl Content {
    pub(super) fn new(toc_offset: u64) -> Self {
        Self { chunks: Vec::new(), starts: Vec::new(), toc_offset, first: 0, file_size: 0 }
    }

    /// Begins a file with the `reg` entry that names it; it carries the first chunk too.
    pub(super) fn begin_file(&mut self, raw: &RawEntry<'_>, size: u64) -> Result<(), Problem> {
        self.first = self.chunks.len();
        self.file_size = size;
        if size == 0 { Ok(()) } else { self.push(raw) }
    }

    /// Takes a further chunk of the file.
    pub(super) fn add_chunk(&mut self, raw: &RawEntry<'_>) -> Result<(), Problem> {
        self.push(raw)
    }

    fn push(&mut self, raw: &RawEntry<'_>) -> Result<(), Problem> {
        let covered = self
            .chunks
            .get(self.first..)
            .and_then(<[_]>::last)
            .map_or(0, |c| c.file_offset + u64::from(c.size));
        let left = self.file_size - covered;
        let file_offset = unsigned("chunkOffset", raw.chunk_offset)?;
        if file_offset != covered {
            return Err(Problem::Chunks("a gap or an overlap"));
        }
        let size = match unsigned("chunkSize", raw.chunk_size)? {
            0 => left,
            size => size,
        };
        if size == 0 || size > left {
            return Err(Problem::Chunks("more than the size of the file"));
        }
        let size = u32::try_from(size)
            .ok()
            .filter(|size| u64::from(*size) <= limit::CHUNK_SIZE)
            .ok_or(Problem::Chunks("a chunk is larger than 256 MiB"))?;
        let offset = unsigned("offset", raw.offset)?;
        let inner = unsigned("innerOffset", raw.inner_offset)?;
        if offset >= self.toc_offset {
            return Err(Problem::Place("beyond the content of the blob"));
        }
        if offset == 0 && inner == 0 {
            // The blob begins with a tar header, which is no content.
            return Err(Problem::Place("no offset"));
        }
        let inner_offset = u32::try_from(inner)
            .ok()
            .filter(|inner| u64::from(*inner) <= limit::INNER_OFFSET)
            .ok_or(Problem::Range { field: "innerOffset", value: raw.inner_offset })?;
        let whole = covered == 0 && u64::from(size) == self.file_size;
        let digest = match digest(&raw.chunk_digest)? {
            // The digest of a file vouches for its only chunk as well.
            None if whole => digest(&raw.digest)?,
            given => given,
        };
        let digest = digest.ok_or(Problem::Unverifiable)?;
        self.starts.push(offset);
        self.chunks.push(RawChunk { offset, inner_offset, file_offset, size, digest });
        Ok(())
    }

    /// Ends the file: first chunk and number of chunks.
    pub(super) fn end_file(&mut self) -> Result<(u32, u32), Problem> {
        let chunks = self.chunks.get(self.first..).unwrap_or_default();
        let covered = chunks.last().map_or(0, |c| c.file_offset + u64::from(c.size));
        if covered != self.file_size {
            return Err(Problem::Chunks("the last ones are missing"));
        }
        // As many as entries at most, which have a limit far below 32 bits.
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok((number(self.first), number(chunks.len())))
    }

    /// Prepares [`Content::member_end`], when all entries were read.
    pub(super) fn sort_members(&mut self) {
        self.starts.push(self.toc_offset);
        self.starts.sort_unstable();
        self.starts.dedup();
    }

    /// Where the member that begins at `start` ends at the latest: at the next member, but not much beyond
    /// what the `needed` bytes can take when compressed. A hostile table of contents could otherwise name the
    /// whole blob as the member of one byte.
    pub(super) fn member_end(&self, start: u64, needed: u64) -> u64 {
        let next = self.starts.partition_point(|at| *at <= start);
        let end = self.starts.get(next).copied().unwrap_or(self.toc_offset);
        // deflate and zstd store what they cannot shrink with less than a thousandth on top; the rest is for
        // long gzip headers and careless encoders.
        let longest = needed + needed / 8 + (1 << 20);
        end.min(start.saturating_add(longest))
    }

    /// Refuses chunks of which one begins inside another; `sorted` is by member and place in it.
    pub(super) fn refuse_overlap<'c>(
        sorted: impl Iterator<Item = &'c RawChunk>,
    ) -> Result<(), TocError> {
        let mut last: Option<&RawChunk> = None;
        for chunk in sorted {
            if let Some(last) = last
                && last.offset == chunk.offset
                && u64::from(last.inner_offset) + u64::from(last.size)
                    > u64::from(chunk.inner_offset)
            {
                let place = format!("content at {} of the blob", chunk.offset);
                return Err(Problem::Place("over that of another file").of(&place));
            }
            last = Some(chunk);
        }
        Ok(())
    }
}

fn unsigned(field: &'static str, value: i64) -> Result<u64, Problem> {
    u64::try_from(value).map_err(|_| Problem::Range { field, value })
}
