//! How far pulls are: for those who look while they run, and for the one who asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use super::report::{PullLayer, PullProgress};
use crate::image::{Digest, ImageRef, Manifest};
use crate::layer::Progress;

/// Bytes by layer of each image that is being pulled.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<HashMap<ImageRef, HashMap<Digest, Layer>>>);

#[derive(Debug, Clone, Copy)]
struct Layer {
    done: u64,
    size: u64,
}

impl Tally {
    fn images(&self) -> MutexGuard<'_, HashMap<ImageRef, HashMap<Digest, Layer>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pull knows its layers and their sizes.
    pub(super) fn begin(&self, image: &ImageRef, layers: impl Iterator<Item = (Digest, u64)>) {
        let layers = layers.map(|(digest, size)| (digest, Layer { done: 0, size })).collect();
        self.images().insert(image.clone(), layers);
    }

    /// So many bytes of a layer are here.
    pub(super) fn arrived(&self, image: &ImageRef, digest: Digest, done: u64) {
        if let Some(layer) = self.images().get_mut(image).and_then(|layers| layers.get_mut(&digest))
        {
            layer.done = done.min(layer.size);
        }
    }

    /// A layer needs no more; a lazy one with the little that it has.
    pub(super) fn ready(&self, image: &ImageRef, digest: Digest) {
        self.arrived(image, digest, u64::MAX);
    }

    /// The pull has ended.
    pub(super) fn end(&self, image: &ImageRef) {
        self.images().remove(image);
    }

    /// 0 to 100, once the layers are known.
    pub(super) fn percent(&self, image: &ImageRef) -> Option<u8> {
        let images = self.images();
        let layers = images.get(image)?.values();
        let (done, size) = layers
            .fold((0_u64, 0_u64), |(done, size), layer| (done + layer.done, size + layer.size));
        u8::try_from(done.saturating_mul(100).checked_div(size)?).ok()
    }
}

/// Tells how one pull goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Teller<'a> {
    pub(super) image: &'a ImageRef,
    pub(super) tally: &'a Arc<Tally>,
    /// Who asked, if that is somebody who watches.
    pub(super) progress: Option<&'a mpsc::Sender<PullProgress>>,
}

impl Teller<'_> {
    pub(super) async fn resolved(self, digest: Digest, manifest: &Manifest) {
        self.tally
            .begin(self.image, manifest.layers.iter().map(|layer| (layer.digest, layer.size)));
        let Some(progress) = self.progress else { return };
        let layers = manifest.layers.iter();
        let layers =
            layers.map(|layer| PullLayer { digest: layer.digest, size: layer.size }).collect();
        let _ = progress
            .send(PullProgress::Resolved { image: self.image.to_string(), digest, layers })
            .await;
    }

    /// What to call while a layer arrives. A step that finds the queue full is dropped, since a later one says more.
    pub(super) fn layer(self, digest: Digest) -> Progress {
        let (tally, image, progress) =
            (Arc::clone(self.tally), self.image.clone(), self.progress.cloned());
        Arc::new(move |done, total| {
            tally.arrived(&image, digest, done);
            if let Some(progress) = &progress {
                let _ = progress.try_send(PullProgress::Layer { digest, done, total });
            }
        })
    }

    /// A layer is here by its index.
    pub(super) async fn indexed(self, digest: Digest) {
        self.is_ready(PullProgress::LayerReady {
            digest,
            lazy: true,
            complete: false,
            why_full: None,
        })
        .await;
    }

    /// All content of a layer is here, which is no lazy one if there is a reason.
    pub(super) async fn complete(self, digest: Digest, lazy: bool, why_full: Option<String>) {
        self.is_ready(PullProgress::LayerReady { digest, lazy, complete: true, why_full }).await;
    }

    async fn is_ready(self, step: PullProgress) {
        if let PullProgress::LayerReady { digest, .. } = &step {
            self.tally.ready(self.image, *digest);
        }
        if let Some(progress) = self.progress {
            let _ = progress.send(step).await;
        }
    }

    /// Whether the one who asked has gone.
    pub(super) fn is_alone(self) -> bool {
        self.progress.is_some_and(mpsc::Sender::is_closed)
    }
}

/// Tells nobody.
pub(super) fn nobody() -> Progress {
    Arc::new(|_, _| {})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_of_all_layers_and_goes_with_the_pull() {
        let (tally, image) = (Tally::default(), "example".parse::<ImageRef>().unwrap());
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        assert_eq!(tally.percent(&image), None);
        tally.begin(&image, [(one, 300), (two, 100)].into_iter());
        tally.arrived(&image, one, 150);
        assert_eq!(tally.percent(&image), Some(37));
        tally.ready(&image, two);
        assert_eq!(tally.percent(&image), Some(62));
        tally.arrived(&image, one, 999);
        assert_eq!(tally.percent(&image), Some(100));
        tally.end(&image);
        assert_eq!(tally.percent(&image), None);
    }
}
