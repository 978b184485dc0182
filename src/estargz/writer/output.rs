//! The blob in the making: members, positions, digests.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::WriteError;
use crate::estargz::footer;
use crate::image::{Digest, Hasher};

/// A blob that grows member by member.
pub(super) struct Output<W> {
    out: W,
    level: Compression,
    member: GzEncoder<Vec<u8>>,
    /// Where the open member begins in the blob.
    member_start: u64,
    /// Bytes put into the open member.
    member_plain: u64,
    blob: Hasher,
    plain: Hasher,
    plain_size: u64,
}

/// Digest and size of a finished blob.
pub(super) struct Finished {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) diff_id: Digest,
    pub(super) uncompressed_size: u64,
}

impl<W: Write> Output<W> {
    pub(super) fn new(out: W, level: u32) -> Self {
        let level = Compression::new(level);
        Self {
            out,
            level,
            member: GzEncoder::new(Vec::new(), level),
            member_start: 0,
            member_plain: 0,
            blob: Hasher::new(),
            plain: Hasher::new(),
            plain_size: 0,
        }
    }

    /// Adds to the open member.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.plain.update(bytes);
        self.plain_size += bytes.len() as u64;
        self.member_plain += bytes.len() as u64;
        self.member.write_all(bytes).map_err(WriteError::Write)
    }

    /// Zeros up to the next tar block.
    pub(super) fn pad(&mut self, content: u64) -> Result<(), WriteError> {
        let missing = content.next_multiple_of(512) - content;
        self.write(&[0; 512][..usize::try_from(missing).unwrap_or(0)])
    }

    /// Position of the next byte: beginning of its member, and inflated bytes before it.
    pub(super) fn position(&self) -> (u64, u64) {
        (self.member_start, self.member_plain)
    }

    /// Compressed bytes of the open member so far. What the compressor still holds back is not counted:
    /// flushing it out to know would cost more than it tells.
    pub(super) fn member_len(&self) -> u64 {
        self.member.get_ref().len() as u64
    }

    /// Ends the open member and begins the next.
    pub(super) fn cut(&mut self) -> Result<(), WriteError> {
        if self.member_plain == 0 {
            return Ok(());
        }
        let next = GzEncoder::new(Vec::new(), self.level);
        let member = std::mem::replace(&mut self.member, next);
        let bytes = member.finish().map_err(WriteError::Write)?;
        self.member_plain = 0;
        self.emit(&bytes)
    }

    fn emit(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.blob.update(bytes);
        self.member_start += bytes.len() as u64;
        self.out.write_all(bytes).map_err(WriteError::Write)
    }

    /// Ends the blob; `toc_offset` is where the member of the table of contents began.
    pub(super) fn finish(mut self, toc_offset: u64) -> Result<Finished, WriteError> {
        self.cut()?;
        self.emit(&footer::encode(toc_offset))?;
        self.out.flush().map_err(WriteError::Write)?;
        Ok(Finished {
            digest: self.blob.finish(),
            size: self.member_start,
            diff_id: self.plain.finish(),
            uncompressed_size: self.plain_size,
        })
    }
}
