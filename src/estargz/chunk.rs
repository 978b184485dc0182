//! From a compressed member to verified content.

use std::borrow::Cow;
use std::io::Read;

use super::footer::Flavour;
use super::limit;
use crate::image::Digest;

/// Why a chunk could not be taken from its member.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// The compressed bytes are damaged.
    #[error("could not inflate the member")]
    Inflate(#[source] std::io::Error),
    /// The member is too short for the chunk.
    #[error("member ends after {found} bytes, the chunk needs {expected}")]
    Short {
        /// Inflated bytes up to the end of the chunk.
        expected: u64,
        /// Inflated bytes that the member has.
        found: u64,
    },
    /// The content is not what the table of contents promises.
    #[error("content has digest `{found}`, expected `{expected}`")]
    Digest {
        /// From the table of contents.
        expected: Digest,
        /// Of the inflated bytes.
        found: Digest,
    },
    /// More than a chunk may have.
    #[error("chunk of {0} bytes is larger than any chunk may be")]
    TooLarge(u64),
}

/// Where a chunk lies in its inflated member, and its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Inflated bytes before it.
    pub inner_offset: u32,
    /// Its length in bytes.
    pub size: u32,
    /// Of its bytes.
    pub digest: Digest,
}

impl From<&super::Chunk> for Piece {
    fn from(chunk: &super::Chunk) -> Self {
        Self { inner_offset: chunk.inner_offset, size: chunk.size, digest: chunk.digest }
    }
}

/// Inflates one chunk out of `member` and verifies it. Bytes of the member after the chunk are not read.
///
/// # Errors
/// When the member is damaged or too short, or holds other content.
pub fn decode(
    flavour: Flavour,
    member: &[u8],
    inner_offset: u32,
    size: u32,
    digest: Digest,
) -> Result<Vec<u8>, ChunkError> {
    Stream::new(flavour, member)?.take(&Piece { inner_offset, size, digest })
}

/// Inflates several chunks of one member in one pass; the results are in the order of `pieces`.
///
/// # Errors
/// Each chunk has its own result: one that is wrong does not spoil the others.
pub fn decode_many(
    flavour: Flavour,
    member: &[u8],
    pieces: &[Piece],
) -> Vec<Result<Vec<u8>, ChunkError>> {
    let mut content = Vec::new();
    if inflate_whole(flavour, member, pieces, &mut content).is_some() {
        return match pieces {
            // The usual one, and large: not copied.
            [piece] if piece.inner_offset == 0 => vec![cut(content, piece)],
            _ => pieces.iter().map(|piece| cut(part(&content, piece).to_vec(), piece)).collect(),
        };
    }
    stream_many(flavour, member, pieces)
}

/// The same for somebody who only looks at the content: it is in `buffer`, which need not be made for each member. New
/// memory costs a fault for each page of it, which made a fifth of the time of inflating.
///
/// # Errors
/// Each chunk has its own result: one that is wrong does not spoil the others.
pub fn decode_into<'b>(
    flavour: Flavour,
    member: &[u8],
    pieces: &[Piece],
    buffer: &'b mut Vec<u8>,
) -> Vec<Result<Cow<'b, [u8]>, ChunkError>> {
    if inflate_whole(flavour, member, pieces, buffer).is_none() {
        let streamed = stream_many(flavour, member, pieces);
        return streamed.into_iter().map(|result| result.map(Cow::Owned)).collect();
    }
    let buffer = &*buffer;
    let checked = |piece: &Piece| {
        let content = part(buffer, piece);
        check(content, piece).map(|()| Cow::Borrowed(content))
    };
    pieces.iter().map(checked).collect()
}

fn stream_many(
    flavour: Flavour,
    member: &[u8],
    pieces: &[Piece],
) -> Vec<Result<Vec<u8>, ChunkError>> {
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    order.sort_by_key(|n| pieces[*n].inner_offset);
    let mut results: Vec<_> = pieces.iter().map(|_| None).collect();
    let mut stream = None;
    for n in order {
        let piece = &pieces[n];
        // A stream that failed, or is already past the beginning of an overlapping piece, begins anew.
        let passed = |s: &Stream<'_>| s.position > u64::from(piece.inner_offset);
        if stream.as_ref().is_none_or(passed) {
            stream = None;
        }
        let result = match stream.take().map_or_else(|| Stream::new(flavour, member), Ok) {
            Err(error) => Err(error),
            Ok(mut fresh) => {
                let result = fresh.take(piece);
                if matches!(result, Ok(_) | Err(ChunkError::Digest { .. })) {
                    stream = Some(fresh);
                }
                result
            }
        };
        results[n] = Some(result);
    }
    results.into_iter().flatten().collect()
}

/// What a member may hold behind its last piece, in bytes: padding, and the headers of entries without content.
const BEHIND: u64 = 256 << 10;

/// The whole member at once into the beginning of `buffer`, and how much that is, if it is all that the range holds and ends as it should; `None` leaves it to the stream,
/// which also finds out what is wrong. Measured on a Python image's members of 4 KiB to 4 MiB: 1.7 to 2 times the
/// stream's speed. The size is the trailer's (RFC 1952), believed only where it is close to what the pieces need.
fn inflate_whole(
    flavour: Flavour,
    member: &[u8],
    pieces: &[Piece],
    buffer: &mut Vec<u8>,
) -> Option<usize> {
    let needed = pieces.iter().map(|piece| u64::from(piece.inner_offset) + u64::from(piece.size));
    let needed = needed.max().filter(|needed| *needed <= limit::CHUNK_SIZE)?;
    if flavour != Flavour::Gzip {
        return None;
    }
    let size = u64::from(u32::from_le_bytes(*member.last_chunk::<4>()?));
    if size < needed || size > needed + BEHIND {
        return None;
    }
    let size = usize::try_from(size).ok()?;
    if buffer.capacity() < size {
        // Not what is in it, which nobody needs.
        *buffer = vec![0; size];
    } else if buffer.len() < size {
        buffer.resize(size, 0);
    }
    let content = &mut buffer[..size];
    let inflated = libdeflater::Decompressor::new().gzip_decompress(member, content);
    (inflated == Ok(size)).then_some(size)
}

fn part<'c>(content: &'c [u8], piece: &Piece) -> &'c [u8] {
    let start = piece.inner_offset as usize;
    &content[start..start + piece.size as usize]
}

/// The piece, whose content `content` begins with.
fn cut(mut content: Vec<u8>, piece: &Piece) -> Result<Vec<u8>, ChunkError> {
    content.truncate(piece.size as usize);
    check(&content, piece).map(|()| content)
}

fn check(content: &[u8], piece: &Piece) -> Result<(), ChunkError> {
    let found = Digest::of(content);
    if found == piece.digest {
        Ok(())
    } else {
        Err(ChunkError::Digest { expected: piece.digest, found })
    }
}

/// A member that is being inflated.
struct Stream<'m> {
    reader: Box<dyn Read + 'm>,
    position: u64,
}

impl<'m> Stream<'m> {
    fn new(flavour: Flavour, member: &'m [u8]) -> Result<Self, ChunkError> {
        let reader: Box<dyn Read + 'm> = match flavour {
            // Of one member: what may follow in the range are headers.
            Flavour::Gzip => Box::new(flate2::bufread::GzDecoder::new(member)),
            Flavour::Zstd => Box::new(
                zstd::stream::read::Decoder::with_buffer(member)
                    .map_err(ChunkError::Inflate)?
                    .single_frame(),
            ),
        };
        Ok(Self { reader, position: 0 })
    }

    /// Reads the piece, which begins at or after the position.
    fn take(&mut self, piece: &Piece) -> Result<Vec<u8>, ChunkError> {
        let (size, inner) = (u64::from(piece.size), u64::from(piece.inner_offset));
        if size > limit::CHUNK_SIZE || inner > limit::INNER_OFFSET {
            return Err(ChunkError::TooLarge(size.max(inner)));
        }
        let short = |found| ChunkError::Short { expected: inner + size, found };
        let skip = inner - self.position;
        let skipped = std::io::copy(&mut self.reader.by_ref().take(skip), &mut std::io::sink());
        self.position += skipped.map_err(ChunkError::Inflate)?;
        if self.position != inner {
            return Err(short(self.position));
        }
        // Memory grows with what is there: the size is only a promise, though a bounded one.
        let mut content = Vec::with_capacity(piece.size.min(8 << 20) as usize);
        let read = self.reader.by_ref().take(size).read_to_end(&mut content);
        self.position += read.map_err(ChunkError::Inflate)? as u64;
        if content.len() as u64 != size {
            return Err(short(self.position));
        }
        cut(content, piece)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn member(flavour: Flavour, content: &[u8]) -> Vec<u8> {
        match flavour {
            Flavour::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(content).unwrap();
                encoder.finish().unwrap()
            }
            Flavour::Zstd => zstd::encode_all(content, 1).unwrap(),
        }
    }

    fn piece(content: &[u8], inner_offset: u32, size: u32) -> Piece {
        let start = inner_offset as usize;
        let digest = Digest::of(&content[start..start + size as usize]);
        Piece { inner_offset, size, digest }
    }

    #[test]
    fn chunks_are_cut_out_of_their_member() {
        let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        for flavour in [Flavour::Gzip, Flavour::Zstd] {
            let mut member = member(flavour, &content);
            member.extend(b"a following member that nobody may look at");
            let pieces = [
                piece(&content, 300_000, 1000),
                piece(&content, 0, 10),
                piece(&content, 5, 20),
                Piece { digest: Digest::of(b"other"), ..piece(&content, 40, 100) },
                piece(&content, 1000, 250_000),
                Piece { inner_offset: 399_999, size: 2, digest: Digest::of(b"") },
            ];
            let results = decode_many(flavour, &member, &pieces);
            for (n, piece) in pieces.iter().enumerate() {
                let Piece { inner_offset, size, digest } = *piece;
                let alone = decode(flavour, &member, inner_offset, size, digest);
                match n {
                    3 => assert!(matches!(results[n], Err(ChunkError::Digest { .. }))),
                    5 => {
                        assert!(matches!(results[n], Err(ChunkError::Short { found: 400_000, .. })))
                    }
                    _ => {
                        let start = inner_offset as usize;
                        let expected = &content[start..start + size as usize];
                        assert_eq!(results[n].as_deref().unwrap(), expected);
                        assert_eq!(alone.unwrap(), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn a_member_that_is_alone_in_its_range_is_inflated_at_once_and_gives_the_same() {
        let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let member = member(Flavour::Gzip, &content);
        let pieces = [
            piece(&content, 300_000, 100_000),
            piece(&content, 0, 10),
            Piece { digest: Digest::of(b"other"), ..piece(&content, 40, 100) },
        ];
        assert!(inflate_whole(Flavour::Gzip, &member, &pieces, &mut Vec::new()).is_some());
        let results = decode_many(Flavour::Gzip, &member, &pieces);
        assert_eq!(results[0].as_deref().unwrap(), &content[300_000..]);
        assert_eq!(results[1].as_deref().unwrap(), &content[..10]);
        assert!(matches!(results[2], Err(ChunkError::Digest { .. })));
        // A trailer that promises a bomb, or less than is needed, is not believed.
        for size in [u32::MAX, 399_999] {
            let mut lying = member.clone();
            let end = lying.len() - 4;
            lying[end..].copy_from_slice(&size.to_le_bytes());
            assert!(inflate_whole(Flavour::Gzip, &lying, &pieces, &mut Vec::new()).is_none());
        }
    }

    #[test]
    fn a_damaged_member_is_an_error() {
        for flavour in [Flavour::Gzip, Flavour::Zstd] {
            let content = [7; 5000];
            let digest = Digest::of(&content);
            let good = member(flavour, &content);
            assert!(decode(flavour, b"", 0, 5000, digest).is_err());
            assert!(decode(flavour, &good[..good.len() / 2], 0, 5000, digest).is_err());
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0xff;
                // Bytes that carry no content may differ; content that differs may not pass.
                if let Ok(read) = decode(flavour, &bad, 0, 5000, digest) {
                    assert_eq!(read, content);
                }
            }
        }
    }

    #[test]
    fn a_buffer_is_used_again_for_the_next_member() {
        let mut buffer = Vec::new();
        for flavour in [Flavour::Gzip, Flavour::Zstd] {
            for length in [3000_u32, 10, 100_000, 500] {
                let content: Vec<u8> = (0..length).map(|n| n.to_le_bytes()[0] ^ 0x5a).collect();
                let pieces = [
                    piece(&content, 4, 6),
                    Piece { digest: Digest::of(b"other"), ..piece(&content, 0, 3) },
                    piece(&content, 0, length),
                ];
                let member = member(flavour, &content);
                let results = decode_into(flavour, &member, &pieces, &mut buffer);
                assert_eq!(results[0].as_deref().unwrap(), &content[4..10]);
                assert!(matches!(results[1], Err(ChunkError::Digest { .. })));
                assert_eq!(results[2].as_deref().unwrap(), &content[..]);
                let damaged = decode_into(flavour, &member[..8], &pieces, &mut buffer);
                assert!(damaged.iter().all(Result::is_err));
            }
        }
    }
}
