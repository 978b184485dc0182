//! Which layers, in which order, with which writable part.
//!
//! A container's root is mounted by its monitor from plain paths (`container::Rootfs`); an image that somebody wants
//! to look into is mounted here, read-only and without a writable part.

use std::io;
use std::path::{Path, PathBuf};

use crate::sys::mount::{self, MountCall};
use crate::sys::read_only_overlay;

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
    let mounted = read_only_overlay::mount(&source(instance), layers, target, call);
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
