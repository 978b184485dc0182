//! Folders of containers: writable layer, bundle, and what the monitor keeps there.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::{Store, StoreError, durable, failed, tree};

/// What says in a container's folder whose it is.
pub const CONTAINER_RECORD: &str = "container";

impl Store {
    /// The folder of the container, made if it is missing.
    ///
    /// # Errors
    /// [`StoreError::InvalidId`] for what is no plain name; otherwise when the file system refuses.
    pub fn container_dir(&self, id: &str) -> Result<PathBuf, StoreError> {
        check(id)?;
        let path = self.root.join("containers").join(id);
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(failed("create the container's folder", &path)(error))
            }
            Ok(()) | Err(_) => Ok(path),
        }
    }

    /// The ids of all containers that have a folder, sorted.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn containers(&self) -> Result<Vec<String>, StoreError> {
        let mut ids = super::names(&self.root.join("containers"))?;
        ids.retain(|id| check(id).is_ok());
        ids.sort_unstable();
        Ok(ids)
    }

    /// Removes the folder of the container with all that is in it, [`CONTAINER_RECORD`] last: whoever is interrupted
    /// leaves a container that is known and is removed again, or an empty folder. Nothing there is no error. No link is
    /// followed and no mount is entered: while something is mounted below, this fails and removes the rest.
    ///
    /// # Errors
    /// [`StoreError::InvalidId`] for what is no plain name; otherwise when the file system refuses.
    pub fn remove_container(&self, id: &str) -> Result<(), StoreError> {
        check(id)?;
        let folder = self.root.join("containers");
        let own = folder.join(id);
        let names = super::names(&own)?;
        let remove = |parent: &Path, name: &str| tree::remove(super::open_folder(parent)?, name);
        let mut removed = Ok(());
        for name in names.iter().filter(|name| *name != CONTAINER_RECORD) {
            removed = removed.and(remove(&own, name));
        }
        removed
            .and_then(|()| remove(&folder, id))
            .map_err(failed("remove the container's folder", &own))
    }

    pub(super) fn sweep_containers(&self) {
        for id in self.containers().unwrap_or_default() {
            durable::sweep(&self.root.join("containers").join(id));
        }
    }
}

/// An id is one component of a path, and no hidden one.
fn check(id: &str) -> Result<(), StoreError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > 200 || id.starts_with('.') || !id.bytes().all(plain) {
        return Err(StoreError::InvalidId(id.chars().take(200).collect()));
    }
    Ok(())
}
