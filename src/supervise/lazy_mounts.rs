//! Lazy layers from control's side: the connection is made when the first layer needs it, and why it cannot be made
//! is a reason that people see, never a failure.

use std::path::PathBuf;

use crate::store::LayerDir;

/// The lazy mounts of one run directory.
#[derive(Debug)]
pub(super) struct LazyMounts {}

impl LazyMounts {
    pub(super) fn new(
        _options: &super::ControlOptions,
        _run_dir: &std::path::Path,
        _state_dir: &std::path::Path,
        _instance: &str,
        _exe: std::sync::Arc<crate::sys::process::SealedExe>,
        _events: super::events::EventLog,
    ) -> Self {
        Self {}
    }

    /// Makes sure that layers can be mounted; the error is the reason why not.
    pub(super) async fn ensure(&self) -> Result<(), String> {
        Err("lazy mounts are not available".to_owned())
    }

    /// Mounts an indexed layer, or finds it mounted, and returns its directory.
    pub(super) async fn mount(&self, _layer: &LayerDir) -> Result<PathBuf, String> {
        Err("lazy mounts are not available".to_owned())
    }

    /// Starts to fetch what the layer marks as needed first.
    pub(super) async fn prefetch(&self, _layer: &LayerDir) -> Result<(), String> {
        Ok(())
    }

    /// Share of the layer's content that is here, 0 to 1.
    pub(super) async fn share(&self, _layer: &LayerDir) -> f64 {
        0.0
    }

    /// Takes the connection down if nothing uses it.
    pub(super) async fn stop_if_unused(&self) {}
}
