//! A whole blob in order: resumed where a transfer broke, checked against length and digest at its end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use reqwest::StatusCode;

use super::ahead::{self, Ahead, LARGE_BYTES};
use super::answer::Answer;
use super::blob::{Blob, Origin};
use super::error::{FetchError, FetchErrorKind};
use super::retry::{Attempts, RetryPolicy};
use crate::image::Hasher;

/// Read from a file at once: large enough to keep the digest busy, small enough to hold several.
const FILE_STEP: u64 = 1 << 20;

impl Blob {
    /// The whole blob from its first byte. A transfer that breaks is continued by range requests; the last item is
    /// an error if length or digest turn out wrong.
    ///
    /// # Errors
    /// When the transfer cannot begin.
    pub async fn stream(&self) -> Result<BlobStream, FetchError> {
        let policy = match &self.0.origin {
            Origin::Registry { shared, .. } => shared.options.retry.clone(),
            Origin::Layout { .. } | Origin::File(_) => RetryPolicy::default(),
        };
        let mut transfer = Transfer {
            blob: self.clone(),
            offset: 0,
            skip: 0,
            answer: None,
            hasher: Hasher::new(),
            attempts: Attempts::new(&policy),
            manner: if self.0.size >= LARGE_BYTES { Manner::Pieces } else { Manner::Whole },
            ahead: None,
            policy,
        };
        if matches!(self.0.origin, Origin::Registry { .. }) && self.0.size > 0 {
            while let Err(error) = transfer.open().await {
                transfer.attempts.wait(error).await?;
            }
        }
        let stream = stream::try_unfold(Some(transfer), |transfer| async move {
            match transfer {
                None => Ok(None),
                Some(transfer) => transfer.next().await,
            }
        });
        Ok(BlobStream(stream.boxed()))
    }
}

/// The bytes of a blob in order; see [`Blob::stream`].
pub struct BlobStream(BoxStream<'static, Result<Bytes, FetchError>>);

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BlobStream")
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, FetchError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

/// A stream under way.
struct Transfer {
    blob: Blob,
    /// Bytes handed out.
    offset: u64,
    /// Bytes of the current answer that were handed out before it began.
    skip: u64,
    answer: Option<Answer>,
    hasher: Hasher,
    attempts: Attempts,
    policy: RetryPolicy,
    manner: Manner,
    /// What is fetched in pieces.
    ahead: Option<Ahead>,
}

/// How a transfer is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// In pieces, if the server sends them.
    Pieces,
    /// From the offset to the end.
    Whole,
}

type Step = Option<(Bytes, Option<Transfer>)>;

impl Transfer {
    async fn next(mut self) -> Result<Step, FetchError> {
        let inner = Arc::clone(&self.blob.0);
        if self.offset == inner.size {
            let found = self.hasher.finish();
            return if found == inner.digest {
                Ok(None)
            } else {
                let detail = format!("the bytes that came have the digest `{found}`");
                self.blob.distrust();
                Err(FetchError::corrupt(&inner.subject, detail))
            };
        }
        let bytes = match inner.origin {
            Origin::Registry { .. } => loop {
                match self.receive().await {
                    Ok(bytes) if bytes.is_empty() => {}
                    Ok(bytes) => {
                        self.attempts.progressed();
                        break bytes;
                    }
                    // A piece has been tried again often enough.
                    Err(error) if self.ahead.is_some() => return Err(error),
                    Err(error) => {
                        self.answer = None;
                        self.attempts.wait(error).await?;
                    }
                }
            },
            Origin::Layout { .. } | Origin::File(_) => {
                let end = inner.size.min(self.offset + FILE_STEP);
                self.blob.read_file(self.offset..end).await?
            }
        };
        self.hasher.update(&bytes);
        self.offset += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(Some((bytes, Some(self))))
    }

    /// Begins the transfer at the present offset.
    async fn open(&mut self) -> Result<(), FetchError> {
        let size = self.blob.0.size;
        let range = match self.manner {
            Manner::Pieces => Some(ahead::FIRST_REQUEST),
            Manner::Whole => (self.offset > 0).then_some((self.offset, None)),
        };
        let answer = match self.blob.ask(range).await {
            Err(error) if error.is_range_unsupported() => self.blob.ask(None).await?,
            outcome => outcome?,
        };
        if answer.status() == StatusCode::OK {
            if let Some(length) = answer.content_length()
                && length != size
            {
                let detail = format!("it has {length} bytes there, and {size} in the manifest");
                return Err(FetchError::corrupt(&self.blob.0.subject, detail));
            }
            // The server cannot continue; what we have is read over again, at its cost.
            self.skip = self.offset;
            self.manner = Manner::Whole;
        } else if self.manner == Manner::Pieces {
            self.ahead = Some(Ahead::begin(&self.blob, &self.policy, answer)?);
            return Ok(());
        } else {
            self.blob.check_partial(&answer, self.offset, size)?;
            self.skip = 0;
        }
        self.answer = Some(answer);
        Ok(())
    }

    async fn receive(&mut self) -> Result<Bytes, FetchError> {
        if let Some(ahead) = &mut self.ahead {
            match ahead.next().await {
                Some(Err(error)) if error.is_range_unsupported() => {}
                Some(outcome) => return outcome,
                None => {
                    let detail = "the server sent fewer bytes than were asked for";
                    return Err(self.blob.error(FetchErrorKind::Interrupted, detail));
                }
            }
            // It sent parts before and does so no more.
            self.ahead = None;
            self.manner = Manner::Whole;
        }
        if self.answer.is_none() {
            self.open().await?;
            if self.ahead.is_some() {
                return Ok(Bytes::new());
            }
        }
        let answer = self.answer.as_mut().expect("opened above");
        let subject = &self.blob.0.subject;
        let mut part = answer.chunk(subject).await?;
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(part.len());
        self.skip -= u64::try_from(skipped).unwrap_or(0);
        let _ = part.split_to(skipped);
        if u64::try_from(part.len()).unwrap_or(u64::MAX) > self.blob.0.size - self.offset {
            let detail = format!("more bytes came than the {} of the manifest", self.blob.0.size);
            return Err(FetchError::corrupt(subject, detail));
        }
        Ok(part)
    }
}
