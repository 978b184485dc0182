//! The mount of a keeper: making it, finding it, taking it away. Nothing here looks below it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::options::RoleConfig;
use super::protocol::{KEEPER_SOCKET, WORKER_SOCKET};
use super::session::{self, Session, SessionError, SlotState};
use crate::sys::mount::MountCall;
use crate::sys::{fuse_device, mount};

/// Why the mount could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum MountError {
    #[error("could not open `{}`", fuse_device::DEVICE)]
    Device {
        #[source]
        source: io::Error,
    },
    #[error("something else is mounted at `{path}`")]
    Foreign { path: PathBuf },
    #[error("could not mount FUSE at `{path}`")]
    Mount {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// The mounts at `path`: the minor number and whether it is ours.
fn mounts_at(path: &Path, source: &str) -> io::Result<Vec<(u32, bool)>> {
    let found = mount::mounts()?;
    Ok(found
        .into_iter()
        .filter(|mount| mount.mount_point == path)
        .map(|mount| {
            let minor = mount.device.split_once(':').and_then(|(_, minor)| minor.parse().ok());
            let is_ours = mount.fs_type.starts_with("fuse") && mount.source == source;
            (minor.unwrap_or_default(), is_ours)
        })
        .collect())
}

/// The minor device number of our mount at `path`, if it is there.
pub(super) fn minor(path: &Path, source: &str) -> io::Result<Option<u32>> {
    Ok(mounts_at(path, source)?.into_iter().rev().find(|(_, ours)| *ours).map(|(minor, _)| minor))
}

/// Mounts a new connection, after whatever is left of older ones. The slots of the last one keep their numbers.
pub(super) fn mount(config: &RoleConfig) -> Result<(OwnedFd, u32), MountError> {
    let path = config.mount_point();
    let source = config.mount_source();
    let failed = |source| MountError::Mount { path: path.clone(), source };
    // Before anything is taken away: on a host without FUSE there is nothing to take away.
    let device = fuse_device::open().map_err(|source| MountError::Device { source })?;
    detach(config)?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
    let earlier = Session::open(&config.directory)
        .and_then(|session| Ok((session.slots()?, session.xattrs())));
    let (slots, xattrs) = earlier.unwrap_or_else(|error| {
        tracing::debug!(%error, "no slots of an earlier connection");
        (Vec::new(), config.xattrs)
    });
    let kept: Vec<_> = slots.into_iter().filter(|slot| slot.state == SlotState::Live).collect();
    // Layers that go over are answered for as before: one of an older build may have mounted any.
    let xattrs = if kept.is_empty() { config.xattrs } else { xattrs };
    Session::create(&config.directory, &kept, xattrs)?;
    let call = if config.mount_api.is_wanted() { MountCall::Best } else { MountCall::Legacy };
    mount::fuse_at(device.as_fd(), &source, &path, call).map_err(failed)?;
    // From the table, not from stat: that would ask a worker that does not exist yet.
    let minor = minor(&path, &source).map_err(failed)?.unwrap_or_default();
    tracing::info!(path = %path.display(), minor, "mounted");
    Ok((device, minor))
}

/// Takes our mounts away from the mount point; one that is not ours is an error and stays.
pub(super) fn detach(config: &RoleConfig) -> Result<(), MountError> {
    let path = config.mount_point();
    let failed = |source| MountError::Mount { path: path.clone(), source };
    let present = mounts_at(&path, &config.mount_source()).map_err(failed)?;
    if present.iter().any(|(_, is_ours)| !is_ours) {
        return Err(MountError::Foreign { path });
    }
    for _ in present {
        mount::detach(&path).map_err(failed)?;
    }
    Ok(())
}

/// Removes what a connection leaves in the lazy directory.
pub(super) fn sweep(config: &RoleConfig) {
    let directory = &config.directory;
    for name in [session::FILE, KEEPER_SOCKET, WORKER_SOCKET] {
        let _ = std::fs::remove_file(directory.join(name));
    }
    // Only when nothing is mounted there: an empty directory is all that this removes.
    let _ = std::fs::remove_dir(config.mount_point());
}
