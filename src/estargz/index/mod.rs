//! The index of a lazy layer: its tree and the places of its content, in a form that is mapped and not parsed.
//!
//! [`build()`] makes the bytes from a table of contents, [`Index::open`] checks all of them once, and after that
//! every accessor answers in constant or logarithmic time without allocating. Accessors cannot panic, not even
//! when the file below the mapping is overwritten: then they answer nonsense, which digests expose.

mod build;
mod check;
mod content;
mod entry;
mod format;
mod node;
mod tree;

use std::ops::Range;

pub use build::build;
pub use check::{IndexError, check_version};
pub use entry::{Chunk, ChunkNo, Entry, EntryKind, EntryNo, IndexInput};
use format::{CHILD, CHUNK, DIGEST, ENTRY, Header, NONE, ORDER, XATTR, u32_at, u64_at};

use super::footer::Flavour;
use crate::image::Digest;

/// The opened index of one layer.
#[derive(Debug)]
pub struct Index<B> {
    bytes: B,
    header: Header,
    /// Beginnings of the sections.
    sections: Sections,
}

#[derive(Debug, Clone, Copy)]
struct Sections {
    entries: usize,
    children: usize,
    order: usize,
    chunks: usize,
    xattrs: usize,
    digests: usize,
    strings: usize,
}

/// The fields of a stored entry that say where more of it is.
#[derive(Debug, Clone, Copy)]
struct Record {
    kind: EntryKind,
    has_digest: bool,
    parent: u32,
    /// Children, chunks, target or device number, by kind.
    first: u32,
    second: u32,
    first_xattr: u32,
    xattrs: u32,
    digest: u32,
}

impl<B: AsRef<[u8]>> Index<B> {
    fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    fn record(&self, entry: EntryNo) -> Option<Record> {
        if entry.0 >= self.header.entries {
            return None;
        }
        let at = self.sections.entries + entry.0 as usize * ENTRY;
        let record = self.bytes().get(at..at + ENTRY)?;
        Some(Record {
            kind: EntryKind::from_code(*record.first()?)?,
            has_digest: record.get(1)? & 2 != 0,
            parent: u32_at(record, 32),
            first: u32_at(record, 36),
            second: u32_at(record, 40),
            first_xattr: u32_at(record, 44),
            xattrs: u32_at(record, 48),
            digest: u32_at(record, 52),
        })
    }

    fn kind(&self, entry: EntryNo) -> Option<EntryKind> {
        let at = self.sections.entries + entry.0 as usize * ENTRY;
        let known = entry.0 < self.header.entries;
        self.bytes().get(at).filter(|_| known).and_then(|code| EntryKind::from_code(*code))
    }

    /// First number and count of what a directory or file has, or place and length of a link target. Bounded
    /// again although it was checked: a mapping that changes must not make a caller loop for ages.
    fn range(&self, entry: EntryNo, kind: EntryKind) -> (u32, u32) {
        let all = match kind {
            EntryKind::Directory => self.header.children,
            EntryKind::Regular => self.header.chunks,
            _ => self.header.strings,
        };
        let record = self.record(entry).filter(|record| record.kind == kind);
        record.map_or((0, 0), |record| bounded(record.first, record.second, all))
    }

    fn string(&self, at: u32, len: u32) -> &[u8] {
        let start = self.sections.strings + at as usize;
        self.bytes().get(start..start + len as usize).unwrap_or_default()
    }

    fn child_record(&self, number: u32) -> (&[u8], EntryNo) {
        let at = self.sections.children + number as usize * CHILD;
        let bytes = self.bytes();
        (self.string(u32_at(bytes, at), u32_at(bytes, at + 4)), EntryNo(u32_at(bytes, at + 8)))
    }

    fn digest_at(&self, at: usize) -> Digest {
        let bytes = self.bytes().get(at..).and_then(<[u8]>::first_chunk);
        Digest::from_bytes(bytes.copied().unwrap_or_default())
    }

    /// Number of entries; each file counts once, whatever the number of its names.
    #[expect(clippy::len_without_is_empty, reason = "a layer has at least its root")]
    pub fn len(&self) -> u32 {
        self.header.entries
    }

    /// Attributes of `entry`; `None` beyond the last.
    pub fn entry(&self, entry: EntryNo) -> Option<Entry> {
        let record = self.record(entry)?;
        let at = self.sections.entries + entry.0 as usize * ENTRY;
        let bytes = self.bytes().get(at..at + ENTRY)?;
        let is_device = matches!(record.kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        Some(Entry {
            kind: record.kind,
            mode: u32::from(u16::from_le_bytes([*bytes.get(2)?, *bytes.get(3)?])),
            uid: u32_at(bytes, 4),
            gid: u32_at(bytes, 8),
            nlink: u32_at(bytes, 12),
            size: u64_at(bytes, 16),
            mtime: u64_at(bytes, 24).cast_signed(),
            rdev: if is_device { (record.first, record.second) } else { (0, 0) },
            opaque: bytes.get(1)? & 1 != 0,
        })
    }

    /// The directory that contains `entry`, of a file with several names the first; the root's is itself.
    pub fn parent(&self, entry: EntryNo) -> EntryNo {
        if entry.0 >= self.header.entries {
            return EntryNo::ROOT;
        }
        EntryNo(u32_at(self.bytes(), self.sections.entries + entry.0 as usize * ENTRY + 32))
    }

    /// Number of names in a directory; zero for anything else.
    pub fn child_count(&self, directory: EntryNo) -> u32 {
        self.range(directory, EntryKind::Directory).1
    }

    /// The `n`th name of a directory, in the order of bytes.
    pub fn child(&self, directory: EntryNo, n: u32) -> Option<(&[u8], EntryNo)> {
        let (first, count) = self.range(directory, EntryKind::Directory);
        (n < count).then(|| self.child_record(first + n))
    }

    /// The entry called `name` in a directory.
    pub fn lookup(&self, directory: EntryNo, name: &[u8]) -> Option<EntryNo> {
        let (first, count) = self.range(directory, EntryKind::Directory);
        let (mut low, mut high) = (first, first + count);
        while low < high {
            let middle = low + (high - low) / 2;
            let (found, entry) = self.child_record(middle);
            match found.cmp(name) {
                std::cmp::Ordering::Equal => return Some(entry),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The entry at a path below the root; symlinks are not followed.
    pub fn find(&self, path: &[u8]) -> Option<EntryNo> {
        path.split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .try_fold(EntryNo::ROOT, |directory, name| self.lookup(directory, name))
    }

    /// A path of `entry` below the root, for messages: it is searched for.
    pub fn path(&self, entry: EntryNo) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = entry;
        // A child's number is larger than its directory's; a damaged mapping must not make this endless.
        while at != EntryNo::ROOT && names.len() <= super::limit::DEPTH {
            let parent = self.parent(at);
            let children = (0..self.child_count(parent)).filter_map(|n| self.child(parent, n));
            names.push(
                children.into_iter().find(|(_, child)| *child == at).map_or(&[][..], |c| c.0),
            );
            at = parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Target of a symlink; empty for anything else.
    pub fn link_target(&self, entry: EntryNo) -> &[u8] {
        let (at, len) = self.range(entry, EntryKind::Symlink);
        self.string(at, len)
    }

    /// Names and values of the extended attributes of `entry`, in the order of names. Those that overlayfs
    /// would obey are not among them; whether a directory is opaque is said by [`Entry::opaque`].
    pub fn xattrs(&self, entry: EntryNo) -> impl Iterator<Item = (&[u8], &[u8])> {
        let record = self.record(entry);
        let (first, count) =
            record.map_or((0, 0), |r| bounded(r.first_xattr, r.xattrs, self.header.xattrs));
        (first..first + count).map(|number| {
            let (bytes, at) = (self.bytes(), self.sections.xattrs + number as usize * XATTR);
            let field = |n: usize| u32_at(bytes, at + 4 * n);
            (self.string(field(0), field(1)), self.string(field(2), field(3)))
        })
    }

    /// Value of the extended attribute `name`.
    pub fn xattr(&self, entry: EntryNo, name: &[u8]) -> Option<&[u8]> {
        self.xattrs(entry).find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// Whether any entry has an extended attribute, or is a directory that [`Entry::opaque`] tells to be opaque: what
    /// whoever shows the layer has to answer when attributes are asked for. Looks at a byte of every entry.
    pub fn has_xattrs(&self) -> bool {
        let end = self.sections.entries + self.header.entries as usize * ENTRY;
        let entries = self.bytes().get(self.sections.entries..end).unwrap_or_default();
        self.header.xattrs > 0 || entries.chunks_exact(ENTRY).any(|entry| entry[1] & 1 != 0)
    }

    /// Number of chunks of a file; zero when it is empty or no file.
    pub fn chunk_count(&self, entry: EntryNo) -> u32 {
        self.range(entry, EntryKind::Regular).1
    }

    /// The `n`th chunk of a file.
    pub fn chunk(&self, entry: EntryNo, n: u32) -> Option<Chunk> {
        let (first, count) = self.range(entry, EntryKind::Regular);
        if n >= count {
            return None;
        }
        let number = u32_at(self.bytes(), self.sections.order + (first + n) as usize * ORDER);
        self.chunk_record(ChunkNo(number))
    }

    /// Which chunk of a file holds the byte at `offset`.
    pub fn chunk_at(&self, entry: EntryNo, offset: u64) -> Option<u32> {
        let (mut low, mut high) = (0, self.chunk_count(entry));
        while low < high {
            let middle = low + (high - low) / 2;
            let chunk = self.chunk(entry, middle)?;
            if offset < chunk.file_offset {
                high = middle;
            } else if offset - chunk.file_offset < u64::from(chunk.size) {
                return Some(middle);
            } else {
                low = middle + 1;
            }
        }
        None
    }

    /// Digest of the whole content of a file, when the table of contents has one.
    pub fn file_digest(&self, entry: EntryNo) -> Option<Digest> {
        let record = self.record(entry).filter(|r| r.kind == EntryKind::Regular && r.has_digest)?;
        if record.digest == NONE {
            return self.chunk(entry, 0).map(|chunk| chunk.digest);
        }
        Some(self.digest_at(self.sections.digests + record.digest as usize * DIGEST))
    }

    fn chunk_record(&self, number: ChunkNo) -> Option<Chunk> {
        if number.0 >= self.header.chunks {
            return None;
        }
        let at = self.sections.chunks + number.0 as usize * CHUNK;
        let bytes = self.bytes().get(at..at + CHUNK)?;
        let start = u64_at(bytes, 0);
        Some(Chunk {
            number,
            file_offset: u64_at(bytes, 8),
            size: u32_at(bytes, 24),
            member: start..start.saturating_add(u64::from(u32_at(bytes, 16))),
            inner_offset: u32_at(bytes, 20),
            digest: self.digest_at(at + 36),
        })
    }

    /// Number of chunks in the layer.
    pub fn chunks(&self) -> u32 {
        self.header.chunks
    }

    /// The file of a chunk, and which of its chunks it is.
    pub fn chunk_by_number(&self, number: ChunkNo) -> Option<(EntryNo, u32)> {
        let at = self.sections.chunks + number.0 as usize * CHUNK;
        let bytes = self.bytes();
        (number.0 < self.header.chunks)
            .then(|| (EntryNo(u32_at(bytes, at + 28)), u32_at(bytes, at + 32)))
    }

    /// All chunks with the files they belong to, in the order in which they lie in the blob. Chunks of one
    /// member stand together, by place in it.
    pub fn chunks_in_blob_order(&self) -> impl Iterator<Item = (Chunk, EntryNo, u32)> {
        (0..self.header.chunks).filter_map(|number| {
            let (entry, n) = self.chunk_by_number(ChunkNo(number))?;
            Some((self.chunk_record(ChunkNo(number))?, entry, n))
        })
    }

    /// Numbers of the chunks that lie in the same member as `number`, itself included.
    pub fn member_chunks(&self, number: ChunkNo) -> Range<u32> {
        let start = |n: u32| self.chunk_record(ChunkNo(n)).map(|chunk| chunk.member.start);
        let Some(wanted) = start(number.0) else { return 0..0 };
        let before = (0..number.0).rev().take_while(|n| start(*n) == Some(wanted)).last();
        let after = (number.0..self.header.chunks).take_while(|n| start(*n) == Some(wanted)).last();
        before.unwrap_or(number.0)..after.unwrap_or(number.0) + 1
    }

    /// The part of the blob that its maker thought worth fetching first; `None`: nothing.
    pub fn prefetch_range(&self) -> Option<Range<u64>> {
        let end = self.header.prefetch_end;
        (end != u64::MAX).then_some(0..end)
    }

    /// Bytes of content: the sum of the sizes of all chunks.
    pub fn content_size(&self) -> u64 {
        self.header.content_size
    }

    /// Size of the blob in bytes.
    pub fn blob_size(&self) -> u64 {
        self.header.blob_size
    }

    /// Where the compressed content ends in the blob and the table of contents begins.
    pub fn toc_offset(&self) -> u64 {
        self.header.toc_offset
    }

    /// Compression of the members.
    pub fn flavour(&self) -> Flavour {
        if self.header.flavour == 0 { Flavour::Gzip } else { Flavour::Zstd }
    }
}

/// As much of `count` things from `first` on as there are among `all`.
fn bounded(first: u32, count: u32, all: u32) -> (u32, u32) {
    (first, count.min(all.saturating_sub(first)))
}

#[cfg(test)]
mod tests;
