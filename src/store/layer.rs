//! Layers: the folder of each, with the index of a lazy one and the tree of a full one.
//!
//! ```text
//! layers/<hex>/
//!   index         what the lazy engine maps
//!   toc           digest of the table of contents that the index was made of
//!   source        record: where the bytes come from
//!   fs/           the unpacked tree, whole if it is there
//!   unsettled     boot id: fs/ has not been synced yet since that boot
//!   .tmp-…/       a tree in the making
//! ```
//!
//! A tree is renamed into place without waiting for the disk: a container starts at once. Until
//! [`Store::settle`] has synced it, a marker says in which boot it was made, and after a power cut such a tree
//! is removed and fetched again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, RenameFlags, flock};
use serde::{Deserialize, Serialize};

use super::aside::Findings;
use super::durable::{self, Previous, TEMPORARY_PREFIX};
use super::{Record, Store, StoreError, failed, open_folder, record, tree};
use crate::image::{Compression, Digest};
use crate::sys::process::boot_id;

/// Where the bytes of a layer come from, and what the manifest says of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSource {
    /// The registry or layout; `BlobSource` of the registry module, which this module does not look into.
    pub blob: serde_json::Value,
    /// Size of the blob in bytes.
    pub size: u64,
    /// As the media type names it.
    pub compression: Compression,
    /// What the manifest gives as the digest of the table of contents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toc_digest: Option<Digest>,
    /// What the configuration gives as the digest of the uncompressed layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<Digest>,
}

impl Record for LayerSource {
    const KIND: &'static str = "layer-source";
    const VERSION: u32 = 1;
}

/// The folder of one layer, which need not exist yet.
#[derive(Debug, Clone)]
pub struct LayerDir {
    path: PathBuf,
    digest: Digest,
    findings: Arc<Findings>,
}

/// A tree in the making; removed when dropped, unless [`LayerDir::publish_full`] took it.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    /// Locked; every copy of the descriptor, also in a child, keeps the sweep of another process away.
    directory: OwnedFd,
    published: bool,
}

impl Staging {
    /// The directory, to resolve beneath and to hand to a child.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if let Err(error) = remove_tree(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "left a staging directory for the next start");
        }
    }
}

impl LayerDir {
    /// The digest of the layer's blob.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the index of a lazy layer is, or would be.
    #[must_use]
    pub fn index_path(&self) -> PathBuf {
        self.path.join("index")
    }

    /// Where the record of the source is, or would be.
    #[must_use]
    pub fn source_path(&self) -> PathBuf {
        self.path.join("source")
    }

    /// Where the unpacked tree is, or would be.
    #[must_use]
    pub fn full_path(&self) -> PathBuf {
        self.path.join("fs")
    }

    /// Whether the layer is unpacked, as a whole.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full_path().is_dir()
    }

    /// The digest of the table of contents that the index was made of, if there is an index; the index itself tells
    /// whether it is intact.
    ///
    /// The digest of a layer's blob says nothing about the index: ranges of a blob are vouched for by the table of
    /// contents alone, and that only by the manifest that names it. So whoever uses the index of a layer compares this
    /// with its own manifest, or an image could choose the files of every other image that shares a layer with it.
    #[must_use]
    pub fn indexed_toc(&self) -> Option<Digest> {
        let hex = std::fs::read_to_string(self.toc_path()).ok()?;
        let toc = Digest::from_hex(&hex).ok()?;
        self.index_path().is_file().then_some(toc)
    }

    /// Whether there is an index that was made of the table of contents `toc`; of none, where a manifest names none.
    #[must_use]
    pub fn is_indexed_by(&self, toc: Option<Digest>) -> bool {
        toc.is_some() && self.indexed_toc() == toc
    }

    /// Stores the index that was made of the table of contents `toc`. A connection that mapped the older one goes on
    /// with that.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write_index(&self, toc: Digest, index: &[u8]) -> Result<(), StoreError> {
        self.make()?;
        let path = self.toc_path();
        durable::write(&path, toc.hex().as_bytes(), Previous::Discard)
            .map_err(failed("write", &path))?;
        // Last: it is what says that the layer is here.
        let path = self.index_path();
        durable::write(&path, index, Previous::Discard).map_err(failed("write the index", &path))
    }

    /// Stores where the layer's bytes come from.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write_source(&self, source: &LayerSource) -> Result<(), StoreError> {
        self.make()?;
        Ok(record::save_with_copy(&self.source_path(), source)?)
    }

    /// Where the layer's bytes come from, if that is known.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn read_source(&self) -> Result<Option<LayerSource>, StoreError> {
        Ok(super::load(&self.source_path(), &self.findings)?)
    }

    /// A fresh, empty directory to unpack the layer into.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn staging(&self) -> Result<Staging, StoreError> {
        self.make()?;
        let make = || -> io::Result<Staging> {
            loop {
                let made = tempfile::Builder::new()
                    .prefix(TEMPORARY_PREFIX)
                    .rand_bytes(10)
                    .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
                    .tempdir_in(&self.path)?;
                let directory = open_folder(made.path())?;
                flock(&directory, FlockOperation::LockExclusive)?;
                // Between its creation and the lock a sweep may have taken it for an abandoned one.
                if made.path().exists() {
                    return Ok(Staging { path: made.keep(), directory, published: false });
                }
            }
        };
        make().map_err(failed("create a staging directory in", &self.path))
    }

    /// Makes `staging` the tree of the layer. Never replaces one: if another process was faster, its tree stays
    /// and this one goes. The tree survives a power cut only after [`Store::settle`].
    ///
    /// # Errors
    /// When the file system refuses; the staging directory is removed then.
    pub fn publish_full(&self, mut staging: Staging) -> Result<(), StoreError> {
        if self.is_full() {
            return Ok(());
        }
        let marker = self.marker_path();
        let boot_id = boot_id().unwrap_or_default();
        durable::write(&marker, boot_id.as_bytes(), Previous::Discard)
            .map_err(failed("write", &marker))?;
        let path = self.full_path();
        let cwd = rustix::fs::CWD;
        match rustix::fs::renameat_with(cwd, &staging.path, cwd, &path, RenameFlags::NOREPLACE) {
            Ok(()) => staging.published = true,
            Err(rustix::io::Errno::EXIST) => return Ok(()),
            Err(errno) => return Err(failed("publish the layer at", &path)(errno.into())),
        }
        if boot_id.is_empty() {
            // Without a boot id nobody could tell later whether a power cut came between.
            self.settle()?;
        }
        Ok(())
    }

    /// Removes the layer with all that is in its folder; nothing there is no error.
    ///
    /// The caller sees to it that nothing has it mounted.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove(&self) -> Result<(), StoreError> {
        remove_tree(&self.path).map_err(failed("remove the layer", &self.path))
    }

    fn toc_path(&self) -> PathBuf {
        self.path.join("toc")
    }

    fn marker_path(&self) -> PathBuf {
        self.path.join("unsettled")
    }

    fn make(&self) -> Result<(), StoreError> {
        match std::fs::DirBuilder::new().mode(0o700).create(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(failed("create the layer's folder", &self.path)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn settle(&self) -> Result<(), StoreError> {
        let sync = || rustix::fs::syncfs(open_folder(&self.path)?).map_err(io::Error::from);
        sync().map_err(failed("sync", &self.path))?;
        self.remove_marker()
    }

    fn remove_marker(&self) -> Result<(), StoreError> {
        let marker = self.marker_path();
        match std::fs::remove_file(&marker) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &marker)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes what a crash or power cut left in the layer's folder.
    fn sweep(&self, boot_id: &str) {
        durable::sweep(&self.path);
        for name in super::names(&self.path).unwrap_or_default() {
            let path = self.path.join(&name);
            if name.starts_with(TEMPORARY_PREFIX) && is_abandoned(&path) {
                tracing::info!(layer = %self.digest, "removing a layer whose unpacking was interrupted");
                let _ = remove_tree(&path);
            }
        }
        let unsettled = std::fs::read_to_string(self.marker_path());
        if unsettled.is_ok_and(|boot| boot != boot_id) {
            tracing::warn!(layer = %self.digest, "removing a layer that had not reached the disk when the host stopped");
            if remove_tree(&self.full_path()).is_ok() {
                let _ = self.remove_marker();
            }
        }
    }
}

impl Store {
    /// The folder of the layer whose blob has this digest.
    #[must_use]
    pub fn layer(&self, digest: Digest) -> LayerDir {
        LayerDir {
            path: self.root.join("layers").join(digest.hex()),
            digest,
            findings: Arc::clone(&self.findings),
        }
    }

    /// The layers that have a folder, in no order.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn layers(&self) -> Result<Vec<LayerDir>, StoreError> {
        let names = super::names(&self.root.join("layers"))?;
        let digests = names.iter().filter_map(|name| Digest::from_hex(name).ok());
        Ok(digests.map(|digest| self.layer(digest)).collect())
    }

    /// Makes every published tree survive a power cut. Waits for the disk, seconds perhaps: for a thread that
    /// may, after each pull and at start.
    ///
    /// # Errors
    /// When the file system refuses; what is not settled is fetched again after a power cut.
    pub fn settle(&self) -> Result<(), StoreError> {
        // Listed before the sync: a tree that is published meanwhile waits for the next time.
        let mut unsettled = self.layers()?;
        unsettled.retain(|layer| layer.marker_path().exists() && layer.is_full());
        if unsettled.is_empty() {
            return Ok(());
        }
        let sync = || rustix::fs::syncfs(open_folder(&self.root)?).map_err(io::Error::from);
        sync().map_err(failed("sync", &self.root))?;
        unsettled.iter().try_for_each(LayerDir::remove_marker)
    }

    pub(super) fn sweep_layers(&self) {
        let boot_id = boot_id().unwrap_or_default();
        let folder = self.root.join("layers");
        for name in super::names(&folder).unwrap_or_default() {
            // A layer that was being removed.
            if name.starts_with(TEMPORARY_PREFIX) {
                let _ = remove_tree(&folder.join(name));
            }
        }
        for layer in self.layers().unwrap_or_default() {
            layer.sweep(&boot_id);
        }
    }
}

/// Whether no process holds the staging directory at `path`.
fn is_abandoned(path: &Path) -> bool {
    open_folder(path)
        .is_ok_and(|directory| flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) =
        (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match open_folder(parent) {
        Ok(parent) => tree::remove(parent, name),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
