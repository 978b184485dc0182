//! The images that are mounted in containers besides their own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::execute::Host;
use super::images::{Extent, LocalImage};
use super::layer_mounts::MountedImage;
use crate::image::{Digest, ImageRef};
use crate::spec::{Lazy, Service};
use crate::telemetry::Chain;

/// Where the layers of those images are.
#[derive(Debug, Default)]
pub(super) struct Beside {
    pub(super) layers: BTreeMap<ImageRef, Vec<PathBuf>>,
    pub(super) lazy: Vec<Digest>,
}

impl Host {
    /// An image that a container was made from.
    pub(super) fn image_here(
        &self,
        image: &ImageRef,
        manifest: Digest,
    ) -> Result<LocalImage, String> {
        let local = self.images.local_manifest(image, manifest);
        let local = local.map_err(|error| Chain(&error).to_string())?;
        local.ok_or_else(|| format!("image `{image}` is not here any more"))
    }

    /// As [`Self::image_here`], for several.
    pub(super) fn images_here(
        &self,
        images: &BTreeMap<ImageRef, Digest>,
    ) -> Result<Vec<(ImageRef, LocalImage)>, String> {
        let here = |(image, manifest): (&ImageRef, &Digest)| {
            self.image_here(image, *manifest).map(|local| (image.clone(), local))
        };
        images.iter().map(here).collect()
    }

    /// Makes the layers of a container's own image and of those beside it usable.
    pub(super) async fn mount_all(
        &self,
        own: &LocalImage,
        others: &[(ImageRef, LocalImage)],
    ) -> Result<(MountedImage, Beside), String> {
        let mount =
            async |image| self.images.mount(image).await.map_err(|error| Chain(&error).to_string());
        let own = mount(own).await?;
        let mut beside = Beside::default();
        for (image, local) in others {
            let mounted = mount(local).await?;
            beside.layers.insert(image.clone(), mounted.layers);
            beside.lazy.extend(mounted.lazy);
        }
        Ok((own, beside))
    }

    /// Fetches what a service reads first, as its file says; the paths that it names, and those that every start reads, are
    /// of its own image.
    pub(super) async fn prefetch_all(
        &self,
        own: &[Digest],
        beside: &Beside,
        wish: &Lazy,
        reads: Vec<Vec<String>>,
    ) {
        let others = wish.without_paths();
        tokio::join!(
            self.images.lazy.prefetch_for(own, wish, reads),
            self.images.lazy.prefetch_for(&beside.lazy, &others, Vec::new()),
        );
    }

    /// Brings the images here that are mounted in containers of `service`.
    pub(super) async fn ensure_beside(
        &self,
        service: &Service,
    ) -> Result<Vec<(ImageRef, LocalImage)>, String> {
        let mut images = Vec::new();
        for volume in &service.image_volumes {
            let image = self.images.ensure(&volume.image, Extent::Lazy).await;
            let image = image.map_err(|error| Chain(&error).to_string())?;
            images.push((volume.image.clone(), image));
        }
        Ok(images)
    }
}
