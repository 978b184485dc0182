//! The layers of a worker: opened from the connection's state at its start, added and released while it serves.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::options::Xattrs;
use super::protocol::{ConnectionEvent, LayerStatus, STATUS_PAGE};
use super::served::Served;
use super::session::{LayerMount, Session, SessionError, Slot};
use super::tree::{Layer, directory_name};
use crate::estargz::{IndexError, index};
use crate::image::Digest;
use crate::lazy::{Engine, Found, LayerSpec, LazyLayer};
use crate::registry::{Blob, BlobSource, Client};
use crate::store::{LayerDir, Store};
use crate::sys::MappedFile;
use crate::telemetry;

/// Why a layer cannot be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum LayersError {
    /// A later build mounted the layer; whoever goes on with it must be of that build or a later one.
    #[error("layer `{digest}` was mounted by a later version of this program")]
    NewerIndex {
        digest: Digest,
        #[source]
        source: IndexError,
    },
    #[error("index of layer `{digest}` cannot be used")]
    Index {
        digest: Digest,
        #[source]
        source: io::Error,
    },
    #[error("layer `{digest}` cannot be opened")]
    Open {
        digest: Digest,
        #[source]
        source: crate::lazy::OpenError,
    },
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("layer `{0}` is not mounted")]
    NotMounted(Digest),
    #[error("layer `{0}` has extended attributes, and this connection answers for none")]
    Xattrs(Digest),
}

/// What of a slot must be opened before the process is confined.
pub(super) struct Prepared {
    slot: Slot,
    index: Result<MappedFile, LayersError>,
    blob: io::Result<Option<File>>,
}

impl Prepared {
    /// Opens what can be opened. A damaged layer is served as damaged; one that is too new stops the take-over.
    pub(super) fn open(slot: Slot) -> Result<Self, LayersError> {
        let digest = slot.mount.digest;
        let index = map_index(&slot.mount);
        if let Ok(index) = &index
            && let Err(source @ IndexError::Version(_)) = index::check_version(index.as_ref())
        {
            return Err(LayersError::NewerIndex { digest, source });
        }
        let blob = Blob::open_layout_file(&slot.mount.source, &digest);
        Ok(Self { slot, index, blob })
    }
}

fn map_index(mount: &LayerMount) -> Result<MappedFile, LayersError> {
    File::open(&mount.index)
        .and_then(|file| MappedFile::open(&file))
        .map_err(|source| LayersError::Index { digest: mount.digest, source })
}

struct Mounted {
    mount: LayerMount,
    layer: Result<Arc<LazyLayer>, String>,
}

/// The layers by slot.
pub(super) struct Layers {
    session: Arc<Session>,
    engine: Engine,
    client: Client,
    store: Store,
    served: Arc<Served>,
    mounted: Mutex<BTreeMap<u32, Mounted>>,
}

impl Layers {
    pub(super) fn new(
        session: Arc<Session>,
        engine: Engine,
        client: Client,
        store: Store,
        served: Arc<Served>,
    ) -> Self {
        let open = Arc::downgrade(&served);
        engine.protect(move |found| {
            let Some(served) = open.upgrade() else { return };
            // The kernel may read their content without asking anybody.
            let inodes = served.handles.open_inodes();
            for (layer, entry) in inodes.iter().filter_map(|ino| served.tree.origin(*ino)) {
                found(layer, entry);
            }
        });
        Self { session, engine, client, store, served, mounted: Mutex::default() }
    }

    /// For when descriptors have run out: closes what is open for speed only.
    pub(super) fn close_idle_files(&self) {
        self.engine.close_idle_files();
    }

    /// Serves a layer that the connection had before.
    pub(super) fn begin(&self, prepared: Prepared, events: &broadcast::Sender<ConnectionEvent>) {
        let Prepared { slot: Slot { number, mount, .. }, index, blob } = prepared;
        let digest = mount.digest;
        let opened = index.and_then(|index| {
            // A layout that is gone costs what is not in the cache yet, no more.
            let blob = blob.unwrap_or_else(|error| {
                tracing::warn!(%digest, %error, "the blob of a layer cannot be opened");
                None
            });
            self.open(&mount, index, blob)
        });
        let layer = match opened {
            Ok(layer) => {
                self.served.tree.insert(number, digest, Arc::clone(&layer) as Arc<dyn Layer>);
                Ok(layer)
            }
            Err(error) => {
                let reason = telemetry::Chain(&error).to_string();
                tracing::error!(%digest, reason, "a layer of the connection cannot be served");
                self.served.tree.insert_broken(number, digest);
                let _ =
                    events.send(ConnectionEvent::LayerBroken { digest, reason: reason.clone() });
                Err(reason)
            }
        };
        self.lock().insert(number, Mounted { mount, layer });
    }

    /// Mounts a layer, or finds it mounted. Blocks on the disk.
    pub(super) fn mount(
        &self,
        mount: LayerMount,
        blob: Option<File>,
    ) -> Result<(u32, String), LayersError> {
        let digest = mount.digest;
        let mut mounted = self.lock();
        let present = mounted.iter().find(|(_, present)| present.mount.digest == digest);
        if let Some((&slot, present)) = present
            && present.layer.is_ok()
        {
            // Fails when the index is another one than that which the slot serves.
            self.open(&mount, map_index(&mount)?, blob)?;
            return Ok((slot, directory_name(slot, digest)));
        }
        let broken = present.map(|(slot, _)| *slot);
        let layer = self.open(&mount, map_index(&mount)?, blob)?;
        // Once for each layer: what has a slot of the connection has passed.
        if self.session.xattrs() == Xattrs::Absent && layer.index().has_xattrs() {
            layer.close();
            return Err(LayersError::Xattrs(digest));
        }
        if let Some(slot) = broken {
            // Its entries may be numbered differently now, so the old inodes must not mean anything.
            self.session.release_slot(slot);
            self.served.tree.remove(slot);
            mounted.remove(&slot);
        }
        let slot = self.session.append_slot(&mount)?;
        self.served.tree.insert(slot, digest, Arc::clone(&layer) as Arc<dyn Layer>);
        mounted.insert(slot, Mounted { mount, layer: Ok(layer) });
        Ok((slot, directory_name(slot, digest)))
    }

    fn open(
        &self,
        mount: &LayerMount,
        index: MappedFile,
        blob: Option<File>,
    ) -> Result<Arc<LazyLayer>, LayersError> {
        let digest = mount.digest;
        let source = match (blob, &mount.source) {
            (Some(file), _) => Blob::from_file(file, digest, mount.blob_size),
            (None, BlobSource::Registry { .. } | BlobSource::Layout { .. }) => {
                self.client.blob(&mount.source, digest, mount.blob_size)
            }
        };
        self.engine
            .open_layer(LayerSpec { digest, index }, Arc::new(source))
            .map_err(|source| LayersError::Open { digest, source })
    }

    /// Gives a layer's slot up for good.
    pub(super) fn release(&self, digest: Digest) -> Result<(), LayersError> {
        let mut mounted = self.lock();
        let slot = mounted
            .iter()
            .find(|(_, present)| present.mount.digest == digest)
            .map(|(slot, _)| *slot)
            .ok_or(LayersError::NotMounted(digest))?;
        self.session.release_slot(slot);
        self.served.tree.remove(slot);
        if let Some(Mounted { layer: Ok(layer), .. }) = mounted.remove(&slot) {
            layer.close();
        }
        Ok(())
    }

    /// Removes content that neither an open layer nor one of `keep` has, nor any of the store if these count; given
    /// `bytes`, only as much as is needed for them. Blocks.
    pub(super) fn evict(
        &self,
        mut keep: Vec<Digest>,
        stored: bool,
        bytes: Option<u64>,
    ) -> io::Result<Option<Found>> {
        if stored {
            let layers = self.store.layers().map_err(io::Error::other)?;
            keep.extend(layers.iter().map(LayerDir::digest));
        }
        let mut kept = Vec::with_capacity(keep.len());
        for digest in keep {
            kept.extend(LayerSpec::open(digest, &self.store.layer(digest).index_path())?);
        }
        self.engine.evict_unused(kept, bytes)
    }

    /// The open layer of a digest.
    pub(super) fn find(&self, digest: Digest) -> Result<Arc<LazyLayer>, LayersError> {
        self.lock()
            .values()
            .find(|present| present.mount.digest == digest)
            .and_then(|present| present.layer.as_ref().ok().cloned())
            .ok_or(LayersError::NotMounted(digest))
    }

    /// The layers after a slot, one message of them, and whether there are more.
    pub(super) fn status(&self, after: u32) -> (Vec<LayerStatus>, bool) {
        self.engine.notice_evictions();
        let mounted = self.lock();
        let mut later = mounted.range(after.saturating_add(1)..);
        let page = later.by_ref().take(STATUS_PAGE).map(|(&slot, present)| {
            let digest = present.mount.digest;
            let (local, total, is_complete, error) = match &present.layer {
                Ok(layer) => (layer.local_bytes(), layer.total_bytes(), layer.is_complete(), None),
                Err(reason) => (0, 0, false, Some(reason.clone())),
            };
            LayerStatus {
                slot,
                digest,
                name: directory_name(slot, digest),
                local_bytes: local,
                total_bytes: total,
                is_complete,
                is_prefetching: present.layer.as_ref().is_ok_and(|layer| layer.is_prefetching()),
                error,
            }
        });
        let page: Vec<_> = page.collect();
        (page, later.next().is_some())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Mounted>> {
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
