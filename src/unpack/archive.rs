//! Tar as a stream of entries: V7, USTAR, GNU and PAX headers, long names, sparse files.
//!
//! Own code rather than the `tar` crate's reader, because that takes extension records of any size into memory,
//! and leaves global PAX headers and PAX sparse files to the caller. Nothing here touches the file system.

use std::io::{self, BufRead};

use super::header::{BLOCK, Header, until_nul};
use super::path::show;
use super::pax::{Pax, PaxError};
use super::sparse::{self, Fragment, SparseError};

/// A long name or a set of PAX records is no larger; the same limit as that of Go's reader, which made most images.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Character,
    Block,
    Fifo,
}

/// A header, with all extensions applied.
#[derive(Debug)]
pub(super) struct Entry {
    /// As it stands in the archive.
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// Target of a symbolic or hard link, as it stands in the archive.
    pub(super) link: Vec<u8>,
    /// Permission bits, 07777.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Whole seconds, rounded down.
    pub(super) mtime: i64,
    pub(super) device: (u32, u32),
    /// Size of the file; of a sparse one, with its holes.
    pub(super) size: u64,
    /// Where the data goes, in order; `None` for a file without holes.
    pub(super) fragments: Option<Vec<Fragment>>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The tar is not one that can be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream below failed.
    #[error("could not read the archive")]
    Read(#[source] io::Error),
    /// The archive ends inside of an entry.
    #[error("the archive ends in the middle of an entry")]
    Truncated,
    /// Not a tar header.
    #[error("the header at byte {0} of the archive is damaged")]
    Header(u64),
    /// A field of a header holds no number, or one out of range.
    #[error("the field `{field}` of entry `{name}` is out of range or no number")]
    Field {
        /// The entry.
        name: String,
        /// The field.
        field: &'static str,
    },
    /// A kind of entry that belongs in no image.
    #[error("entry `{name}` has the type `{kind}`, which no layer may hold")]
    Kind {
        /// The entry.
        name: String,
        /// The type byte.
        kind: char,
    },
    /// A long name or a PAX header is larger than any real one.
    #[error("an extension header of the archive has {0} bytes, more than {MAX_EXTENSION_BYTES}")]
    ExtensionTooLarge(u64),
    /// PAX records that do not parse.
    #[error("a PAX header of the archive is damaged")]
    Pax(#[from] PaxError),
    /// The map of a sparse file makes no sense.
    #[error("the map of the sparse entry `{name}` is damaged")]
    Sparse {
        /// The entry.
        name: String,
        /// What is wrong.
        #[source]
        source: SparseError,
    },
}

/// Reads entry by entry; data that was not read is skipped.
#[derive(Debug)]
pub(super) struct Archive<R> {
    input: R,
    position: u64,
    /// Data of the entry that was not read yet, and the padding after it.
    remaining: u64,
    padding: u64,
    globals: Pax,
}

impl<R: BufRead> Archive<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, position: 0, remaining: 0, padding: 0, globals: Pax::default() }
    }

    /// The next entry; `None` at the end of the archive.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut local = Pax::default();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip_rest()?;
            let at = self.position;
            let Some(block) = self.header_block()? else { return Ok(None) };
            let header = Header::new(&block).ok_or(ArchiveError::Header(at))?;
            match header.kind() {
                b'x' | b'X' => local.extend(&self.extension(&header)?)?,
                b'g' => {
                    let records = self.extension(&header)?;
                    self.globals.extend(&records)?;
                }
                b'L' => long_name = Some(until_nul(&self.extension(&header)?).to_vec()),
                b'K' => long_link = Some(until_nul(&self.extension(&header)?).to_vec()),
                _ => {
                    let pax = local.over(&self.globals);
                    return self.entry(&header, &pax, long_name, long_link).map(Some);
                }
            }
        }
    }

    /// The next piece of the entry's data, empty at its end; [`Archive::consume`] takes it.
    pub(super) fn data(&mut self) -> Result<&[u8], ArchiveError> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let piece = fill(&mut self.input)?;
        if piece.is_empty() {
            return Err(ArchiveError::Truncated);
        }
        let length = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(piece.len());
        Ok(&piece[..length])
    }

    /// Takes `count` bytes of what [`Archive::data`] returned.
    pub(super) fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.remaining -= count as u64;
        self.position += count as u64;
    }

    /// The stream below, for what follows the archive.
    pub(super) fn into_inner(self) -> R {
        self.input
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        pax: &Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, ArchiveError> {
        let pax_name = pax.get(b"GNU.sparse.name").or_else(|| pax.get(b"path"));
        let name =
            long_name.or_else(|| pax_name.map(<[u8]>::to_vec)).unwrap_or_else(|| header.name());
        let link = long_link
            .or_else(|| pax.get(b"linkpath").map(<[u8]>::to_vec))
            .unwrap_or_else(|| header.link().to_vec());
        let kind = match header.kind() {
            0 if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            kind => return Err(ArchiveError::Kind { name: show(&name), kind: char::from(kind) }),
        };
        let bad = |field| ArchiveError::Field { name: show(&name), field };
        let has_device = matches!(kind, Kind::Character | Kind::Block);
        let mut entry = Entry {
            kind,
            link,
            mode: header.mode().ok_or_else(|| bad("mode"))?,
            uid: header.owner(108..116, pax.get(b"uid")).ok_or_else(|| bad("uid"))?,
            gid: header.owner(116..124, pax.get(b"gid")).ok_or_else(|| bad("gid"))?,
            mtime: header.mtime(pax.get(b"mtime")).ok_or_else(|| bad("mtime"))?,
            device: if has_device { header.device().ok_or_else(|| bad("device"))? } else { (0, 0) },
            size: header.size(pax.get(b"size")).ok_or_else(|| bad("size"))?,
            fragments: None,
            xattrs: pax.xattrs(),
            name,
        };
        if kind == Kind::File {
            self.begin_data(header, pax, &mut entry)?;
        } else {
            // Some writers give other kinds a size; no data follows all the same.
            entry.size = 0;
        }
        Ok(entry)
    }

    /// Notes how much data follows, and where it goes if the file is sparse.
    fn begin_data(
        &mut self,
        header: &Header<'_>,
        pax: &Pax,
        entry: &mut Entry,
    ) -> Result<(), ArchiveError> {
        self.remaining = entry.size;
        self.padding = padding(entry.size);
        let map = if header.kind() == b'S' {
            self.gnu_sparse(header)
        } else if pax.is_sparse() {
            sparse::from_pax(pax, self)
        } else {
            return Ok(());
        };
        let map =
            map.and_then(|map| map.check(self.remaining).map(|()| map)).map_err(
                |error| match error {
                    SparseError::Archive(error) => *error,
                    source => ArchiveError::Sparse { name: show(&entry.name), source },
                },
            )?;
        entry.size = map.size;
        entry.fragments = Some(map.fragments);
        Ok(())
    }

    /// The map of an old GNU sparse file: in the header, continued in blocks before the data.
    fn gnu_sparse(&mut self, header: &Header<'_>) -> Result<sparse::Map, SparseError> {
        let mut map = sparse::Map::new(header.number(483..495))?;
        let (pairs, mut more) = header.sparse_pairs();
        more &= map.extend_gnu(pairs)?;
        while more {
            let block = self.block()?.ok_or(ArchiveError::Truncated)?;
            more = map.extend_gnu(&block[..504])? && block[504] != 0;
        }
        Ok(map)
    }

    /// The content of an extension header.
    fn extension(&mut self, header: &Header<'_>) -> Result<Vec<u8>, ArchiveError> {
        let size = header.size(None).ok_or(ArchiveError::Header(self.position - BLOCK as u64))?;
        if size > MAX_EXTENSION_BYTES {
            return Err(ArchiveError::ExtensionTooLarge(size));
        }
        self.remaining = size;
        self.padding = padding(size);
        let mut content = Vec::new();
        loop {
            let piece = self.data()?;
            let length = piece.len();
            if length == 0 {
                return Ok(content);
            }
            content.extend_from_slice(piece);
            self.consume(length);
        }
    }

    /// The next header; `None` at the end mark (two blocks of zeros) and at the end of the stream.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        let at = self.position;
        match self.block()? {
            Some(block) if block == [0; BLOCK] => match self.block()? {
                Some(block) if block != [0; BLOCK] => Err(ArchiveError::Header(at)),
                _ => Ok(None),
            },
            other => Ok(other),
        }
    }

    /// One block, `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let piece = fill(&mut self.input)?;
            if piece.is_empty() {
                return if filled == 0 { Ok(None) } else { Err(ArchiveError::Truncated) };
            }
            let length = piece.len().min(BLOCK - filled);
            block[filled..filled + length].copy_from_slice(&piece[..length]);
            self.input.consume(length);
            filled += length;
        }
        self.position += BLOCK as u64;
        Ok(Some(block))
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        self.remaining = self.remaining.checked_add(self.padding).ok_or(ArchiveError::Truncated)?;
        self.padding = 0;
        loop {
            let length = self.data()?.len();
            if length == 0 {
                return Ok(());
            }
            self.consume(length);
        }
    }
}

/// What fills the last block of `size` bytes.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn fill<R: BufRead>(input: &mut R) -> Result<&[u8], ArchiveError> {
    input.fill_buf().map_err(ArchiveError::Read)
}
