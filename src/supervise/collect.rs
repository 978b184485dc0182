//! Collection: what nothing needs any more is removed, alone with the store and with everybody who mounts.
//!
//! What is in use is asked of everybody who may use something: services files, containers, mounted images, and those who
//! serve lazy layers. Pulls go on meanwhile; what they bring is leased. Nothing is mounted while something is removed, so
//! that no layer goes between the question and the mount.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::{RwLockWriteGuard, oneshot};

use super::events::Subject;
use super::handle::{Request, RequestError, RequestErrorKind};
use super::held::ContainerRecord;
use super::images::Images;
use super::report::{EventLevel, PruneReport, Pruned};
use crate::image::{Digest, ImageRef};
use crate::lazy::Found;
use crate::rootfs;
use crate::store::{CONTAINER_RECORD, Class, Inventory, Item, Leftover, Reach, StoreError, Uses};
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
    /// So many bytes of it, the coldest first, and none of images that are pinned.
    Coldest(u64),
}

/// Whether something is removed, or only looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneManner {
    /// It is removed.
    Remove,
    /// It is told.
    DryRun,
}

/// What services files name.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// The images, and one of the services that each is for.
    pub(super) images: BTreeMap<ImageRef, String>,
    /// Why there may be more.
    pub(super) unknown: Option<String>,
}

/// A container, as far as its image goes.
#[derive(Debug)]
pub(super) struct ContainerImage {
    pub(super) id: String,
    pub(super) reference: ImageRef,
    pub(super) manifest: Digest,
}

impl Images {
    /// The images of all containers. The error is why it cannot be told which one of them has: it may have any.
    pub(super) fn of_containers(&self) -> Result<Vec<ContainerImage>, String> {
        let store = self.store();
        let mut images = Vec::new();
        for id in store.containers().map_err(|error| Chain(&error).to_string())? {
            let folder = store.root().join("containers").join(&id);
            let loaded = store.load::<ContainerRecord>(&folder.join(CONTAINER_RECORD));
            let record = match loaded.map_err(|error| Chain(&error).to_string())? {
                Some(record) => record,
                None if is_of_nobody(&folder) => continue,
                None => {
                    let folder = folder.display();
                    return Err(format!(
                        "the record of container `{id}` cannot be read; if nothing of it runs, remove `{folder}`"
                    ));
                }
            };
            let ContainerRecord { image, manifest, mounted, .. } = record;
            let all = mounted.into_iter().chain([(image, manifest)]);
            let used =
                |(reference, manifest)| ContainerImage { id: id.clone(), reference, manifest };
            images.extend(all.map(used));
        }
        Ok(images)
    }

    /// What services files name now.
    pub(super) async fn wanted(&self) -> Result<Wanted, RequestError> {
        let ending = || RequestError::new(RequestErrorKind::Failed, "control is shutting down");
        let driver = self.room.driver().ok_or_else(ending)?;
        let (reply, answer) = oneshot::channel();
        let sent = driver.send(Request::ImagesWanted { reply }).await;
        drop(driver);
        sent.map_err(|_| ending())?;
        answer.await.map_err(|_| ending())?
    }

    /// Everything that is in use, but for layers that are only mounted. Whoever is not kept from it may begin to use
    /// something else at any time.
    pub(super) async fn uses(&self) -> Result<Uses, RequestError> {
        let wanted = self.wanted().await?;
        let mut uses = Uses {
            images: wanted.images.into_keys().collect(),
            unknown: wanted.unknown,
            ..Uses::default()
        };
        match self.of_containers() {
            Ok(images) => uses.manifests = images.iter().map(|image| image.manifest).collect(),
            Err(reason) => drop(uses.unknown.get_or_insert(reason)),
        }
        let here = self.mounts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for image in here.values() {
            uses.layers.extend(&image.lazy);
            uses.layers.extend(image.layers.iter().filter_map(|path| layer_at(path)));
        }
        let unknown = match rootfs::image_mounts(self.lazy.instance()) {
            Ok(mounted) => {
                let other = mounted.into_iter().find(|target| !here.contains_key(target));
                other.map(|target| {
                    let target = target.display();
                    format!("an image is mounted at `{target}` since before this supervisor began")
                })
            }
            Err(error) => Some(format!("it cannot be told which images are mounted: {error}")),
        };
        uses.unknown = uses.unknown.or(unknown);
        Ok(uses)
    }

    /// The same with these.
    async fn uses_and_mounts(&self) -> Result<Uses, RequestError> {
        let mut uses = self.uses().await?;
        match self.lazy.mounted().await {
            Ok(layers) => uses.layers.extend(layers),
            Err(reason) => drop(uses.unknown.get_or_insert(reason)),
        }
        Ok(uses)
    }

    /// What there is, and what of it may go.
    pub(super) async fn inventory(&self, reach: Reach) -> Result<Inventory, RequestError> {
        let (store, uses) = (self.store().clone(), self.uses_and_mounts().await?);
        blocking(move || store.inventory(&uses, &reach)).await?.map_err(failed)
    }

    /// Removes what nothing needs, or tells what would be removed.
    pub(super) async fn collect(
        &self,
        options: &PruneOptions,
    ) -> Result<PruneReport, RequestError> {
        // What is mounted only because it was pulled, or somebody looked how much of it is here.
        let wanted = self.wanted().await?;
        self.release_unneeded(|| self.needed(&wanted)).await;
        // What takes its time is done while everybody else goes on: the sizes of layers are known afterwards.
        let mut inventory = self.inventory(options.reach.clone()).await?;
        let mut report = PruneReport::default();
        match options.manner {
            PruneManner::DryRun => inventory.leftovers.iter().for_each(|one| report.add(one)),
            PruneManner::Remove => inventory = self.remove(options, &mut report).await?,
        }
        report.kept_because.extend(inventory.unknown.clone());
        if inventory.unknown.is_none()
            && let Err(reason) = self.collect_content(&inventory, options, &mut report).await
        {
            report.kept_because.push(format!("content of lazy layers stays: {reason}"));
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
        options: &PruneOptions,
        report: &mut PruneReport,
    ) -> Result<Inventory, RequestError> {
        let (inventory, taken) = {
            let _alone = self.alone().await?;
            // Asked again: what is in use now stays.
            let (store, uses) = (self.store().clone(), self.uses_and_mounts().await?);
            let reach = options.reach.clone();
            let take_away = move || {
                let inventory = store.inventory(&uses, &reach)?;
                let taken = store.take_away(&inventory);
                Ok((inventory, taken))
            };
            blocking(take_away).await?.map_err(failed)?
        };
        // Trees of many files take seconds, and are nobody's any more.
        let (gone, outcome) = blocking(move || taken.delete()).await?;
        gone.iter().for_each(|one| report.add(one));
        outcome.map_err(failed)?;
        Ok(inventory)
    }

    /// The manifests that services files and containers need.
    fn needed(&self, wanted: &Wanted) -> Option<Vec<(ImageRef, Digest)>> {
        let mut needed = Vec::new();
        for reference in wanted.images.keys() {
            let record = self.store().image(reference).ok()?;
            needed.extend(record.map(|record| (record.reference, record.manifest)));
        }
        let containers = self.of_containers().ok()?;
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
            Item::Image(record) => ("image", record.reference.to_string()),
            Item::Layer(digest) => ("layer", digest.to_string()),
            Item::Blob(digest) => ("blob", digest.to_string()),
        };
        self.push(kind, name, leftover.class, leftover.bytes);
    }

    pub(super) fn add_content(&mut self, class: Class, found: Found) {
        if found.files > 0 {
            self.push("content", format!("{} files", found.files), class, found.bytes);
        }
    }

    fn push(&mut self, kind: &str, name: String, class: Class, bytes: u64) {
        self.removed.push(Pruned { kind: kind.to_owned(), name, class, bytes });
        self.bytes += bytes;
    }
}

/// Whether a folder without a record is of no container: one that is being made, or has just gone.
fn is_of_nobody(folder: &Path) -> bool {
    let is_temporary =
        |entry: std::fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(b".");
    match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.all(|entry| entry.is_ok_and(is_temporary)),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
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
