//! Durable records: small typed documents that a crash, a power cut or another version cannot make fatal.
//!
//! A record is two JSON documents, one a line: a header with kind, version and checksum, and the body. The copy
//! before the last save stays as `<name>.prev`. Loading never fails because of what a file holds: an unreadable
//! record is set aside as `<name>.unreadable-<time>`, the previous copy is used if there is one, and the caller gets
//! a [`Finding`] to report. A record of a newer program stays where it is for that program's return; a save in its
//! place moves it to `<name>.version-<n>` first.
//!
//! One writer per record at a time; who that is, is the business of the record's owner.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::aside::{self, Finding, Kept};
use super::durable::{self, Previous};
use crate::image::Digest;

/// No record comes near this; more is not a record, and reading it would only cost memory.
const MAX_RECORD_BYTES: u64 = 64 << 20;
/// A header is a hundred bytes and some.
const MAX_HEADER_BYTES: u64 = 4 << 10;

/// A type that is kept as a record.
pub trait Record: Serialize + DeserializeOwned {
    /// Names the type in the file, so that a record never is taken for another one.
    const KIND: &'static str;
    /// Version of the body that this program writes. A field that is added with a default needs no new one.
    const VERSION: u32;

    /// Reads the body of an older version; `None` when it is too old or does not fit.
    #[must_use]
    fn from_older(_version: u32, _body: serde_json::Value) -> Option<Self> {
        None
    }
}

/// What a load found.
#[derive(Debug)]
pub enum Loaded<T> {
    /// There is no such record.
    Missing,
    /// The record.
    Value(T),
    /// The record could not be used; this is the copy from before the last save, if that one can be.
    Fallback {
        /// The previous copy.
        value: Option<T>,
        /// What was wrong with the record, and where it is now.
        finding: Finding,
    },
}

impl<T> Loaded<T> {
    /// The value, if any, and what has to be said about it.
    pub fn into_parts(self) -> (Option<T>, Option<Finding>) {
        match self {
            Self::Missing => (None, None),
            Self::Value(value) => (Some(value), None),
            Self::Fallback { value, finding } => (value, Some(finding)),
        }
    }
}

/// A record could not be written or read, for a reason that lies outside of its content.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It could not be written; the older content is still there.
    #[error("could not save the record `{}`", path.display())]
    Save {
        /// The record.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be read at all.
    #[error("could not read the record `{}`", path.display())]
    Load {
        /// The record.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be removed.
    #[error("could not remove the record `{}`", path.display())]
    Remove {
        /// The record.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl RecordError {
    /// The underlying error of the system.
    #[must_use]
    pub fn io(&self) -> &io::Error {
        match self {
            Self::Save { source, .. } | Self::Load { source, .. } | Self::Remove { source, .. } => {
                source
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    kind: String,
    version: u32,
    checksum: Digest,
}

/// Writes `value` to `path`; when this returns it survives a power cut, and the copy before is `<path>.prev`.
///
/// # Errors
/// When the file system refuses, for instance because it is full; the older content stays.
pub fn save<T: Record>(path: &Path, value: &T) -> Result<(), RecordError> {
    let write = || durable::write(path, &prepare(path, value)?, Previous::Keep);
    write().map_err(|source| RecordError::Save { path: path.to_owned(), source })
}

/// As [`save`], but it survives a power cut only after [`Unsynced::sync`]; before that the record may be the one from
/// before, or unreadable with that one as its previous copy. A crash of this process loses nothing. For what means
/// nothing after the next boot, or what can be waited for beside other work.
///
/// # Errors
/// As [`save`].
pub fn save_unsynced<T: Record>(path: &Path, value: &T) -> Result<Unsynced, RecordError> {
    let write = || durable::write_unsynced(path, &prepare(path, value)?, Previous::Keep);
    match write() {
        Ok(unsynced) => Ok(Unsynced { path: path.to_owned(), unsynced }),
        Err(source) => Err(RecordError::Save { path: path.to_owned(), source }),
    }
}

/// As [`save_with_copy`], but what is left to sync is returned, as by [`save_unsynced`]; nothing is, where there was no
/// previous copy yet.
///
/// # Errors
/// As [`save`].
pub fn save_with_copy_unsynced<T: Record>(
    path: &Path,
    value: &T,
) -> Result<Option<Unsynced>, RecordError> {
    if durable::previous_of(path).exists() {
        save_unsynced(path, value).map(Some)
    } else {
        save_with_copy(path, value).map(|()| None)
    }
}

/// A record that is written and not on the disk yet.
#[derive(Debug)]
#[must_use = "a power cut may lose it until it is synced"]
pub struct Unsynced {
    path: PathBuf,
    unsynced: durable::Unsynced,
}

impl Unsynced {
    /// Waits until it is on the disk. Blocks for as long as that takes.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn sync(self) -> Result<(), RecordError> {
        let Self { path, unsynced } = self;
        unsynced.sync().map_err(|source| RecordError::Save { path, source })
    }
}

/// The bytes of `value`; what must not be replaced at `path` is out of the way then.
fn prepare<T: Record>(path: &Path, value: &T) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(value)?;
    let header =
        Header { kind: T::KIND.to_owned(), version: T::VERSION, checksum: Digest::of(&body) };
    let mut bytes = serde_json::to_vec(&header)?;
    bytes.push(b'\n');
    bytes.extend_from_slice(&body);
    bytes.push(b'\n');
    make_way::<T>(path)?;
    Ok(bytes)
}

/// Saves a record that is written once and read for years: where there is no previous copy yet, the same value becomes
/// it, so that one damaged file is never the end of it.
///
/// # Errors
/// As [`save`].
pub fn save_with_copy<T: Record>(path: &Path, value: &T) -> Result<(), RecordError> {
    save(path, value)?;
    if durable::previous_of(path).exists() { Ok(()) } else { save(path, value) }
}

/// Reads the record at `path`.
///
/// # Errors
/// Only when the file system refuses in a way that says nothing about the record (no permission, no
/// descriptors, no memory); unreadable content is an outcome, not an error.
pub fn load<T: Record>(path: &Path) -> Result<Loaded<T>, RecordError> {
    let (reason, kept) = match read::<T>(path)? {
        Content::Value(value) => return Ok(Loaded::Value(value)),
        Content::Missing => match read::<T>(&durable::previous_of(path))? {
            Content::Missing => return Ok(Loaded::Missing),
            // What else it is, is found below.
            Content::Value(_) | Content::Unreadable(_) | Content::Newer(_) => {
                ("it is missing".to_owned(), Kept::Nowhere)
            }
        },
        Content::Unreadable(reason) => (reason, Kept::Aside),
        Content::Newer(reason) => (reason, Kept::InPlace),
    };
    // Read before anything is moved: if that cannot be done now, nothing has been.
    let previous = durable::previous_of(path);
    let (value, reason) = match read::<T>(&previous)? {
        Content::Value(value) => (Some(value), reason),
        Content::Missing => (None, reason),
        Content::Newer(also) => (None, format!("{reason}; of its previous copy: {also}")),
        Content::Unreadable(also) => {
            // Best effort: it is of no use in its place either.
            let _ = aside::set_aside(&previous);
            (None, format!("{reason}; of its previous copy: {also}"))
        }
    };
    let mut finding =
        Finding { path: path.to_owned(), reason, kept, aside: None, recovered: value.is_some() };
    if kept == Kept::Aside {
        match aside::set_aside(path) {
            Ok(aside) => finding.aside = Some(aside),
            // A file system that cannot be written is no reason to do without the previous copy.
            Err(error) => {
                finding.kept = Kept::InPlace;
                finding.reason.push_str(&format!("; it could not be set aside: {error}"));
            }
        }
    }
    Ok(Loaded::Fallback { value, finding })
}

/// The record at `path`, or its previous copy, as a look at it from outside: nothing is moved, and what cannot be used
/// counts as missing.
pub(super) fn peek<T: Record>(path: &Path) -> Option<T> {
    [path, &durable::previous_of(path)].into_iter().find_map(|path| match read(path) {
        Ok(Content::Value(value)) => Some(value),
        Ok(Content::Missing | Content::Unreadable(_) | Content::Newer(_)) | Err(_) => None,
    })
}

/// Clears what a save must not replace: records of a newer program, and what is no file.
fn make_way<T: Record>(path: &Path) -> io::Result<()> {
    for path in [path, &durable::previous_of(path)] {
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.is_file() => {}
            Ok(_) => {
                aside::set_aside(path)?;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        let mut start = Vec::new();
        // One that cannot be read has been found by a load already, or nobody will miss it.
        let read = open(path).and_then(|file| file.take(MAX_HEADER_BYTES).read_to_end(&mut start));
        let header = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let header = serde_json::from_slice::<Header>(header);
        if let (Ok(_), Ok(header)) = (read, header)
            && header.kind == T::KIND
            && header.version > T::VERSION
        {
            aside::keep_version(path, header.version)?;
        }
    }
    Ok(())
}

/// Removes the record at `path` and its previous copy; nothing there is no error.
///
/// # Errors
/// When the file system refuses.
pub fn remove(path: &Path) -> Result<(), RecordError> {
    // The previous copy first: after a crash between the two the record is still whole.
    for path in [durable::previous_of(path).as_path(), path] {
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(RecordError::Remove { path: path.to_owned(), source });
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Removes temporary files that a crash left in `directory`, a folder of records.
pub fn sweep(directory: &Path) {
    durable::sweep(directory);
}

enum Content<T> {
    Missing,
    Value(T),
    Unreadable(String),
    Newer(String),
}

/// Opens a record. Never waits, as opening a FIFO in its place would, and follows no link: none of ours is one.
fn open(path: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(Errno::ISDIR.into()),
    }
}

fn read<T: Record>(path: &Path) -> Result<Content<T>, RecordError> {
    let mut bytes = Vec::new();
    let read = open(path).and_then(|file| file.take(MAX_RECORD_BYTES + 1).read_to_end(&mut bytes));
    if let Err(source) = read {
        let unreadable = [Errno::IO, Errno::LOOP, Errno::NXIO, Errno::UCLEAN];
        return match source.raw_os_error() {
            _ if source.kind() == io::ErrorKind::NotFound => Ok(Content::Missing),
            Some(code) if code == Errno::ISDIR.raw_os_error() => {
                Ok(Content::Unreadable("it is no file".to_owned()))
            }
            Some(code) if unreadable.iter().any(|errno| errno.raw_os_error() == code) => {
                Ok(Content::Unreadable(source.to_string()))
            }
            _ => Err(RecordError::Load { path: path.to_owned(), source }),
        };
    }
    Ok(parse(&bytes).unwrap_or_else(Content::Unreadable))
}

fn parse<T: Record>(bytes: &[u8]) -> Result<Content<T>, String> {
    if bytes.is_empty() {
        return Err("it is empty".to_owned());
    }
    let mut lines = bytes.splitn(2, |byte| *byte == b'\n');
    let header = lines.next().unwrap_or_default();
    let body = lines.next().and_then(|body| body.strip_suffix(b"\n")).ok_or("it is cut off")?;
    let header: Header = serde_json::from_slice(header)
        .map_err(|error| format!("its header is damaged: {error}"))?;
    if header.kind != T::KIND {
        return Err(format!("it is a `{}`, not a `{}`", header.kind, T::KIND));
    }
    if Digest::of(body) != header.checksum {
        return Err("its checksum does not fit its content".to_owned());
    }
    match header.version {
        version if version > T::VERSION => Ok(Content::Newer(format!(
            "it has version {version} and was written by a newer supervisor; this one knows version {}",
            T::VERSION
        ))),
        version if version == T::VERSION => {
            serde_json::from_slice(body).map(Content::Value).map_err(|error| error.to_string())
        }
        version => serde_json::from_slice(body)
            .ok()
            .and_then(|body| T::from_older(version, body))
            .map(Content::Value)
            .ok_or_else(|| format!("it has version {version}, which this program no longer reads")),
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
