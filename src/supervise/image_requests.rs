//! What people ask of images: how much is here, pull one, look into one.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::PoisonError;

use tokio::sync::mpsc;

use super::handle::{RequestError, RequestErrorKind};
use super::images::{Extent, Images};
use super::pull_error::PullError;
use super::report::{ContentReport, ImageReport, MountableImage, PullProgress};
use crate::image::{ImageRef, Manifest};
use crate::store::StoreError;
use crate::telemetry::Chain;

impl Images {
    /// How much of images is here, weighted by the sizes of their layers; of a manifest that is not, nothing.
    pub(super) async fn content(&self, manifests: &[Option<&Manifest>]) -> ContentReport {
        // A layer that is not mounted is, to be asked.
        let _mounting = self.mounting.read().await;
        let (mut local, mut total) = (0.0, 0.0);
        let mut report = ContentReport {
            local: 0.0,
            complete: manifests.iter().all(Option::is_some),
            lazy_layers: 0,
            layers: 0,
            full_because: Vec::new(),
        };
        let layers = manifests.iter().flatten().flat_map(|manifest| &manifest.layers);
        let mut seen = BTreeSet::new();
        for descriptor in layers.filter(|layer| seen.insert(layer.digest)) {
            report.layers += 1;
            let layer = self.store().layer(descriptor.digest);
            #[expect(clippy::cast_precision_loss, reason = "a share needs no exact bytes")]
            let size = descriptor.size.max(1) as f64;
            total += size;
            if layer.is_full() {
                local += size;
                let reasons = self.why_full.lock().unwrap_or_else(PoisonError::into_inner);
                let why = match (reasons.get(&descriptor.digest), descriptor.toc_digest()) {
                    (Some(why), _) => Some(why.clone()),
                    (None, None) => Some(crate::layer::NotLazy::NoTocDigest.to_string()),
                    (None, Some(_)) => None,
                };
                report.full_because.extend(why.filter(|why| !report.full_because.contains(why)));
            } else if layer.is_indexed_by(descriptor.toc_digest()) {
                report.lazy_layers += 1;
                let share = self.lazy.share(&layer).await;
                local += size * share;
                // What is not complete is never told as all.
                report.complete &= share >= 1.0;
            } else {
                report.complete = false;
            }
        }
        // Nothing is missing of an image without layers.
        report.local = if total > 0.0 { local / total } else { 1.0 };
        report
    }

    pub(super) async fn pull_reporting(
        &self,
        image: &str,
        extent: Extent,
        progress: mpsc::Sender<PullProgress>,
    ) {
        let outcome = match image.parse::<ImageRef>() {
            Ok(reference) => self
                .pull(&reference, extent, Some(&progress))
                .await
                .map_err(|error| (Chain(&error).to_string(), error.hint())),
            Err(error) => Err((error.to_string(), None)),
        };
        let image = image.to_owned();
        let step = match outcome {
            Ok(local) => PullProgress::Done { image, digest: local.manifest_digest },
            Err((message, hint)) => PullProgress::Failed { image, message, hint },
        };
        let _ = progress.send(step).await;
    }

    pub(super) async fn list(&self) -> Result<Vec<ImageReport>, RequestError> {
        let failed = |error: StoreError| {
            RequestError::new(RequestErrorKind::Failed, Chain(&error).to_string())
        };
        let mut reports = Vec::new();
        for record in self.store().images().map_err(failed)? {
            let Some(local) = self.load(&record).map_err(failed)? else { continue };
            reports.push(ImageReport {
                reference: record.reference.to_string(),
                digest: record.manifest,
                platform: record.platform.to_string(),
                size: local.manifest.layers.iter().map(|layer| layer.size).sum(),
                pulled_at: record.pulled_at,
                content: self.content(&[Some(&local.manifest)]).await,
            });
        }
        Ok(reports)
    }

    pub(super) async fn mountable(
        &self,
        image: &str,
        extent: Extent,
        target: &Path,
    ) -> Result<MountableImage, RequestError> {
        let reference: ImageRef = image.parse().map_err(|error: crate::image::RefError| {
            RequestError::new(RequestErrorKind::Invalid, error.to_string())
        })?;
        let failed = |error: PullError| {
            RequestError::new(RequestErrorKind::Failed, Chain(&error).to_string())
                .with_hint(error.hint())
        };
        let local = self.ensure(&reference, extent).await.map_err(failed)?;
        let mounted = self.mount_at(&local, target).await.map_err(failed)?;
        Ok(MountableImage {
            digest: local.manifest_digest,
            layers: mounted.layers,
            instance: self.lazy.instance().to_owned(),
        })
    }

    pub(super) async fn unmounted(&self, target: &Path) -> Result<(), RequestError> {
        let found = self.mounts.lock().unwrap_or_else(PoisonError::into_inner).remove(target);
        match found {
            Some(_) => Ok(()),
            None => Err(RequestError::new(
                RequestErrorKind::NotFound,
                format!("no image is mounted at `{}`", target.display()),
            )),
        }
    }
}
