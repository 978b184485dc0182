//! What an index says of its entries and chunks.

use std::ops::Range;

use crate::estargz::footer::Flavour;
use crate::image::Digest;

/// What [`super::build()`] must know besides the table of contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexInput {
    /// Size of the layer's blob in bytes.
    pub blob_size: u64,
    /// Where the compressed content ends, [`crate::estargz::TocBytes::toc_offset`].
    pub toc_offset: u64,
    /// Compression of the members.
    pub flavour: Flavour,
}

/// Number of a file or directory in its layer; the low half of an inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryNo(pub u32);

impl EntryNo {
    /// The root directory of the layer.
    pub const ROOT: Self = Self(0);
}

/// Number of a chunk in its layer, by place in the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkNo(pub u32);

/// What an entry is. Hard links are no kind: all names of a file share one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// Has children.
    Directory,
    /// Has chunks.
    Regular,
    /// Has a target.
    Symlink,
    /// A character device; a whiteout when both device numbers are zero.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

impl EntryKind {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Directory => 0,
            Self::Regular => 1,
            Self::Symlink => 2,
            Self::CharDevice => 3,
            Self::BlockDevice => 4,
            Self::Fifo => 5,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        [
            Self::Directory,
            Self::Regular,
            Self::Symlink,
            Self::CharDevice,
            Self::BlockDevice,
            Self::Fifo,
        ]
        .get(usize::from(code))
        .copied()
    }
}

/// Attributes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Permissions, setuid, setgid and sticky bits: `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file, length of a symlink's target, else zero.
    pub size: u64,
    /// Whole seconds since the epoch.
    pub mtime: i64,
    /// Major and minor number of a device, else zero.
    pub rdev: (u32, u32),
    /// Names of a file; two and the number of sub-directories of a directory.
    pub nlink: u32,
    /// The directory hides what lower layers have at its path.
    pub opaque: bool,
}

/// A piece of a file that is compressed, fetched and verified as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its number in the layer.
    pub number: ChunkNo,
    /// Where it begins in the file.
    pub file_offset: u64,
    /// Its length when inflated.
    pub size: u32,
    /// Range of the blob that holds its member; a little more than the member at times, never the TOC.
    pub member: Range<u64>,
    /// Bytes of the inflated member before it.
    pub inner_offset: u32,
    /// Of the inflated bytes.
    pub digest: Digest,
}
