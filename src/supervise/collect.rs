//! Collection: what nothing needs any more is removed, alone with the store and with everybody who mounts.
//!
//! What is in use is asked of everybody who may use something: services files, containers, mounted images, and those who
//! serve lazy layers. Pulls go on meanwhile; what they bring is leased. Nothing is mounted while something is removed, so
//! that no layer goes between the question and the mount.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::RwLockWriteGuard;

use super::events::Subject;
use super::handle::{RequestError, RequestErrorKind};
use super::held::ContainerRecord;
use super::images::Images;
use super::report::{EventLevel, PruneReport, Pruned};
use crate::fuse::Spare;
use crate::image::{Digest, ImageRef};
use crate::lazy::{Found, LayerSpec, Limits, Survey};
use crate::rootfs;
use crate::store::{
    CONTAINER_RECORD, Class, Inventory, Item, Leftover, Reach, Store, StoreError, Uses,
};
use crate::sys::MappedFile;
use crate::sys::process::boot_id;
use crate::telemetry::Chain;

/// How long a collection waits for those who mount.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// What is collected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PruneOptions {
    /// Which images.
    pub reach: Reach,
    /// What of lazy content.
    pub content: Contents,
    /// Whether it is done.
    pub manner: PruneManner,
}

/// Which content of lazy layers is collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// What no layer of the store has.
    Orphans,
    /// What no layer has that is in use at present.
    Idle,
}

/// Whether something is removed, or only looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneManner {
    /// It is removed.
    Remove,
    /// It is told.
    DryRun,
}

/// Images, and one of the services or containers that each is for.
pub(super) type Users = BTreeMap<ImageRef, String>;

/// A container, as far as its image goes.
pub(super) struct ContainerImage {
    pub(super) id: String,
    pub(super) reference: ImageRef,
    pub(super) manifest: Digest,
}

impl Images {
    /// The images of all containers; `None` if the record of one cannot be read, which may have any.
    pub(super) fn of_containers(&self) -> Option<Vec<ContainerImage>> {
        let store = self.store();
        let mut images = Vec::new();
        for id in store.containers().ok()? {
            let path = store.root().join("containers").join(&id).join(CONTAINER_RECORD);
            // A folder without one is of a container that is being made, from an image that a services file names.
            let Some(record) = store.load::<ContainerRecord>(&path).ok()? else { continue };
            let ContainerRecord { image, manifest, mounted, .. } = record;
            let all = mounted.into_iter().chain([(image, manifest)]);
            let used =
                |(reference, manifest)| ContainerImage { id: id.clone(), reference, manifest };
            images.extend(all.map(used));
        }
        Some(images)
    }

    /// Everything that is in use, but for what is only mounted. `wanted` are the images of services files.
    pub(super) fn uses(&self, wanted: &Users) -> Uses {
        let mut uses = Uses { images: wanted.keys().cloned().collect(), ..Uses::default() };
        match self.of_containers() {
            Some(images) => uses.manifests = images.iter().map(|image| image.manifest).collect(),
            None => uses.unknown = Some("the record of a container cannot be read".to_owned()),
        }
        let here = self.mounts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for image in here.values() {
            uses.layers.extend(&image.lazy);
            uses.layers.extend(image.layers.iter().filter_map(|path| layer_at(path)));
        }
        let mounted = rootfs::image_mounts(self.lazy.instance()).unwrap_or_default();
        if let Some(other) = mounted.iter().find(|target| !here.contains_key(*target)) {
            let message = format!(
                "an image is mounted at `{}` since before this supervisor began",
                other.display()
            );
            uses.unknown.get_or_insert(message);
        }
        uses
    }

    /// Removes what nothing needs, or tells what would be removed. `wanted` are the images of services files.
    pub(super) async fn collect(
        &self,
        wanted: &Users,
        options: &PruneOptions,
    ) -> Result<PruneReport, RequestError> {
        let (_alone, uses) = match options.manner {
            PruneManner::Remove => {
                // What is mounted only because it was pulled, or somebody looked how much of it is here.
                self.release_unneeded(|| self.needed(wanted)).await;
                let alone = self.alone().await?;
                let mut uses = self.uses(wanted);
                match self.lazy.mounted().await {
                    Ok(layers) => uses.layers.extend(layers),
                    Err(reason) => drop(uses.unknown.get_or_insert(reason)),
                }
                (Some(alone), uses)
            }
            PruneManner::DryRun => (None, self.uses(wanted)),
        };
        let store = self.store().clone();
        let reach = options.reach.clone();
        let inventory = blocking(move || store.inventory(&uses, &reach)).await?.map_err(failed)?;
        let mut report = PruneReport::default();
        report.kept_because.extend(inventory.unknown.clone());
        match options.manner {
            PruneManner::DryRun => inventory.leftovers.iter().for_each(|one| report.add(one)),
            PruneManner::Remove => self.remove(&inventory, &mut report).await?,
        }
        if inventory.unknown.is_none() {
            self.collect_content(&inventory, options, &mut report).await?;
        }
        report.removed.sort_by_key(|removed| removed.class);
        if options.manner == PruneManner::Remove && report.bytes > 0 {
            self.events.emit(
                Subject::Host,
                EventLevel::Info,
                "store-pruned",
                format!("{} things were removed that nothing needs", report.removed.len()),
                [("bytes", report.bytes.to_string())],
            );
        }
        Ok(report)
    }

    async fn remove(
        &self,
        inventory: &Inventory,
        report: &mut PruneReport,
    ) -> Result<(), RequestError> {
        let (store, leftovers) = (self.store().clone(), inventory.leftovers.clone());
        let (removed, outcome) = blocking(move || {
            let mut removed = Vec::new();
            let outcome = store.remove_leftovers(&leftovers, |one| removed.push(one.clone()));
            (removed, outcome)
        })
        .await?;
        removed.iter().for_each(|one| report.add(one));
        outcome.map_err(failed)
    }

    async fn collect_content(
        &self,
        inventory: &Inventory,
        options: &PruneOptions,
        report: &mut PruneReport,
    ) -> Result<(), RequestError> {
        let store = self.store().clone();
        let (in_use, gone) = (inventory.in_use.clone(), inventory.leftovers.clone());
        let unused = blocking(move || unused_content(&store, &in_use, &gone)).await??;
        let classes = match options.content {
            Contents::Orphans => vec![(Class::Orphan, unused.orphans)],
            Contents::Idle => {
                vec![(Class::Orphan, unused.orphans), (Class::IdleContent, unused.idle)]
            }
        };
        if classes.iter().all(|(_, found)| found.files == 0) {
            return Ok(());
        }
        if options.manner == PruneManner::DryRun {
            classes.iter().for_each(|(class, found)| report.add_content(*class, *found));
            return Ok(());
        }
        let (keep, spare) = match options.content {
            Contents::Orphans => (&inventory.kept, Spare::Stored),
            Contents::Idle => (&inventory.in_use, Spare::Nothing),
        };
        let keep: Vec<Digest> = keep.iter().copied().collect();
        match self.evict(keep, spare).await {
            Ok(mut found) => {
                // What went beyond the orphans was idle.
                let orphans = Found {
                    files: found.files.min(unused.orphans.files),
                    bytes: found.bytes.min(unused.orphans.bytes),
                };
                found.files -= orphans.files;
                found.bytes -= orphans.bytes;
                report.add_content(Class::Orphan, orphans);
                report.add_content(Class::IdleContent, found);
            }
            Err(reason) => {
                report.kept_because.push(format!("content of lazy layers stays: {reason}"))
            }
        }
        Ok(())
    }

    /// Whoever has the cache evicts; where nobody has, this process.
    async fn evict(&self, keep: Vec<Digest>, spare: Spare) -> Result<Found, String> {
        if let Some(found) = self.lazy.evict(&keep, spare).await? {
            return Ok(found);
        }
        let store = self.store().clone();
        let evicting = tokio::task::spawn_blocking(move || {
            let boot_id = boot_id().map_err(|error| error.to_string())?;
            let mut keep: BTreeSet<Digest> = keep.into_iter().collect();
            if spare == Spare::Stored {
                let layers = store.layers().map_err(|error| Chain(&error).to_string())?;
                keep.extend(layers.iter().map(crate::store::LayerDir::digest));
            }
            let kept = keep.into_iter().filter_map(|digest| layer_spec(&store, digest)).collect();
            let evicted = crate::lazy::evict_unused(&store.files_dir(), &boot_id, kept);
            let evicted = evicted.map_err(|error| error.to_string())?;
            evicted.ok_or_else(|| "another process has the cache".to_owned())
        });
        evicting.await.map_err(|error| error.to_string())?
    }

    /// The manifests that services files and containers need.
    fn needed(&self, wanted: &Users) -> Option<Vec<(ImageRef, Digest)>> {
        let mut needed = Vec::new();
        for reference in wanted.keys() {
            let record = self.store().image(reference).ok()?;
            needed.extend(record.map(|record| (record.reference, record.manifest)));
        }
        let containers = self.of_containers()?;
        needed.extend(containers.into_iter().map(|image| (image.reference, image.manifest)));
        Some(needed)
    }

    /// Keeps everybody from mounting. Nobody who mounts waits behind this one: a mount may take as long as a network does.
    async fn alone(&self) -> Result<RwLockWriteGuard<'_, ()>, RequestError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Ok(alone) = self.mounting.try_write() {
                return Ok(alone);
            }
            if tokio::time::Instant::now() > deadline {
                let message = "layers are being mounted, so nothing is removed";
                let hint = "try again when the services have started";
                let error = RequestError::new(RequestErrorKind::Conflict, message);
                return Err(error.with_hint(Some(hint.to_owned())));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl PruneReport {
    fn add(&mut self, leftover: &Leftover) {
        let (kind, name) = match &leftover.item {
            Item::Image(image) => ("image", image.to_string()),
            Item::Layer(digest) => ("layer", digest.to_string()),
            Item::Blob(digest) => ("blob", digest.to_string()),
        };
        self.push(kind, name, leftover.class, leftover.bytes);
    }

    fn add_content(&mut self, class: Class, found: Found) {
        if found.files > 0 {
            self.push("content", format!("{} files", found.files), class, found.bytes);
        }
    }

    fn push(&mut self, kind: &str, name: String, class: Class, bytes: u64) {
        self.removed.push(Pruned { kind: kind.to_owned(), name, class, bytes });
        self.bytes += bytes;
    }
}

/// Content by who has it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Content {
    /// No layer.
    pub(super) orphans: Found,
    /// Layers, none of which is in use.
    pub(super) idle: Found,
    /// All of it.
    pub(super) all: Found,
}

/// Content by who has it, where layers of `gone` are no more. Blocks.
pub(super) fn unused_content(
    store: &Store,
    in_use: &BTreeSet<Digest>,
    gone: &[Leftover],
) -> Result<Content, RequestError> {
    let gone: BTreeSet<Digest> = gone
        .iter()
        .filter_map(|leftover| match leftover.item {
            Item::Layer(digest) => Some(digest),
            Item::Image(_) | Item::Blob(_) => None,
        })
        .collect();
    let limits = Limits::default();
    let surveyed = crate::lazy::survey(&store.files_dir());
    let mut survey: Survey = surveyed.map_err(|source| {
        let message = format!("could not read `{}`: {source}", store.files_dir().display());
        RequestError::new(RequestErrorKind::Failed, message)
    })?;
    let mut content = Content { all: survey.rest(), ..Content::default() };
    let take = |survey: &mut Survey, digest| {
        layer_spec(store, digest)
            .map_or_else(Found::default, |layer| survey.take_layer(layer.index, &limits))
    };
    for digest in in_use {
        take(&mut survey, *digest);
    }
    for layer in store.layers().map_err(failed)? {
        if !gone.contains(&layer.digest()) {
            content.idle += take(&mut survey, layer.digest());
        }
    }
    content.orphans = survey.rest();
    Ok(content)
}

fn layer_spec(store: &Store, digest: Digest) -> Option<LayerSpec> {
    let index = File::open(store.layer(digest).index_path()).ok()?;
    Some(LayerSpec { digest, index: MappedFile::open(&index).ok()? })
}

/// The layer whose tree is at `path`.
fn layer_at(path: &Path) -> Option<Digest> {
    Digest::from_hex(path.parent()?.file_name()?.to_str()?).ok()
}

pub(super) fn failed(error: StoreError) -> RequestError {
    RequestError::new(RequestErrorKind::Failed, Chain(&error).to_string())
}

/// Runs `work` where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RequestError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| RequestError::new(RequestErrorKind::Failed, error.to_string()))
}
