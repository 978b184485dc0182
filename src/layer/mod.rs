//! One layer of an image made ready: lazy or unpacked, and why.
//!
//! A layer is made ready once, however many services ask at the same time. It is lazy when everything that laziness
//! needs is there; each thing that is missing is a reason, and the layer is fully pulled instead. Whoever starts a
//! container therefore always gets directories.
//!
//! From a reference to a container that starts there are, one after the other, these exchanges with a registry: the
//! manifest (two where the reference names an index of several platforms), then the configuration and the tails of all
//! layers at the same time, then the first content, which is fetched while the container starts: what is marked, or the
//! users, the program, its loader and its C library, all at the same time. One request brings the table of contents of
//! most layers; a larger one costs another. On top come what the registry wants: connections, a token, a redirect to its
//! storage, which is remembered. The number of layers adds nothing.

mod full;
mod index;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::estargz::TocError;
use crate::image::{Descriptor, Digest, Manifest};
use crate::registry::{BlobSource, Client, FetchError};
use crate::store::{LayerDir, LayerSource, Store, StoreError};
use crate::sys::process::SealedExe;
use crate::unpack::{ChildError, FailureKind};

pub use index::NotLazy;

/// A layer that is asked for.
#[derive(Debug, Clone)]
pub struct WantedLayer {
    /// As the manifest has it.
    pub descriptor: Descriptor,
    /// Digest of the inflated layer.
    pub diff_id: DiffId,
    /// Where its bytes are.
    pub source: BlobSource,
}

impl WantedLayer {
    /// The layers of an image, lowest first; `id` gives what the configuration tells of the one at a place.
    #[must_use]
    pub fn of_image(
        manifest: &Manifest,
        source: &BlobSource,
        id: impl Fn(usize) -> DiffId,
    ) -> Vec<Self> {
        let layers = manifest.layers.iter().enumerate().map(|(place, descriptor)| Self {
            descriptor: descriptor.clone(),
            diff_id: id(place),
            source: source.clone(),
        });
        layers.collect()
    }
}

/// The digest of an inflated layer. The image's configuration tells it, which may come after the layer is asked for.
#[derive(Debug, Clone)]
pub enum DiffId {
    /// It is here, or nobody knows it.
    Known(Option<Digest>),
    /// The one at this place, when they come.
    Coming(watch::Receiver<Option<Vec<Digest>>>, usize),
}

impl DiffId {
    /// Waits for it; for ever if those who fetch the configuration gave up, since they give up this layer too.
    async fn get(&self) -> Option<Digest> {
        match self {
            Self::Known(digest) => *digest,
            Self::Coming(ids, place) => {
                let mut ids = ids.clone();
                let digest = match ids.wait_for(Option::is_some).await {
                    Ok(ids) => Some(ids.as_ref().and_then(|ids| ids.get(*place).copied())),
                    Err(_) => None,
                };
                match digest {
                    Some(digest) => digest,
                    None => std::future::pending().await,
                }
            }
        }
    }
}

/// How a layer is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// By its index; the content comes when it is read.
    Indexed,
    /// Unpacked, in this directory, and why not lazily.
    Full(PathBuf, Option<String>),
}

/// Which way a layer should be made ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manner {
    /// Lazily where that is possible.
    Lazy,
    /// Unpacked, for this reason if it is not the user's wish.
    Full(Option<String>),
}

/// What arrives while a layer is made ready: bytes so far, of how many.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Why a layer could not be made ready in any way.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LayerError {
    /// Its media type is none of a layer.
    #[error("layer `{digest}` has the unknown media type `{media_type}`")]
    MediaType {
        /// Which layer.
        digest: Digest,
        /// As the manifest has it.
        media_type: String,
    },
    /// Its bytes could not be had.
    #[error("could not fetch layer `{digest}`")]
    Fetch {
        /// Which layer.
        digest: Digest,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// Its bytes could not be unpacked.
    #[error("could not unpack layer `{digest}`")]
    Unpack {
        /// Which layer.
        digest: Digest,
        /// Why.
        #[source]
        source: Arc<ChildError>,
    },
    /// The store could not take it.
    #[error("could not store layer `{digest}`")]
    Store {
        /// Which layer.
        digest: Digest,
        /// Why.
        #[source]
        source: Arc<StoreError>,
    },
}

impl LayerError {
    /// Whether another try may help without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Fetch { source, .. } if source.is_transient())
    }

    /// Whether it is for want of space, which may return.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Store { source, .. } => source.is_disk_full(),
            Self::Unpack { source, .. } => source.kind() == FailureKind::DiskFull,
            Self::MediaType { .. } | Self::Fetch { .. } => false,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Fetch { source, .. } => source.hint(),
            _ if self.is_disk_full() => Some("free some space in the state directory".to_owned()),
            _ => None,
        }
    }
}

/// Tables of contents beyond the first request that are fetched at a time.
const LARGE_TAILS: usize = 4;

/// Makes layers ready; one for a host.
#[derive(Debug)]
pub struct Layers {
    store: Store,
    client: Client,
    exe: Arc<SealedExe>,
    /// One lock per layer that is being made ready, so that it is fetched once.
    flights: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    /// Held while a table of contents is inflated and read: a hostile one of a few megabytes takes hundreds of times
    /// as much memory, which layers that are pulled at the same time must not multiply.
    reading: tokio::sync::Mutex<()>,
    /// For those whose table of contents is larger than the first request; for the same reason.
    large_tails: tokio::sync::Semaphore,
    /// One permit for each layer that is unpacked: each takes a process, connections, and tens of megabytes.
    unpacking: tokio::sync::Semaphore,
    /// Bytes of the disk that unpacking leaves free.
    reserve: u64,
}

impl Layers {
    /// Layers of `store`, fetched with `client` and unpacked by children from `exe`.
    #[must_use]
    pub fn new(store: Store, client: Client, exe: Arc<SealedExe>) -> Self {
        Self {
            store,
            client,
            exe,
            flights: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            large_tails: tokio::sync::Semaphore::new(LARGE_TAILS),
            unpacking: tokio::sync::Semaphore::new(full::parallel()),
            reserve: 0,
        }
    }

    /// Leaves so many bytes of the disk free.
    #[must_use]
    pub fn keep_free(self, reserve: u64) -> Self {
        Self { reserve, ..self }
    }

    /// The store that they are in.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Makes `wanted` ready. What is here already is left as it is, whichever way was asked for; a full layer also
    /// answers a wish for a lazy one.
    ///
    /// # Errors
    /// When the layer can be had in no way.
    pub async fn prepare(
        &self,
        wanted: &WantedLayer,
        manner: Manner,
        progress: &Progress,
    ) -> Result<Kept, LayerError> {
        let digest = wanted.descriptor.digest;
        let flight = Arc::clone(
            self.flights.lock().unwrap_or_else(PoisonError::into_inner).entry(digest).or_default(),
        );
        let kept = {
            let _alone = flight.lock().await;
            self.prepare_alone(wanted, manner, progress).await
        };
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        // Two: this one and the map's. Whoever waits holds a third.
        if Arc::strong_count(&flight) == 2 {
            flights.remove(&digest);
        }
        kept
    }

    async fn prepare_alone(
        &self,
        wanted: &WantedLayer,
        manner: Manner,
        progress: &Progress,
    ) -> Result<Kept, LayerError> {
        let layer = self.store.layer(wanted.descriptor.digest);
        if layer.is_full() {
            let why = match manner {
                Manner::Lazy => None,
                Manner::Full(why) => why,
            };
            return Ok(Kept::Full(layer.full_path(), why));
        }
        let why = match manner {
            Manner::Full(why) => why,
            Manner::Lazy => match self.index(&layer, wanted, progress).await? {
                Ok(()) => return Ok(Kept::Indexed),
                Err(reason) => Some(reason.to_string()),
            },
        };
        self.unpack(&layer, wanted, progress).await?;
        Ok(Kept::Full(layer.full_path(), why))
    }

    async fn source_of(wanted: &WantedLayer) -> Result<LayerSource, LayerError> {
        let Some(compression) = wanted.descriptor.compression() else {
            return Err(LayerError::MediaType {
                digest: wanted.descriptor.digest,
                media_type: wanted.descriptor.media_type.clone(),
            });
        };
        Ok(LayerSource {
            blob: serde_json::to_value(&wanted.source).expect("a blob source is plain data"),
            size: wanted.descriptor.size,
            compression,
            toc_digest: wanted.descriptor.toc_digest(),
            diff_id: wanted.diff_id.get().await,
        })
    }
}

/// The layer's error for what the store said.
fn store_failed(layer: &LayerDir) -> impl Fn(StoreError) -> LayerError + use<> {
    let digest = layer.digest();
    move |source| LayerError::Store { digest, source: Arc::new(source) }
}

/// A table of contents that cannot be used is a reason, not a failure: the layer itself may be sound.
fn not_lazy(error: &TocError) -> NotLazy {
    NotLazy::Toc(crate::telemetry::Chain(error).to_string())
}
