//! Room for what a pull brings: looked at before it begins, and made if there is too little.
//!
//! How much a layer occupies unpacked is known when it is, so it is taken to be three times what comes over the wire, which
//! is more than most are. While a layer is unpacked the free space is looked at again, so what was taken for less than it
//! is ends in time for records and logs to be written.
//!
//! What is made room with is gone for good, or needs the network to come back. So what nothing leads to goes first; then
//! others that bring something here are waited for; and what somebody may miss goes only if all of it together is enough.

use std::path::Path;

use tokio::sync::mpsc;

use super::collect::{Contents, PruneManner, PruneOptions};
use super::handle::Request;
use super::images::{Extent, Images};
use super::promise::{Needs, Promise, Promises};
use super::pull_error::PullError;
use crate::image::{Compression, Descriptor, Digest, ImageRef, Manifest};
use crate::registry::Located;
use crate::store::{Reach, Store, usage};

/// What unpacked content is at most, mostly, for each byte that comes over the wire.
const INFLATION: u64 = 3;

/// What stays free of a disk that is not small.
const RESERVE: u64 = 64_000_000;

/// And this part of one that is.
const SMALL_PART: u64 = 50;

/// The index of a lazy layer is smaller than this part of it.
const INDEX_PART: u64 = 50;

/// What is on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLimits {
    /// What images, layers and content of lazy layers may occupy together; as much as there is without it. Where layers can
    /// be lazy half of it is for their content, which is evicted, and half for the rest, which is not.
    pub budget: Option<u64>,
    /// Bytes that stay free, for records, logs and what containers write; without it 64 MB, or a fiftieth of a disk
    /// that is so small that this is less.
    pub reserve: Option<u64>,
}

impl DiskLimits {
    /// The same, with a reserve that fits the disk of `state_dir`.
    pub(super) fn on(self, state_dir: &Path) -> Self {
        let fitting = || {
            let size = rustix::fs::statvfs(state_dir).ok()?;
            Some(size.f_blocks.saturating_mul(size.f_frsize) / SMALL_PART)
        };
        let reserve = self.reserve.or_else(|| Some(fitting()?.min(RESERVE)));
        Self { reserve, ..self }
    }

    /// What content of lazy layers may occupy, given what it may by itself.
    pub(super) fn content(self, asked: Option<u64>) -> Option<u64> {
        let half = self.budget.map(|budget| budget / 2);
        asked.into_iter().chain(half).min()
    }
}

/// Who says how much may be brought here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The space on the disk, less what stays free.
    Disk,
    /// The budget.
    Budget,
    /// What of it is for content of lazy layers.
    Content,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Disk => "the disk",
            Self::Budget => "the disk budget",
            Self::Content => "the part of the disk budget that is for content of lazy layers",
        })
    }
}

impl Bound {
    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::Disk => "free some space: `supervisor prune --all --dry-run` shows what could go",
            Self::Content => "raise `--disk-budget`, or pull the image with `--full`",
            Self::Budget => {
                "raise `--disk-budget`, or remove images: `supervisor prune --all --dry-run` shows what could go"
            }
        }
    }
}

/// So often things that somebody may miss are given up for one pull.
const MOST_ROUNDS: u32 = 3;

/// The bounds on what is brought here, and what is promised of it.
#[derive(Debug, Default)]
pub(super) struct Room {
    limits: Option<DiskLimits>,
    /// What content of lazy layers may occupy.
    content: Option<u64>,
    may_be_lazy: bool,
    /// Whom to ask what is wanted. He must not live for the sake of this.
    driver: Option<mpsc::WeakSender<Request>>,
    promises: Promises,
}

impl Room {
    pub(super) fn new(
        limits: DiskLimits,
        content: Option<u64>,
        may_be_lazy: bool,
        driver: mpsc::WeakSender<Request>,
    ) -> Self {
        let (limits, driver) = (Some(limits), Some(driver));
        Self { limits, content, may_be_lazy, driver, promises: Promises::default() }
    }

    /// Whom to ask what is wanted, while there is somebody.
    pub(super) fn driver(&self) -> Option<mpsc::Sender<Request>> {
        self.driver.as_ref()?.upgrade()
    }
}

/// How much may be brought here, and who says so.
#[derive(Debug, Clone, Copy)]
struct There {
    bytes: u64,
    bound: Bound,
}

impl Images {
    /// Room for an image, made by removing what nothing needs if that is necessary.
    pub(super) async fn make_room(
        &self,
        reference: &ImageRef,
        manifest: &Manifest,
        extent: Extent,
    ) -> Result<Promise<'_>, PullError> {
        let is_lazy = self.room.may_be_lazy && extent != Extent::Full;
        self.room_for(reference, needs(self.store(), manifest, is_lazy)).await
    }

    /// The same for one layer of it that is unpacked after all.
    pub(super) async fn make_room_for_layer(
        &self,
        reference: &ImageRef,
        layer: &Descriptor,
    ) -> Result<Promise<'_>, PullError> {
        let needs = Needs::from([(layer.digest, needed(self.store(), layer, false))]);
        self.room_for(reference, needs).await
    }

    async fn room_for(&self, reference: &ImageRef, needs: Needs) -> Result<Promise<'_>, PullError> {
        let promises = &self.room.promises;
        let needed = needs.values().copied().fold(0, u64::saturating_add);
        let Some(limits) = self.room.limits.filter(|_| needed > 0) else {
            return Ok(promises.unbounded());
        };
        let (mut is_swept, mut rounds) = (false, 0);
        let mut kept_because = None;
        loop {
            let returned = promises.returned();
            tokio::pin!(returned);
            // From here on: one that is returned after the look counts.
            returned.as_mut().enable();
            let there = self.there(limits).await;
            if let Some(promise) = promises.give(&needs, there.bytes) {
                return Ok(promise);
            }
            if !is_swept {
                is_swept = true;
                kept_because = self.free(Reach::Leftovers, Contents::Orphans).await;
            } else if needed <= there.bytes {
                // Promised to others, who may need less, or fail.
                returned.await;
            } else if rounds < MOST_ROUNDS && self.give_up(reference, needed, there).await {
                rounds += 1;
            } else {
                let (room, bound) = (there.bytes, there.bound);
                let image = reference.to_string();
                return Err(PullError::NoRoom { image, needed, room, bound, kept_because });
            }
        }
    }

    /// Whether all content of an image's lazy layers can be here at once.
    pub(super) fn has_room_for_content(
        &self,
        reference: &ImageRef,
        needed: u64,
    ) -> Result<(), PullError> {
        match self.room.content {
            Some(room) if needed > room => {
                let (image, bound) = (reference.to_string(), Bound::Content);
                Err(PullError::NoRoom { image, needed, room, bound, kept_because: None })
            }
            _ => Ok(()),
        }
    }

    /// What may be brought here, and who bounds it.
    async fn there(&self, limits: DiskLimits) -> There {
        // What cannot be told is found out by writing.
        let free =
            self.store().free().unwrap_or(u64::MAX).saturating_sub(limits.reserve.unwrap_or(0));
        let of_disk = There { bytes: free, bound: Bound::Disk };
        let Some(budget) = limits.budget else { return of_disk };
        let store = self.store().clone();
        let counting = tokio::task::spawn_blocking(move || {
            let folders = ["blobs", "images"].map(|name| usage(&store.root().join(name)).bytes);
            folders.iter().sum::<u64>() + store.layers_bytes().unwrap_or(0)
        });
        let used = counting.await.unwrap_or(0);
        let for_images = if self.room.may_be_lazy { budget - budget / 2 } else { budget };
        let left = for_images.saturating_sub(used);
        if left < free { There { bytes: left, bound: Bound::Budget } } else { of_disk }
    }

    /// Gives up what somebody may miss, if that makes room: idle content of lazy layers that comes again when it is read,
    /// where it counts; then what `reference` stood for before and images that nothing uses. False if it would not.
    async fn give_up(&self, reference: &ImageRef, needed: u64, there: There) -> bool {
        let missing = needed.saturating_sub(there.bytes);
        let idle = match there.bound {
            Bound::Disk => self.idle_content().await,
            // It has a half of its own, which this would not be taken from.
            Bound::Budget | Bound::Content => 0,
        };
        let rest = missing.saturating_sub(idle);
        let reach = || Reach::Room { image: reference.clone(), bytes: rest };
        if rest > 0 {
            // Swept before, so that this is what it was asked for.
            let Ok(inventory) = self.inventory(reach()).await else { return false };
            let freed: u64 = inventory.leftovers.iter().map(|leftover| leftover.bytes).sum();
            if freed < rest {
                return false;
            }
            self.free(reach(), Contents::Orphans).await;
        }
        if idle > 0 {
            self.free(Reach::Leftovers, Contents::Coldest(missing.min(idle))).await;
        }
        true
    }

    /// Bytes of content that no layer has which is in use, or of an image that is pinned.
    async fn idle_content(&self) -> u64 {
        let Ok(inventory) = self.inventory(Reach::Leftovers).await else { return 0 };
        if inventory.unknown.is_some() {
            return 0;
        }
        let busy = &inventory.in_use | &inventory.needed;
        let content = self.unused_content(&busy, &inventory.leftovers).await;
        content.map_or(0, |content| content.idle.bytes)
    }

    /// Removes what nothing needs. What cannot be removed is in use, or will be removed the next time. Says why something
    /// stays of which that is not known.
    async fn free(&self, reach: Reach, content: Contents) -> Option<String> {
        let options = PruneOptions { reach, content, manner: PruneManner::Remove };
        match self.collect(&options).await {
            Ok(report) => report.kept_because.into_iter().next(),
            Err(error) => {
                tracing::debug!(%error, "could not make room");
                Some(error.to_string())
            }
        }
    }
}

/// Bytes that the layers of an image will occupy beyond what is here, roughly.
fn needs(store: &Store, manifest: &Manifest, is_lazy: bool) -> Needs {
    let layers = manifest.layers.iter();
    layers.map(|descriptor| (descriptor.digest, needed(store, descriptor, is_lazy))).collect()
}

fn needed(store: &Store, descriptor: &Descriptor, is_lazy: bool) -> u64 {
    let layer = store.layer(descriptor.digest);
    let toc = descriptor.toc_digest().filter(|_| is_lazy);
    if layer.is_full() || layer.is_indexed_by(toc) {
        0
    } else if toc.is_some() {
        descriptor.size / INDEX_PART
    } else if descriptor.compression() == Some(Compression::None) {
        descriptor.size
    } else {
        descriptor.size.saturating_mul(INFLATION)
    }
}

/// Everything of an image that the store keeps.
pub(super) fn parts(located: &Located) -> Vec<Digest> {
    let layers = located.manifest.layers.iter().map(|layer| layer.digest);
    let index = located.index.as_ref().map(|(digest, _)| *digest);
    let documents = [located.manifest_digest, located.manifest.config.digest];
    documents.into_iter().chain(index).chain(layers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_of_lazy_layers_has_half_of_the_budget_at_most() {
        let limits = |budget| DiskLimits { budget, ..DiskLimits::default() };
        assert_eq!(limits(None).content(None), None);
        assert_eq!(limits(Some(100)).content(None), Some(50));
        assert_eq!(limits(Some(100)).content(Some(20)), Some(20));
        assert_eq!(limits(Some(100)).content(Some(80)), Some(50));
    }

    #[test]
    fn the_reserve_is_what_was_asked_for_or_fits_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let fitting = DiskLimits::default().on(dir.path()).reserve.unwrap();
        assert!(fitting > 0 && fitting <= RESERVE, "{fitting}");
        let asked = DiskLimits { reserve: Some(7), ..DiskLimits::default() };
        assert_eq!(asked.on(dir.path()).reserve, Some(7));
        assert_eq!(DiskLimits::default().on(&dir.path().join("nothing")).reserve, None);
    }
}
