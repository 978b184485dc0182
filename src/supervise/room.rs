//! Room for what a pull brings: looked at before it begins, and made if there is too little.
//!
//! How much a layer occupies unpacked is known when it is, so it is taken to be three times what comes over the wire, which
//! is more than most are. What is promised to a pull counts until its end, also what it has written by then: two at once
//! may be told too early that there is no room, and try again. While a layer is unpacked the free space is looked at
//! again, so what was taken for less than it is ends in time for records and logs to be written.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, oneshot};

use super::collect::{Contents, PruneManner, PruneOptions};
use super::handle::Request;
use super::images::{Extent, Images};
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
    /// What images, layers and content of lazy layers may occupy together; as much as there is without it. Half of it is
    /// for content of lazy layers, which is evicted, and half for the rest, which is not.
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
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Disk => "the disk",
            Self::Budget => "the disk budget",
        })
    }
}

impl Bound {
    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::Disk => "free some space: `supervisor prune --all --dry-run` shows what could go",
            Self::Budget => {
                "raise `--disk-budget`, or remove images: `supervisor prune --all --dry-run` shows what could go"
            }
        }
    }
}

/// The bounds on what is brought here, and what is promised of it.
#[derive(Debug, Default)]
pub(super) struct Room {
    limits: Option<DiskLimits>,
    may_be_lazy: bool,
    /// Whom to ask what is wanted. He must not live for the sake of this.
    driver: Option<mpsc::WeakSender<Request>>,
    promised: AtomicU64,
}

impl Room {
    pub(super) fn new(
        limits: DiskLimits,
        may_be_lazy: bool,
        driver: mpsc::WeakSender<Request>,
    ) -> Self {
        let (limits, driver) = (Some(limits), Some(driver));
        Self { limits, may_be_lazy, driver, promised: AtomicU64::new(0) }
    }
}

/// Room that a pull has until it ends.
#[derive(Debug)]
pub(super) struct Promise<'a> {
    promised: &'a AtomicU64,
    bytes: u64,
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.promised.fetch_sub(self.bytes, Ordering::AcqRel);
    }
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
        let needed = needed(self.store(), manifest, is_lazy);
        let promised = &self.room.promised;
        let before = promised.fetch_add(needed, Ordering::AcqRel);
        let promise = Promise { promised, bytes: needed };
        let Some(limits) = self.room.limits.filter(|_| needed > 0) else { return Ok(promise) };
        let mut there = self.there(limits).await;
        for content in [Contents::Orphans, Contents::Idle] {
            if there.0.saturating_sub(before) >= needed {
                return Ok(promise);
            }
            self.free(content).await;
            there = self.there(limits).await;
        }
        let (bytes, bound) = there;
        let room = bytes.saturating_sub(before);
        if room >= needed {
            return Ok(promise);
        }
        Err(PullError::NoRoom { image: reference.to_string(), needed, room, bound })
    }

    /// What may be brought here, and who bounds it.
    async fn there(&self, limits: DiskLimits) -> (u64, Bound) {
        // What cannot be told is found out by writing.
        let free =
            self.store().free().unwrap_or(u64::MAX).saturating_sub(limits.reserve.unwrap_or(0));
        let Some(budget) = limits.budget else { return (free, Bound::Disk) };
        let store = self.store().clone();
        let counting = tokio::task::spawn_blocking(move || {
            let folders = ["blobs", "images", "layers"];
            folders.iter().map(|name| usage(&store.root().join(name)).bytes).sum::<u64>()
        });
        let used = counting.await.unwrap_or(0);
        let left = (budget - budget / 2).saturating_sub(used);
        if left < free { (left, Bound::Budget) } else { (free, Bound::Disk) }
    }

    /// Removes what nothing needs. What cannot be removed is in use, or will be removed the next time.
    async fn free(&self, content: Contents) {
        let driver = self.room.driver.as_ref().and_then(mpsc::WeakSender::upgrade);
        let Some(driver) = driver else { return };
        let (reply, answer) = oneshot::channel();
        if driver.send(Request::ImagesWanted { reply }).await.is_err() {
            return;
        }
        drop(driver);
        let Ok(Ok(wanted)) = answer.await else { return };
        let options =
            PruneOptions { reach: Reach::Leftovers, content, manner: PruneManner::Remove };
        if let Err(error) = self.collect(&wanted, &options).await {
            tracing::debug!(%error, "could not make room");
        }
    }
}

/// Bytes that an image will occupy beyond what is here, roughly.
fn needed(store: &Store, manifest: &Manifest, is_lazy: bool) -> u64 {
    let of_layer = |descriptor: &Descriptor| {
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
    };
    manifest.layers.iter().map(of_layer).fold(0, u64::saturating_add)
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
