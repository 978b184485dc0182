//! Why something could not be fetched, in words that name the host, the repository and the digest.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::tls;
use crate::image::{Digest, DocumentError};

/// What stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FetchErrorKind {
    /// The host's name does not resolve.
    Dns,
    /// No connection: refused, no route, no network.
    Unreachable,
    /// The connection broke in the middle of an answer, more often than we retry.
    Interrupted,
    /// No connection, or not a byte, for longer than we wait.
    Timeout,
    /// No trusted encrypted connection; also a server that does not speak TLS.
    Tls,
    /// Credentials are missing, wrong, or not enough.
    Unauthorized,
    /// The registry or folder does not have it.
    NotFound,
    /// The server sends the whole blob when asked for a part: this blob cannot be lazy.
    RangeIgnored,
    /// The server refuses to send parts: this blob cannot be lazy.
    RangeNotSatisfiable,
    /// The registry wants us to wait; see [`FetchError::retry_after`].
    TooManyRequests,
    /// The server's own failure.
    Server,
    /// The bytes are not the ones that the digest or size promises. Never retried in silence.
    Corrupt,
    /// A document or an answer that makes no sense.
    Malformed,
    /// The image is not built for the wanted platform.
    NoPlatform,
    /// A file of an image layout cannot be read.
    Io,
    /// An answer that a registry should not give.
    Unexpected,
    /// What this host's files say of the registry's addresses cannot be used.
    Settings,
}

/// Which thing could not be fetched from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subject {
    /// `manifest `v1``, `blob `sha256:…``.
    pub(super) what: String,
    /// `host/repository`, or the path of a layout.
    pub(super) place: String,
    /// Host and port that answered, for hints.
    pub(super) host: String,
    /// Of the blob or manifest, when known.
    pub(super) digest: Option<Digest>,
}

/// A failed fetch. Cheap to clone: many readers can wait for one fetch.
#[derive(Clone)]
pub struct FetchError(Arc<Details>);

struct Details {
    kind: FetchErrorKind,
    subject: Subject,
    detail: String,
    status: Option<u16>,
    retry_after: Option<Duration>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl FetchError {
    pub(super) fn because(
        kind: FetchErrorKind,
        subject: &Subject,
        detail: impl Into<String>,
    ) -> FetchErrorBuilder {
        FetchErrorBuilder(Details {
            kind,
            subject: subject.clone(),
            detail: detail.into(),
            status: None,
            retry_after: None,
            source: None,
        })
    }

    pub(super) fn corrupt(subject: &Subject, detail: impl Into<String>) -> Self {
        Self::because(FetchErrorKind::Corrupt, subject, detail).build()
    }

    pub(super) fn io(subject: &Subject, error: std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => FetchErrorKind::NotFound,
            _ => FetchErrorKind::Io,
        };
        let detail = match kind {
            FetchErrorKind::NotFound => "there is no such file in the folder",
            _ => "the file cannot be read",
        };
        Self::because(kind, subject, detail).source(error).build()
    }

    pub(super) fn document(subject: &Subject, error: DocumentError) -> Self {
        let kind = match error {
            DocumentError::NoPlatform { .. } => FetchErrorKind::NoPlatform,
            _ => FetchErrorKind::Malformed,
        };
        Self::because(kind, subject, "it cannot be used").source(error).build()
    }

    /// The same, with what the addresses said that were asked before.
    pub(super) fn after(self, said: &[String]) -> Self {
        if said.is_empty() {
            return self;
        }
        let Some(mut details) = Arc::into_inner(self.0) else {
            unreachable!("an error that nobody has seen yet is held once")
        };
        details.detail = format!("{} (before that, {})", details.detail, said.join("; "));
        Self(Arc::new(details))
    }

    /// What stands in the way, for decisions.
    #[must_use]
    pub fn kind(&self) -> FetchErrorKind {
        self.0.kind
    }

    /// One line on what stands in the way, without what was asked for.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0.detail
    }

    /// The digest of what was asked for, when it was known.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.0.subject.digest
    }

    /// Registry host that was asked, or the path of the layout folder.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.0.subject.host
    }

    /// The HTTP status of the answer, if there was one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// Whether the same request may succeed later with nothing changed on this host.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self.0.kind {
            FetchErrorKind::Dns
            | FetchErrorKind::Unreachable
            | FetchErrorKind::Interrupted
            | FetchErrorKind::Timeout
            | FetchErrorKind::TooManyRequests
            | FetchErrorKind::Server => true,
            FetchErrorKind::Tls
            | FetchErrorKind::Unauthorized
            | FetchErrorKind::NotFound
            | FetchErrorKind::RangeIgnored
            | FetchErrorKind::RangeNotSatisfiable
            | FetchErrorKind::Corrupt
            | FetchErrorKind::Malformed
            | FetchErrorKind::NoPlatform
            | FetchErrorKind::Io
            | FetchErrorKind::Unexpected
            | FetchErrorKind::Settings => false,
        }
    }

    /// Whether the server cannot send parts of the blob, so that the layer has to be pulled as a whole.
    #[must_use]
    pub fn is_range_unsupported(&self) -> bool {
        matches!(self.0.kind, FetchErrorKind::RangeIgnored | FetchErrorKind::RangeNotSatisfiable)
    }

    /// How long the server wants us to wait, if it said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// What a person can do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let host = &self.0.subject.host;
        let hint = match self.0.kind {
            FetchErrorKind::Dns => {
                format!("check the spelling of `{host}` and the name servers in /etc/resolv.conf")
            }
            FetchErrorKind::Unreachable => {
                format!("check that the registry at `{host}` runs and that this host reaches it")
            }
            FetchErrorKind::Interrupted | FetchErrorKind::Timeout => {
                format!("check the network between this host and `{host}`; a proxy may be needed")
            }
            FetchErrorKind::Tls => {
                tls::remedy(self.0.source.as_deref().map(|source| source as _), host)
            }
            FetchErrorKind::Unauthorized => format!(
                "run `docker login {host}` (or `skopeo login`), or check that the image's name is right: many \
                 registries answer like this for images that do not exist"
            ),
            FetchErrorKind::NotFound => "check the image's name and tag".to_owned(),
            FetchErrorKind::TooManyRequests => {
                format!("wait, or log in: `{host}` allows more requests to known users")
            }
            FetchErrorKind::Server => format!("`{host}` has a problem of its own; try again later"),
            FetchErrorKind::Corrupt => {
                "the registry or something before it sends wrong bytes; push the image again"
                    .to_owned()
            }
            FetchErrorKind::NoPlatform => {
                "build the image for this platform, or choose another one".to_owned()
            }
            FetchErrorKind::Settings => "mend that file, or move it away".to_owned(),
            FetchErrorKind::RangeIgnored
            | FetchErrorKind::RangeNotSatisfiable
            | FetchErrorKind::Malformed
            | FetchErrorKind::Io
            | FetchErrorKind::Unexpected => return None,
        };
        Some(hint)
    }
}

/// A [`FetchError`] in the making.
pub(super) struct FetchErrorBuilder(Details);

impl FetchErrorBuilder {
    pub(super) fn source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(super) fn status(mut self, status: u16) -> Self {
        self.0.status = Some(status);
        self
    }

    pub(super) fn retry_after(mut self, after: Option<Duration>) -> Self {
        self.0.retry_after = after;
        self
    }

    pub(super) fn build(self) -> FetchError {
        FetchError(Arc::new(self.0))
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Subject { what, place, .. } = &self.0.subject;
        write!(f, "could not fetch {what} from `{place}`: {}", self.0.detail)
    }
}

impl fmt::Debug for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchError")
            .field("kind", &self.0.kind)
            .field("message", &self.to_string())
            .field("status", &self.0.status)
            .field("source", &self.0.source)
            .finish_non_exhaustive()
    }
}

impl Error for FetchError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}
