//! What a reader can meet. Errors are cloned to every reader that waited for the same fetch.

use std::sync::Arc;
use std::time::Duration;

use super::SourceError;
use crate::estargz::{ChunkError, IndexError};
use crate::image::Digest;

/// Why content could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// There is no such entry, or it has no content.
    #[error("entry `{entry}` of layer `{layer}` is not a file")]
    NotAFile {
        /// The layer.
        layer: Digest,
        /// Its number.
        entry: u32,
    },
    /// A chunk did not match its digest, fetched twice.
    #[error("chunk at byte `{offset}` of `{path}` is corrupt")]
    Corrupt {
        /// The file, relative to the root of the layer.
        path: String,
        /// Where in the file the chunk begins.
        offset: u64,
        /// What was found.
        #[source]
        source: Arc<ChunkError>,
    },
    /// The source cannot be reached, for as long as the engine was told to wait. A later read may succeed.
    #[error("source of layer `{layer}` did not answer within {} s", waited.as_secs())]
    Unavailable {
        /// The layer.
        layer: Digest,
        /// How long the reader waited.
        waited: Duration,
    },
    /// The source answered and does not give the bytes.
    #[error("content of layer `{layer}` could not be fetched")]
    Refused {
        /// The layer.
        layer: Digest,
        /// What it said.
        #[source]
        source: Arc<SourceError>,
    },
    /// Fetches that the reader waited for ended again and again without a result. A later read may succeed.
    #[error("fetch of content of layer `{0}` was interrupted")]
    Interrupted(Digest),
    /// The layer was closed while the reader waited.
    #[error("layer `{0}` is closed")]
    Closed(Digest),
}

/// Why a layer could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The content cache cannot be used.
    #[error("could not open the content cache at `{path}`")]
    Cache {
        /// Its directory.
        path: String,
        /// What failed.
        #[source]
        source: std::io::Error,
    },
    /// The index is damaged.
    #[error("index of layer `{layer}` cannot be used")]
    Index {
        /// The layer.
        layer: Digest,
        /// What is wrong with it.
        #[source]
        source: IndexError,
    },
    /// The same layer is open, with other entry numbers.
    #[error("layer `{0}` is open with another index")]
    OtherIndex(Digest),
}
