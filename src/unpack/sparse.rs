//! Maps of sparse files: old GNU (in the header), and the PAX formats 0.0, 0.1 and 1.0.

use std::io::BufRead;

use super::archive::{Archive, ArchiveError};
use super::header::{BLOCK, decimal, number};
use super::pax::Pax;

/// A file with more fragments than this is an attack on our memory.
const MAX_FRAGMENTS: usize = 1 << 20;

/// A piece of data between holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fragment {
    /// Where it goes in the file.
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Size and fragments of a sparse file.
#[derive(Debug)]
pub(super) struct Map {
    /// With holes.
    pub(super) size: u64,
    pub(super) fragments: Vec<Fragment>,
}

/// Why a map makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum SparseError {
    /// No number where one must be, or one out of range.
    #[error("a number is missing or out of range")]
    Number,
    /// Fragments overlap, are out of order, or reach beyond the file.
    #[error("its fragments overlap or reach beyond its end")]
    Order,
    /// The data that follows is not what the fragments need.
    #[error("its fragments need {expected} bytes and {found} are there")]
    Length {
        /// Sum of the fragments.
        expected: u64,
        /// Data in the archive.
        found: u64,
    },
    /// More fragments than any real file has.
    #[error("it has more than {MAX_FRAGMENTS} fragments")]
    TooMany,
    /// The archive could not be read.
    #[error(transparent)]
    Archive(Box<ArchiveError>),
}

impl From<ArchiveError> for SparseError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(Box::new(error))
    }
}

impl Map {
    pub(super) fn new(size: Option<i64>) -> Result<Self, SparseError> {
        let size = size.and_then(|size| u64::try_from(size).ok()).ok_or(SparseError::Number)?;
        Ok(Self { size, fragments: Vec::new() })
    }

    /// Adds the pairs of an old GNU map; whether all of them were used, so that more may follow.
    pub(super) fn extend_gnu(&mut self, pairs: &[u8]) -> Result<bool, SparseError> {
        for pair in pairs.chunks_exact(24) {
            if pair[0] == 0 && pair[12] == 0 {
                return Ok(false);
            }
            self.push(number(&pair[..12]), number(&pair[12..]))?;
        }
        Ok(true)
    }

    fn push(&mut self, offset: Option<i64>, length: Option<i64>) -> Result<(), SparseError> {
        let value = |number: Option<i64>| {
            number.and_then(|number| u64::try_from(number).ok()).ok_or(SparseError::Number)
        };
        if self.fragments.len() >= MAX_FRAGMENTS {
            return Err(SparseError::TooMany);
        }
        self.fragments.push(Fragment { offset: value(offset)?, length: value(length)? });
        Ok(())
    }

    /// Whether the fragments are in order, inside of the file, and need exactly `stored` bytes.
    pub(super) fn check(&self, stored: u64) -> Result<(), SparseError> {
        let (mut end, mut expected) = (0, 0_u64);
        for fragment in &self.fragments {
            let next = fragment.offset.checked_add(fragment.length).ok_or(SparseError::Order)?;
            if fragment.offset < end || next > self.size {
                return Err(SparseError::Order);
            }
            end = next;
            expected += fragment.length;
        }
        if expected == stored {
            Ok(())
        } else {
            Err(SparseError::Length { expected, found: stored })
        }
    }
}

/// The map of a sparse file that PAX records announce; that of format 1.0 is taken from the head of the data.
pub(super) fn from_pax<R: BufRead>(
    pax: &Pax,
    archive: &mut Archive<R>,
) -> Result<Map, SparseError> {
    let size = pax.get(b"GNU.sparse.realsize").or_else(|| pax.get(b"GNU.sparse.size"));
    let mut map = Map::new(size.and_then(decimal))?;
    if pax.get(b"GNU.sparse.major") == Some(b"1") {
        map_in_data(&mut map, archive)?;
    } else if let Some(list) = pax.get(b"GNU.sparse.map") {
        let mut numbers = list.split(|byte| *byte == b',').map(decimal);
        while let Some(offset) = numbers.next() {
            map.push(offset, numbers.next().flatten())?;
        }
    } else {
        let mut offset = None;
        for (key, value) in pax.iter() {
            match key {
                b"GNU.sparse.offset" => offset = decimal(value),
                b"GNU.sparse.numbytes" => map.push(offset.take(), decimal(value))?,
                _ => {}
            }
        }
    }
    Ok(map)
}

/// Decimal lines (count, then offset and length of each), filled up to whole blocks.
fn map_in_data<R: BufRead>(map: &mut Map, archive: &mut Archive<R>) -> Result<(), SparseError> {
    let mut taken = 0_usize;
    let mut line = |archive: &mut Archive<R>| -> Result<Option<i64>, SparseError> {
        let mut digits = Vec::with_capacity(20);
        loop {
            let byte = *archive.data()?.first().ok_or(SparseError::Number)?;
            archive.consume(1);
            taken += 1;
            match byte {
                b'\n' => return Ok(decimal(&digits)),
                byte if digits.len() < 20 => digits.push(byte),
                _ => return Err(SparseError::Number),
            }
        }
    };
    let count = line(archive)?.ok_or(SparseError::Number)?;
    for _ in 0..count {
        let offset = line(archive)?;
        map.push(offset, line(archive)?)?;
    }
    let mut padding = taken.wrapping_neg() % BLOCK;
    while padding > 0 {
        let length = archive.data()?.len().min(padding);
        if length == 0 {
            return Err(SparseError::Number);
        }
        archive.consume(length);
        padding -= length;
    }
    Ok(())
}
