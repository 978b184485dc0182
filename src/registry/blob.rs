//! One blob: the bytes behind a digest, in a registry or a layout folder, read in parts. As a whole: `stream`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE};
use serde::{Deserialize, Serialize};

use super::answer::Answer;
use super::error::{FetchError, FetchErrorKind, Subject};
use super::exchange::{Redirect, Request, Shared};
use super::hosts::{Endpoint, Purpose};
use super::layout;
use super::retry::Attempts;
use crate::image::{Digest, ImageRef};

/// Where the blobs of an image are. Kept beside a layer, so that it can be fetched after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum BlobSource {
    /// A repository of a registry.
    Registry {
        /// As in [`ImageRef::Registry`].
        host: String,
        /// As in [`ImageRef::Registry`].
        repository: String,
    },
    /// An image layout folder.
    Layout {
        /// Absolute, if it is to be found again from another working directory.
        path: PathBuf,
    },
}

impl BlobSource {
    /// Where the blobs of `image` are.
    #[must_use]
    pub fn of(image: &ImageRef) -> Self {
        match image {
            ImageRef::Registry { host, repository, .. } => {
                Self::Registry { host: host.clone(), repository: repository.clone() }
            }
            ImageRef::Layout { path, .. } => Self::Layout { path: path.clone() },
        }
    }

    pub(super) fn subject(&self, what: String, digest: Option<Digest>) -> Subject {
        match self {
            Self::Registry { host, repository } => {
                Subject { what, place: format!("{host}/{repository}"), host: host.clone(), digest }
            }
            Self::Layout { path } => {
                let path = path.display().to_string();
                Subject { what, place: path.clone(), host: path, digest }
            }
        }
    }
}

/// A blob that can be read. Cheap to clone; clones share what was learnt about redirects.
#[derive(Debug, Clone)]
pub struct Blob(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) subject: Subject,
    pub(super) origin: Origin,
}

#[derive(Debug)]
pub(super) enum Origin {
    Registry {
        shared: Arc<Shared>,
        host: String,
        repository: String,
        /// `blobs/sha256:…`.
        path: String,
        redirect: Redirect,
        /// Who answered last.
        answered: Mutex<Option<Arc<Endpoint>>>,
    },
    Layout {
        folder: PathBuf,
        file: OnceLock<File>,
    },
    File(File),
}

impl Blob {
    pub(super) fn new(
        shared: &Arc<Shared>,
        source: &BlobSource,
        digest: Digest,
        size: u64,
    ) -> Self {
        let origin = match source {
            BlobSource::Registry { host, repository } => Origin::Registry {
                shared: Arc::clone(shared),
                host: host.clone(),
                repository: repository.clone(),
                path: format!("blobs/{digest}"),
                redirect: Redirect::default(),
                answered: Mutex::default(),
            },
            BlobSource::Layout { path } => {
                Origin::Layout { folder: path.clone(), file: OnceLock::new() }
            }
        };
        let subject = source.subject(format!("blob `{digest}`"), Some(digest));
        Self(Arc::new(Inner { digest, size, subject, origin }))
    }

    /// A blob behind an open file, for a process that may not open files itself.
    #[must_use]
    pub fn from_file(file: File, digest: Digest, size: u64) -> Self {
        let source = BlobSource::Layout { path: PathBuf::from("an image layout") };
        let subject = source.subject(format!("blob `{digest}`"), Some(digest));
        Self(Arc::new(Inner { digest, size, subject, origin: Origin::File(file) }))
    }

    /// Opens the file of a layout's blob, to hand it to another process; `None` for a registry's.
    ///
    /// # Errors
    /// When the file is missing, is no regular file, or cannot be opened.
    pub fn open_layout_file(source: &BlobSource, digest: &Digest) -> io::Result<Option<File>> {
        match source {
            BlobSource::Registry { .. } => Ok(None),
            BlobSource::Layout { path } => layout::open_blob(path, digest).map(Some),
        }
    }

    /// The name of the content.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// Length in bytes, as the manifest says.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// Exactly the bytes of `range`, which are not verified: chunks have digests of their own.
    ///
    /// Continues where a broken transfer stopped, a few times.
    ///
    /// # Errors
    /// When not all of them could be had; [`FetchError::is_range_unsupported`] tells that this server never will.
    pub async fn range(&self, range: Range<u64>) -> Result<Bytes, FetchError> {
        if range.start > range.end || range.end > self.0.size {
            let detail = format!(
                "bytes {}..{} were asked for, and it has {}",
                range.start, range.end, self.0.size
            );
            return Err(self.error(FetchErrorKind::RangeNotSatisfiable, detail));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        match &self.0.origin {
            Origin::Registry { shared, .. } => {
                let mut attempts = Attempts::new(&shared.options.retry);
                let length = usize::try_from(range.end - range.start).map_err(|_| {
                    self.error(FetchErrorKind::Malformed, "the range is larger than memory")
                })?;
                let mut bytes = BytesMut::with_capacity(length);
                loop {
                    let before = bytes.len();
                    match self.fill(range.clone(), &mut bytes).await {
                        Ok(()) => return Ok(bytes.freeze()),
                        Err(error) => {
                            if bytes.len() > before {
                                attempts.progressed();
                            }
                            attempts.wait(error).await?;
                        }
                    }
                }
            }
            Origin::Layout { .. } | Origin::File(_) => self.read_file(range).await,
        }
    }

    /// One exchange towards the bytes of `range`, of which `bytes` has the first ones.
    async fn fill(&self, range: Range<u64>, bytes: &mut BytesMut) -> Result<(), FetchError> {
        let got = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let whole = range == (0..self.0.size);
        let first = range.start + got;
        let mut answer = self.ask(Some((first, Some(range.end - 1)))).await?;
        if answer.status() == StatusCode::OK {
            // The whole blob is also an answer if that is what we want; else stop before it costs.
            if !whole {
                let detail = "the server ignores that only a part of it was asked for";
                return Err(self.error(FetchErrorKind::RangeIgnored, detail));
            }
            bytes.clear();
        } else {
            self.check_partial(&answer, first, range.end)?;
        }
        let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        while bytes.len() < wanted {
            let part = answer.chunk(&self.0.subject).await?;
            let room = wanted - bytes.len();
            if part.len() > room {
                let detail = "the server sent more bytes than were asked for";
                return Err(self.error(FetchErrorKind::Malformed, detail));
            }
            bytes.extend_from_slice(&part);
        }
        Ok(())
    }

    /// That a 206 begins where we asked, ends not later, and is about a blob of the right length.
    pub(super) fn check_partial(
        &self,
        answer: &Answer,
        first: u64,
        end: u64,
    ) -> Result<(), FetchError> {
        let malformed = |detail: String| Err(self.error(FetchErrorKind::Malformed, detail));
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        if header(CONTENT_TYPE).is_some_and(|kind| kind.starts_with("multipart/")) {
            return malformed("the server sent several parts where one was asked for".to_owned());
        }
        let text = header(CONTENT_RANGE).unwrap_or_default();
        let Some((from, to, total)) = parse_content_range(text) else {
            let text: String = text.chars().take(80).collect();
            return malformed(format!("the server sent a part without saying which (`{text}`)"));
        };
        if total.is_some_and(|total| total != self.0.size) {
            let total = total.unwrap_or_default();
            let detail = format!("it has {total} bytes there, and {} in the manifest", self.0.size);
            return Err(FetchError::corrupt(&self.0.subject, detail));
        }
        if from != first || to < from || to >= end {
            return malformed(format!(
                "bytes {first} to {} were asked for, and {from} to {to} were sent",
                end - 1
            ));
        }
        Ok(())
    }

    pub(super) async fn ask(
        &self,
        range: Option<(u64, Option<u64>)>,
    ) -> Result<Answer, FetchError> {
        let Origin::Registry { shared, host, repository, path, redirect, answered } =
            &self.0.origin
        else {
            unreachable!("only blobs of registries are asked for")
        };
        let subject = &self.0.subject;
        let purpose = Purpose::Pull;
        let request = Request { subject, host, repository, path, purpose, accept: None, range };
        let answer = shared.get(&request, Some(redirect)).await?;
        *answered.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Arc::clone(&answer.endpoint));
        Ok(answer)
    }

    /// What came last was not what its digest says: whoever sent it is asked last for a while, so that the next request
    /// goes to another address, if there is one.
    pub fn distrust(&self) {
        let Origin::Registry { shared, redirect, answered, .. } = &self.0.origin else { return };
        *redirect.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let answered = answered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = &*answered {
            shared.failed(endpoint);
        }
    }

    pub(super) async fn read_file(&self, range: Range<u64>) -> Result<Bytes, FetchError> {
        let blob = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes =
                vec![0; usize::try_from(range.end - range.start).map_err(io::Error::other)?];
            blob.0.file()?.read_exact_at(&mut bytes, range.start)?;
            Ok(Bytes::from(bytes))
        });
        let outcome = match read.await {
            Ok(outcome) => outcome,
            Err(error) => Err(io::Error::other(error)),
        };
        outcome.map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => FetchError::corrupt(
                &self.0.subject,
                format!("the file has fewer than the {} bytes of the manifest", self.0.size),
            ),
            _ => FetchError::io(&self.0.subject, error),
        })
    }

    /// The whole blob in memory, verified; for configurations and other small ones.
    ///
    /// # Errors
    /// When it is larger than `limit`, cannot be fetched, or is not what its digest says.
    pub async fn bytes(&self, limit: u64) -> Result<Bytes, FetchError> {
        if self.0.size > limit {
            let detail =
                format!("it has {} bytes, more than the {limit} that it may have", self.0.size);
            return Err(self.error(FetchErrorKind::Malformed, detail));
        }
        let mut stream = self.stream().await?;
        let mut bytes = BytesMut::new();
        while let Some(part) = stream.next().await {
            bytes.extend_from_slice(&part?);
        }
        Ok(bytes.freeze())
    }

    pub(super) fn error(&self, kind: FetchErrorKind, detail: impl Into<String>) -> FetchError {
        FetchError::because(kind, &self.0.subject, detail).build()
    }
}

impl Inner {
    fn file(&self) -> io::Result<&File> {
        match &self.origin {
            Origin::File(file) => Ok(file),
            Origin::Layout { folder, file } => match file.get() {
                Some(file) => Ok(file),
                None => {
                    let opened = layout::open_blob(folder, &self.digest)?;
                    // Of two first readers one keeps its file; they are the same.
                    Ok(file.get_or_init(|| opened))
                }
            },
            Origin::Registry { .. } => unreachable!("a registry's blob is not a file"),
        }
    }
}

/// `bytes FIRST-LAST/TOTAL`, where the total may be `*`.
fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?, total))
}

/// The path of a blob below a layout folder.
pub(super) fn blob_path(folder: &Path, digest: &Digest) -> PathBuf {
    folder.join("blobs/sha256").join(digest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(parse_content_range("bytes 0-9/100"), Some((0, 9, Some(100))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, 9, None)));
        for text in ["", "bytes */100", "bytes 0-9", "items 0-9/10", "bytes a-b/c"] {
            assert_eq!(parse_content_range(text), None, "{text}");
        }
    }

    #[test]
    fn a_source_reads_back_what_it_writes() {
        for text in ["docker.io/library/nginx", "oci:/srv/x:v1"] {
            let source = BlobSource::of(&text.parse().unwrap());
            let json = serde_json::to_string(&source).unwrap();
            assert_eq!(serde_json::from_str::<BlobSource>(&json).unwrap(), source);
        }
    }
}
