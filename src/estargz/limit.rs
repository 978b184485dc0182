//! Upper bounds of what a layer may ask for. Larger layers are legal for other tools; we refuse to read
//! them lazily, and a full pull is still possible.

/// Compressed table of contents, in bytes: that of about a million files.
pub const TOC_COMPRESSED: u64 = 64 << 20;
/// JSON of the table of contents, in bytes.
pub const TOC_JSON: u64 = 1 << 30;
/// Entries of a table of contents, chunks and implied directories included.
pub const ENTRIES: u32 = 10_000_000;
/// Uncompressed size of one chunk; a chunk is held in memory as a whole.
pub const CHUNK_SIZE: u64 = 256 << 20;
/// Bytes to inflate before a chunk begins, when it shares its member with others.
pub const INNER_OFFSET: u64 = 1 << 30;
/// Length of a path, and of the target of a link, in bytes: the kernel's PATH_MAX.
pub const PATH: usize = 4096;
/// Length of one name in bytes: the kernel's NAME_MAX, beyond which nothing can look it up.
pub const NAME: usize = 255;
/// Directories above an entry.
pub const DEPTH: usize = 1024;
/// Value of one extended attribute in bytes: the kernel's XATTR_SIZE_MAX.
pub const XATTR_VALUE: usize = 65536;
/// Largest major and minor number that a device file can carry in Linux.
pub const DEVICE: (u32, u32) = ((1 << 12) - 1, (1 << 20) - 1);
