//! Why an image is not here.

use std::sync::Arc;
use std::time::Duration;

use super::room::Bound;
use crate::image::Digest;
use crate::layer::LayerError;
use crate::registry::FetchError;
use crate::store::StoreError;

/// Why an image is not here.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// Manifest or configuration could not be had.
    #[error("could not resolve `{image}`")]
    Resolve {
        /// Which image.
        image: String,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// A layer could not be had.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The content of a lazy layer does not come.
    #[error(
        "layer `{layer}` is not complete: {local} of {total} bytes are here, and no more came for {} s",
        waited.as_secs()
    )]
    Incomplete {
        /// Which layer.
        layer: Digest,
        /// Bytes of its content that are here.
        local: u64,
        /// Bytes of its content.
        total: u64,
        /// How long nothing came.
        waited: Duration,
    },
    /// Nobody waits for it any more.
    #[error("whoever asked has gone; what is here stays, and the rest comes in the background")]
    Abandoned,
    /// There is no room for it, also after what nothing needs was removed.
    #[error(
        "no room for `{image}`: it needs about {} MB, and {bound} leaves {} MB{}",
        needed.div_ceil(1_000_000),
        room / 1_000_000,
        kept_because.as_ref().map(|why| format!("; nothing was removed for it: {why}")).unwrap_or_default()
    )]
    NoRoom {
        /// Which image.
        image: String,
        /// Bytes that it will occupy, roughly.
        needed: u64,
        /// Bytes that it may.
        room: u64,
        /// Who says so.
        bound: Bound,
        /// Why something stays of which it is not known whether it is needed.
        kept_because: Option<String>,
    },
    /// The store refused.
    #[error("could not store the image `{image}`")]
    Store {
        /// Which image.
        image: String,
        /// Why.
        #[source]
        source: Arc<StoreError>,
    },
}

impl PullError {
    /// Whether another try may help without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Resolve { source, .. } => source.is_transient(),
            Self::Layer(source) => source.is_transient(),
            Self::Incomplete { .. } => true,
            Self::NoRoom { .. } | Self::Abandoned | Self::Store { .. } => false,
        }
    }

    /// Whether it is for want of space, which may return.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoRoom { .. } => true,
            Self::Layer(source) => source.is_disk_full(),
            Self::Store { source, .. } => source.is_disk_full(),
            Self::Resolve { .. } | Self::Incomplete { .. } | Self::Abandoned => false,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Resolve { source, .. } => source.hint(),
            Self::Layer(source) => source.hint(),
            Self::Incomplete { .. } => {
                Some("`supervisor events` tells why; the rest comes in the background".to_owned())
            }
            Self::Abandoned => None,
            Self::NoRoom { bound, .. } => Some(bound.hint().to_owned()),
            Self::Store { source, .. } => {
                source.is_disk_full().then(|| "free some space in the state directory".to_owned())
            }
        }
    }
}
