//! The map of a sparse file: which of its pieces are here, and of which of these that is to be believed.
//!
//! The bit of a chunk is set after its bytes were written, so a process that dies loses at most the bit. After
//! a boot nobody knows which of the two reached the disk, nor does a map tell of data that it was copied along with
//! (a backup, another disk) what of it came before the copy and what after it. Then all bits become *suspect*, and a
//! suspect chunk is compared with its digest before its first use.
//!
//! Little endian: magic (8 bytes), number of chunks (4), flags (4), size of the file (8), nonce of the boot (8), inode of
//! the data (8; 0: of an earlier version, which did not say), its device in that boot (8; 0: the same), 16 bytes reserved,
//! the bits of present chunks, the bits of suspect chunks.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{AtFlags, Mode, OFlags};

use super::partial::Shape;

const MAGIC: &[u8; 8] = b"SVPART1\n";
const HEADER: usize = 64;
const FLAGS_AT: usize = 12;
const SIZE_AT: usize = 16;
const NONCE_AT: usize = 24;
const INODE_AT: usize = 32;
const DEVICE_AT: usize = 40;
const RESERVED_AT: usize = 48;
/// The content is complete and its digest is not the file's: never published, never hashed again.
const FLAG_PRIVATE: u32 = 1;

/// What is known of the chunks.
#[derive(Debug)]
pub(super) struct Bits {
    present: Vec<u8>,
    suspect: Vec<u8>,
    missing: u32,
}

/// The file, of which nobody makes anything else while it is open.
#[derive(Debug)]
pub(super) struct Map(File);

/// What a map has to be of: which boot it is, and which data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vouching<'a> {
    pub(super) shape: &'a Shape,
    pub(super) nonce: u64,
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// What was found.
#[derive(Debug)]
pub(super) enum Loaded {
    Fits(Map, Bits),
    /// The map of other data, and what it believes to be here: the data may be a copy of that one.
    OfOther(Vec<u8>),
    /// It is of something else, or damaged.
    Useless,
}

impl Bits {
    fn new(present: Vec<u8>, suspect: Vec<u8>, chunks: u32) -> Self {
        let set: u32 = present.iter().map(|byte| byte.count_ones()).sum();
        Self { present, suspect, missing: chunks.saturating_sub(set) }
    }

    pub(super) fn is_present(&self, n: u32) -> bool {
        is_set(&self.present, n)
    }

    pub(super) fn is_suspect(&self, n: u32) -> bool {
        is_set(&self.suspect, n)
    }

    /// Whether all chunks are present.
    pub(super) fn is_full(&self) -> bool {
        self.missing == 0
    }
}

fn is_set(bits: &[u8], n: u32) -> bool {
    bits.get(n as usize / 8).is_some_and(|byte| byte & (1 << (n % 8)) != 0)
}

impl Map {
    /// Chunk `n` is here and was verified.
    pub(super) fn mark(&self, bits: &mut Bits, n: u32) -> io::Result<()> {
        let (at, bit) = (n as usize / 8, 1_u8 << (n % 8));
        let Some(byte) = bits.present.get_mut(at) else { return Ok(()) };
        if *byte & bit != 0 {
            return Ok(());
        }
        *byte |= bit;
        let byte = *byte;
        bits.missing -= 1;
        self.0.write_all_at(&[byte], (HEADER + at) as u64)
    }

    /// Chunk `n`, which was suspect, is something else.
    pub(super) fn forget(&self, bits: &mut Bits, n: u32) -> io::Result<()> {
        let at = n as usize / 8;
        let width = bits.present.len();
        let Some(byte) = bits.suspect.get_mut(at) else { return Ok(()) };
        *byte &= !(1_u8 << (n % 8));
        let byte = *byte;
        self.0.write_all_at(&[byte], (HEADER + width + at) as u64)
    }

    /// The content is complete and not what the file's digest says.
    pub(super) fn keep_private(&self) -> io::Result<()> {
        self.0.write_all_at(&FLAG_PRIVATE.to_le_bytes(), FLAGS_AT as u64)
    }

    /// Whether [`Map::keep_private`] was said in this boot, of this data.
    pub(super) fn is_private(&self) -> io::Result<bool> {
        let mut word = [0; 4];
        self.0.read_exact_at(&mut word, FLAGS_AT as u64)?;
        Ok(u32::from_le_bytes(word) & FLAG_PRIVATE != 0)
    }
}

impl Vouching<'_> {
    /// What `map` says.
    pub(super) fn load(&self, map: File) -> io::Result<Loaded> {
        let width = self.width();
        let mut bytes = vec![0; HEADER + 2 * width];
        if map.metadata()?.len() != bytes.len() as u64 {
            return Ok(Loaded::Useless);
        }
        map.read_exact_at(&mut bytes, 0)?;
        let header = self.header();
        let differs = |from: usize, to: usize| bytes[from..to] != header[from..to];
        let is_unsaid = |from: usize, to: usize| bytes[from..to].iter().all(|byte| *byte == 0);
        if differs(0, FLAGS_AT) || differs(SIZE_AT, NONCE_AT) {
            return Ok(Loaded::Useless);
        }
        let is_of_other = (differs(INODE_AT, DEVICE_AT) && !is_unsaid(INODE_AT, DEVICE_AT))
            || (differs(DEVICE_AT, RESERVED_AT) && !is_unsaid(DEVICE_AT, RESERVED_AT));
        let claims = |bytes: &[u8]| {
            let (present, suspect) = bytes[HEADER..].split_at(width);
            present.iter().zip(suspect).map(|(one, other)| one | other).collect::<Vec<u8>>()
        };
        if differs(NONCE_AT, INODE_AT) {
            // Nobody has opened it in this boot, so nobody writes to it who has other data. The suspect bits are
            // written before the present ones go, and the nonce last: a death in between is followed by the same steps
            // again.
            let suspect = claims(&bytes);
            map.write_all_at(&suspect, (HEADER + width) as u64)?;
            map.write_all_at(&vec![0; width], HEADER as u64)?;
            // What the flag says was found before the boot, about bytes that may have changed.
            map.write_all_at(&[0; 4], FLAGS_AT as u64)?;
            map.write_all_at(&header[INODE_AT..RESERVED_AT], INODE_AT as u64)?;
            map.write_all_at(&header[NONCE_AT..INODE_AT], NONCE_AT as u64)?;
            return Ok(Loaded::Fits(Map(map), self.bits(vec![0; width], suspect)));
        }
        if is_of_other {
            return Ok(Loaded::OfOther(claims(&bytes)));
        }
        if differs(INODE_AT, RESERVED_AT) {
            map.write_all_at(&header[INODE_AT..RESERVED_AT], INODE_AT as u64)?;
        }
        let suspect = bytes.split_off(HEADER + width);
        let present = bytes.split_off(HEADER);
        Ok(Loaded::Fits(Map(map), self.bits(present, suspect)))
    }

    /// Makes a map that believes nothing and suspects `claims`, in place of the one at `name` below `root`. All of it is
    /// written, so that setting a bit needs no space on the disk.
    pub(super) fn create(
        &self,
        root: BorrowedFd<'_>,
        name: &str,
        claims: &[u8],
    ) -> io::Result<(Map, Bits)> {
        let width = self.width();
        let mut suspect = claims.to_vec();
        suspect.resize(width, 0);
        let mut bytes = self.header().to_vec();
        bytes.resize(HEADER + width, 0);
        bytes.extend(&suspect);
        // Renamed into place: a death leaves the map that was there, and what it knows.
        let temporary = format!("tmp/{}-{}.map", std::process::id(), self.shape.id.hex());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let _ = rustix::fs::unlinkat(root, &*temporary, AtFlags::empty());
        let map = rustix::fs::openat(root, &*temporary, flags, Mode::from_raw_mode(0o600))?;
        let map = File::from(map);
        let written = map.write_all_at(&bytes, 0);
        let written =
            written.and_then(|()| Ok(rustix::fs::renameat(root, &*temporary, root, name)?));
        if let Err(error) = written {
            let _ = rustix::fs::unlinkat(root, &*temporary, AtFlags::empty());
            return Err(error);
        }
        Ok((Map(map), self.bits(vec![0; width], suspect)))
    }

    fn width(&self) -> usize {
        (self.shape.chunks as usize).div_ceil(8)
    }

    fn bits(&self, mut present: Vec<u8>, suspect: Vec<u8>) -> Bits {
        // Bits beyond the last chunk would be counted.
        if let (Some(last), used @ 1..) = (present.last_mut(), self.shape.chunks % 8) {
            *last &= (1 << used) - 1;
        }
        Bits::new(present, suspect, self.shape.chunks)
    }

    fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..FLAGS_AT].copy_from_slice(&self.shape.chunks.to_le_bytes());
        header[SIZE_AT..NONCE_AT].copy_from_slice(&self.shape.size.to_le_bytes());
        header[NONCE_AT..INODE_AT].copy_from_slice(&self.nonce.to_le_bytes());
        header[INODE_AT..DEVICE_AT].copy_from_slice(&self.inode.to_le_bytes());
        header[DEVICE_AT..RESERVED_AT].copy_from_slice(&self.device.to_le_bytes());
        header
    }
}
