//! A layer's blob in memory, as a source that can fail, lie, and stand still when a test says so.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;

use crate::lazy::{RangeSource, SourceError};

/// What the source does about one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The right bytes.
    Right,
    /// As many bytes, all wrong.
    Wrong,
    /// One byte too few.
    Short,
    /// Cannot be reached.
    Unreachable,
    /// Refuses.
    Refused,
    /// So many right bytes, and then nothing until the source is released once more.
    Stalls(usize),
    /// So many right bytes, and then it cannot be reached.
    Breaks(usize),
}

/// A [`RangeSource`] over bytes in memory that follows a script and counts.
#[derive(Debug)]
pub struct ScriptedSource {
    blob: Bytes,
    state: Mutex<State>,
    open: watch::Sender<bool>,
    arrived: watch::Sender<usize>,
}

#[derive(Debug)]
struct State {
    script: VecDeque<Answer>,
    otherwise: Answer,
    requests: Vec<Range<u64>>,
}

impl ScriptedSource {
    /// A source of `blob` that answers rightly.
    #[must_use]
    pub fn new(blob: impl Into<Bytes>) -> Self {
        Self {
            blob: blob.into(),
            state: Mutex::new(State {
                script: VecDeque::new(),
                otherwise: Answer::Right,
                requests: Vec::new(),
            }),
            open: watch::Sender::new(true),
            arrived: watch::Sender::new(0),
        }
    }

    /// Answers the next requests so, in this order.
    pub fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.lock().script.extend(answers);
    }

    /// Answers every request so that the script says nothing about.
    pub fn otherwise(&self, answer: Answer) {
        self.lock().otherwise = answer;
    }

    /// Keeps requests waiting from now on.
    pub fn hold(&self) {
        self.open.send_replace(false);
    }

    /// Answers the requests that wait, and all further ones.
    pub fn release(&self) {
        self.open.send_replace(true);
    }

    /// The ranges that were asked for, in the order of their arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<Range<u64>> {
        self.lock().requests.clone()
    }

    /// Waits until `count` requests have arrived since the beginning.
    ///
    /// # Panics
    /// When they do not within half a minute.
    pub async fn wait_for_requests(&self, count: usize) {
        let mut arrived = self.arrived.subscribe();
        let wait = arrived.wait_for(|arrived| *arrived >= count);
        let in_time = tokio::time::timeout(Duration::from_secs(30), wait).await;
        assert!(in_time.is_ok(), "{} requests came, {count} were expected", self.requests().len());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes(&self, range: Range<u64>) -> Option<Bytes> {
        let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
        (start <= end && end <= self.blob.len()).then(|| self.blob.slice(start..end))
    }
}

/// What comes of an answer after its first bytes.
enum Later {
    Nothing,
    /// These, when the source is released the next time.
    Released(Bytes),
    Broken,
}

/// A small part of what a chunk has, so that none comes in one piece.
const PIECE: usize = 1000;

impl ScriptedSource {
    /// What comes at once, and what later.
    async fn answer(&self, range: Range<u64>) -> Result<(Bytes, Later), SourceError> {
        let answer = {
            let mut state = self.lock();
            state.requests.push(range.clone());
            let otherwise = state.otherwise;
            state.script.pop_front().unwrap_or(otherwise)
        };
        self.arrived.send_modify(|arrived| *arrived += 1);
        let mut open = self.open.subscribe();
        // The sender lives in `self`.
        drop(open.wait_for(|open| *open).await);
        let mut right = self
            .bytes(range)
            .ok_or_else(|| SourceError::refused("the range is not inside the blob"))?;
        match answer {
            Answer::Right => Ok((right, Later::Nothing)),
            Answer::Wrong => Ok((right.iter().map(|byte| !byte).collect(), Later::Nothing)),
            Answer::Short => Ok((right.slice(..right.len().saturating_sub(1)), Later::Nothing)),
            Answer::Stalls(after) => {
                let now = right.split_to(after.min(right.len()));
                Ok((now, Later::Released(right)))
            }
            Answer::Breaks(after) => Ok((right.slice(..after.min(right.len())), Later::Broken)),
            Answer::Unreachable => Err(SourceError::unreachable("the script says so")),
            Answer::Refused => Err(SourceError::refused("the script says so")),
        }
    }
}

impl RangeSource for ScriptedSource {
    fn stream(&self, range: Range<u64>) -> BoxStream<'_, Result<Bytes, SourceError>> {
        let pieces = |bytes: Bytes| {
            let starts = (0..bytes.len()).step_by(PIECE);
            let piece = move |at: usize| Ok(bytes.slice(at..bytes.len().min(at + PIECE)));
            stream::iter(starts).map(piece)
        };
        stream::once(self.answer(range))
            .flat_map(move |answer| match answer {
                Err(error) => stream::iter([Err(error)]).boxed(),
                Ok((now, later)) => {
                    let mut open = self.open.subscribe();
                    let later = async move {
                        match later {
                            Later::Nothing => stream::empty().boxed(),
                            Later::Released(bytes) => {
                                // The sender lives in `self`.
                                drop(open.changed().await);
                                pieces(bytes).boxed()
                            }
                            Later::Broken => {
                                let broken = SourceError::unreachable("the script says so");
                                stream::iter([Err(broken)]).boxed()
                            }
                        }
                    };
                    pieces(now).chain(stream::once(later).flatten()).boxed()
                }
            })
            .boxed()
    }
}
