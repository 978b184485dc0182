//! Images whose lazy layers are brought here as a whole, so that they need no network any more.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::images::{Images, LocalImage};
use super::pull_error::PullError;
use super::tally::Teller;
use crate::image::Digest;

/// Between two looks at how far the layers are.
const LOOK: Duration = Duration::from_millis(200);

/// After so long without a byte somebody has to look: the registry may be away, the cache may be full.
const PATIENCE: Duration = Duration::from_secs(120);

impl Images {
    /// Fetches all content of the lazy layers of an image, which is here otherwise. The layers stay lazy.
    pub(super) async fn complete(
        &self,
        image: &LocalImage,
        teller: Teller<'_>,
    ) -> Result<(), PullError> {
        let mut pending = BTreeMap::new();
        for wanted in image.wanted() {
            let digest = wanted.descriptor.digest;
            if self.store().layer(digest).is_full() {
                continue;
            }
            if self.mount_one(image, &wanted).await? {
                pending.insert(digest, (0, Instant::now()));
            } else {
                teller.complete(digest, false, None).await;
            }
        }
        let mut needed = 0;
        for digest in pending.keys() {
            let status = self.lazy.layer_status(*digest).await;
            needed += status.map_or(0, |status| status.total_bytes);
        }
        self.has_room_for_content(&image.reference, needed)?;
        for digest in pending.keys() {
            self.lazy.background(*digest).await;
        }
        while !pending.is_empty() {
            for digest in pending.keys().copied().collect::<Vec<Digest>>() {
                self.look(digest, &mut pending, teller).await?;
            }
            if teller.is_alone() {
                return Err(PullError::Abandoned);
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    async fn look(
        &self,
        layer: Digest,
        pending: &mut BTreeMap<Digest, (u64, Instant)>,
        teller: Teller<'_>,
    ) -> Result<(), PullError> {
        let status = self.lazy.layer_status(layer).await;
        let (local, total) =
            status.as_ref().map_or((0, 0), |status| (status.local_bytes, status.total_bytes));
        if status.is_some_and(|status| status.is_complete) {
            pending.remove(&layer);
            teller.complete(layer, true, None).await;
            return Ok(());
        }
        teller.layer(layer)(local, total);
        let Some((before, since)) = pending.get_mut(&layer) else { return Ok(()) };
        if local > *before {
            (*before, *since) = (local, Instant::now());
            return Ok(());
        }
        if since.elapsed() < PATIENCE {
            return Ok(());
        }
        Err(PullError::Incomplete { layer, local, total, waited: PATIENCE })
    }
}
