//! Part of a blob in order, as it arrives: continued where a transfer broke. Nothing is verified but its place.

use std::ops::Range;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use reqwest::StatusCode;

use super::answer::Answer;
use super::blob::{Blob, Origin};
use super::error::{FetchError, FetchErrorKind};
use super::retry::{Attempts, RetryPolicy};

/// Read from a file at once.
const FILE_STEP: u64 = 1 << 20;

impl Blob {
    /// The bytes of `range` in order, each piece as soon as it is here: exactly as many as asked for, unless an item is
    /// an error, which is the last one then.
    pub fn part(&self, range: Range<u64>) -> BoxStream<'static, Result<Bytes, FetchError>> {
        let policy = match &self.0.origin {
            Origin::Registry { shared, .. } => shared.options.retry.clone(),
            Origin::Layout { .. } | Origin::File(_) => RetryPolicy::default(),
        };
        let part = Part {
            blob: self.clone(),
            at: range.start,
            range,
            skip: 0,
            answer: None,
            attempts: Attempts::new(&policy),
        };
        stream::try_unfold(part, Part::next).boxed()
    }
}

/// A transfer under way.
struct Part {
    blob: Blob,
    range: Range<u64>,
    /// The next byte to hand out.
    at: u64,
    /// Bytes of the current answer that were handed out before it began.
    skip: u64,
    answer: Option<Answer>,
    attempts: Attempts,
}

impl Part {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, FetchError> {
        let Range { start, end } = self.range;
        if start > end || end > self.blob.0.size {
            let detail =
                format!("bytes {start}..{end} were asked for, and it has {}", self.blob.0.size);
            return Err(self.blob.error(FetchErrorKind::RangeNotSatisfiable, detail));
        }
        if self.at >= end {
            return Ok(None);
        }
        let bytes = match &self.blob.0.origin {
            Origin::Registry { .. } => loop {
                match self.receive().await {
                    Ok(bytes) if bytes.is_empty() => {}
                    Ok(bytes) => {
                        self.attempts.progressed();
                        break bytes;
                    }
                    Err(error) => {
                        self.answer = None;
                        self.attempts.wait(error).await?;
                    }
                }
            },
            Origin::Layout { .. } | Origin::File(_) => {
                self.blob.read_file(self.at..end.min(self.at + FILE_STEP)).await?
            }
        };
        self.at += bytes.len() as u64;
        Ok(Some((bytes, self)))
    }

    /// Asks for what is missing.
    async fn open(&mut self) -> Result<Answer, FetchError> {
        let end = self.range.end;
        let answer = self.blob.ask(Some((self.at, Some(end - 1)))).await?;
        self.skip = 0;
        if answer.status() == StatusCode::OK {
            // The whole blob is also an answer if that is what we want; else stop before it costs.
            if self.range != (0..self.blob.0.size) {
                let detail = "the server ignores that only a part of it was asked for";
                return Err(self.blob.error(FetchErrorKind::RangeIgnored, detail));
            }
            self.skip = self.at;
        } else {
            self.blob.check_partial(&answer, self.at, end)?;
        }
        Ok(answer)
    }

    async fn receive(&mut self) -> Result<Bytes, FetchError> {
        let mut answer = match self.answer.take() {
            Some(answer) => answer,
            None => self.open().await?,
        };
        let subject = &self.blob.0.subject;
        let mut part = answer.chunk(subject).await?;
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(part.len());
        self.skip -= skipped as u64;
        let _ = part.split_to(skipped);
        if part.len() as u64 > self.range.end - self.at {
            let detail = "the server sent more bytes than were asked for";
            return Err(self.blob.error(FetchErrorKind::Malformed, detail));
        }
        self.answer = Some(answer);
        Ok(part)
    }
}
