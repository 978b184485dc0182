//! Overlays without a writable part.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use super::mount::{self, MountCall};

/// Mounts `layers`, lowest first, at `target`, an empty directory. `source` names the mount in the mount table.
///
/// # Errors
/// Those of the kernel.
pub fn mount(source: &str, layers: &[PathBuf], target: &Path, call: MountCall) -> io::Result<()> {
    // An overlay without a writable part has at least two layers, and an image may have fewer. A removed directory
    // would not do: listing it fails, and so does every listing of the overlay.
    let empty = mount::empty()?;
    let below = PathBuf::from(format!("/proc/self/fd/{}", empty.as_raw_fd()));
    let missing = 2_usize.saturating_sub(layers.len());
    let mut lower = Vec::with_capacity(layers.len() + missing);
    for number in 0..missing {
        let place = below.join(number.to_string());
        std::fs::create_dir(&place)?;
        lower.push(place);
    }
    lower.extend_from_slice(layers);
    let mut mounted =
        mount::overlay(mount::Overlay { source, lower: &lower, upper: None }, target, call);
    if missing == 1 && mounted.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::InvalidInput) {
        // Before Linux 6.15 every layer has to be in this mount namespace. The target is, and it is empty.
        lower[0] = target.to_path_buf();
        mounted =
            mount::overlay(mount::Overlay { source, lower: &lower, upper: None }, target, call);
    }
    mounted
}
