//! Where the bytes of a layer come from: ranges of its blob.
//!
//! The engine asks for ranges and judges an error only by whether waiting can help. Which host, which credentials
//! and how often to try again within one call is the business of the source.

use std::error::Error;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};

use crate::registry::{Blob, FetchError};

/// A blob that can be read in ranges.
pub trait RangeSource: Send + Sync + 'static {
    /// The bytes of `range` in order, each piece as soon as it is here: exactly as many as asked for, unless an item
    /// is an error, which is the last one then. They need not be right: every chunk is verified by its digest before
    /// anyone sees it.
    ///
    /// The stream is polled on the runtime of the engine and must not block its thread. Dropping it ends the transfer.
    fn stream(&self, range: Range<u64>) -> BoxStream<'_, Result<Bytes, SourceError>>;

    /// What came did not match its digest: the next range is to come from somebody else, if there is anybody.
    fn distrust(&self) {}
}

/// Why a range could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The source cannot be reached or is overloaded: the engine waits and tries again.
    #[error("the source of the layer cannot be reached")]
    Unreachable {
        /// How long the source asked to be left alone.
        retry_after: Option<Duration>,
        /// What happened.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The source answered, and trying again at once would get the same answer (not found, not authorized,
    /// ranges ignored).
    #[error("the source of the layer refused a range")]
    Refused {
        /// What it said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl SourceError {
    /// An error of the kind that passes.
    #[must_use]
    pub fn unreachable(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unreachable { retry_after: None, source: source.into() }
    }

    /// An error of the kind that stays.
    #[must_use]
    pub fn refused(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Refused { source: source.into() }
    }
}

impl RangeSource for Blob {
    fn stream(&self, range: Range<u64>) -> BoxStream<'_, Result<Bytes, SourceError>> {
        self.part(range).map(|piece| piece.map_err(SourceError::from)).boxed()
    }

    fn distrust(&self) {
        Self::distrust(self);
    }
}

impl From<FetchError> for SourceError {
    fn from(error: FetchError) -> Self {
        if error.is_transient() {
            Self::Unreachable { retry_after: error.retry_after(), source: Box::new(error) }
        } else {
            Self::Refused { source: Box::new(error) }
        }
    }
}
