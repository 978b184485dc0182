//! A sparse file and a map of the pieces that are in it: a file of several chunks that is not complete, or a segment,
//! which is many small files.
//!
//! The map's bit of a chunk is set after its bytes were written, so a process that dies loses at most the bit. After
//! a boot nobody knows which of the two reached the disk; then all bits become *suspect*, and a suspect chunk is
//! compared with its digest before its first use.
//!
//! Map, little endian: magic (8 bytes), number of chunks (4), flags (4), size of the file (8), nonce of the boot
//! (8), inode of the data (8; 0: of an earlier version, which did not say), 24 bytes reserved, the bits of present
//! chunks, the bits of suspect chunks.
//!
//! Two processes may share the files (see `epoch`), and one of them evicts: names come and go between any two steps of
//! the other, which then has the data of one generation and the map of the next. So a map says which data it
//! vouches for, and no map is ever made to vouch for other data: one that does not fit is replaced by a new file. What
//! is written by whoever still has a file without a name is lost, and harms nobody.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fs::{AtFlags, Mode, OFlags};

use rustix::io::Errno;

use super::Piece;
use crate::image::Digest;

const MAGIC: &[u8; 8] = b"SVPART1\n";
const HEADER: usize = 64;
const FLAGS_AT: usize = 12;
const NONCE_AT: usize = 24;
const INODE_AT: usize = 32;
/// The content is complete and its digest is not the file's: never published, never hashed again.
const FLAG_PRIVATE: u32 = 1;

/// An incomplete, or complete and unpublished, file.
#[derive(Debug)]
pub(in crate::lazy) struct Partial {
    pub(super) id: Digest,
    data: File,
    readable: Arc<File>,
    map: File,
    bits: Mutex<Bits>,
    is_private: AtomicBool,
    is_finishing: AtomicBool,
}

#[derive(Debug)]
struct Bits {
    present: Vec<u8>,
    suspect: Vec<u8>,
    missing: u32,
}

/// What a sparse file is for: a file of several chunks, or many small files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::lazy) struct Shape {
    /// Digest over the list of its pieces.
    pub(in crate::lazy) id: Digest,
    pub(in crate::lazy) size: u64,
    pub(in crate::lazy) chunks: u32,
}

/// Names of the two files below the root of the cache.
pub(super) fn names(id: &Digest) -> (String, String) {
    let hex = id.hex();
    (format!("partial/{hex}"), format!("partial/{hex}.map"))
}

impl Partial {
    /// Opens the file of `shape` below `root`, in the boot marked by `nonce`; with `Missing::Create` a missing or
    /// unusable one is made anew, otherwise it is `None`.
    pub(super) fn open(
        root: BorrowedFd<'_>,
        shape: &Shape,
        nonce: u64,
        missing: Missing,
    ) -> io::Result<Option<Self>> {
        let (data_name, map_name) = names(&shape.id);
        let mode = Mode::from_raw_mode(0o600);
        let base = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let create = match missing {
            Missing::Create => OFlags::CREATE,
            Missing::Leave => OFlags::empty(),
        };
        let open = |name: &str, flags| match rustix::fs::openat(root, name, flags, mode) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        };
        let Some(data) = open(&data_name, base | create)? else { return Ok(None) };
        // Asked before the map is opened: who makes data long has put its map in place before.
        let found = data.metadata()?;
        // Data that is new, or was cut, has none of what a map says.
        let is_sized = found.len() == shape.size;
        let map = open(&map_name, base)?.filter(|_| is_sized);
        let known =
            map.map(|map| Ok::<_, io::Error>((load(&map, shape, nonce, found.ino())?, map)));
        let (bits, map) = match known.transpose()? {
            Some((Some(bits), map)) => (bits, map),
            _ if missing == Missing::Leave => return Ok(None),
            _ => {
                let anew = base | OFlags::CREATE | OFlags::EXCL;
                let map = loop {
                    match rustix::fs::unlinkat(root, &*map_name, AtFlags::empty()) {
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(error) => return Err(error.into()),
                    }
                    match rustix::fs::openat(root, &*map_name, anew, mode) {
                        Ok(map) => break File::from(map),
                        // Another process does the same.
                        Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                };
                (initialize(&map, shape, nonce, found.ino())?, map)
            }
        };
        if !is_sized {
            data.set_len(shape.size)?;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let readable = rustix::fs::openat(root, &*data_name, flags, Mode::empty())?;
        let mut word = [0; 4];
        map.read_exact_at(&mut word, FLAGS_AT as u64)?;
        Ok(Some(Self {
            id: shape.id,
            data,
            readable: Arc::new(readable.into()),
            map,
            bits: Mutex::new(bits),
            is_private: AtomicBool::new(u32::from_le_bytes(word) & FLAG_PRIVATE != 0),
            is_finishing: AtomicBool::new(false),
        }))
    }

    /// The content of `piece`, if it is here; a suspect one is verified first.
    pub(super) fn read_piece(&self, piece: &Piece) -> io::Result<Option<Bytes>> {
        let is_suspect = {
            let bits = self.lock();
            match (bits.is(&bits.present, piece.n), bits.is(&bits.suspect, piece.n)) {
                (true, _) => false,
                (false, true) => true,
                (false, false) => return Ok(None),
            }
        };
        let bytes = self.read(piece.offset, piece.size)?;
        if is_suspect {
            if Digest::of(&bytes) != piece.digest {
                self.forget(piece.n)?;
                return Ok(None);
            }
            self.mark(piece.n)?;
        }
        Ok(Some(bytes))
    }

    /// Whether `n` is here and needs no verification.
    pub(super) fn has(&self, n: u32) -> bool {
        let bits = self.lock();
        bits.is(&bits.present, n)
    }

    /// Whether `n` is here, as far as the map knows.
    pub(super) fn may_have(&self, n: u32) -> bool {
        let bits = self.lock();
        bits.is(&bits.present, n) || bits.is(&bits.suspect, n)
    }

    /// `len` bytes at `offset`, which must lie in chunks that [`Partial::has`].
    pub(in crate::lazy) fn read(&self, offset: u64, len: u64) -> io::Result<Bytes> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut bytes = vec![0; len];
        self.readable.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.into())
    }

    /// Keeps the verified content of `piece`. False if it was there.
    pub(super) fn write_piece(&self, piece: &Piece, bytes: &[u8]) -> io::Result<bool> {
        if self.has(piece.n) {
            return Ok(false);
        }
        self.data.write_all_at(bytes, piece.offset)?;
        self.mark(piece.n)?;
        Ok(true)
    }

    /// Whether it still has a name: another process may have evicted it.
    pub(super) fn is_linked(&self) -> bool {
        is_linked(&self.data)
    }

    /// Whether every chunk is here and verified.
    pub(in crate::lazy) fn is_complete(&self) -> bool {
        self.lock().missing == 0
    }

    /// The content for reading only, to be handed out once it is complete.
    pub(in crate::lazy) fn readable(&self) -> Arc<File> {
        Arc::clone(&self.readable)
    }

    /// The same content, to be stamped.
    pub(super) fn data(&self) -> &File {
        &self.data
    }

    /// True for the one caller that is to hash and publish the complete content.
    pub(super) fn begin_finishing(&self) -> bool {
        self.is_complete()
            && !self.is_private.load(Ordering::Acquire)
            && !self.is_finishing.swap(true, Ordering::AcqRel)
    }

    /// Publishing failed for a reason that may pass.
    pub(super) fn retry_finishing(&self) {
        self.is_finishing.store(false, Ordering::Release);
    }

    /// The content is complete and not what the file's digest says.
    pub(super) fn keep_private(&self) -> io::Result<()> {
        self.is_private.store(true, Ordering::Release);
        self.map.write_all_at(&FLAG_PRIVATE.to_le_bytes(), FLAGS_AT as u64)
    }

    fn mark(&self, n: u32) -> io::Result<()> {
        let mut bits = self.lock();
        let (at, bit) = (n as usize / 8, 1_u8 << (n % 8));
        let Some(byte) = bits.present.get_mut(at) else { return Ok(()) };
        if *byte & bit != 0 {
            return Ok(());
        }
        *byte |= bit;
        let byte = *byte;
        bits.missing -= 1;
        self.map.write_all_at(&[byte], (HEADER + at) as u64)
    }

    fn forget(&self, n: u32) -> io::Result<()> {
        let mut bits = self.lock();
        let at = n as usize / 8;
        let width = bits.present.len();
        let Some(byte) = bits.suspect.get_mut(at) else { return Ok(()) };
        *byte &= !(1_u8 << (n % 8));
        let byte = *byte;
        self.map.write_all_at(&[byte], (HEADER + width + at) as u64)
    }

    fn lock(&self) -> MutexGuard<'_, Bits> {
        self.bits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bits {
    #[expect(clippy::unused_self, reason = "reads as a question to the map that is locked")]
    fn is(&self, bits: &[u8], n: u32) -> bool {
        bits.get(n as usize / 8).is_some_and(|byte| byte & (1 << (n % 8)) != 0)
    }
}

/// What to do about a file that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Create,
    Leave,
}

fn width(chunks: u32) -> usize {
    (chunks as usize).div_ceil(8)
}

/// Whether an open file has a name.
pub(super) fn is_linked(file: &File) -> bool {
    // One that cannot be asked is not held on to.
    rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink > 0)
}

/// The bits of an existing map, or `None` when it is not one of this file, whose inode is `inode`.
fn load(map: &File, shape: &Shape, nonce: u64, inode: u64) -> io::Result<Option<Bits>> {
    let width = width(shape.chunks);
    let mut bytes = vec![0; HEADER + 2 * width];
    if map.metadata()?.len() != bytes.len() as u64 {
        return Ok(None);
    }
    map.read_exact_at(&mut bytes, 0)?;
    if bytes[..FLAGS_AT] != header(shape, nonce, inode)[..FLAGS_AT]
        || bytes[FLAGS_AT + 4..NONCE_AT] != shape.size.to_le_bytes()
    {
        return Ok(None);
    }
    if bytes[INODE_AT..INODE_AT + 8] == [0; 8] {
        map.write_all_at(&inode.to_le_bytes(), INODE_AT as u64)?;
    } else if bytes[INODE_AT..INODE_AT + 8] != inode.to_le_bytes() {
        return Ok(None);
    }
    if bytes[NONCE_AT..NONCE_AT + 8] != nonce.to_le_bytes() {
        // The suspect bits are written before the present ones go, and the nonce last: a death in between is
        // followed by the same steps again.
        for at in HEADER..HEADER + width {
            bytes[at + width] |= bytes[at];
            bytes[at] = 0;
        }
        map.write_all_at(&bytes[HEADER + width..], (HEADER + width) as u64)?;
        map.write_all_at(&bytes[HEADER..HEADER + width], HEADER as u64)?;
        // What the flag says was found before the boot, about bytes that may have changed.
        map.write_all_at(&[0; 4], FLAGS_AT as u64)?;
        map.write_all_at(&nonce.to_le_bytes(), NONCE_AT as u64)?;
    }
    let suspect = bytes.split_off(HEADER + width);
    let mut present = bytes.split_off(HEADER);
    // Bits beyond the last chunk would be counted.
    if let (Some(last), used @ 1..) = (present.last_mut(), shape.chunks % 8) {
        *last &= (1 << used) - 1;
    }
    let set: u32 = present.iter().map(|byte| byte.count_ones()).sum();
    Ok(Some(Bits { present, suspect, missing: shape.chunks - set }))
}

/// Makes the map of an empty file. All of it is written, so that setting a bit needs no space on the disk.
fn initialize(map: &File, shape: &Shape, nonce: u64, inode: u64) -> io::Result<Bits> {
    let width = width(shape.chunks);
    let mut bytes = header(shape, nonce, inode).to_vec();
    bytes.resize(HEADER + 2 * width, 0);
    map.write_all_at(&bytes, 0)?;
    Ok(Bits { present: vec![0; width], suspect: vec![0; width], missing: shape.chunks })
}

fn header(shape: &Shape, nonce: u64, inode: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&shape.chunks.to_le_bytes());
    header[16..24].copy_from_slice(&shape.size.to_le_bytes());
    header[NONCE_AT..INODE_AT].copy_from_slice(&nonce.to_le_bytes());
    header[INODE_AT..INODE_AT + 8].copy_from_slice(&inode.to_le_bytes());
    header
}
