//! What a container of a service should be, and the one that it has until then.

use std::collections::BTreeMap;

use super::action::{Cause, StepNo};
use super::observed::{Container, ContainerKey, ImageState, Observed};
use super::want::Want;
use crate::image::{Digest, ImageRef};
use crate::spec::{Fingerprint, Service};

/// The container that a service keeps, until it is replaced.
pub(super) struct Kept<'a> {
    pub(super) key: &'a ContainerKey,
    pub(super) container: &'a Container,
    pub(super) want: Want,
    /// It is to start and its writable layer is gone.
    pub(super) lost: bool,
    /// What must have succeeded before anything of the service starts.
    pub(super) before: Vec<StepNo>,
}

/// What a container of the service should be.
pub(super) struct Target<'a> {
    pub(super) wanted: &'a Service,
    pub(super) fingerprint: Fingerprint,
    /// The manifest to create it from, when that and all of `mounted` are here.
    pub(super) ready: Option<Digest>,
    /// The manifests of images that are mounted in it, of those that are here.
    pub(super) mounted: BTreeMap<ImageRef, Digest>,
}

impl<'a> Target<'a> {
    pub(super) fn new(wanted: &'a Service, observed: &Observed) -> Self {
        let ready = |image: &ImageRef| match observed.images.get(image) {
            Some(ImageState::Ready { manifest }) => Some(*manifest),
            _ => None,
        };
        let volumes = || wanted.image_volumes.iter().map(|volume| &volume.image);
        let mounted = volumes().filter_map(|image| Some((image.clone(), ready(image)?)));
        let mounted: BTreeMap<ImageRef, Digest> = mounted.collect();
        let own = ready(&wanted.image);
        let ready = own.filter(|_| volumes().all(|image| mounted.contains_key(image)));
        Self { wanted, fingerprint: wanted.fingerprint(), ready, mounted }
    }

    /// Why `container` is not what it should be, if so.
    pub(super) fn difference(&self, container: &Container) -> Option<Cause> {
        let fields = container.fingerprint.changed_fields(&self.fingerprint);
        if !fields.is_empty() {
            return Some(Cause::FieldsChanged(fields));
        }
        let own = std::iter::once((&self.wanted.image, container.manifest, self.ready?));
        let mounted = self.mounted.iter().filter_map(|(image, to)| {
            let from = container.mounted.get(image)?;
            Some((image, *from, *to))
        });
        let (image, from, to) = own.chain(mounted).find(|(_, from, to)| from != to)?;
        Some(Cause::ImageChanged { image: image.clone(), from, to })
    }
}
