//! A large blob over several connections at once: pieces that are fetched ahead and handed out in order.
//!
//! One connection is seldom given all of a link: storage services limit each, and after a lost packet only the others
//! go on at full speed. Memory is bounded by the number and the size of the pieces.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use reqwest::StatusCode;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::AbortHandle;

use super::answer::Answer;
use super::blob::Blob;
use super::error::{FetchError, FetchErrorKind};
use super::retry::{Attempts, RetryPolicy};

/// A smaller blob is one transfer: the requests would cost more than they bring.
pub(super) const LARGE_BYTES: u64 = 16 << 20;

/// Of a piece. Large against what one request costs, small enough to hold all of those that are ahead.
const PIECE_BYTES: u64 = 4 << 20;

/// Pieces that are fetched at once; so many connections for one blob, while several blobs are pulled together.
const PIECES: usize = 3;

/// Parts of one piece that wait for their turn: those of a whole piece, as they usually come.
const PARTS: usize = 256;

/// First and last byte of the first piece.
pub(super) const FIRST_REQUEST: (u64, Option<u64>) = (0, Some(PIECE_BYTES - 1));

/// The pieces that are under way.
#[derive(Debug)]
pub(super) struct Ahead {
    blob: Blob,
    policy: RetryPolicy,
    pieces: VecDeque<Piece>,
    /// Where the next piece begins.
    next: u64,
}

/// A piece under way, ended when it is dropped.
#[derive(Debug)]
struct Piece {
    parts: Receiver<Result<Bytes, FetchError>>,
    task: AbortHandle,
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ahead {
    /// Goes on from `answer`, which [`FIRST_REQUEST`] asked for.
    pub(super) fn begin(
        blob: &Blob,
        policy: &RetryPolicy,
        answer: Answer,
    ) -> Result<Self, FetchError> {
        blob.check_partial(&answer, 0, PIECE_BYTES)?;
        let mut ahead =
            Self { blob: blob.clone(), policy: policy.clone(), pieces: VecDeque::new(), next: 0 };
        ahead.fetch_next(Some(answer));
        while ahead.pieces.len() < PIECES && ahead.fetch_next(None) {}
        Ok(ahead)
    }

    /// The next bytes; `None` at the end of the last piece.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, FetchError>> {
        loop {
            if let Some(part) = self.pieces.front_mut()?.parts.recv().await {
                return Some(part);
            }
            self.pieces.pop_front();
            self.fetch_next(None);
        }
    }

    /// Starts the next piece, if there is one.
    fn fetch_next(&mut self, answer: Option<Answer>) -> bool {
        let range = self.next..self.blob.size().min(self.next + PIECE_BYTES);
        if range.is_empty() {
            return false;
        }
        self.next = range.end;
        let (sender, parts) = channel(PARTS);
        let (blob, attempts) = (self.blob.clone(), Attempts::new(&self.policy));
        let task = tokio::spawn(async move {
            if let Err(error) = fetch(&blob, range, answer, attempts, &sender).await {
                let _ = sender.send(Err(error)).await;
            }
        });
        self.pieces.push_back(Piece { parts, task: task.abort_handle() });
        true
    }
}

/// Sends all bytes of `range`, beginning with those of `answer`; continues where a transfer broke.
async fn fetch(
    blob: &Blob,
    mut range: Range<u64>,
    mut answer: Option<Answer>,
    mut attempts: Attempts,
    parts: &Sender<Result<Bytes, FetchError>>,
) -> Result<(), FetchError> {
    while !range.is_empty() {
        let before = range.start;
        if let Err(error) = receive(blob, &mut range, answer.take(), parts).await {
            if range.start > before {
                attempts.progressed();
            }
            attempts.wait(error).await?;
        }
    }
    Ok(())
}

/// One exchange towards the bytes of `range`, which begins after the last one that came.
async fn receive(
    blob: &Blob,
    range: &mut Range<u64>,
    answer: Option<Answer>,
    parts: &Sender<Result<Bytes, FetchError>>,
) -> Result<(), FetchError> {
    let mut answer = match answer {
        Some(answer) => answer,
        None => {
            let answer = blob.ask(Some((range.start, Some(range.end - 1)))).await?;
            if answer.status() != StatusCode::PARTIAL_CONTENT {
                let detail = "the server ignores that only a part of it was asked for";
                return Err(blob.error(FetchErrorKind::RangeIgnored, detail));
            }
            blob.check_partial(&answer, range.start, range.end)?;
            answer
        }
    };
    while !range.is_empty() {
        let part = answer.chunk(&blob.0.subject).await?;
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        if length > range.end - range.start {
            let detail = "the server sent more bytes than were asked for";
            return Err(blob.error(FetchErrorKind::Malformed, detail));
        }
        range.start += length;
        if !part.is_empty() && parts.send(Ok(part)).await.is_err() {
            // Nobody listens any more.
            range.start = range.end;
        }
    }
    Ok(())
}
