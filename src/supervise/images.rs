//! Images on this host: pull them, make their layers ready, tell how much of each is here.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::try_join_all;
use tokio::sync::{mpsc, watch};

use super::events::{EventLog, Subject};
use super::layer_mounts::MountedImage;
use super::lazy_mounts::LazyMounts;
use super::pull_error::PullError;
use super::report::{EventLevel, PullProgress};
use super::room::Room;
use super::tally::{Tally, Teller};
use crate::image::{Digest, ImageConfig, ImageRef, Manifest, Platform};
use crate::layer::{DiffId, Kept, Layers, Manner, WantedLayer};
use crate::registry::{BlobSource, Client};
use crate::store::{ImageRecord, Lease, Store, StoreError};

/// How much of an image is brought here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Index of lazy layers; the others whole.
    Index,
    /// Index and prefetch of lazy layers; the others whole.
    Lazy,
    /// The same, and then all content of lazy layers, which stay lazy.
    Complete,
    /// Every layer whole.
    Full,
}

/// An image that is here: every layer indexed or unpacked.
#[derive(Debug, Clone)]
pub(super) struct LocalImage {
    pub(super) reference: ImageRef,
    pub(super) manifest_digest: Digest,
    pub(super) manifest: Manifest,
    pub(super) config: ImageConfig,
    pub(super) source: BlobSource,
    /// It stays here for as long as somebody has this.
    _leases: Arc<[Lease; 2]>,
}

impl LocalImage {
    pub(super) fn wanted(&self) -> Vec<WantedLayer> {
        let id = |place: usize| DiffId::Known(self.config.diff_ids.get(place).copied());
        WantedLayer::of_image(&self.manifest, &self.source, id)
    }
}

/// The images of one host.
#[derive(Debug)]
pub(super) struct Images {
    client: Client,
    pub(super) layers: Layers,
    pub(super) lazy: LazyMounts,
    platform: Platform,
    pub(super) events: EventLog,
    /// Why layers were pulled fully although lazy was asked for; of this run of control.
    pub(super) why_full: Mutex<HashMap<Digest, String>>,
    /// Where images are mounted for people.
    pub(super) mounts: Mutex<BTreeMap<PathBuf, MountedImage>>,
    /// Requests of people that are worked on; control does not end for want of work meanwhile.
    working: Arc<()>,
    tally: Arc<Tally>,
    /// Read while layers are mounted, written while slots are given up.
    pub(super) mounting: tokio::sync::RwLock<()>,
    /// Slots are to be given up as soon as nobody mounts.
    pub(super) release_due: AtomicBool,
    /// What may still be brought here.
    pub(super) room: Room,
    /// One lock per reference that is being pulled.
    pub(super) flights: Mutex<HashMap<ImageRef, Arc<tokio::sync::Mutex<()>>>>,
}

impl Images {
    pub(super) fn new(client: Client, layers: Layers, lazy: LazyMounts, events: EventLog) -> Self {
        Self {
            client,
            layers,
            lazy,
            platform: Platform::host(),
            events,
            why_full: Mutex::default(),
            mounts: Mutex::default(),
            working: Arc::default(),
            tally: Arc::default(),
            mounting: tokio::sync::RwLock::default(),
            release_due: AtomicBool::default(),
            room: Room::default(),
            flights: Mutex::default(),
        }
    }

    /// Marks that somebody waits for work on images, until it is dropped.
    pub(super) fn work(&self) -> Arc<()> {
        Arc::clone(&self.working)
    }

    /// Whether somebody waits for work on images.
    pub(super) fn is_working(&self) -> bool {
        Arc::strong_count(&self.working) > 1
    }

    pub(super) fn store(&self) -> &Store {
        self.layers.store()
    }

    /// The image if it is here completely enough to start: no network is asked.
    pub(super) fn local(&self, reference: &ImageRef) -> Result<Option<LocalImage>, StoreError> {
        let Some(record) = self.store().image(reference)? else { return Ok(None) };
        self.load(&record)
    }

    /// The same by manifest, for a container that was made from it.
    pub(super) fn local_manifest(
        &self,
        reference: &ImageRef,
        manifest: Digest,
    ) -> Result<Option<LocalImage>, StoreError> {
        self.load_manifest(reference, manifest)
    }

    pub(super) fn load(&self, record: &ImageRecord) -> Result<Option<LocalImage>, StoreError> {
        self.load_manifest(&record.reference, record.manifest)
    }

    fn load_manifest(
        &self,
        reference: &ImageRef,
        digest: Digest,
    ) -> Result<Option<LocalImage>, StoreError> {
        // Each before it is looked for.
        let of_manifest = self.store().lease([digest]);
        let Some(bytes) = self.store().read_blob(digest)? else { return Ok(None) };
        let Ok(crate::image::Document::Manifest(manifest)) =
            crate::image::Document::parse(&bytes, None)
        else {
            return Ok(None);
        };
        let parts = manifest.layers.iter().map(|layer| layer.digest);
        let of_parts = self.store().lease(parts.chain([manifest.config.digest]));
        let Some(bytes) = self.store().read_blob(manifest.config.digest)? else { return Ok(None) };
        let Ok(config) = ImageConfig::parse(&bytes) else { return Ok(None) };
        let here = manifest.layers.iter().all(|descriptor| {
            let layer = self.store().layer(descriptor.digest);
            layer.is_full() || layer.is_indexed_by(descriptor.toc_digest())
        });
        let source = BlobSource::of(reference);
        let leases = Arc::new([of_manifest, of_parts]);
        let image = LocalImage {
            reference: reference.clone(),
            manifest_digest: digest,
            manifest,
            config,
            source,
            _leases: leases,
        };
        Ok(here.then_some(image))
    }

    /// Brings the image here, if it is not: resolves it, and makes every layer ready.
    pub(super) async fn ensure(
        &self,
        reference: &ImageRef,
        extent: Extent,
    ) -> Result<LocalImage, PullError> {
        let local = self.local(reference).map_err(store_failed(reference))?;
        match local {
            Some(local) if matches!(extent, Extent::Index | Extent::Lazy) => Ok(local),
            _ => self.pull(reference, extent, None).await,
        }
    }

    /// Asks the source what the reference stands for now, and brings that here.
    pub(super) async fn pull(
        &self,
        reference: &ImageRef,
        extent: Extent,
        progress: Option<&mpsc::Sender<PullProgress>>,
    ) -> Result<LocalImage, PullError> {
        let flight = Arc::clone(
            self.flights
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(reference.clone())
                .or_default(),
        );
        let alone = flight.lock().await;
        let teller = Teller { image: reference, tally: &self.tally, progress };
        let result = self.pull_alone(reference, extent, teller).await;
        self.tally.end(reference);
        drop(alone);
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        // The map's and this one: nobody else waits for it.
        if Arc::strong_count(&flight) <= 2 {
            flights.remove(reference);
        }
        result
    }

    async fn pull_alone(
        &self,
        reference: &ImageRef,
        extent: Extent,
        teller: Teller<'_>,
    ) -> Result<LocalImage, PullError> {
        let unresolved = |source| PullError::Resolve { image: reference.to_string(), source };
        let located = self.client.locate(reference, &self.platform).await.map_err(unresolved)?;
        let failed = store_failed(reference);
        let store = self.store();
        // Before anything is looked for, and until the record says that it is in use.
        let lease = store.lease(super::room::parts(&located));
        let promise = self.make_room(reference, &located.manifest, extent).await?;
        if let Some((_, bytes)) = &located.index {
            store.write_blob(bytes).map_err(&failed)?;
        }
        store.write_blob(&located.manifest_bytes).map_err(&failed)?;
        teller.resolved(located.manifest_digest, &located.manifest).await;
        // The configuration and the ends of all layers in one round trip.
        let (ids, coming) = watch::channel(None);
        let id = |place| DiffId::Coming(coming.clone(), place);
        let wanted = WantedLayer::of_image(&located.manifest, &located.source, id);
        let config = async {
            let fetched = self.client.config(&located, &self.platform).await;
            let (bytes, config) = fetched.map_err(unresolved)?;
            store.write_blob(&bytes).map_err(&failed)?;
            ids.send_replace(Some(config.diff_ids.clone()));
            Ok::<_, PullError>(config)
        };
        let layers = wanted.iter().map(async |layer| {
            self.prepare(layer, extent, teller).await?;
            promise.keep(layer.descriptor.digest);
            Ok::<_, PullError>(())
        });
        let (config, _) = tokio::try_join!(config, try_join_all(layers))?;
        drop(promise);
        let local = LocalImage {
            reference: reference.clone(),
            manifest_digest: located.manifest_digest,
            manifest: located.manifest,
            config,
            source: located.source,
            _leases: Arc::new([lease, store.lease([])]),
        };
        let before = store.image(reference).map_err(&failed)?;
        let previous = before.and_then(|before| match before.manifest == local.manifest_digest {
            true => before.previous,
            false => Some(before.manifest),
        });
        let record = ImageRecord {
            reference: reference.clone(),
            manifest: local.manifest_digest,
            index: located.index.map(|(digest, _)| digest),
            platform: self.platform.clone(),
            pulled_at: jiff::Timestamp::now(),
            previous,
        };
        // Last, so that what the store lists is here.
        store.record_image(&record).map_err(&failed)?;
        self.settle();
        if extent == Extent::Complete {
            self.complete(&local, teller).await?;
        }
        let attributes =
            [("image", reference.to_string()), ("digest", local.manifest_digest.to_string())];
        self.events.emit(
            Subject::Host,
            EventLevel::Info,
            "image-pulled",
            format!("{reference} is here"),
            attributes,
        );
        Ok(local)
    }

    async fn prepare(
        &self,
        wanted: &WantedLayer,
        extent: Extent,
        teller: Teller<'_>,
    ) -> Result<(), PullError> {
        let digest = wanted.descriptor.digest;
        let told = teller.layer(digest);
        let prepare = |manner| self.layers.prepare(wanted, manner, &told);
        let kept = match extent {
            Extent::Full => prepare(Manner::Full(None)).await?,
            Extent::Index | Extent::Lazy | Extent::Complete
                if wanted.descriptor.toc_digest().is_some() =>
            {
                let indexed = self.lazy.ensure_during(prepare(Manner::Lazy)).await;
                match indexed {
                    Ok(kept) => kept?,
                    Err(reason) => prepare(Manner::Full(Some(reason))).await?,
                }
            }
            Extent::Index | Extent::Lazy | Extent::Complete => prepare(Manner::Lazy).await?,
        };
        let why_full = self.note(digest, &kept);
        // The prefetch runs from here on; nobody waits for it.
        if kept == Kept::Indexed && extent == Extent::Lazy {
            let _mounting = self.mounting.read().await;
            if let Err(reason) = self.lazy.prefetch(&self.store().layer(digest)).await {
                tracing::debug!(layer = %digest, reason, "could not prefetch");
            }
        }
        match kept {
            Kept::Full(..) => teller.complete(digest, false, why_full).await,
            // It is told when the rest is here too.
            Kept::Indexed if extent == Extent::Complete => {}
            Kept::Indexed => teller.indexed(digest).await,
        }
        Ok(())
    }

    /// How far the pull of an image is, 0 to 100, while there is one.
    pub(super) fn pulled_percent(&self, image: &ImageRef) -> Option<u8> {
        self.tally.percent(image)
    }

    /// Syncs full layers that were unpacked without waiting for the disk. Nobody waits for this either: after a power
    /// cut before its end they are fetched again.
    pub(super) fn settle(&self) {
        let store = self.store().clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store.settle() {
                tracing::warn!(error = %crate::telemetry::Chain(&error), "full layers could not be synced");
            }
        });
    }

    pub(super) fn note(&self, digest: Digest, kept: &Kept) -> Option<String> {
        let Kept::Full(_, Some(why)) = kept else { return None };
        self.why_full.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, why.clone());
        Some(why.clone())
    }
}

fn store_failed(reference: &ImageRef) -> impl Fn(StoreError) -> PullError {
    let image = reference.to_string();
    move |source| PullError::Store { image: image.clone(), source: Arc::new(source) }
}
