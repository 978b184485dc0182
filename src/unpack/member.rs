//! Members of a gzip stream: where they may begin, and inflating whole ones.
//!
//! A blob of many members (eStargz, and all that is compressed in parallel) can be inflated member by member, on
//! several threads and with the faster inflater that needs all of its input. Where members begin is nowhere written
//! down that can be believed, so it is guessed from the bytes that begin every member, and each guess is proven: a
//! member whose content fits the checksum and length right before the next guess ends there. Nothing is gained by
//! the table of contents of eStargz, which would be one more request, and only says the same of honest layers.

use std::io::{self, Read};
use std::sync::LazyLock;

use memchr::memmem;

/// What every member begins with: the format's mark and the only compression that it knows.
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// Bits of the fourth byte that no member has (RFC 1952).
const RESERVED_FLAGS: u8 = 0xe0;

/// The shortest member: header, an empty block, checksum and length.
const MIN_MEMBER: usize = 18;

/// Asked of the source at once.
const STEP_BYTES: usize = 256 << 10;

/// Small members go together until they have this many bytes, so that threads do not meet for each of them.
const BATCH_BYTES: usize = 512 << 10;

/// A member with more compressed bytes is left to the stream. Larger than the chunks that eStargz is made with (4 MiB).
const MAX_MEMBER_BYTES: usize = 8 << 20;

/// No more inflated bytes than this at once; what has more is left to the stream.
const MAX_CONTENT_BYTES: usize = 16 << 20;

static FINDER: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(&MAGIC));

/// Inflated bytes on their way. Keeps its memory, and what it was filled with, when it is used again.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    memory: Vec<u8>,
    filled: usize,
}

impl Buffer {
    /// What is in it.
    pub(super) fn content(&self) -> &[u8] {
        &self.memory[..self.filled]
    }

    /// Room for `count` bytes behind the content; [`Buffer::filled`] makes it content.
    pub(super) fn room(&mut self, count: usize) -> &mut [u8] {
        let end = self.filled + count;
        if self.memory.len() < end {
            self.memory.resize(end, 0);
        }
        &mut self.memory[self.filled..end]
    }

    /// `count` bytes of the room are content now.
    pub(super) fn filled(&mut self, count: usize) {
        self.filled += count;
    }

    /// Empties it.
    pub(super) fn clear(&mut self) {
        self.filled = 0;
    }
}

/// A piece of a gzip stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// From what may be the beginning of a member to what may be that of another.
    Members(Batch),
    /// What only makes sense to the stream that began before it.
    Plain(Vec<u8>),
}

/// What may be whole members.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    /// Where they may end, in order; the last is the end of the bytes.
    ends: Vec<usize>,
}

/// Cuts a gzip stream into parts; any other one is handed on as it comes.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    is_gzip: Option<bool>,
    bytes: Vec<u8>,
    /// Where members may begin in the bytes, other than at their start.
    starts: Vec<usize>,
    /// Bytes in which all of those have been found.
    searched: usize,
    /// The bytes begin within a member that is too large to wait for its end.
    inside: bool,
}

impl Splitter {
    /// The next part of `input`; `None` at its end.
    pub(super) fn next_part(
        &mut self,
        input: &mut impl Read,
        spare: impl Fn() -> Vec<u8>,
    ) -> io::Result<Option<Part>> {
        loop {
            let before = self.bytes.len();
            self.bytes.resize(before + STEP_BYTES, 0);
            let read = fill(input, &mut self.bytes[before..])?;
            self.bytes.truncate(before + read);
            if !*self.is_gzip.get_or_insert_with(|| self.bytes.starts_with(&MAGIC)) {
                let bytes = std::mem::replace(&mut self.bytes, spare());
                self.bytes.clear();
                return Ok(Some(Part::Plain(bytes)).filter(|_| read > 0));
            }
            self.search();
            if read < STEP_BYTES {
                if before + read == 0 {
                    return Ok(None);
                }
                let part = self.cut(self.bytes.len(), spare());
                return Ok(Some(part));
            }
            if let Some(end) = self.end() {
                return Ok(Some(self.cut(end, spare())));
            }
        }
    }

    fn search(&mut self) {
        // The start of a member is known already.
        let from = self.searched.max(usize::from(!self.inside)).min(self.bytes.len());
        for found in FINDER.find_iter(&self.bytes[from..]) {
            let start = from + found;
            match self.bytes.get(start + MAGIC.len()) {
                Some(flags) if flags & RESERVED_FLAGS == 0 => self.starts.push(start),
                _ => {}
            }
        }
        self.searched = self.bytes.len().saturating_sub(MAGIC.len());
    }

    /// How many bytes can go.
    fn end(&self) -> Option<usize> {
        let length = self.bytes.len();
        if self.inside {
            return Some(self.starts.first().copied().unwrap_or(self.searched));
        }
        match self.starts.last() {
            Some(start) if length >= BATCH_BYTES => Some(*start),
            None if length > MAX_MEMBER_BYTES => Some(self.searched),
            _ => None,
        }
    }

    /// Takes the part up to `end`, and goes on with the rest in `next`.
    fn cut(&mut self, end: usize, mut next: Vec<u8>) -> Part {
        next.clear();
        next.extend_from_slice(&self.bytes[end..]);
        self.bytes.truncate(end);
        let bytes = std::mem::replace(&mut self.bytes, next);
        self.searched = self.searched.saturating_sub(end);
        let at_start = self.starts.binary_search(&end).is_ok();
        let rest = self.starts.split_off(self.starts.partition_point(|start| *start < end));
        let mut ends = std::mem::replace(
            &mut self.starts,
            rest.into_iter().filter(|start| *start > end).map(|start| start - end).collect(),
        );
        let plain = self.inside || (ends.is_empty() && !at_start && bytes.len() > MAX_MEMBER_BYTES);
        self.inside = plain && !at_start;
        if plain {
            return Part::Plain(bytes);
        }
        ends.push(end);
        Part::Members(Batch { bytes, ends })
    }
}

/// Reads until `buffer` is full or the input ends.
pub(super) fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Inflates whole members.
pub(super) struct Members(libdeflater::Decompressor);

impl Members {
    pub(super) fn new() -> Self {
        Self(libdeflater::Decompressor::new())
    }

    /// Inflates the members of `batch` into `content`, as far as they are what they seem; returns how many of the
    /// batch's bytes that are.
    pub(super) fn inflate(&mut self, batch: &Batch, content: &mut Buffer) -> usize {
        let (mut start, mut next) = (0, 0);
        while let Some(end) = batch.ends.get(next) {
            // A guess that is wrong lies within a member, which ends at a later one.
            let later = batch.ends.get(next + 1);
            let found = [Some(end), later]
                .into_iter()
                .flatten()
                .position(|end| self.inflate_one(&batch.bytes[start..*end], content).is_some());
            let Some(skipped) = found else { break };
            next += skipped;
            start = batch.ends[next];
            next += 1;
        }
        start
    }

    /// Inflates `member` if it is one, and nothing but that.
    fn inflate_one(&mut self, member: &[u8], content: &mut Buffer) -> Option<()> {
        if member.len() < MIN_MEMBER {
            return None;
        }
        let (checksum, size) = trailer(member)?;
        // Lengths are counted modulo 4 GiB; the inflater compares.
        let size = usize::try_from(size).ok()?;
        if content.content().len() + size > MAX_CONTENT_BYTES {
            return None;
        }
        let room = content.room(size);
        let inflated = self.0.gzip_decompress(member, room).ok()?;
        // The inflater stops at the end of the member, wherever that is. It has compared the content with the
        // checksum there; if that is also the one at our end, ours is the member's.
        let mut found = libdeflater::Crc::new();
        found.update(room);
        if inflated != size || found.sum() != checksum {
            return None;
        }
        content.filled(size);
        Some(())
    }
}

/// Checksum and length of the content, as the end of a member has them.
fn trailer(member: &[u8]) -> Option<(u32, u32)> {
    let (checksum, size) = member.last_chunk::<8>()?.split_at(4);
    Some((u32::from_le_bytes(checksum.try_into().ok()?), u32::from_le_bytes(size.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn member(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// Bytes that deflate cannot make smaller, the same for each seed.
    fn noise(size: usize, seed: u32) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[1]
        };
        (0..size).map(|_| next()).collect()
    }

    fn parts(mut blob: &[u8]) -> Vec<Part> {
        let mut splitter = Splitter::default();
        std::iter::from_fn(|| splitter.next_part(&mut blob, Vec::new).unwrap()).collect()
    }

    fn bytes(part: &Part) -> &[u8] {
        match part {
            Part::Members(batch) => &batch.bytes,
            Part::Plain(bytes) => bytes,
        }
    }

    fn inflated(batch: &Batch) -> (usize, Vec<u8>) {
        let mut content = Buffer::default();
        let resolved = Members::new().inflate(batch, &mut content);
        (resolved, content.content().to_vec())
    }

    #[test]
    fn small_members_go_together_and_large_ones_to_the_stream() {
        let small = member(&noise(100_000, 1));
        let large = member(&noise(MAX_MEMBER_BYTES + STEP_BYTES, 2));
        let blob = [small.repeat(20), large, small.repeat(20)].concat();
        let parts = parts(&blob);
        assert_eq!(parts.iter().flat_map(bytes).copied().collect::<Vec<u8>>(), blob);
        let kinds: String = parts
            .iter()
            .map(|part| match part {
                Part::Members(_) => 'm',
                Part::Plain(_) => 'p',
            })
            .collect();
        assert!(kinds.starts_with("mm") && kinds.contains("mp"), "{kinds}");
        assert!(kinds.contains("pm") && kinds.ends_with("mm"), "{kinds}");
        for part in &parts {
            if let Part::Members(batch) = part {
                assert_eq!(inflated(batch).0, batch.bytes.len());
            }
        }
    }

    #[test]
    fn other_streams_are_handed_on_as_they_come() {
        let blob = [vec![0; STEP_BYTES], member(b"a file"), vec![0; STEP_BYTES]].concat();
        let parts = parts(&blob);
        assert_eq!(parts.iter().flat_map(bytes).copied().collect::<Vec<u8>>(), blob);
        assert!(parts.iter().all(|part| matches!(part, Part::Plain(_))));
        assert_eq!(bytes(&parts[0]).len(), STEP_BYTES);
        assert!(super::tests::parts(b"").is_empty());
    }

    #[test]
    fn a_beginning_that_is_none_is_found_out() {
        // Stored, so that the mark stands within the member as it is.
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        let content = [b"before ".as_slice(), &MAGIC, &[0], b" after"].concat();
        encoder.write_all(&content).unwrap();
        let blob = [encoder.finish().unwrap(), member(b"next")].concat();
        let parts = parts(&blob);
        let [Part::Members(batch)] = parts.as_slice() else { panic!("{parts:?}") };
        assert_eq!(batch.ends.len(), 3);
        assert_eq!(inflated(batch), (blob.len(), [content.as_slice(), b"next"].concat()));
    }

    #[test]
    fn what_is_no_member_is_left_to_the_stream() {
        let good = member(b"good");
        let mut damaged = member(b"damaged");
        let checksum = damaged.len() - 8;
        damaged[checksum] ^= 1;
        for bad in [damaged, good[..good.len() - 1].to_vec(), MAGIC.to_vec(), vec![0; 100]] {
            let blob = [&good[..], &bad].concat();
            let parts = parts(&blob);
            let [Part::Members(batch)] = parts.as_slice() else { panic!("{parts:?}") };
            let (resolved, content) = inflated(batch);
            if resolved == good.len() {
                assert_eq!(content, b"good");
            } else {
                assert_eq!((resolved, content), (0, Vec::new()));
            }
        }
        // A bomb: a thousand times as much as it has, and the trailer says so.
        let bomb = Batch { bytes: member(&vec![0; MAX_CONTENT_BYTES + 1]), ends: Vec::new() };
        let bomb = Batch { ends: vec![bomb.bytes.len()], ..bomb };
        assert_eq!(inflated(&bomb), (0, Vec::new()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_cut_without_losing_one(
            pieces in prop::collection::vec((any::<bool>(), 0..400_000_usize), 0..6),
        ) {
            let blob: Vec<u8> = pieces.iter().flat_map(|(is_member, size)| {
                let content = noise(*size, 7);
                if *is_member { member(&content) } else { content }
            }).collect();
            let parts = parts(&blob);
            prop_assert_eq!(parts.iter().flat_map(bytes).copied().collect::<Vec<u8>>(), blob);
            for part in &parts {
                prop_assert!(!bytes(part).is_empty());
                if let Part::Members(batch) = part {
                    let (resolved, content) = inflated(batch);
                    let mut streamed = Vec::new();
                    let mut stream = flate2::read::MultiGzDecoder::new(&batch.bytes[..resolved]);
                    if stream.read_to_end(&mut streamed).is_ok() {
                        prop_assert_eq!(&streamed, &content);
                    } else {
                        prop_assert_eq!(resolved, 0);
                    }
                }
            }
        }
    }
}
