//! From the end of a blob to the JSON of its table of contents.
//!
//! Footer and table of contents are neighbours, so one range request normally brings both. The caller fetches
//! [`first_tail_len`] bytes, calls [`parse`], and fetches what is missing when that asks for more.

use std::io::Read;

use super::footer::{Flavour, Footer};
use super::index::IndexInput;
use super::toc::TocError;
use super::{TOC_NAME, limit};

/// Smallest first request: a small image should not cost much more than its content.
const MIN_TAIL: u64 = 64 << 10;
/// Largest first request: a second round trip costs less than bytes beyond this that nobody needs.
const MAX_TAIL: u64 = 2 << 20;
/// A TOC takes about 60 compressed bytes per file and the average file of a distribution about 10 kB: of the layers of
/// Debian with Python 1/70 (1.4 MB), 1/200 (16 MB), 1/150 (43 MB) and 1/124 (62 MB).
const TAIL_SHARE: u64 = 112;
/// What small layers need beyond that.
const TAIL_BASE: u64 = 32 << 10;

/// What the end of a blob holds.
#[derive(Debug)]
pub enum Tail {
    /// The whole table of contents, not yet compared with its digest.
    Complete(TocBytes),
    /// The table of contents begins before the bytes that were given: call again with the blob from here to
    /// its end.
    NeedFrom(u64),
    /// Another kind of blob, or one whose table of contents is stored elsewhere.
    NotEstargz,
}

/// A table of contents as the blob holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TocBytes {
    /// The bytes that the TOC digest is about.
    pub json: Vec<u8>,
    /// First byte of the blob that is no content: the end of its last member.
    pub toc_offset: u64,
    /// Compression of the members.
    pub flavour: Flavour,
}

impl TocBytes {
    /// What [`super::index::build()`] must know besides the JSON.
    #[must_use]
    pub fn index_input(&self, blob_size: u64) -> IndexInput {
        IndexInput { blob_size, toc_offset: self.toc_offset, flavour: self.flavour }
    }
}

/// How many bytes of the end of a blob of `blob_size` bytes to fetch first.
#[must_use]
pub fn first_tail_len(blob_size: u64) -> u64 {
    (blob_size / TAIL_SHARE + TAIL_BASE).clamp(MIN_TAIL, MAX_TAIL).min(blob_size)
}

/// Reads the table of contents from `tail`, the last bytes of a blob of `blob_size` bytes.
///
/// # Errors
/// When the blob is eStargz by its footer and its table of contents cannot be read.
pub fn parse(tail: &[u8], blob_size: u64) -> Result<Tail, TocError> {
    let tail_start = blob_size.saturating_sub(tail.len() as u64);
    let footer = Footer::parse(tail, blob_size)?;
    let (toc_offset, toc_end) = match footer {
        None | Some(Footer::External) => return Ok(Tail::NotEstargz),
        Some(Footer::Gzip { toc_offset, toc_end } | Footer::Zstd { toc_offset, toc_end, .. }) => {
            (toc_offset, toc_end)
        }
    };
    check_size("compressed table of contents", toc_end - toc_offset, limit::TOC_COMPRESSED)?;
    if toc_offset < tail_start {
        return Ok(Tail::NeedFrom(toc_offset));
    }
    let position = |at: u64| usize::try_from(at - tail_start).ok();
    let compressed = position(toc_offset)
        .zip(position(toc_end))
        .and_then(|(start, end)| tail.get(start..end))
        .ok_or(TocError::Truncated)?;
    let (json, toc_offset, flavour) = match footer {
        Some(Footer::Zstd { json_size, .. }) => {
            let json = inflate_zstd(compressed, json_size)?;
            // The header of the skippable frame is no content either.
            (json, toc_offset - 8, Flavour::Zstd)
        }
        _ => (inflate_gzip(compressed)?, toc_offset, Flavour::Gzip),
    };
    Ok(Tail::Complete(TocBytes { json, toc_offset, flavour }))
}

fn check_size(what: &'static str, size: u64, limit: u64) -> Result<(), TocError> {
    if size > limit { Err(TocError::TooLarge { what, size, limit }) } else { Ok(()) }
}

/// Reads exactly `size` bytes; memory grows with what is there and not with what is promised.
fn read_json(reader: impl Read, size: u64) -> Result<Vec<u8>, TocError> {
    check_size("table of contents", size, limit::TOC_JSON)?;
    let mut json = Vec::new();
    reader.take(size).read_to_end(&mut json).map_err(TocError::Inflate)?;
    if json.len() as u64 == size { Ok(json) } else { Err(TocError::Truncated) }
}

fn inflate_gzip(compressed: &[u8]) -> Result<Vec<u8>, TocError> {
    // A decoder of one member: the footer behind it is one too.
    let mut member = flate2::bufread::GzDecoder::new(compressed);
    let mut archive = tar::Archive::new(&mut member);
    let entry = archive.entries().and_then(|mut entries| entries.next().transpose());
    let entry = entry.map_err(TocError::Inflate)?.ok_or(TocError::Truncated)?;
    if *entry.path_bytes() != *TOC_NAME.as_bytes() {
        let name = String::from_utf8_lossy(&entry.path_bytes()).escape_debug().take(200).collect();
        return Err(TocError::Name(name));
    }
    let size = entry.size();
    read_json(entry, size)
}

fn inflate_zstd(compressed: &[u8], size: u64) -> Result<Vec<u8>, TocError> {
    let decoder =
        zstd::stream::read::Decoder::with_buffer(compressed).map_err(TocError::Inflate)?;
    read_json(decoder.single_frame(), size)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::estargz::footer;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn toc_member(name: &str, json: &[u8], claimed: u64) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_size(claimed);
        header.set_cksum();
        let mut plain = header.as_bytes().to_vec();
        plain.extend(json);
        plain.resize(plain.len().next_multiple_of(512) + 1024, 0);
        gzip(&plain)
    }

    fn blob(toc: &[u8]) -> Vec<u8> {
        let mut blob = gzip(b"content");
        let toc_offset = blob.len() as u64;
        blob.extend(toc);
        blob.extend(footer::encode(toc_offset));
        blob
    }

    #[test]
    fn a_short_tail_asks_for_the_rest() {
        let blob = blob(&toc_member(TOC_NAME, b"{}", 2));
        let size = blob.len() as u64;
        let Ok(Tail::NeedFrom(from)) = parse(&blob[blob.len() - 60..], size) else { panic!() };
        let rest = &blob[usize::try_from(from).unwrap()..];
        let Ok(Tail::Complete(toc)) = parse(rest, size) else { panic!() };
        assert_eq!((toc.json.as_slice(), toc.toc_offset), (b"{}".as_slice(), from));
    }

    #[test]
    fn a_bad_table_of_contents_is_an_error() {
        let parse = |blob: &[u8]| parse(blob, blob.len() as u64);
        assert!(matches!(parse(&blob(&toc_member("other", b"{}", 2))), Err(TocError::Name(_))));
        assert!(matches!(
            parse(&blob(&toc_member(TOC_NAME, b"{}", 1 << 29))),
            Err(TocError::Truncated | TocError::Inflate(_))
        ));
        assert!(matches!(
            parse(&blob(&toc_member(TOC_NAME, b"{}", 1 << 31))),
            Err(TocError::TooLarge { .. })
        ));
        assert!(matches!(parse(&blob(b"no gzip at all")), Err(TocError::Inflate(_))));
        assert!(matches!(
            parse(&blob(&gzip(b""))),
            Err(TocError::Truncated | TocError::Inflate(_))
        ));
        assert!(matches!(parse(b"a plain layer"), Ok(Tail::NotEstargz)));
        // The footer promises more compressed bytes than any real table of contents has.
        let end = [[0; 100].as_slice(), &footer::encode(1)].concat();
        assert!(matches!(super::parse(&end, 1 << 40), Err(TocError::TooLarge { .. })));
    }

    #[test]
    fn the_first_request_is_bounded_by_the_blob() {
        assert_eq!(first_tail_len(0), 0);
        assert_eq!(first_tail_len(1000), 1000);
        assert_eq!(first_tail_len(1 << 20), 64 << 10);
        assert!(first_tail_len(62_100_000) > 500_000);
        assert_eq!(first_tail_len(1 << 40), 2 << 20);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            junk in prop::collection::vec(any::<u8>(), 0..200),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            size: u64,
        ) {
            let _ = parse(&junk, size);
            let mut blob = blob(&toc_member(TOC_NAME, b"{\"version\":1}", 13));
            for (at, byte) in flips {
                let at = at.index(blob.len());
                blob[at] ^= byte;
            }
            let _ = parse(&blob, blob.len() as u64);
            let _ = parse(&blob, size);
        }
    }
}
