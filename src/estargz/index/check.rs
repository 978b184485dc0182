//! Opens an index: checks once all that the accessors then rely on.

use super::format::{self, CHECKSUM, HEADER, Header, MAGIC, NONE, OLDEST, u32_at, u64_at};
use super::{Chunk, ChunkNo, EntryKind, EntryNo, Index, Record, Sections};
use crate::estargz::limit;

/// Why an index file cannot be used; it is built again then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Another kind of file.
    #[error("not an index of a layer")]
    Magic,
    /// Written by a later version of this program.
    #[error("index has version `{0}`, only `1` is known")]
    Version(u32),
    /// Cut off, or extended.
    #[error("index of {found} bytes should have {expected}")]
    Length {
        /// By the header.
        expected: u64,
        /// Of the file.
        found: u64,
    },
    /// Its bytes have changed.
    #[error("index is damaged: its checksum is wrong")]
    Checksum,
    /// The checksum is right and the content is not: a fault of the program that wrote it.
    #[error("index is inconsistent: {0}")]
    Inconsistent(&'static str),
}

/// Whether `data` begins like an index that this build can open, without a look at the rest of it.
///
/// # Errors
/// When it is something else, or of another version.
pub fn check_version(data: &[u8]) -> Result<(), IndexError> {
    if !data.starts_with(&MAGIC) {
        return Err(IndexError::Magic);
    }
    if data.len() < HEADER + CHECKSUM {
        let expected = (HEADER + CHECKSUM) as u64;
        return Err(IndexError::Length { expected, found: data.len() as u64 });
    }
    match u32_at(data, 8) {
        readable if (OLDEST..=crate::version::versions().index).contains(&readable) => Ok(()),
        other => Err(IndexError::Version(other)),
    }
}

impl<B: AsRef<[u8]>> Index<B> {
    /// Opens an index that [`super::build()`] made. Every byte is read once.
    ///
    /// # Errors
    /// When the bytes are not exactly what was written.
    pub fn open(bytes: B) -> Result<Self, IndexError> {
        let data = bytes.as_ref();
        check_version(data)?;
        let found = data.len() as u64;
        let header = Header::read(data);
        let sections = header.sections();
        let [.., end] = sections;
        let expected = end + CHECKSUM as u64;
        if expected != found || header.length != found {
            return Err(IndexError::Length { expected: header.length, found });
        }
        let (body, stored) = data.split_at(data.len() - CHECKSUM);
        if format::checksum(body) != u64_at(stored, 0) {
            return Err(IndexError::Checksum);
        }
        let index = Self { sections: Sections::new(sections), header, bytes };
        index.check().map_err(IndexError::Inconsistent)?;
        Ok(index)
    }

    fn check(&self) -> Result<(), &'static str> {
        let header = &self.header;
        ensure(header.flavour <= 1, "unknown flavour")?;
        ensure(header.toc_offset <= header.blob_size, "content beyond the blob")?;
        let prefetch = header.prefetch_end;
        ensure(
            prefetch == u64::MAX || prefetch <= header.toc_offset,
            "prefetch beyond the content",
        )?;
        let root = self.record(EntryNo::ROOT).ok_or("no root")?;
        ensure(root.kind == EntryKind::Directory && root.parent == 0, "root is no directory")?;
        for number in 0..header.entries {
            let entry = EntryNo(number);
            self.check_entry(entry, &self.record(entry).ok_or("unknown kind of entry")?)?;
        }
        let mut content = 0u64;
        let mut last = None;
        for number in 0..header.chunks {
            let chunk = self.check_chunk(ChunkNo(number))?;
            let place = Some((chunk.member.start, chunk.inner_offset));
            ensure(last < place, "order of chunks")?;
            last = place;
            content += u64::from(chunk.size);
        }
        ensure(content == header.content_size, "sum of chunks")
    }

    fn check_entry(&self, entry: EntryNo, record: &Record) -> Result<(), &'static str> {
        let header = &self.header;
        let parent = self.kind(EntryNo(record.parent)).ok_or("parent out of range")?;
        let below = entry == EntryNo::ROOT || record.parent < entry.0;
        ensure(below && parent == EntryKind::Directory, "parent is no directory before it")?;
        match record.kind {
            EntryKind::Directory => {
                within(record.first, record.second, header.children, "children")?;
                self.check_children(entry, record)?;
            }
            EntryKind::Regular => {
                within(record.first, record.second, header.chunks, "chunks of a file")?;
                self.check_file(entry, record)?;
            }
            EntryKind::Symlink => {
                within(record.first, record.second, header.strings, "link target")?
            }
            EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo => {}
        }
        within(record.first_xattr, record.xattrs, header.xattrs, "attributes")?;
        for number in record.first_xattr..record.first_xattr + record.xattrs {
            let at = self.sections.xattrs + number as usize * format::XATTR;
            let field = |n: usize| u32_at(self.bytes(), at + 4 * n);
            within(field(0), field(1), header.strings, "name of an attribute")?;
            within(field(2), field(3), header.strings, "value of an attribute")?;
        }
        ensure(record.digest == NONE || record.digest < header.digests, "digest of a file")
    }

    fn check_children(&self, directory: EntryNo, record: &Record) -> Result<(), &'static str> {
        let mut last: &[u8] = b"";
        for number in record.first..record.first + record.second {
            let at = self.sections.children + number as usize * format::CHILD;
            let field = |n: usize| u32_at(self.bytes(), at + 4 * n);
            within(field(0), field(1), self.header.strings, "name")?;
            let (name, child) = self.child_record(number);
            // The first name follows the empty one, so an empty name is refused here too.
            ensure(name > last, "order of names")?;
            let usable = name.len() <= limit::NAME && !matches!(name, b"." | b"..");
            ensure(usable && !name.iter().any(|b| matches!(b, b'/' | 0)), "impossible name")?;
            let kind = self.kind(child).ok_or("child out of range")?;
            let in_place = kind != EntryKind::Directory || self.parent(child) == directory;
            ensure(in_place, "directory in two places")?;
            last = name;
        }
        Ok(())
    }

    fn check_file(&self, entry: EntryNo, record: &Record) -> Result<(), &'static str> {
        let mut covered = 0;
        // Only the fields that matter here; each chunk is checked as a whole in its own turn.
        let bytes = self.bytes();
        for n in 0..record.second {
            let slot = self.sections.order + (record.first + n) as usize * format::ORDER;
            let number = u32_at(bytes, slot);
            ensure(number < self.header.chunks, "chunk out of range")?;
            let at = self.sections.chunks + number as usize * format::CHUNK;
            let owner = (u32_at(bytes, at + 28), u32_at(bytes, at + 32));
            ensure(owner == (entry.0, n), "owner of a chunk")?;
            let (file_offset, size) = (u64_at(bytes, at + 8), u32_at(bytes, at + 24));
            ensure(size > 0 && file_offset == covered, "chunks with gaps")?;
            covered += u64::from(size);
        }
        let size = u64_at(bytes, self.sections.entries + entry.0 as usize * format::ENTRY + 16);
        ensure(covered == size, "chunks do not make up the file")
    }

    fn check_chunk(&self, number: ChunkNo) -> Result<Chunk, &'static str> {
        let chunk = self.chunk_record(number).ok_or("chunk out of range")?;
        let (entry, n) = self.chunk_by_number(number).ok_or("chunk out of range")?;
        let owner = self.record(entry).ok_or("owner of a chunk")?;
        let owned = owner.kind == EntryKind::Regular && n < owner.second;
        let slot = self.sections.order + (owner.first as usize + n as usize) * format::ORDER;
        ensure(owned && u32_at(self.bytes(), slot) == number.0, "owner of a chunk")?;
        let member = &chunk.member;
        ensure(
            member.start < member.end && member.end <= self.header.toc_offset,
            "member beyond the content",
        )?;
        let small = u64::from(chunk.size) <= limit::CHUNK_SIZE
            && u64::from(chunk.inner_offset) <= limit::INNER_OFFSET;
        ensure(small, "size of a chunk")?;
        Ok(chunk)
    }
}

impl Sections {
    fn new(starts: [u64; 8]) -> Self {
        // The caller has compared the last of them with the length of the bytes.
        let [entries, children, order, chunks, xattrs, digests, strings, _] =
            starts.map(|start| usize::try_from(start).unwrap_or(usize::MAX / 2));
        Self { entries, children, order, chunks, xattrs, digests, strings }
    }
}

fn ensure(holds: bool, what: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(what) }
}

/// Whether `count` things from `first` on are among `all`.
fn within(first: u32, count: u32, all: u32, what: &'static str) -> Result<(), &'static str> {
    ensure(first.checked_add(count).is_some_and(|end| end <= all), what)
}
