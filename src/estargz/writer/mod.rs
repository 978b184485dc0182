//! Makes an eStargz layer of a tar.
//!
//! Lossy: the tar inside is written anew with canonical headers, so its digest differs from that of the source.
//! The same tar and options give the same bytes, as long as the compressor does: one thread, no time, no random.
//! Whatever is written was read back as an index before it is called done.

mod header;
mod order;
mod output;
mod source;

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};

use base64::Engine as _;
use serde::Serialize;

use output::Output;
use source::{Kind, Source};

use super::index::{IndexInput, build};
use super::{Flavour, NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME, TocError, limit};
use crate::image::{Digest, Hasher};

/// Content of a landmark.
const LANDMARK: [u8; 1] = [0x0f];
/// Bytes copied at a time.
const BUFFER: usize = 64 << 10;

/// How a layer is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterOptions {
    /// gzip level, 0 to 9.
    pub level: u32,
    /// Largest uncompressed size of a chunk in bytes.
    pub chunk_size: u32,
    /// Compressed bytes below which a member goes on with the next file; zero gives every file its own, which
    /// is what every other reader understands. 50,000 makes layers as small as plain gzip.
    pub min_chunk_size: u64,
    /// What the layer asks to be fetched first.
    pub prefetch: Prefetch,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self { level: 9, chunk_size: 4 << 20, min_chunk_size: 0, prefetch: Prefetch::Nothing }
    }
}

/// What a layer asks to be fetched before the container starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prefetch {
    /// Nothing.
    Nothing,
    /// These files, in the order in which they are needed.
    Paths {
        /// Paths below the root.
        paths: Vec<String>,
        /// What to do about one that the layer does not have.
        missing: MissingPath,
    },
}

/// What to do about a path that is not in the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingPath {
    /// It is an error.
    Refuse,
    /// It is left out and reported.
    Skip,
}

/// A layer that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Of the blob.
    pub digest: Digest,
    /// Of the blob, in bytes.
    pub size: u64,
    /// Of the JSON of the table of contents, for the annotation of the descriptor.
    pub toc_digest: Digest,
    /// Of the inflated blob, for the configuration of the image.
    pub diff_id: Digest,
    /// Of the inflated blob, in bytes.
    pub uncompressed_size: u64,
    /// Paths of [`Prefetch::Paths`] that are not in the layer.
    pub missing: Vec<String>,
}

/// Why a layer could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The source fails.
    #[error("could not read the source tar")]
    Read(#[source] std::io::Error),
    /// The destination fails.
    #[error("could not write the layer")]
    Write(#[source] std::io::Error),
    /// Not a tar, or damaged.
    #[error("source tar has a bad header at byte {position}")]
    Header {
        /// In the source.
        position: u64,
    },
    /// A long name or a set of PAX records that is cut off or absurdly large.
    #[error("source tar has an unusable extension header of {0} bytes")]
    Extension(u64),
    /// The format cannot hold it.
    #[error(
        "`{path}` has the type `{flag}`, which a layer cannot hold (sparse files must be expanded first)"
    )]
    Unsupported {
        /// Of the entry.
        path: String,
        /// Type byte of the tar.
        flag: char,
    },
    /// JSON cannot hold it.
    #[error("name `{0}` is not UTF-8, which the table of contents cannot hold")]
    Name(String),
    /// Its target is in another layer, later, or nowhere.
    #[error("hard link `{path}` points to `{target}`, which is not in the layer before it")]
    HardLink {
        /// Of the link.
        path: String,
        /// Cleaned.
        target: String,
    },
    /// Asked for, and not there.
    #[error("`{0}` is to be fetched first and is not in the layer")]
    Missing(String),
    /// Beyond what a time in the table of contents can say.
    #[error("`{0}` has a modification time outside the years 0 to 9999")]
    Time(String),
    /// Nonsensical options.
    #[error("chunk size {0} is not between 1 byte and 256 MiB")]
    ChunkSize(u32),
    /// The source describes a tree that cannot be served.
    #[error("the layer could not be read back")]
    Unreadable(#[source] TocError),
}

/// Writes `tar`, which is not compressed, as an eStargz layer to `out`.
///
/// The tar is read twice: its headers to find the order, then its content.
///
/// # Errors
/// When reading or writing fails, or the tar has something that the format cannot express. What was written to
/// `out` by then is of no use.
pub fn write_layer(
    tar: &mut (impl Read + Seek),
    options: &WriterOptions,
    out: impl Write,
) -> Result<Written, WriteError> {
    if options.chunk_size == 0 || u64::from(options.chunk_size) > limit::CHUNK_SIZE {
        return Err(WriteError::ChunkSize(options.chunk_size));
    }
    let sources = source::read(tar)?;
    let order = order::plan(&sources, &options.prefetch)?;
    let mut writer = Writer {
        options,
        out: Output::new(out, options.level.min(9)),
        toc: br#"{"version":1,"entries":["#.to_vec(),
        buffer: vec![0; BUFFER],
    };
    if order.first.is_none() {
        writer.landmark(NO_PREFETCH_LANDMARK)?;
    }
    for (n, entry) in order.entries.iter().enumerate() {
        if order.first == Some(n) {
            writer.landmark(PREFETCH_LANDMARK)?;
        }
        writer.entry(&sources[*entry], tar)?;
    }
    if order.first == Some(order.entries.len()) {
        writer.landmark(PREFETCH_LANDMARK)?;
    }
    writer.finish(order.missing)
}

/// An entry of the table of contents. Numbers that are zero are left out, as the format says.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct TocEntry<'a> {
    name: &'a str,
    r#type: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    modtime: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    link_name: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    inner_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_digest: Option<Digest>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A chunk that was written.
struct Placed {
    position: (u64, u64),
    file_offset: u64,
    size: u64,
    digest: Digest,
}

struct Writer<'o, W> {
    options: &'o WriterOptions,
    out: Output<W>,
    toc: Vec<u8>,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<'_, W> {
    fn landmark(&mut self, name: &str) -> Result<(), WriteError> {
        self.out.write(&header::encode_plain(name, LANDMARK.len() as u64))?;
        // Always a member of its own beginning: its offset is the boundary.
        self.out.cut()?;
        let (offset, _) = self.out.position();
        self.out.write(&LANDMARK)?;
        self.out.pad(LANDMARK.len() as u64)?;
        let digest = Some(Digest::of(&LANDMARK));
        self.list(&TocEntry {
            name,
            r#type: "reg",
            size: LANDMARK.len() as u64,
            offset,
            digest,
            chunk_digest: digest,
            ..TocEntry::default()
        })
    }

    fn entry(&mut self, source: &Source, tar: &mut (impl Read + Seek)) -> Result<(), WriteError> {
        let name = match (&*source.path, source.kind) {
            ("", _) => "./".to_owned(),
            (path, Kind::Directory) => format!("{path}/"),
            (path, _) => path.to_owned(),
        };
        let mut listed = listed(source, &name)?;
        self.out.write(&header::encode(source, &name))?;
        if source.kind != Kind::Regular {
            return self.list(&listed);
        }
        let mut whole = Hasher::new();
        let mut chunks = Vec::new();
        tar.seek(SeekFrom::Start(source.position)).map_err(WriteError::Read)?;
        let mut done = 0;
        while done < source.size {
            let size = (source.size - done).min(u64::from(self.options.chunk_size));
            chunks.push(self.chunk(tar, done, size, &mut whole)?);
            done += size;
        }
        self.out.pad(source.size)?;
        listed.size = source.size;
        listed.digest = Some(whole.finish());
        let several = chunks.len() > 1;
        for (n, chunk) in chunks.iter().enumerate() {
            if n > 0 {
                listed = TocEntry { name: &name, r#type: "chunk", ..TocEntry::default() };
            }
            (listed.offset, listed.inner_offset) = chunk.position;
            listed.chunk_offset = chunk.file_offset;
            listed.chunk_size = if several { chunk.size } else { 0 };
            listed.chunk_digest = Some(chunk.digest);
            self.list(&listed)?;
        }
        if chunks.is_empty() { self.list(&listed) } else { Ok(()) }
    }

    /// Copies the next `size` bytes of `tar`.
    fn chunk(
        &mut self,
        tar: &mut impl Read,
        file_offset: u64,
        size: u64,
        whole: &mut Hasher,
    ) -> Result<Placed, WriteError> {
        // A member that inflates to much more than a chunk would make reading any of its files slow.
        let full = self.out.member_len() >= self.options.min_chunk_size
            || self.out.position().1 >= u64::from(self.options.chunk_size);
        if full {
            self.out.cut()?;
        }
        let position = self.out.position();
        let mut hasher = Hasher::new();
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let bytes = &mut self.buffer[..wanted];
            tar.read_exact(bytes).map_err(WriteError::Read)?;
            hasher.update(bytes);
            whole.update(bytes);
            self.out.write(bytes)?;
            left -= wanted as u64;
        }
        Ok(Placed { position, file_offset, size, digest: hasher.finish() })
    }

    fn list(&mut self, entry: &TocEntry<'_>) -> Result<(), WriteError> {
        if self.toc.last() == Some(&b'}') {
            self.toc.push(b',');
        }
        serde_json::to_writer(&mut self.toc, entry).map_err(|error| WriteError::Write(error.into()))
    }

    fn finish(mut self, missing: Vec<String>) -> Result<Written, WriteError> {
        self.toc.extend(b"]}");
        self.out.cut()?;
        let (toc_offset, _) = self.out.position();
        let length = self.toc.len() as u64;
        self.out.write(&header::encode_plain(TOC_NAME, length))?;
        self.out.write(&self.toc)?;
        self.out.pad(length)?;
        self.out.write(&[0; 1024])?;
        let finished = self.out.finish(toc_offset)?;
        let input = IndexInput { blob_size: finished.size, toc_offset, flavour: Flavour::Gzip };
        build(&self.toc, &input).map_err(WriteError::Unreadable)?;
        Ok(Written {
            digest: finished.digest,
            size: finished.size,
            toc_digest: Digest::of(&self.toc),
            diff_id: finished.diff_id,
            uncompressed_size: finished.uncompressed_size,
            missing,
        })
    }
}

fn listed<'a>(source: &'a Source, name: &'a str) -> Result<TocEntry<'a>, WriteError> {
    let mut entry = TocEntry {
        name,
        r#type: source.kind.name(),
        link_name: &source.link,
        ..TocEntry::default()
    };
    if source.kind == Kind::HardLink {
        // Everything else is said by the entry that it points to.
        return Ok(entry);
    }
    // From year 0 to the end of 9999, which is what RFC 3339 can write.
    if !(-62_167_219_200..=253_402_207_200).contains(&source.mtime) {
        return Err(WriteError::Time(source.path.clone()));
    }
    if source.mtime != 0 {
        let time = jiff::Timestamp::from_second(source.mtime);
        entry.modtime = time.map_err(|_| WriteError::Time(source.path.clone()))?.to_string();
    }
    entry.mode = u64::from(source.mode);
    (entry.uid, entry.gid) = (source.uid, source.gid);
    (entry.dev_major, entry.dev_minor) = (source.device.0.into(), source.device.1.into());
    let encode = |value| base64::engine::general_purpose::STANDARD.encode(value);
    entry.xattrs = source.xattrs.iter().map(|(name, value)| (&**name, encode(value))).collect();
    Ok(entry)
}

#[cfg(test)]
mod tests;
