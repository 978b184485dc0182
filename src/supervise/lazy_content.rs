//! What control asks of those who serve lazy layers about content: which layers they serve, and what may go.

use super::lazy_side::LazySide;
use crate::fuse::{LayerStatus, Spare};
use crate::image::Digest;
use crate::lazy::Found;
use crate::telemetry::Chain;

impl LazySide {
    /// How a mounted layer is, asked now.
    pub(super) async fn layer_status(&self, layer: Digest) -> Option<LayerStatus> {
        let status = self.connected().await.ok()?.status().await.ok()?;
        status.layers.into_iter().find(|status| status.digest == layer)
    }

    /// Has all of a mounted layer fetched.
    pub(super) async fn background(&self, layer: Digest) -> Result<(), String> {
        let begun = self.connected().await?.background(layer).await;
        begun.map_err(|error| Chain(&error).to_string())
    }

    /// The layers that are mounted. The error is why nobody can say.
    pub(super) async fn mounted(&self) -> Result<Vec<Digest>, String> {
        if !self.is_there() {
            return Ok(Vec::new());
        }
        let lazy = self.connected().await?;
        let status = lazy.status().await.map_err(|error| Chain(&error).to_string())?;
        match status.worker {
            Some(_) => Ok(status.layers.iter().map(|layer| layer.digest).collect()),
            None => Err("nobody serves the lazy layers at present".to_owned()),
        }
    }

    /// Removes content that neither a layer that is mounted here nor one of `keep` has, nor what `spare` says, as far as
    /// `bytes` need it. `None` where another process has the cache, or there is no connection.
    pub(super) async fn evict(
        &self,
        keep: &[Digest],
        spare: Spare,
        bytes: Option<u64>,
    ) -> Result<Option<Found>, String> {
        if !self.is_there() {
            return Ok(None);
        }
        let lazy = self.connected().await?;
        let evicted = lazy.evict(keep, spare, bytes).await;
        let evicted = evicted.map_err(|error| Chain(&error).to_string());
        self.forget_statuses().await;
        evicted
    }
}
