//! Which layers, in which order, with which writable part.
//!
//! A container's root is mounted by its monitor from plain paths (`container::Rootfs`); an image that somebody wants
//! to look into is mounted here, read-only and without a writable part.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use crate::sys::mount::{self, MountCall};

/// The source of an image mount in the mount table: what tells ours from other people's and other instances'.
fn source(instance: &str) -> String {
    format!("supervisor-{instance}")
}

/// An image could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel refused.
    #[error("could not mount {layers} layers at `{}`", target.display())]
    Overlay {
        /// How many layers.
        layers: usize,
        /// Where.
        target: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directory below the layers could not be made.
    #[error("could not make an empty directory below the layers")]
    Empty(#[source] io::Error),
}

/// Mounts `layers` (lowest first) read-only at `target`, an empty directory, for `instance`.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_read_only(
    layers: &[PathBuf],
    target: &Path,
    instance: &str,
    call: MountCall,
) -> Result<(), MountError> {
    // An overlay without a writable part has at least two layers, and an image may have fewer. A removed directory
    // would not do: listing it fails, and so does every listing of the overlay.
    let empty = mount::empty().map_err(MountError::Empty)?;
    let below = PathBuf::from(format!("/proc/self/fd/{}", empty.as_raw_fd()));
    let missing = 2_usize.saturating_sub(layers.len());
    let mut lower = Vec::with_capacity(layers.len() + missing);
    for number in 0..missing {
        let place = below.join(number.to_string());
        std::fs::create_dir(&place).map_err(MountError::Empty)?;
        lower.push(place);
    }
    lower.extend_from_slice(layers);
    let name = source(instance);
    let overlay = mount::Overlay { source: &name, lower: &lower, upper: None };
    let mut mounted = mount::overlay(overlay, target, call);
    if missing == 1 && mounted.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::InvalidInput) {
        // Before Linux 6.15 every layer has to be in this mount namespace. The target is, and it is empty.
        lower[0] = target.to_path_buf();
        let overlay = mount::Overlay { source: &name, lower: &lower, upper: None };
        mounted = mount::overlay(overlay, target, call);
    }
    mounted.map_err(|source| MountError::Overlay {
        layers: layers.len(),
        target: target.to_path_buf(),
        source,
    })
}

/// Where `instance` has images mounted in this mount namespace.
///
/// # Errors
/// When the mount table cannot be read.
pub fn image_mounts(instance: &str) -> io::Result<Vec<PathBuf>> {
    let source = source(instance);
    let ours = |mount: &mount::Mount| mount.fs_type == "overlay" && mount.source == source;
    Ok(mount::mounts()?.into_iter().filter(ours).map(|mount| mount.mount_point).collect())
}

/// Whether `instance` has an image mounted at `target`.
///
/// # Errors
/// When the mount table cannot be read.
pub fn is_image_mount(target: &Path, instance: &str) -> io::Result<bool> {
    Ok(image_mounts(instance)?.iter().any(|mounted| mounted == target))
}
