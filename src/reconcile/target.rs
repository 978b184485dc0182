//! What a container of a service should be, and the one that it has until then.

use super::action::{Cause, StepNo};
use super::observed::{Container, ContainerKey, ImageState, Observed};
use super::want::Want;
use crate::image::Digest;
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
    /// The manifest to create it from, when that is here.
    pub(super) ready: Option<Digest>,
}

impl<'a> Target<'a> {
    pub(super) fn new(wanted: &'a Service, observed: &Observed) -> Self {
        let ready = match observed.images.get(&wanted.image) {
            Some(ImageState::Ready { manifest }) => Some(*manifest),
            _ => None,
        };
        Self { wanted, fingerprint: wanted.fingerprint(), ready }
    }

    /// Why `container` is not what it should be, if so.
    pub(super) fn difference(&self, container: &Container) -> Option<Cause> {
        let fields = container.fingerprint.changed_fields(&self.fingerprint);
        if !fields.is_empty() {
            return Some(Cause::FieldsChanged(fields));
        }
        let to = self.ready.filter(|manifest| *manifest != container.manifest)?;
        Some(Cause::ImageChanged { from: container.manifest, to })
    }
}
