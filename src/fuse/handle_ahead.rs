//! What control has the worker fetch before anybody reads it.

use std::time::Duration;

use super::handle::{Lazy, done};
use super::handle_error::LazyError;
use super::protocol::{Answer, FailureKind, Request};
use crate::image::Digest;

/// Between two looks at whether a prefetch has ended, of a start that waits for it.
const PREFETCH_POLL: Duration = Duration::from_millis(20);

impl Lazy {
    /// Begins to fetch what the layer marks as needed first.
    ///
    /// # Errors
    /// When the layer is not mounted or nobody answers.
    pub async fn prefetch(&self, digest: Digest) -> Result<(), LazyError> {
        let request = Request::Prefetch { digest, paths: Vec::new() };
        done(self.shared.worker(&request, &[]).await?)
    }

    /// Begins to fetch what the layer has of `paths`, which are paths of the image: files, and folders with all that is
    /// below them. A worker of an older build fetches what the layer marks instead.
    ///
    /// # Errors
    /// When the layer is not mounted or nobody answers.
    pub async fn prefetch_paths(&self, digest: Digest, paths: &[String]) -> Result<(), LazyError> {
        // Bounded by what fits into a message, with all that JSON escapes.
        let mut rest = paths;
        while !rest.is_empty() {
            let mut room = 16 << 10;
            let fits = rest.iter().take_while(|path| {
                let has_room = room > 0;
                room -= room.min(path.len() + 3);
                has_room
            });
            let (now, later) = rest.split_at(fits.count());
            let request = Request::Prefetch { digest, paths: now.to_vec() };
            done(self.shared.worker(&request, &[]).await?)?;
            rest = later;
        }
        Ok(())
    }

    /// Begins to fetch what layers of one image, the uppermost first, mark as needed first; of those that mark nothing,
    /// the beginning of the files that are about to be read: of each list in `wanted` the first path that there is.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn begin(
        &self,
        layers: &[Digest],
        wanted: Vec<Vec<String>>,
    ) -> Result<(), LazyError> {
        let request = Request::Begin { layers: layers.to_vec(), wanted };
        match self.shared.worker(&request, &[]).await? {
            // Of an older build.
            Answer::Failed { kind: FailureKind::Unsupported, .. } => {
                for digest in layers {
                    self.prefetch(*digest).await?;
                }
                Ok(())
            }
            other => done(other),
        }
    }

    /// Waits until no prefetch of `layers` runs any more.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn prefetched(&self, layers: &[Digest]) -> Result<(), LazyError> {
        while self
            .status()
            .await?
            .layers
            .iter()
            .any(|layer| layer.is_prefetching && layers.contains(&layer.digest))
        {
            tokio::time::sleep(PREFETCH_POLL).await;
        }
        Ok(())
    }
}
