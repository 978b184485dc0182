//! A full layer: from a verified stream to a directory.
//!
//! One pass: the blob is measured, hashed, inflated, hashed again and written while it arrives. Size, digest and
//! diffID are known only at its end, so the directory is worth nothing unless [`unpack_layer`] succeeded; the
//! caller publishes or drops it (`store::Staging`). What stands in the directory then equals what a lazy mount of
//! the same layer shows, and is ready to be a lower directory of overlayfs.
//!
//! What comes out of the network is parsed here, so control does not call [`unpack_layer`] itself: [`run_child`]
//! starts a short-lived role that is confined to the staging directory and calls it there ([`child_main`]).

mod archive;
mod attributes;
mod child;
mod confine;
mod files;
mod finish;
mod header;
mod measured;
mod member;
mod path;
mod pax;
mod pieces;
mod sparse;
mod stream;
mod tree;
mod xattr;

use std::io::Read;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;

use serde::{Deserialize, Serialize};

pub use archive::ArchiveError;
pub use child::{ChildError, DigestCheck, Finished, UnpackChild, blob_pipe, child_main, run_child};
pub use measured::StreamError;
pub use path::PathError;
pub use pax::PaxError;
pub use sparse::SparseError;

pub use tree::TreeError;
pub use xattr::DeferredXattr;

use crate::estargz::footer::Footer;
use crate::image::{Compression, Digest};
use archive::{Archive, Entry, Kind};
use measured::Expected;
use path::{Meaning, show};
use tree::Tree;
use xattr::{Denied, Xattrs};

/// The table of contents of an eStargz layer, its last entry.
const TOC_NAME: &[u8] = b"stargz.index.json";

/// Entries that only mark where prefetching ends.
const LANDMARKS: [&[u8]; 2] = [b".prefetch.landmark", b".no.prefetch.landmark"];

/// A layer has no more entries than this; the same limit as for lazy layers.
const MAX_ENTRIES: u64 = 10_000_000;

/// What the manifest and the configuration say of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackInput {
    /// As the media type says; the content decides.
    pub compression: Compression,
    /// Of the blob.
    pub digest: Digest,
    /// Of the blob, in bytes.
    pub size: u64,
    /// Digest of the inflated layer, where the configuration names it.
    pub diff_id: Option<Digest>,
}

/// A layer that was unpacked and verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
    /// Digest of the inflated layer.
    pub diff_id: Digest,
    /// Whether the layer was made for lazy mounting; its marks were left out of the tree.
    pub estargz: bool,
    /// Extended attributes that this file system cannot keep, and that were left out.
    pub unsupported_xattrs: u64,
}

/// A layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The blob is not the one that was asked for, or could not be read.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The inflated layer is not the one that the configuration names.
    #[error("the inflated layer's digest is `{found}` instead of `{expected}`")]
    DiffId {
        /// As the configuration says.
        expected: Digest,
        /// Of what came out.
        found: Digest,
    },
    /// The right blob, but not a tar of a layer.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An entry has an impossible name.
    #[error("entry `{name}` cannot be unpacked")]
    Name {
        /// The entry.
        name: String,
        /// Why.
        #[source]
        source: PathError,
    },
    /// An entry cannot be part of the tree, or the file system refused.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// More entries than any real layer has.
    #[error("the layer has more than {MAX_ENTRIES} entries")]
    TooManyEntries,
}

/// What a caller does about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The source failed; its own error says whether another try helps.
    Source,
    /// Other bytes than the manifest names: another try, or another host, may bring the right ones.
    Corrupt,
    /// The right bytes, but no layer that can be unpacked: no try will help.
    Malformed,
    /// The disk is full; another try helps when there is space.
    DiskFull,
    /// The file system or the system refused.
    Host,
}

impl UnpackError {
    /// What a caller does about it.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Stream(StreamError::Read(_)) => FailureKind::Source,
            Self::Stream(StreamError::Size { .. } | StreamError::Digest { .. }) => {
                FailureKind::Corrupt
            }
            Self::Tree(TreeError::Io { source, .. }) => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    FailureKind::DiskFull
                }
                // Names and links longer than this file system takes.
                std::io::ErrorKind::InvalidFilename | std::io::ErrorKind::InvalidInput => {
                    FailureKind::Malformed
                }
                _ => FailureKind::Host,
            },
            Self::Stream(StreamError::Decompress { .. })
            | Self::DiffId { .. }
            | Self::Archive(_)
            | Self::Name { .. }
            | Self::Tree(_)
            | Self::TooManyEntries => FailureKind::Malformed,
        }
    }
}

/// Unpacks the layer that `blob` delivers into the empty directory `into`, and verifies it.
///
/// # Errors
/// See [`UnpackError::kind`]. The directory holds part of the layer then and must not be used.
pub fn unpack_layer(
    blob: impl Read + Send,
    input: &UnpackInput,
    into: BorrowedFd<'_>,
) -> Result<Unpacked, UnpackError> {
    unpack(blob, input, Some(input.digest), into, Denied::Fail).map(|(unpacked, _)| unpacked)
}

/// As [`unpack_layer`], with the digest to compare the blob with, if it is to be; with [`Denied::Defer`], returns the attributes that a more privileged process must set.
fn unpack(
    blob: impl Read + Send,
    input: &UnpackInput,
    digest: Option<Digest>,
    into: BorrowedFd<'_>,
    denied: Denied,
) -> Result<(Unpacked, Vec<DeferredXattr>), UnpackError> {
    let expected = Expected { compression: input.compression, digest, size: input.size };
    let steps = stream::Steps::default();
    let (streamed, written) = std::thread::scope(|scope| {
        let (running, inflated) = steps.start(scope, blob, expected);
        let mut archive = Archive::new(inflated);
        let written = write_tree(&mut archive, into, denied);
        match &written {
            Ok(_) => archive.into_inner().finish(),
            Err(error) => {
                if let UnpackError::Tree(TreeError::Io { .. }) = error {
                    // The file system's refusal has nothing to do with the blob, whose rest may be long in coming.
                    steps.abandon();
                }
                drop(archive);
            }
        }
        (running.finish(), written)
    });
    // The blob's own fault is the cause of what the other side saw.
    let (tail, diff_id) = streamed?;
    let written = written?;
    if let Some(expected) = input.diff_id.filter(|expected| *expected != diff_id) {
        return Err(UnpackError::DiffId { expected, found: diff_id });
    }
    let mut tree = written.tree;
    let estargz = written.toc_is_last || is_lazy_footer(&tail, input.size);
    if estargz {
        for name in LANDMARKS.into_iter().chain([TOC_NAME]) {
            tree.remove_root_file(name)?;
        }
    }
    let xattrs = tree.finish()?;
    let unpacked = Unpacked {
        entries: written.entries,
        bytes: written.bytes,
        diff_id,
        estargz,
        unsupported_xattrs: xattrs.unsupported,
    };
    Ok((unpacked, xattrs.deferred))
}

struct Written<'a> {
    tree: Tree<'a>,
    entries: u64,
    bytes: u64,
    toc_is_last: bool,
}

/// Writes all entries.
fn write_tree<'a>(
    archive: &mut Archive<stream::Inflated<'_>>,
    into: BorrowedFd<'a>,
    denied: Denied,
) -> Result<Written<'a>, UnpackError> {
    let mut tree = Tree::new(into, Xattrs::new(denied))?;
    let (mut entries, mut bytes) = (0, 0);
    let mut toc_is_last = false;
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(UnpackError::TooManyEntries);
        }
        let path = clean(&entry.name)?;
        toc_is_last = entry.kind == Kind::File && path == TOC_NAME;
        bytes += add_entry(&mut tree, archive, path, entry)?;
    }
    Ok(Written { tree, entries, bytes, toc_is_last })
}

/// Adds one entry to the tree; returns the bytes of content that it has.
fn add_entry(
    tree: &mut Tree<'_>,
    archive: &mut Archive<stream::Inflated<'_>>,
    path: Vec<u8>,
    mut entry: Entry,
) -> Result<u64, UnpackError> {
    entry.xattrs.retain(|(name, _)| !xattr::is_neutralized(name));
    let path = match path::meaning(path) {
        Meaning::Entry(path) => path,
        Meaning::Whiteout(hidden) => {
            tree.whiteout(&hidden)?;
            return Ok(0);
        }
        Meaning::Opaque(directory) => {
            tree.opaque(&directory)?;
            return Ok(0);
        }
        Meaning::Hidden => return Ok(0),
    };
    match entry.kind {
        Kind::File => return write_file(tree, archive, &path, &mut entry),
        Kind::Directory => tree.directory(&path, &mut entry)?,
        Kind::HardLink => {
            let target = clean(&entry.link)?;
            tree.hard_link(&path, &target)?;
        }
        Kind::Symlink if entry.link.is_empty() => {
            return Err(UnpackError::Name { name: show(&path), source: PathError::NoTarget });
        }
        Kind::Symlink | Kind::Character | Kind::Block | Kind::Fifo => {
            tree.special(&path, &mut entry)?;
        }
    }
    Ok(0)
}

fn write_file(
    tree: &mut Tree<'_>,
    archive: &mut Archive<stream::Inflated<'_>>,
    path: &[u8],
    entry: &mut Entry,
) -> Result<u64, UnpackError> {
    if entry.fragments.is_none() && entry.size <= files::SMALL_BYTES {
        let size = usize::try_from(entry.size).expect("a small file fits into memory");
        let read = |content: &mut Vec<u8>| read_all(archive, size, content);
        tree.small_file(path, size, entry, read)?;
        return Ok(size as u64);
    }
    let file = tree.create_file(path)?;
    let failed = |source| TreeError::Io { action: "write", name: show(path), source };
    let whole = [sparse::Fragment { offset: 0, length: entry.size }];
    let fragments = entry.fragments.take();
    for fragment in fragments.as_deref().unwrap_or(&whole) {
        let mut offset = fragment.offset;
        let end = fragment.offset + fragment.length;
        while offset < end {
            let piece = archive.data()?;
            let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
            let length = piece.len().min(left);
            if length == 0 {
                return Err(ArchiveError::Truncated.into());
            }
            file.write_all_at(&piece[..length], offset).map_err(failed)?;
            archive.consume(length);
            offset += length as u64;
        }
    }
    if fragments.is_some() {
        // The last hole.
        file.set_len(entry.size).map_err(failed)?;
    }
    tree.finish_file(path, &file, entry)?;
    Ok(entry.size)
}

/// Puts the data of the entry, of `size` bytes, behind what is in `content`.
fn read_all(
    archive: &mut Archive<stream::Inflated<'_>>,
    size: usize,
    content: &mut Vec<u8>,
) -> Result<(), UnpackError> {
    let end = content.len() + size;
    while content.len() < end {
        let piece = archive.data()?;
        let length = piece.len().min(end - content.len());
        if length == 0 {
            return Err(ArchiveError::Truncated.into());
        }
        content.extend_from_slice(&piece[..length]);
        archive.consume(length);
    }
    Ok(())
}

fn clean(name: &[u8]) -> Result<Vec<u8>, UnpackError> {
    path::clean(name).map_err(|source| UnpackError::Name { name: show(name), source })
}

/// Whether the blob ends as lazy formats do; not all of them have their table of contents in the tar.
fn is_lazy_footer(tail: &[u8], size: u64) -> bool {
    matches!(Footer::parse(tail, size), Ok(Some(_)))
}
