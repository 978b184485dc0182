//! The tar that a layer is made from: its entries in order, with the places of their content.
//!
//! Our own reader, because that of the `tar` crate splits PAX records at line ends, which occur in binary
//! attributes such as file capabilities. Sparse files are refused by name: no image builder writes them.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};

use super::WriteError;
use crate::estargz::limit;

const BLOCK: usize = 512;
/// PAX headers and long names are held in memory; no real one comes near.
const EXTENSION_LIMIT: u64 = 1 << 20;

/// Type of an entry that a layer can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

impl Kind {
    /// Type byte of the tar header.
    pub(super) fn flag(self) -> u8 {
        match self {
            Self::Regular => b'0',
            Self::HardLink => b'1',
            Self::Symlink => b'2',
            Self::CharDevice => b'3',
            Self::BlockDevice => b'4',
            Self::Directory => b'5',
            Self::Fifo => b'6',
        }
    }

    /// Name in the table of contents.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Regular => "reg",
            Self::HardLink => "hardlink",
            Self::Symlink => "symlink",
            Self::CharDevice => "char",
            Self::BlockDevice => "block",
            Self::Directory => "dir",
            Self::Fifo => "fifo",
        }
    }
}

/// One entry of the source.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// Cleaned: no leading slash, no `.` and `..`; empty for the root.
    pub(super) path: String,
    pub(super) kind: Kind,
    /// Of a hard link cleaned like a path.
    pub(super) link: String,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mtime: i64,
    pub(super) device: (u32, u32),
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
    pub(super) size: u64,
    /// Where the content begins in the tar.
    pub(super) position: u64,
}

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Reads all headers of `tar` from its beginning; content is passed over.
pub(super) fn read(tar: &mut (impl Read + Seek)) -> Result<Vec<Source>, WriteError> {
    let mut sources = Vec::new();
    let (mut globals, mut records) = (Records::new(), Records::new());
    let (mut long_name, mut long_link) = (None, None);
    let mut position = tar.seek(SeekFrom::Start(0)).map_err(WriteError::Read)?;
    while let Some(header) = read_header(tar, position)? {
        position += BLOCK as u64;
        let damaged = |_| WriteError::Header { position: position - BLOCK as u64 };
        let stored = header.entry_size().map_err(damaged)?;
        let flag = header.as_bytes()[156];
        let mut size = stored;
        match flag {
            b'x' => records.extend(pax(&extension(tar, stored)?, position)?),
            b'g' => globals.extend(pax(&extension(tar, stored)?, position)?),
            b'L' => long_name = Some(until_nul(extension(tar, stored)?)),
            b'K' => long_link = Some(until_nul(extension(tar, stored)?)),
            _ => {
                let mut merged = globals.clone();
                merged.append(&mut records);
                let names = (long_name.take(), long_link.take());
                let source = entry(&header, flag, &merged, names, position)?;
                size = match source.kind {
                    Kind::Regular => number(&merged, "size", position)?.unwrap_or(stored),
                    // Only files have content, whatever the header says; Go's reader, which made most images,
                    // holds the same.
                    _ => 0,
                };
                sources.push(Source { size, ..source });
            }
        }
        let padded = size.checked_next_multiple_of(BLOCK as u64);
        let next = padded.and_then(|padded| position.checked_add(padded));
        position = next.ok_or(WriteError::Header { position })?;
        tar.seek(SeekFrom::Start(position)).map_err(WriteError::Read)?;
    }
    Ok(sources)
}

/// The header at `position`; `None` at the end of the archive.
fn read_header(tar: &mut impl Read, position: u64) -> Result<Option<tar::Header>, WriteError> {
    let mut header = tar::Header::new_old();
    let mut filled = 0;
    while filled < BLOCK {
        match tar.read(&mut header.as_mut_bytes()[filled..]) {
            // An archive may end without its two empty blocks, but not inside one.
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(WriteError::Header { position }),
            Ok(n) => filled += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(WriteError::Read(error)),
        }
    }
    let bytes = header.as_bytes();
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum();
    match header.cksum() {
        Ok(expected) if expected == sum + 8 * u32::from(b' ') => Ok(Some(header)),
        _ => Err(WriteError::Header { position }),
    }
}

fn extension(tar: &mut impl Read, size: u64) -> Result<Vec<u8>, WriteError> {
    let mut bytes = Vec::new();
    if size <= EXTENSION_LIMIT {
        tar.take(size).read_to_end(&mut bytes).map_err(WriteError::Read)?;
    }
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(WriteError::Extension(size)) }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// Records are `<length> <key>=<value>\n`, where the length counts all of that.
fn pax(mut bytes: &[u8], position: u64) -> Result<Records, WriteError> {
    let mut records = Records::new();
    while !bytes.is_empty() {
        let record = (|| {
            let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(bytes.get(..space)?).ok()?.parse().ok()?;
            let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            Some((length, record.get(..equals)?, record.get(equals + 1..)?))
        })();
        let (length, key, value) = record.ok_or(WriteError::Header { position })?;
        records.insert(key.to_vec(), value.to_vec());
        bytes = &bytes[length..];
    }
    Ok(records)
}

fn number(records: &Records, key: &str, position: u64) -> Result<Option<u64>, WriteError> {
    let text = records.get(key.as_bytes()).filter(|value| !value.is_empty());
    let parse = |text: &Vec<u8>| std::str::from_utf8(text).ok()?.parse().ok();
    text.map(|text| parse(text).ok_or(WriteError::Header { position })).transpose()
}

fn entry(
    header: &tar::Header,
    flag: u8,
    records: &Records,
    (long_name, long_link): (Option<Vec<u8>>, Option<Vec<u8>>),
    position: u64,
) -> Result<Source, WriteError> {
    let damaged = |_| WriteError::Header { position };
    let record = |key: &str| records.get(key.as_bytes()).filter(|value| !value.is_empty()).cloned();
    let name = record("path").or(long_name).unwrap_or_else(|| header.path_bytes().into_owned());
    let link = record("linkpath")
        .or(long_link)
        .or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
        .unwrap_or_default();
    let name = text(name)?;
    let kind = match flag {
        // Before types existed, a slash at the end made a directory.
        0 if name.ends_with('/') => Kind::Directory,
        0 | b'0' => Kind::Regular,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => return Err(WriteError::Unsupported { path: name, flag: char::from(other) }),
    };
    if records.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
        return Err(WriteError::Unsupported { path: name, flag: 'S' });
    }
    let device = |field: std::io::Result<Option<u32>>, limit: u32| match field.map_err(damaged)? {
        Some(number) if number > limit => Err(WriteError::Header { position }),
        number => Ok(number.unwrap_or_default()),
    };
    let mut xattrs = BTreeMap::new();
    for (key, value) in records {
        if let Some(key) = key.strip_prefix(b"SCHILY.xattr.") {
            xattrs.insert(text(key.to_vec())?, value.clone());
        }
    }
    let link = text(link)?;
    Ok(Source {
        path: clean(&name),
        kind,
        link: match kind {
            Kind::HardLink => clean(&link),
            Kind::Symlink => link,
            _ => String::new(),
        },
        mode: header.mode().map_err(damaged)? & 0o7777,
        uid: number(records, "uid", position)?.map_or_else(|| header.uid(), Ok).map_err(damaged)?,
        gid: number(records, "gid", position)?.map_or_else(|| header.gid(), Ok).map_err(damaged)?,
        mtime: mtime(header, records, position)?,
        device: match kind {
            Kind::CharDevice | Kind::BlockDevice => (
                device(header.device_major(), limit::DEVICE.0)?,
                device(header.device_minor(), limit::DEVICE.1)?,
            ),
            _ => (0, 0),
        },
        xattrs,
        size: 0,
        position,
    })
}

/// Whole seconds, rounded down as unpacking does.
fn mtime(header: &tar::Header, records: &Records, position: u64) -> Result<i64, WriteError> {
    let Some(text) = records.get(b"mtime".as_slice()).filter(|value| !value.is_empty()) else {
        let seconds = header.mtime().map_err(|_| WriteError::Header { position })?;
        return Ok(seconds.cast_signed());
    };
    let parse = || {
        let text = std::str::from_utf8(text).ok()?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let seconds: i64 = whole.parse().ok()?;
        let below = whole.starts_with('-') && fraction.bytes().any(|digit| digit != b'0');
        Some(seconds - i64::from(below))
    };
    parse().ok_or(WriteError::Header { position })
}

fn text(bytes: Vec<u8>) -> Result<String, WriteError> {
    String::from_utf8(bytes)
        .map_err(|error| WriteError::Name(String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// Resolves `name` as an absolute path and takes the slash away again.
pub(super) fn clean(name: &str) -> String {
    let mut components = Vec::new();
    for component in name.split('/') {
        match component {
            "" | "." => {}
            ".." => _ = components.pop(),
            _ => components.push(component),
        }
    }
    components.join("/")
}
