//! Contiguous parts of the blob: whole members, with all chunks that are in them.

use std::ops::Range;

use super::layer::LazyLayer;
use crate::estargz::{Chunk, ChunkNo, EntryNo};

/// No range is made shorter than this because a link is narrow.
const EXTENT_MIN: u64 = 256 << 10;

/// Members of the blob and all their chunks, in the order of the blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) range: Range<u64>,
    pub(super) numbers: Vec<u32>,
    /// Inflated bytes of the chunks.
    pub(super) content: u64,
}

impl Extent {
    /// Compressed bytes.
    pub(super) fn length(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether `number`, which is not before the extent's last member, is in it.
    pub(super) fn reaches(&self, number: u32) -> bool {
        self.numbers.last().is_some_and(|last| number <= *last)
    }

    /// Adds a member that lies behind.
    pub(super) fn append(&mut self, member: Self) {
        self.range.end = self.range.end.max(member.range.end);
        self.content += member.content;
        self.numbers.extend(member.numbers);
    }
}

impl LazyLayer {
    pub(super) fn chunk_of(&self, number: u32) -> Option<(Chunk, EntryNo, u32)> {
        let (entry, n) = self.index.chunk_by_number(ChunkNo(number))?;
        Some((self.index.chunk(entry, n)?, entry, n))
    }

    /// The member that holds `number`, with all its chunks.
    pub(super) fn member_of(&self, number: u32) -> Option<Extent> {
        let (chunk, _, _) = self.chunk_of(number)?;
        let numbers: Vec<u32> = self.index.member_chunks(ChunkNo(number)).collect();
        let content = numbers.iter().filter_map(|n| self.chunk_of(*n));
        let content = content.map(|(chunk, _, _)| u64::from(chunk.size)).sum();
        Some(Extent { range: chunk.member, numbers, content })
    }

    /// The members that hold `numbers`, which are in the order of the blob; those that lie apart are fetched apart.
    pub(super) fn extents_of(&self, numbers: impl Iterator<Item = u32>) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for number in numbers {
            if extents.last().is_some_and(|extent| extent.reaches(number)) {
                continue;
            }
            let Some(member) = self.member_of(number) else { continue };
            match extents.last_mut() {
                Some(last) if self.is_near(last, &member) => last.append(member),
                Some(_) | None => extents.push(member),
            }
        }
        extents
    }

    pub(super) fn member_starts(&self, numbers: impl Iterator<Item = u32>) -> Vec<u64> {
        let chunks = numbers.filter_map(|number| self.chunk_of(number));
        let mut starts: Vec<u64> = chunks.map(|(chunk, _, _)| chunk.member.start).collect();
        starts.dedup();
        starts
    }

    /// Whether `member`, which lies behind `extent`, is fetched together with it in at most `most` bytes.
    pub(super) fn fits(&self, extent: &Extent, member: &Extent, most: u64) -> bool {
        self.is_near(extent, member) && member.range.end.saturating_sub(extent.range.start) <= most
    }

    /// Compressed bytes that are asked for in one range before anyone waits for them.
    pub(super) fn extent_bytes(&self) -> u64 {
        let limits = &self.shared.limits;
        // A range costs an answer's wait, which should be a small part of its time.
        let time = limits.extent_time.max(self.pace.least() * 4);
        let most = limits.extent_bytes;
        let carried = self.shared.link.bytes_in(time).unwrap_or(most / 4);
        carried.clamp(EXTENT_MIN.min(most), most)
    }

    /// Whether what lies between `extent` and `member` behind it is less than another request is worth.
    fn is_near(&self, extent: &Extent, member: &Extent) -> bool {
        member.range.start >= extent.range.start
            && member.range.start.saturating_sub(extent.range.end) <= self.shared.limits.extent_gap
    }
}
