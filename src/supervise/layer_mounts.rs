//! Layers of images made usable by path, for containers and for people.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use futures_util::future::try_join_all;

use super::events::Subject;
use super::images::{Images, LocalImage};
use super::pull_error::PullError;
use super::report::EventLevel;
use super::tally::nobody;
use crate::image::Digest;
use crate::layer::{Manner, WantedLayer};

/// The directories of an image's layers, lowest first, as they are used by one container or mount.
#[derive(Debug, Clone)]
pub(super) struct MountedImage {
    pub(super) layers: Vec<PathBuf>,
    pub(super) lazy: Vec<Digest>,
}

/// Where one layer is.
#[derive(Debug)]
pub(super) struct Mounted {
    path: PathBuf,
    pub(super) is_lazy: bool,
}

/// Layers of one image that are asked for at the same time; each is a connection.
const MOUNTS_AT_ONCE: usize = 8;

impl Images {
    /// Makes the layers usable by path: lazy ones are mounted, and one that cannot be is unpacked after all.
    pub(super) async fn mount(&self, image: &LocalImage) -> Result<MountedImage, PullError> {
        let _mounting = self.mounting.read().await;
        self.mount_layers(image).await
    }

    /// As [`Self::mount`], for an image that people look into at `target`.
    pub(super) async fn mount_at(
        &self,
        image: &LocalImage,
        target: &Path,
    ) -> Result<MountedImage, PullError> {
        let _mounting = self.mounting.read().await;
        let mounted = self.mount_layers(image).await?;
        let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        mounts.insert(target.to_path_buf(), mounted.clone());
        Ok(mounted)
    }

    async fn mount_layers(&self, image: &LocalImage) -> Result<MountedImage, PullError> {
        let wanted = image.wanted();
        let mut places = Vec::with_capacity(wanted.len());
        // A request and its answer for each, side by side.
        for some in wanted.chunks(MOUNTS_AT_ONCE) {
            places.extend(try_join_all(some.iter().map(|layer| self.mount_layer(layer))).await?);
        }
        let mut mounted = MountedImage { layers: Vec::new(), lazy: Vec::new() };
        for (wanted, place) in wanted.iter().zip(places) {
            if place.is_lazy {
                mounted.lazy.push(wanted.descriptor.digest);
            }
            mounted.layers.push(place.path);
        }
        Ok(mounted)
    }

    pub(super) async fn mount_layer(&self, wanted: &WantedLayer) -> Result<Mounted, PullError> {
        let digest = wanted.descriptor.digest;
        let layer = self.store().layer(digest);
        let mut full = Manner::Full(None);
        if !layer.is_full() && layer.is_indexed_by(wanted.descriptor.toc_digest()) {
            match self.lazy.mount(&layer).await {
                Ok(path) => return Ok(Mounted { path, is_lazy: true }),
                Err(reason) => {
                    let message = format!("layer {} is pulled fully: {reason}", digest.short());
                    let attributes = [("layer", digest.to_string())];
                    let level = EventLevel::Warning;
                    self.events.emit(Subject::Host, level, "layer-not-lazy", message, attributes);
                    full = Manner::Full(Some(reason));
                }
            }
        }
        if !layer.is_full() {
            let kept = self.layers.prepare(wanted, full, &nobody()).await?;
            self.note(digest, &kept);
        }
        Ok(Mounted { path: layer.full_path(), is_lazy: false })
    }
}
