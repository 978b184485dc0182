//! The last bytes of a blob, which say where its table of contents is.
//!
//! Four forms: eStargz, the older one of CRFS, eStargz with an external TOC, and zstd:chunked in the dialect
//! of stargz-snapshotter. The other dialect (`GNUlInUx`) keeps its positions in annotations and is not ours.

use super::toc::TocError;

/// Bytes at the end of a blob that are enough to recognize every footer.
pub const MAX_LEN: usize = 51;

const ESTARGZ_LEN: usize = 51;
const LEGACY_LEN: usize = 47;
const EXTERNAL_LEN: usize = 46;
/// Header of the skippable frame and its 40 bytes.
const ZSTD_LEN: usize = 48;
const EXTERNAL_TEXT: &[u8] = b"STARGZEXTERNALTOC";
const ZSTD_MAGIC: [u8; 8] = [0x47, 0x6e, 0x55, 0x6c, 0x49, 0x6e, 0x55, 0x78];
/// Magic of the first kind of skippable frame, and the length of ours.
const ZSTD_FRAME: [u8; 8] = [0x50, 0x2a, 0x4d, 0x18, 40, 0, 0, 0];
/// Length of the header of a skippable frame.
const SKIPPABLE_HEADER: u64 = 8;

/// How the members of a layer are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// eStargz: gzip members.
    Gzip,
    /// zstd:chunked: zstd frames.
    Zstd,
}

/// What a footer says; positions are checked against the size of the blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Footer {
    /// The TOC is a gzip member that holds a tar entry, `toc_offset .. toc_end`.
    Gzip {
        /// Where the TOC begins and the content ends.
        toc_offset: u64,
        /// Where the footer begins.
        toc_end: u64,
    },
    /// The TOC is zstd-compressed JSON in a skippable frame, `toc_offset .. toc_end`.
    Zstd {
        /// First byte after the header of the skippable frame.
        toc_offset: u64,
        /// First byte after the compressed JSON.
        toc_end: u64,
        /// Size of the JSON.
        json_size: u64,
    },
    /// The TOC is in another image.
    External,
}

impl Footer {
    /// The footer of a blob of `blob_size` bytes which ends with `tail`; `None` when the blob is of another
    /// kind, or when `tail` is shorter than its footer.
    ///
    /// # Errors
    /// When the footer is there but points outside the blob.
    pub fn parse(tail: &[u8], blob_size: u64) -> Result<Option<Self>, TocError> {
        if let Some(hex) = last(tail, ESTARGZ_LEN).and_then(estargz_offset) {
            return gzip(hex, ESTARGZ_LEN, blob_size).map(Some);
        }
        if let Some(hex) = last(tail, LEGACY_LEN).and_then(legacy_offset) {
            return gzip(hex, LEGACY_LEN, blob_size).map(Some);
        }
        if last(tail, EXTERNAL_LEN).is_some_and(is_external) {
            return Ok(Some(Self::External));
        }
        last(tail, ZSTD_LEN).and_then(zstd_fields).map(|f| zstd(f, blob_size)).transpose()
    }

    /// Where the content ends; `None` when the footer does not say it.
    #[must_use]
    pub fn payload_end(&self) -> Option<u64> {
        match *self {
            Self::Gzip { toc_offset, .. } => Some(toc_offset),
            Self::Zstd { toc_offset, .. } => Some(toc_offset - SKIPPABLE_HEADER),
            Self::External => None,
        }
    }
}

/// The 51 bytes that end an eStargz blob whose TOC begins at `toc_offset`.
///
/// Written by hand: what a compressor emits for an empty stream differs between libraries and their versions.
#[must_use]
pub fn encode(toc_offset: u64) -> [u8; 51] {
    let mut bytes = [0; 51];
    bytes[..16].copy_from_slice(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0");
    bytes[16..32].copy_from_slice(format!("{toc_offset:016x}").as_bytes());
    bytes[32..38].copy_from_slice(b"STARGZ");
    // One final stored block of length zero; CRC and size of nothing are zero.
    bytes[38..43].copy_from_slice(&[1, 0, 0, 0xff, 0xff]);
    bytes
}

fn last(tail: &[u8], len: usize) -> Option<&[u8]> {
    tail.len().checked_sub(len).and_then(|start| tail.get(start..))
}

/// Whether these bytes begin a gzip member with an extra field of `extra_len` bytes. Time, flags of the
/// compressor and operating system vary between writers.
fn has_extra(footer: &[u8], extra_len: u8) -> bool {
    footer.starts_with(&[0x1f, 0x8b, 8, 4]) && footer.get(10..12) == Some(&[extra_len, 0])
}

fn estargz_offset(footer: &[u8]) -> Option<&[u8]> {
    let ok = has_extra(footer, 26)
        && footer.get(12..16) == Some(b"SG\x16\0")
        && footer.get(32..38) == Some(b"STARGZ");
    footer.get(16..32).filter(|_| ok)
}

fn legacy_offset(footer: &[u8]) -> Option<&[u8]> {
    let ok = has_extra(footer, 22) && footer.get(28..34) == Some(b"STARGZ");
    footer.get(12..28).filter(|_| ok)
}

fn is_external(footer: &[u8]) -> bool {
    has_extra(footer, 21)
        && footer.get(12..16) == Some(b"SG\x11\0")
        && footer.get(16..33) == Some(EXTERNAL_TEXT)
}

/// TOC offset, compressed length and length, when this is a footer of the first TOC type.
fn zstd_fields(footer: &[u8]) -> Option<[u64; 3]> {
    let field = |n: usize| Some(u64::from_le_bytes(*footer.get(n * 8..)?.first_chunk()?));
    let ok = footer.starts_with(&ZSTD_FRAME) && footer.ends_with(&ZSTD_MAGIC) && field(4)? == 1;
    ok.then_some([field(1)?, field(2)?, field(3)?])
}

fn gzip(hex: &[u8], footer_len: usize, blob_size: u64) -> Result<Footer, TocError> {
    let text = String::from_utf8_lossy(hex);
    let misplaced = || TocError::Footer { offset: text.clone().into_owned(), blob_size };
    // `from_str_radix` would also accept a sign.
    if !hex.iter().all(u8::is_ascii_hexdigit) {
        return Err(misplaced());
    }
    let toc_offset = u64::from_str_radix(&text, 16).map_err(|_| misplaced())?;
    let toc_end = blob_size.saturating_sub(footer_len as u64);
    if toc_offset == 0 || toc_offset >= toc_end {
        return Err(misplaced());
    }
    Ok(Footer::Gzip { toc_offset, toc_end })
}

fn zstd([toc_offset, compressed, json_size]: [u64; 3], blob_size: u64) -> Result<Footer, TocError> {
    let limit = blob_size.saturating_sub(ZSTD_LEN as u64);
    match toc_offset.checked_add(compressed) {
        Some(toc_end) if toc_offset > SKIPPABLE_HEADER && compressed > 0 && toc_end <= limit => {
            Ok(Footer::Zstd { toc_offset, toc_end, json_size })
        }
        _ => Err(TocError::Footer { offset: format!("{toc_offset:016x}"), blob_size }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::Digest;

    fn unhex(text: &str) -> Vec<u8> {
        text.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn the_footer_has_the_bytes_of_the_reference() {
        let at_200000 = "1f8b08040000000000ff1a00534716003030303030303030303030333064343053544152475a010000ffff0000000000000000";
        assert_eq!(encode(200_000).to_vec(), unhex(at_200000));
        assert_eq!(
            Digest::of(&encode(0x1234_abcd)).hex(),
            "8ebab5cc2c2e7039de8d160e0352b5ae4ea96672fa42388b3de739981cd939cc"
        );
    }

    #[test]
    fn every_kind_of_footer_is_recognized() {
        let size = 0x2000_0000;
        let legacy = unhex(
            "1f8b08040000000000ff16003030303030303030313233346162636453544152475a010000ffff0000000000000000",
        );
        let external = unhex(
            "1f8b08040000000000ff15005347110053544152475a45585445524e414c544f43010000ffff0000000000000000",
        );
        let zstd = unhex(
            "502a4d1828000000001000000000000064000000000000002c010000000000000100000000000000476e556c496e5578",
        );
        assert_eq!(
            Footer::parse(&encode(0x1234_abcd), size).unwrap(),
            Some(Footer::Gzip { toc_offset: 0x1234_abcd, toc_end: size - 51 })
        );
        assert_eq!(
            Footer::parse(&legacy, size).unwrap(),
            Some(Footer::Gzip { toc_offset: 0x1234_abcd, toc_end: size - 47 })
        );
        assert_eq!(Footer::parse(&external, size).unwrap(), Some(Footer::External));
        let footer = Footer::parse(&zstd, size).unwrap().unwrap();
        assert_eq!(footer, Footer::Zstd { toc_offset: 4096, toc_end: 4196, json_size: 300 });
        assert_eq!(footer.payload_end(), Some(4088));
        assert_eq!(
            Footer::parse(b"an ordinary blob, long enough to have any of the footers", size)
                .unwrap(),
            None
        );
    }

    #[test]
    fn a_position_outside_the_blob_is_refused() {
        for (offset, size) in [(0, 1000), (949, 1000), (u64::MAX, 1000), (1, 51), (1, 0)] {
            assert!(Footer::parse(&encode(offset), size).is_err(), "{offset} of {size}");
        }
        assert!(Footer::parse(&encode(948), 1000).is_ok());
        let mut signed = encode(1);
        signed[16] = b'+';
        assert!(Footer::parse(&signed, 1000).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, cut in 0usize..52, size: u64, offset: u64) {
            let _ = Footer::parse(&bytes, size);
            let mut footer = encode(offset).to_vec();
            footer.extend(&bytes);
            let _ = Footer::parse(&footer, size);
            footer.truncate(cut);
            let _ = Footer::parse(&footer, size);
            let mut zstd = ZSTD_FRAME.to_vec();
            zstd.extend(bytes.iter().copied().chain([0; 24]).take(24));
            zstd.extend(1u64.to_le_bytes());
            zstd.extend(ZSTD_MAGIC);
            let _ = Footer::parse(&zstd, size);
        }
    }
}
