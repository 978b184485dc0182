//! Layers of images made usable by path, for containers and for people.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use futures_util::future::join_all;

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
struct Mounted {
    path: PathBuf,
    /// Its digest, if it is lazy.
    lazy: Option<Digest>,
}

/// A layer that has to be unpacked, and why it cannot be mounted.
#[derive(Debug)]
struct Whole {
    layer: WantedLayer,
    why: Option<String>,
}

/// Layers of one image that are asked for at the same time; each is a connection.
const MOUNTS_AT_ONCE: usize = 8;

impl Images {
    /// Makes the layers usable by path: lazy ones are mounted, and one that cannot be is unpacked after all.
    pub(super) async fn mount(&self, image: &LocalImage) -> Result<MountedImage, PullError> {
        self.mount_then(image, |_| ()).await
    }

    /// As [`Self::mount`], for an image that people look into at `target`.
    pub(super) async fn mount_at(
        &self,
        image: &LocalImage,
        target: &Path,
    ) -> Result<MountedImage, PullError> {
        let note = |mounted: &MountedImage| {
            let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
            mounts.insert(target.to_path_buf(), mounted.clone());
        };
        self.mount_then(image, note).await
    }

    async fn mount_then(
        &self,
        image: &LocalImage,
        note: impl Fn(&MountedImage),
    ) -> Result<MountedImage, PullError> {
        loop {
            let whole = {
                let _mounting = self.mounting.read().await;
                match self.mount_layers(image).await {
                    Ok(mounted) => {
                        note(&mounted);
                        return Ok(mounted);
                    }
                    Err(whole) => whole,
                }
            };
            // While others may make room for it, and with room.
            for layer in whole {
                self.unpack(image, layer).await?;
            }
        }
    }

    /// Mounts all layers, or tells which have to be unpacked before.
    async fn mount_layers(&self, image: &LocalImage) -> Result<MountedImage, Vec<Whole>> {
        let wanted = image.wanted();
        let mut mounted = MountedImage { layers: Vec::new(), lazy: Vec::new() };
        let mut whole = Vec::new();
        // A request and its answer for each, side by side.
        for some in wanted.chunks(MOUNTS_AT_ONCE) {
            for place in join_all(some.iter().map(|layer| self.mount_layer(layer))).await {
                match place {
                    Ok(Mounted { path, lazy }) => {
                        mounted.lazy.extend(lazy);
                        mounted.layers.push(path);
                    }
                    Err(layer) => whole.push(layer),
                }
            }
        }
        if whole.is_empty() { Ok(mounted) } else { Err(whole) }
    }

    async fn mount_layer(&self, wanted: &WantedLayer) -> Result<Mounted, Whole> {
        let digest = wanted.descriptor.digest;
        let layer = self.store().layer(digest);
        if layer.is_full() {
            return Ok(Mounted { path: layer.full_path(), lazy: None });
        }
        let mut why = None;
        if layer.is_indexed_by(wanted.descriptor.toc_digest()) {
            match self.lazy.mount(&layer).await {
                Ok(path) => return Ok(Mounted { path, lazy: Some(digest) }),
                Err(reason) => {
                    let message = format!("layer {} is pulled fully: {reason}", digest.short());
                    let attributes = [("layer", digest.to_string())];
                    let level = EventLevel::Warning;
                    self.events.emit(Subject::Host, level, "layer-not-lazy", message, attributes);
                    why = Some(reason);
                }
            }
        }
        Err(Whole { layer: wanted.clone(), why })
    }

    /// Makes one layer of an image usable. True if it is lazy.
    pub(super) async fn mount_one(
        &self,
        image: &LocalImage,
        wanted: &WantedLayer,
    ) -> Result<bool, PullError> {
        let mounted = {
            let _mounting = self.mounting.read().await;
            self.mount_layer(wanted).await
        };
        match mounted {
            Ok(mounted) => Ok(mounted.lazy.is_some()),
            Err(whole) => self.unpack(image, whole).await.map(|()| false),
        }
    }

    async fn unpack(&self, image: &LocalImage, whole: Whole) -> Result<(), PullError> {
        let Whole { layer, why } = whole;
        let _promise = self.make_room_for_layer(&image.reference, &layer.descriptor).await?;
        let kept = self.layers.prepare(&layer, Manner::Full(why), &nobody()).await?;
        self.note(layer.descriptor.digest, &kept);
        Ok(())
    }
}
