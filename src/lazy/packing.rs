//! Where the small files of a layer live: packed into *segments*, in the order of the blob.
//!
//! A file of one chunk that is not larger than [`Limits::packed_file_bytes`] has no file of its own in the cache but a
//! slot in a segment, which is a sparse file with a map like that of any incomplete file (see `cache`). Slots follow each other
//! without gaps, so what is fetched together lies together; a segment is full when the next file would go beyond
//! [`Limits::segment_bytes`]. All of it follows from the index and the two limits: nothing is stored, and of a cold file
//! nothing is in memory but its share of a mark, a third of a byte.
//!
//! A segment is called by a digest over the sizes and digests of all files in it. Whatever tables of contents say, two
//! layers that have a segment in common have the same content in the same places of it, and other limits make
//! other segments.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::OnceLock;

use super::Limits;
use super::cache::{Shape, Slot};
use super::layer::LazyLayer;
use crate::estargz::{ChunkNo, EntryNo, Index};
use crate::image::{Digest, Hasher};
use crate::sys::MappedFile;

/// Chunks between two marks: so many are looked at to find a slot, each in some nanoseconds.
const STRIDE: u32 = 32;

/// Offsets in a segment are 32 bits wide.
const LONGEST: u32 = 1 << 30;

/// Where the next small file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Cursor {
    segment: u32,
    /// Files before it in the segment.
    n: u32,
    /// Bytes before it.
    offset: u32,
}

#[derive(Debug)]
struct Segment {
    /// The chunks from its first file to its last; those of larger files that lie in between are not in it.
    numbers: Range<u32>,
    files: u32,
    size: u32,
    id: OnceLock<Digest>,
}

/// The segments of a layer.
#[derive(Debug)]
pub(super) struct Packing {
    largest: u32,
    longest: u32,
    /// One for each [`STRIDE`] chunks: where the cursor stands in front of them.
    marks: Box<[Cursor]>,
    segments: Box<[Segment]>,
}

impl Cursor {
    /// Gives the next file its slot.
    fn take(&mut self, size: u32, longest: u32) -> Self {
        if self.n > 0 && self.offset.saturating_add(size) > longest {
            *self = Self { segment: self.segment + 1, n: 0, offset: 0 };
        }
        let slot = *self;
        self.n += 1;
        self.offset += size;
        slot
    }
}

impl Packing {
    /// One pass over the chunks.
    pub(super) fn new(index: &Index<MappedFile>, limits: &Limits) -> Self {
        let largest = limits.packed_file_bytes.min(LONGEST);
        let longest = limits.segment_bytes.min(LONGEST);
        let (mut marks, mut segments) = (Vec::new(), Vec::<Segment>::new());
        let mut cursor = Cursor::default();
        for number in 0..index.chunks() {
            if number % STRIDE == 0 {
                marks.push(cursor);
            }
            let Some(size) = small(index, number, largest) else { continue };
            cursor.take(size, longest);
            match segments.last_mut() {
                Some(segment) if cursor.n > 1 => {
                    segment.numbers.end = number + 1;
                    (segment.files, segment.size) = (cursor.n, cursor.offset);
                }
                Some(_) | None => segments.push(Segment {
                    numbers: number..number + 1,
                    files: 1,
                    size,
                    id: OnceLock::new(),
                }),
            }
        }
        Self { largest, longest, marks: marks.into(), segments: segments.into() }
    }

    /// The slot of the file whose only chunk is `number`; `None` if it is not a small file.
    fn slot(&self, index: &Index<MappedFile>, number: u32) -> Option<Slot> {
        let first = number / STRIDE;
        let mut cursor = *self.marks.get(first as usize)?;
        let mut found = None;
        for number in first * STRIDE..=number {
            found = small(index, number, self.largest).map(|size| cursor.take(size, self.longest));
        }
        let Cursor { segment, n, offset } = found?;
        let segment = self.segments.get(segment as usize)?;
        Some(Slot { segment: self.shape(index, segment), n, offset: u64::from(offset) })
    }

    /// The names of all segments.
    pub(super) fn ids(&self, index: &Index<MappedFile>) -> impl Iterator<Item = Digest> {
        self.segments.iter().map(|segment| self.shape(index, segment).id)
    }

    fn shape(&self, index: &Index<MappedFile>, segment: &Segment) -> Shape {
        let id = segment.id.get_or_init(|| {
            let mut hasher = Hasher::new();
            hasher.update(b"segment");
            for number in segment.numbers.clone() {
                if small(index, number, self.largest).is_some()
                    && let Some((entry, n)) = index.chunk_by_number(ChunkNo(number))
                    && let Some(chunk) = index.chunk(entry, n)
                {
                    hasher.update(&chunk.size.to_le_bytes());
                    hasher.update(chunk.digest.as_bytes());
                }
            }
            hasher.finish()
        });
        Shape { id: *id, size: u64::from(segment.size), chunks: segment.files }
    }
}

/// The size of the file whose only chunk is `number`, if it has no others and is small.
fn small(index: &Index<MappedFile>, number: u32, largest: u32) -> Option<u32> {
    let (entry, n) = index.chunk_by_number(ChunkNo(number))?;
    let size = index.chunk(entry, n)?.size;
    (size <= largest && index.chunk_count(entry) == 1).then_some(size)
}

impl LazyLayer {
    /// Whether `entry`, a file of so many bytes and chunks, has no file of its own in the cache.
    pub(super) fn is_packed(&self, size: u64, chunks: u32) -> bool {
        chunks == 1 && size <= u64::from(self.shared.limits.packed_file_bytes.min(LONGEST))
    }

    /// The slot of a small file of `size` bytes. A file that is longer than its only chunk has none: it would be read
    /// from the slots behind it.
    pub(super) fn slot(&self, entry: EntryNo, size: u64) -> Option<Slot> {
        let chunk = self.index.chunk(entry, 0).filter(|chunk| u64::from(chunk.size) == size)?;
        self.packing().slot(&self.index, chunk.number.0)
    }

    /// The chunks of the small files that were in the segments `gone`. Segments of which nothing is counted as local
    /// are not looked at, for their names are digests over all of their files.
    pub(super) fn packed_in(&self, gone: &HashSet<Digest>) -> impl Iterator<Item = u32> {
        let packing = self.packing();
        let segments = packing
            .segments
            .iter()
            .filter(|segment| segment.numbers.clone().any(|number| self.progress.is_set(number)));
        let gone =
            segments.filter(|segment| gone.contains(&packing.shape(&self.index, segment).id));
        let numbers = gone.flat_map(|segment| segment.numbers.clone());
        numbers.filter(|number| small(&self.index, *number, packing.largest).is_some())
    }

    fn packing(&self) -> &Packing {
        self.packing.get_or_init(|| Packing::new(&self.index, &self.shared.limits))
    }
}
