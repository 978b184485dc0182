//! Durable records: small typed documents that a crash, a power cut or another version cannot make fatal.
//!
//! A record is two JSON documents, one a line: a header with kind, version and checksum, and the body. The copy
//! before the last save stays as `<name>.prev`. Loading never fails because of what a file holds: an unreadable
//! record is set aside as `<name>.bad-<n>`, the previous copy is used if there is one, and the caller gets the
//! reason to report.
//!
//! One writer per record at a time; who that is, is the business of the record's owner.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::durable::{self, Previous};
use crate::image::Digest;

/// No record comes near this; more is not a record, and reading it would only cost memory.
const MAX_RECORD_BYTES: u64 = 64 << 20;

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
    /// The record was missing or unreadable; this is the copy from before the last save.
    Recovered {
        /// The previous copy.
        value: T,
        /// What was wrong with the record.
        reason: String,
        /// Where the unreadable record is now; `None` when it was missing.
        aside: Option<PathBuf>,
    },
    /// Neither the record nor a previous copy was readable.
    SetAside {
        /// Where the unreadable record is now.
        path: PathBuf,
        /// What was wrong with it.
        reason: String,
    },
}

impl<T> Loaded<T> {
    /// The value, if any; says in the log what was lost on the way.
    pub fn into_value(self) -> Option<T> {
        match self {
            Self::Missing => None,
            Self::Value(value) => Some(value),
            Self::Recovered { value, reason, aside } => {
                tracing::warn!(
                    reason,
                    ?aside,
                    "a record was unreadable, its previous copy is used"
                );
                Some(value)
            }
            Self::SetAside { path, reason } => {
                tracing::warn!(reason, path = %path.display(), "an unreadable record was set aside");
                None
            }
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
    let write = || -> io::Result<()> {
        let body = serde_json::to_vec(value)?;
        let header =
            Header { kind: T::KIND.to_owned(), version: T::VERSION, checksum: Digest::of(&body) };
        let mut bytes = serde_json::to_vec(&header)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&body);
        bytes.push(b'\n');
        durable::write(path, &bytes, Previous::Keep)
    };
    write().map_err(|source| RecordError::Save { path: path.to_owned(), source })
}

/// Reads the record at `path`.
///
/// # Errors
/// Only when the file system refuses in a way that says nothing about the record (no permission, no
/// descriptors, no memory); unreadable content is an outcome, not an error.
pub fn load<T: Record>(path: &Path) -> Result<Loaded<T>, RecordError> {
    let previous = durable::previous_of(path);
    match read::<T>(path)? {
        Content::Value(value) => Ok(Loaded::Value(value)),
        Content::Missing => Ok(match read::<T>(&previous)? {
            Content::Value(value) => {
                let reason = format!("`{}` is missing", path.display());
                Loaded::Recovered { value, reason, aside: None }
            }
            Content::Missing => Loaded::Missing,
            Content::Unreadable(reason) => Loaded::SetAside { path: set_aside(&previous)?, reason },
        }),
        Content::Unreadable(reason) => {
            // The previous copy is read first: if that cannot be done now, nothing has been moved yet.
            let older = read::<T>(&previous)?;
            let aside = set_aside(path)?;
            Ok(match older {
                Content::Value(value) => Loaded::Recovered { value, reason, aside: Some(aside) },
                Content::Missing | Content::Unreadable(_) => {
                    Loaded::SetAside { path: aside, reason }
                }
            })
        }
    }
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
}

fn read<T: Record>(path: &Path) -> Result<Content<T>, RecordError> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(MAX_RECORD_BYTES + 1).read_to_end(&mut bytes));
    if let Err(source) = read {
        use rustix::io::Errno;
        let unreadable = [Errno::IO, Errno::ISDIR, Errno::LOOP, Errno::NXIO, Errno::UCLEAN];
        return match source.raw_os_error() {
            _ if source.kind() == io::ErrorKind::NotFound => Ok(Content::Missing),
            Some(code) if unreadable.iter().any(|errno| errno.raw_os_error() == code) => {
                Ok(Content::Unreadable(source.to_string()))
            }
            _ => Err(RecordError::Load { path: path.to_owned(), source }),
        };
    }
    Ok(parse(&bytes).map_or_else(Content::Unreadable, Content::Value))
}

fn parse<T: Record>(bytes: &[u8]) -> Result<T, String> {
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
        version if version > T::VERSION => Err(format!(
            "it has version {version}, which is newer than the {} that this program knows",
            T::VERSION
        )),
        version if version == T::VERSION => serde_json::from_slice(body).map_err(|e| e.to_string()),
        version => serde_json::from_slice(body)
            .ok()
            .and_then(|body| T::from_older(version, body))
            .ok_or_else(|| format!("it has version {version}, which this program no longer reads")),
    }
}

/// Renames an unreadable record to the first free `<path>.bad-<n>`.
fn set_aside(path: &Path) -> Result<PathBuf, RecordError> {
    let mut number = 1_u32;
    loop {
        let aside = durable::with_suffix(path, &format!(".bad-{number}"));
        match rustix::fs::renameat_with(
            rustix::fs::CWD,
            path,
            rustix::fs::CWD,
            &aside,
            rustix::fs::RenameFlags::NOREPLACE,
        ) {
            Ok(()) => return Ok(aside),
            Err(rustix::io::Errno::EXIST) => number += 1,
            Err(errno) => {
                return Err(RecordError::Load { path: path.to_owned(), source: errno.into() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        text: String,
    }

    impl Record for Sample {
        const KIND: &'static str = "sample";
        const VERSION: u32 = 2;

        fn from_older(version: u32, body: serde_json::Value) -> Option<Self> {
            (version == 1).then(|| Self { text: format!("old {body}") })
        }
    }

    fn sample(text: &str) -> Sample {
        Sample { text: text.to_owned() }
    }

    fn value(path: &Path) -> Option<Sample> {
        match load(path).unwrap() {
            Loaded::Value(value) => Some(value),
            _ => None,
        }
    }

    #[test]
    fn a_record_reads_back_what_was_saved_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        assert!(matches!(load::<Sample>(&path).unwrap(), Loaded::Missing));
        for text in ["a", "b"] {
            save(&path, &sample(text)).unwrap();
            assert_eq!(value(&path), Some(sample(text)));
        }
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(matches!(load::<Sample>(&path).unwrap(), Loaded::Missing));
    }

    #[test]
    fn every_cut_of_a_record_is_recovered_from_the_previous_copy_and_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        save(&path, &sample("old")).unwrap();
        save(&path, &sample("new")).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let Loaded::Recovered { value, aside: Some(aside), .. } =
                load::<Sample>(&path).unwrap()
            else {
                panic!("cut at {length}");
            };
            assert_eq!(value, sample("old"));
            assert_eq!(std::fs::read(&aside).unwrap(), whole[..length]);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_changed_byte_another_kind_and_a_newer_version_are_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        save(&path, &sample("new")).unwrap();
        let whole = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
        for (damaged, expected) in [
            (whole.replace("new", "nev"), "checksum"),
            (whole.replace("\"sample\"", "\"other\""), "`other`"),
            (whole.replace("\"version\":2", "\"version\":3"), "newer"),
            (whole.replace("\"version\":2", "\"version\":0"), "no longer"),
            ("\0".repeat(whole.len()), "cut off"),
        ] {
            std::fs::write(&path, damaged).unwrap();
            let Loaded::SetAside { reason, path: aside } = load::<Sample>(&path).unwrap() else {
                panic!("{expected}");
            };
            assert!(reason.contains(expected), "{reason}");
            assert!(aside.exists());
        }
    }

    #[test]
    fn a_record_of_the_version_before_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        save(&path, &sample("x")).unwrap();
        let older = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
        std::fs::write(&path, older.replace("\"version\":2", "\"version\":1")).unwrap();
        assert_eq!(value(&path), Some(sample("old {\"text\":\"x\"}")));
    }

    #[test]
    fn a_crash_at_any_step_of_a_save_leaves_the_old_or_the_new_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        save(&path, &sample("older")).unwrap();
        save(&path, &sample("old")).unwrap();
        // The states between the operations of a save: temporary written; previous linked; renamed.
        let new = dir.path().join(".tmp-new");
        std::fs::write(&new, b"half").unwrap();
        assert_eq!(value(&path), Some(sample("old")));
        std::fs::hard_link(&path, dir.path().join(".tmp-link")).unwrap();
        assert_eq!(value(&path), Some(sample("old")));
        std::fs::rename(dir.path().join(".tmp-link"), durable::previous_of(&path)).unwrap();
        assert_eq!(value(&path), Some(sample("old")));
        sweep(dir.path());
        assert!(!new.exists());
        assert_eq!(value(&path), Some(sample("old")));
        // A file system without hard links: the record itself was renamed.
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(
            load::<Sample>(&path).unwrap(),
            Loaded::Recovered { value, aside: None, .. } if value == sample("old")
        ));
    }
}
