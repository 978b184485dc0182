//! Slots of lazy layers that nobody needs any more: which those are, and when they can be given up.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::driver::Driver;
use super::images::Images;
use super::project::Wish;
use crate::image::{Digest, ImageRef};
use crate::reconcile::ImageState;
use crate::rootfs;

impl Driver {
    /// Layers that only a container needed that has gone are not kept mounted; those of services that should run are.
    pub(super) fn release_slots(&self) {
        let ready = self.images.iter().filter_map(|(image, state)| match state {
            ImageState::Ready { manifest } => Some((image.clone(), *manifest)),
            _ => None,
        });
        let wanted: Vec<_> = ready
            .filter(|(image, _)| {
                self.projects.values().any(|project| {
                    project.record.wish == Wish::Up
                        && project
                            .desired
                            .services
                            .values()
                            .any(|service| service.images().any(|i| i == image))
                })
            })
            .collect();
        let host = Arc::clone(&self.host);
        tokio::spawn(async move { host.release_unneeded(wanted).await });
    }

    /// Gives up what was due when somebody mounted.
    pub(super) fn release_due_slots(&self) {
        if self.host.images.release_due.swap(false, Ordering::AcqRel) {
            self.release_slots();
        }
    }
}

impl Images {
    /// Watches over the lazy mount of an earlier control, if it left one. False if that is to be tried again.
    pub(super) async fn resume_lazy(&self) -> bool {
        self.lazy.resume().await
    }

    /// Takes the lazy mount down, unless somebody looks into an image. Such mounts outlive control, so the mount
    /// table is asked, not memory.
    pub(super) async fn stop_lazy_if_unused(&self) {
        if crate::rootfs::image_mounts(self.lazy.instance()).is_ok_and(|mounts| mounts.is_empty()) {
            self.lazy.stop_if_unused().await;
        }
    }

    /// Gives up the slots of layers that neither `manifests` nor an image that is mounted for people need. Whoever
    /// needs a layer from now on mounts it again, as another slot. While somebody mounts it is only due.
    pub(super) async fn release_unneeded(
        &self,
        manifests: impl FnOnce() -> Option<Vec<(ImageRef, Digest)>>,
    ) {
        // Nobody is between having mounted a layer and being known for it: what is to be used is recorded before.
        // Not waited for: a mount may take as long as a network does, and behind who waits all starts would queue.
        let Ok(_alone) = self.mounting.try_write() else {
            self.release_due.store(true, Ordering::Release);
            return;
        };
        let here = self.mounts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Ok(mounted) = rootfs::image_mounts(self.lazy.instance()) else { return };
        // Of mounts of an earlier control the layers are not known.
        if mounted.iter().any(|target| !here.contains_key(target)) {
            return;
        }
        let Some(manifests) = manifests() else { return };
        let mut needed: HashSet<Digest> =
            here.values().flat_map(|image| image.lazy.iter().copied()).collect();
        // What a pull fetches is not recorded yet.
        needed.extend(self.store().leased());
        for (reference, manifest) in manifests {
            // One that cannot be read may need anything.
            let Ok(image) = self.local_manifest(&reference, manifest) else { return };
            needed.extend(image.iter().flat_map(|image| {
                image.manifest.layers.iter().map(|descriptor| descriptor.digest)
            }));
        }
        self.lazy.release_unless(|digest| needed.contains(digest)).await;
    }
}
