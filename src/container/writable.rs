//! The writable layer of a container: when the one of its last run may be used again.
//!
//! It is mounted `volatile`: the kernel then skips every sync, and marks it so by `incompat/volatile` in its work
//! directory. Such a layer is whole as long as the page cache is, that is, in one boot. When a run has ended and its
//! overlay is unmounted without an error, the file `clean` with the id of the boot is written beside it; the next run
//! takes the file away, then the kernel's mark, and goes on with the layer. Without the file, or in another boot, the
//! layer is removed. There is no sync of the file system beneath: in the same boot it adds nothing, in another boot the
//! layer is not used, and it would delay every restart by whatever else the disk is doing. `syncfs` on the overlay
//! itself, which in a volatile one only reports write errors, is asked before the unmount.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::record::WritableState;
use super::{Rootfs, Writable};
use crate::sys::mount::{self, MountCall, Upper};
use crate::sys::process::boot_id;

/// The directories of a writable layer.
#[derive(Debug)]
pub(super) struct WritableLayer {
    upper: PathBuf,
    work: PathBuf,
    clean: PathBuf,
}

impl WritableLayer {
    pub(super) fn of(state_dir: &Path) -> Self {
        Self {
            upper: state_dir.join("upper"),
            work: state_dir.join("work"),
            clean: state_dir.join("clean"),
        }
    }

    /// Decides whether the layer of the last run is used, and leaves directories that can be mounted.
    pub(super) fn prepare(&self, kept: Writable) -> io::Result<WritableState> {
        let state = if self.upper.exists() || self.work.exists() {
            match self.distrust(kept)? {
                Some(reason) => {
                    self.remove()?;
                    WritableState::Discarded { reason }
                }
                None => WritableState::Kept,
            }
        } else {
            WritableState::Fresh
        };
        // From here on the layer is in use: whoever finds it without the file knows that the end was not clean.
        remove_file(&self.clean)?;
        for dir in [&self.upper, &self.work] {
            fs::create_dir_all(dir)?;
        }
        let mark = self.kernel_mark();
        if mark.exists() {
            fs::remove_dir_all(mark)?;
        }
        // The root of the container is the upper directory's root.
        fs::set_permissions(&self.upper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(state)
    }

    /// Why the layer of the last run cannot be used.
    fn distrust(&self, kept: Writable) -> io::Result<Option<String>> {
        let marker = match fs::read_to_string(&self.clean) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // Never mounted volatile, so the kernel has kept it in order itself.
        if kept == Writable::Durable && !self.kernel_mark().exists() {
            return Ok(None);
        }
        Ok(match marker {
            None => Some("the last run did not end cleanly".to_owned()),
            Some(boot) if boot.trim() != boot_id()? => {
                Some("the host was started again since the last run".to_owned())
            }
            Some(_) => None,
        })
    }

    /// What the kernel leaves in a layer that was mounted volatile; it refuses to mount the layer again.
    fn kernel_mark(&self) -> PathBuf {
        self.work.join("work/incompat/volatile")
    }

    /// Says that the layer is whole. Only after its overlay is unmounted.
    pub(super) fn mark_clean(&self) -> io::Result<()> {
        fs::write(&self.clean, boot_id()?)
    }

    /// Removes the layer and everything that the container has written.
    pub(super) fn remove(&self) -> io::Result<()> {
        remove_file(&self.clean)?;
        for dir in [&self.upper, &self.work] {
            match fs::remove_dir_all(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Rootfs {
    /// Which call mounts overlays.
    pub(super) fn mount_call(&self) -> MountCall {
        if self.legacy_mount { MountCall::Legacy } else { MountCall::Best }
    }
}

/// Mounts the root file system at `target`. May block on lazy layers.
pub(super) fn mount(rootfs: &Rootfs, layer: &WritableLayer, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target)?;
    let upper = Upper {
        dir: layer.upper.clone(),
        work: layer.work.clone(),
        volatile: rootfs.writable == Writable::Volatile,
    };
    mount::overlay(
        mount::Overlay { source: "supervisor", lower: &rootfs.layers, upper: Some(&upper) },
        target,
        rootfs.mount_call(),
    )
}

/// Unmounts the root file system; `Ok` when nothing uses it any more and no write to it was lost.
pub(super) fn unmount(target: &Path) -> io::Result<()> {
    let directory = fs::File::open(target)?;
    let written = rustix::fs::syncfs(&directory);
    drop(directory);
    mount::unmount(target)?;
    Ok(written?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(layer: &WritableLayer) {
        fs::write(layer.upper.join("file"), "content").unwrap();
        fs::create_dir_all(layer.kernel_mark()).unwrap();
    }

    #[test]
    fn a_layer_is_kept_after_a_clean_end_in_the_same_boot() {
        let dir = tempfile::tempdir().unwrap();
        let layer = WritableLayer::of(dir.path());
        assert_eq!(layer.prepare(Writable::Volatile).unwrap(), WritableState::Fresh);
        used(&layer);
        layer.mark_clean().unwrap();
        assert_eq!(layer.prepare(Writable::Volatile).unwrap(), WritableState::Kept);
        assert!(layer.upper.join("file").exists() && !layer.kernel_mark().exists());
    }

    #[test]
    fn a_layer_is_discarded_after_any_other_end() {
        let dir = tempfile::tempdir().unwrap();
        let layer = WritableLayer::of(dir.path());
        for clean in [None, Some("another boot")] {
            layer.prepare(Writable::Volatile).unwrap();
            used(&layer);
            if let Some(boot) = clean {
                fs::write(&layer.clean, boot).unwrap();
            }
            let state = layer.prepare(Writable::Volatile).unwrap();
            assert!(matches!(state, WritableState::Discarded { .. }), "{state:?}");
            assert!(!layer.upper.join("file").exists());
        }
        // It was found once: after a second crash the marker must not vouch for the layer again.
        used(&layer);
        let state = layer.prepare(Writable::Volatile).unwrap();
        assert!(matches!(state, WritableState::Discarded { .. }), "{state:?}");
    }

    #[test]
    fn a_durable_layer_survives_a_crash_unless_it_was_volatile() {
        let dir = tempfile::tempdir().unwrap();
        let layer = WritableLayer::of(dir.path());
        layer.prepare(Writable::Durable).unwrap();
        fs::write(layer.upper.join("file"), "content").unwrap();
        assert_eq!(layer.prepare(Writable::Durable).unwrap(), WritableState::Kept);
        used(&layer);
        let state = layer.prepare(Writable::Durable).unwrap();
        assert!(matches!(state, WritableState::Discarded { .. }), "{state:?}");
    }
}
