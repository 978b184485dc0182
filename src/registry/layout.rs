//! OCI image layout folders: the entry that a tag names, and the files of blobs.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};

use super::blob::blob_path;
use super::error::{FetchError, FetchErrorKind, Subject};
use crate::image::{Descriptor, Digest, Document, Index, MAX_DOCUMENT_SIZE, Platform};
use crate::image::{annotation, media_type};

/// Opens a blob's file.
///
/// # Errors
/// When it is missing, is no regular file, or cannot be opened.
pub(super) fn open_blob(folder: &Path, digest: &Digest) -> io::Result<File> {
    open_regular(&blob_path(folder, digest))
}

fn open_regular(path: &Path) -> io::Result<File> {
    // Without NONBLOCK, a FIFO of that name would hold us until somebody writes to it.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"));
    }
    Ok(file)
}

/// The entry of `folder`'s index that `tag` and `platform` choose. Blocks.
///
/// # Errors
/// When the folder is no image layout, or nothing or too much in it fits.
pub(super) fn choose(
    folder: &Path,
    tag: Option<&str>,
    platform: &Platform,
    subject: &Subject,
) -> Result<Descriptor, FetchError> {
    let malformed =
        |detail: String| FetchError::because(FetchErrorKind::Malformed, subject, detail).build();
    let index = folder.join("index.json");
    let bytes = read_document(&index).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if folder.is_dir() => {
            malformed("the folder is not an image layout: it has no `index.json`".to_owned())
        }
        io::ErrorKind::NotFound => {
            FetchError::because(FetchErrorKind::NotFound, subject, "there is no such folder")
                .source(error)
                .build()
        }
        _ => FetchError::io(subject, error),
    })?;
    let index = match Document::parse(&bytes, Some(media_type::OCI_INDEX)) {
        Ok(Document::Index(index)) => index,
        Ok(Document::Manifest(_)) => {
            return Err(malformed("its `index.json` is not an index".to_owned()));
        }
        Err(error) => return Err(FetchError::document(subject, error)),
    };
    let name = |entry: &Descriptor| entry.annotations.get(annotation::REF_NAME).cloned();
    let mut names: Vec<String> =
        index.manifests.iter().filter_map(|(entry, _)| name(entry)).collect();
    names.sort();
    names.dedup();
    let listed = || {
        let quoted: Vec<_> = names.iter().take(20).map(|name| format!("`{name}`")).collect();
        if quoted.is_empty() { "none".to_owned() } else { quoted.join(", ") }
    };
    let candidates: Vec<_> = index
        .manifests
        .iter()
        .filter(|(entry, _)| tag.is_none_or(|tag| name(entry).as_deref() == Some(tag)))
        .cloned()
        .collect();
    match (&candidates[..], tag) {
        ([], Some(tag)) => {
            let detail = format!("the folder has no tag `{tag}`; its tags are: {}", listed());
            Err(FetchError::because(FetchErrorKind::NotFound, subject, detail).build())
        }
        ([], None) => {
            let detail = "the folder holds no image";
            Err(FetchError::because(FetchErrorKind::NotFound, subject, detail).build())
        }
        ([(only, _)], _) => Ok(only.clone()),
        (_, None) if names.len() > 1 => Err(malformed(format!(
            "the folder holds several images; name one of its tags: {}",
            listed()
        ))),
        _ => Index { manifests: candidates }
            .select(platform)
            .cloned()
            .map_err(|error| FetchError::document(subject, error)),
    }
}

/// Reads the document that `entry` describes, verified. Blocks.
///
/// # Errors
/// When it is missing, too large, or not what the entry says.
pub(super) fn document(
    folder: &Path,
    entry: &Descriptor,
    subject: &Subject,
) -> Result<Bytes, FetchError> {
    let bytes = read_document(&blob_path(folder, &entry.digest))
        .map_err(|error| FetchError::io(subject, error))?;
    if Digest::of(&bytes) != entry.digest {
        let detail = "the content of its file does not have this digest";
        return Err(FetchError::corrupt(subject, detail));
    }
    Ok(Bytes::from(bytes))
}

fn read_document(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(MAX_DOCUMENT_SIZE + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_DOCUMENT_SIZE {
        let text = "it is larger than the 4 MiB that a document may have";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(bytes)
}
