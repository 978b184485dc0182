//! The bytes of an index file, version 1. All numbers are little endian and nothing is aligned.
//!
//! ```text
//! header    magic 8, version u32, flavour u32, length u64, blob size u64, toc offset u64, content size u64,
//!           prefetch end u64 (all ones: none), entries u32, children u32, chunks u32, xattrs u32, digests u32,
//!           strings u32 (bytes)
//! entries   56 bytes each, by entry number; 0 is the root; a directory has a smaller number than its children
//! children  12 each: name offset u32, name length u32, entry u32; those of one directory together, by name
//! order     u32 each: number of the chunk; those of one file together, by place in the file
//! chunks    68 each, by place in the blob
//! xattrs    16 each: name offset and length, value offset and length; those of one entry together, by name
//! digests   32 each: of whole files, where the digest of the only chunk does not say it
//! strings   names, link targets and attributes
//! checksum  XXH64 of everything before
//! ```
//!
//! Entry numbers are part of inode numbers which the kernel holds for as long as a layer is mounted: a change
//! of the order is a new version, and each version stays readable.

/// Begins every index file.
pub(super) const MAGIC: [u8; 8] = *b"svesgidx";
/// The first version that is still read; what is written is [`crate::version::Versions::index`].
pub(super) const OLDEST: u32 = 1;
pub(super) const HEADER: usize = 80;
pub(super) const ENTRY: usize = 56;
pub(super) const CHILD: usize = 12;
pub(super) const ORDER: usize = 4;
pub(super) const CHUNK: usize = 68;
pub(super) const XATTR: usize = 16;
pub(super) const DIGEST: usize = 32;
pub(super) const CHECKSUM: usize = 8;
/// In place of a number that is not there.
pub(super) const NONE: u32 = u32::MAX;

/// Numbers of the header, in the order of the file.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Header {
    pub(super) flavour: u32,
    pub(super) length: u64,
    pub(super) blob_size: u64,
    pub(super) toc_offset: u64,
    pub(super) content_size: u64,
    pub(super) prefetch_end: u64,
    pub(super) entries: u32,
    pub(super) children: u32,
    pub(super) chunks: u32,
    pub(super) xattrs: u32,
    pub(super) digests: u32,
    pub(super) strings: u32,
}

impl Header {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend(MAGIC);
        out.extend(crate::version::versions().index.to_le_bytes());
        out.extend(self.flavour.to_le_bytes());
        for number in
            [self.length, self.blob_size, self.toc_offset, self.content_size, self.prefetch_end]
        {
            out.extend(number.to_le_bytes());
        }
        for number in
            [self.entries, self.children, self.chunks, self.xattrs, self.digests, self.strings]
        {
            out.extend(number.to_le_bytes());
        }
    }

    pub(super) fn read(bytes: &[u8]) -> Self {
        Self {
            flavour: u32_at(bytes, 12),
            length: u64_at(bytes, 16),
            blob_size: u64_at(bytes, 24),
            toc_offset: u64_at(bytes, 32),
            content_size: u64_at(bytes, 40),
            prefetch_end: u64_at(bytes, 48),
            entries: u32_at(bytes, 56),
            children: u32_at(bytes, 60),
            chunks: u32_at(bytes, 64),
            xattrs: u32_at(bytes, 68),
            digests: u32_at(bytes, 72),
            strings: u32_at(bytes, 76),
        }
    }

    /// Where the sections begin: entries, children, order, chunks, xattrs, digests, strings, checksum. In
    /// 64 bits the sums of these products cannot overflow.
    pub(super) fn sections(&self) -> [u64; 8] {
        let lengths = [
            u64::from(self.entries) * ENTRY as u64,
            u64::from(self.children) * CHILD as u64,
            u64::from(self.chunks) * ORDER as u64,
            u64::from(self.chunks) * CHUNK as u64,
            u64::from(self.xattrs) * XATTR as u64,
            u64::from(self.digests) * DIGEST as u64,
            u64::from(self.strings),
        ];
        let mut starts = [HEADER as u64; 8];
        for (n, length) in lengths.iter().enumerate() {
            starts[n + 1] = starts[n] + length;
        }
        starts
    }
}

/// The number at `at`; zero outside, which an index that was opened never asks for.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b))
}

/// As [`u32_at`].
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_le_bytes(*b))
}

/// XXH64 with seed 0: finds damage at several gigabytes a second, where a cryptographic digest would
/// dominate the time of a mount. The file is ours, so nobody gains by forging it.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    const P1: u64 = 0x9E37_79B1_85EB_CA87;
    const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
    const P3: u64 = 0x1656_67B1_9E37_79F9;
    const P4: u64 = 0x85EB_CA77_C2B2_AE63;
    const P5: u64 = 0x27D4_EB2F_1656_67C5;
    fn round(lane: u64, input: u64) -> u64 {
        lane.wrapping_add(input.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
    }
    let (stripes, mut rest) = bytes.as_chunks::<32>();
    if stripes.is_empty() {
        rest = bytes;
    }
    let mut hash = if stripes.is_empty() {
        P5
    } else {
        let mut lanes = [P1.wrapping_add(P2), P2, 0, 0u64.wrapping_sub(P1)];
        for stripe in stripes {
            let (words, _) = stripe.as_chunks::<8>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane = round(*lane, u64::from_le_bytes(*word));
            }
        }
        let [a, b, c, d] = lanes;
        let mut hash = a
            .rotate_left(1)
            .wrapping_add(b.rotate_left(7))
            .wrapping_add(c.rotate_left(12))
            .wrapping_add(d.rotate_left(18));
        for lane in lanes {
            hash = (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4);
        }
        hash
    };
    hash = hash.wrapping_add(bytes.len() as u64);
    while let Some((word, after)) = rest.split_first_chunk::<8>() {
        hash ^= round(0, u64::from_le_bytes(*word));
        hash = hash.rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
        rest = after;
    }
    if let Some((word, after)) = rest.split_first_chunk::<4>() {
        hash ^= u64::from(u32::from_le_bytes(*word)).wrapping_mul(P1);
        hash = hash.rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        rest = after;
    }
    for byte in rest {
        hash = (hash ^ u64::from(*byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(P2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(P3);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_xxh64() {
        assert_eq!(checksum(b""), 0xEF46_DB37_51D8_E999);
        assert_eq!(checksum(b"a"), 0xD24E_C4F1_A98C_6E5B);
        assert_eq!(checksum(b"abc"), 0x44BC_2CF5_AD77_0999);
        assert_eq!(checksum(b"Nobody inspects the spammish repetition"), 0xFBCE_A83C_8A37_8BF1);
    }

    #[test]
    fn the_header_has_its_size() {
        let mut bytes = Vec::new();
        let header = Header { flavour: 1, length: 2, strings: 3, ..Header::default() };
        header.write(&mut bytes);
        assert_eq!(bytes.len(), HEADER);
        let read = Header::read(&bytes);
        assert_eq!((read.flavour, read.length, read.strings), (1, 2, 3));
    }
}
