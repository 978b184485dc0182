//! What is kept in the state directory: blobs, layers, images, container folders, durable records.
//!
//! ```text
//! <state>/
//!   lock                    held by the control process that owns the directory
//!   version                 record: the version of all of this
//!   blobs/sha256/<hex>      manifests, indexes and configurations
//!   layers/<hex>/           index, source, fs/ (unpacked), of one layer
//!   files/                  verified file contents; laid out by the lazy engine
//!   images/<key>            record: what a reference stood for when it was pulled
//!   pins                    record: references whose images are kept
//!   containers/<id>/        writable layer and bundle of a container
//! ```
//!
//! A file is whole or not there: it is written beside its place, synced and renamed. What a crash leaves half
//! done has a temporary name and a lock that died with its writer; [`Store::open`] removes it. Blobs are verified
//! when they are read. This module never talks to a registry, and but for `collect`, which has to know what keeps what,
//! parses no format of an image.

mod aside;
mod blob;
mod collect;
mod container;
mod durable;
mod image;
mod layer;
mod lease;
mod pin;
pub mod record;
mod sizes;
mod tree;
mod usage;
mod version;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::FlockOperation;

pub use aside::{Finding, Kept, SetAside, forget as forget_aside, is_set_aside, set_aside_below};
pub use collect::{Class, Inventory, Item, Leftover, Reach, Taken, Uses};
pub use container::CONTAINER_RECORD;
pub use image::ImageRecord;
pub use layer::{LayerDir, LayerSource, Staging};
pub use lease::Lease;
pub use pin::Pinned;
pub(crate) use tree::remove as remove_tree;
pub use usage::{Usage, usage};
pub use version::{NewerState, check_version};

pub use record::{Loaded, Record, RecordError};

/// Folders of the state directory that the store makes. What is in them can be a setuid program of an image or
/// a secret of a container, so they are closed to other users even if the state directory itself is not.
const FOLDERS: [&str; 6] = ["blobs", "blobs/sha256", "layers", "files", "images", "containers"];

/// The state directory. Cheap to clone; all clones share the lock.
#[derive(Debug, Clone)]
pub struct Store {
    root: Arc<Path>,
    findings: Arc<aside::Findings>,
    leases: Arc<lease::Leases>,
    sizes: Arc<sizes::Sizes>,
    /// Held while records of images go, or are pinned.
    changing: Arc<Mutex<()>>,
    /// Held as long as one clone lives; `None` in roles that share the store.
    _lock: Option<Arc<OwnedFd>>,
}

/// An operation of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another control process owns the state directory.
    #[error("the state directory `{}` is in use by another supervisor (process {holder})", path.display())]
    Locked {
        /// The state directory.
        path: PathBuf,
        /// Its process id as it wrote it into the lock file, or `unknown`.
        holder: String,
    },
    /// A newer program has used the state directory.
    #[error(transparent)]
    Newer(#[from] NewerState),
    /// The file system refused.
    #[error("could not {action} `{}`", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A container id that cannot be the name of a folder.
    #[error("`{0}` is not the id of a container")]
    InvalidId(String),
    /// A record of the store could not be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl StoreError {
    /// Whether the cause is a full disk or an exhausted quota, which passes when space returns.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let source = match self {
            Self::Io { source, .. } => source,
            Self::Record(error) => error.io(),
            Self::Locked { .. } | Self::Newer(_) | Self::InvalidId(_) => return false,
        };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// Adds to an I/O error what was being done to which path.
fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> StoreError + use<'a> {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

impl Store {
    /// Opens the state directory for its one owner, makes what is missing in it, and removes what a crash left.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while another process owns it, [`StoreError::Newer`] when a newer program has used it;
    /// otherwise when the file system refuses.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        make_folder(state_dir, Existing::AsItIs)?;
        let lock = lock(state_dir)?;
        let findings = Arc::<aside::Findings>::default();
        version::settle(state_dir, &findings)?;
        for folder in FOLDERS {
            let path = state_dir.join(folder);
            clear_way(&path, &findings);
            make_folder(&path, Existing::Close)?;
        }
        let store = Self {
            root: state_dir.into(),
            findings,
            leases: Arc::default(),
            sizes: Arc::default(),
            changing: Arc::default(),
            _lock: Some(Arc::new(lock)),
        };
        store.sweep();
        Ok(store)
    }

    /// Opens the state directory without owning it: for roles that read and add layers for the owner, and for
    /// commands that only look.
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn open_shared(state_dir: &Path) -> Result<Self, StoreError> {
        std::fs::metadata(state_dir.join("layers"))
            .map_err(failed("open the state directory", state_dir))?;
        Ok(Self {
            root: state_dir.into(),
            findings: Arc::default(),
            leases: Arc::default(),
            sizes: Arc::default(),
            changing: Arc::default(),
            _lock: None,
        })
    }

    /// The state directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of verified file contents; its layout is the lazy engine's.
    #[must_use]
    pub fn files_dir(&self) -> PathBuf {
        self.root.join("files")
    }

    /// The record at `path`, or its previous copy. What cannot be used is set aside and becomes a [`Finding`].
    ///
    /// # Errors
    /// As [`record::load`].
    pub fn load<T: Record>(&self, path: &Path) -> Result<Option<T>, RecordError> {
        load(path, &self.findings)
    }

    /// What was found to be unusable since the last call.
    #[must_use]
    pub fn take_findings(&self) -> Vec<Finding> {
        self.findings.take()
    }

    /// Removes what a crash left: temporary files, abandoned staging directories, layers that were unpacked
    /// before a power cut and had not reached the disk. Whatever cannot be removed waits for the next time.
    fn sweep(&self) {
        durable::sweep(&self.root);
        durable::sweep(&self.root.join("blobs/sha256"));
        durable::sweep(&self.root.join("images"));
        self.sweep_layers();
        self.sweep_containers();
    }
}

/// Loads a record and remembers what there is to tell.
fn load<T: Record>(path: &Path, findings: &aside::Findings) -> Result<Option<T>, RecordError> {
    match record::load(path) {
        Ok(loaded) => {
            let (value, finding) = loaded.into_parts();
            if let Some(finding) = finding {
                if let (Some(value), Kept::Aside | Kept::Nowhere) = (&value, finding.kept) {
                    // Two copies again, before the other one is damaged too. If that fails now, the next save does it.
                    let _ = record::save_with_copy(path, value);
                }
                findings.add(finding);
            }
            Ok(value)
        }
        Err(error) => {
            findings.add(Finding {
                path: path.to_owned(),
                reason: format!("it cannot be read: {}", error.io()),
                kept: Kept::InPlace,
                aside: None,
                recovered: false,
            });
            Err(error)
        }
    }
}

/// Sets aside what stands where a folder of the store belongs, and is none.
fn clear_way(path: &Path, findings: &aside::Findings) {
    let is_folder =
        |found: std::fs::Metadata| found.is_dir() || (found.is_symlink() && path.is_dir());
    if std::fs::symlink_metadata(path).map_or(true, is_folder) {
        return;
    }
    if let Ok(aside) = aside::set_aside(path) {
        findings.add(Finding {
            path: path.to_owned(),
            reason: "it is no folder".to_owned(),
            kept: Kept::Aside,
            aside: Some(aside),
            recovered: false,
        });
    }
}

/// The names in `folder` that are text, which all of ours are; a folder that is not there has none.
fn names(folder: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", folder)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed("list", folder))?.file_name().into_string().ok());
    }
    Ok(names)
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// What becomes of a folder that is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    /// Its permissions are its owner's choice.
    AsItIs,
    /// It is closed to other users.
    Close,
}

fn make_folder(path: &Path, existing: Existing) -> Result<(), StoreError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(failed("create the folder", path))?;
    if existing == Existing::Close {
        let mode = std::fs::metadata(path).map_err(failed("look at", path))?.permissions().mode();
        if mode & 0o077 != 0 {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
                .map_err(failed("close to other users", path))?;
        }
    }
    Ok(())
}

/// Takes the lock of the state directory; it goes with the last copy of the descriptor, also after a kill.
fn lock(state_dir: &Path) -> Result<OwnedFd, StoreError> {
    use std::io::{Seek as _, Write as _};
    let path = state_dir.join("lock");
    // Not truncated when opened: the content names the holder as long as it is another process.
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed("open the lock", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = std::fs::read_to_string(&path).unwrap_or_default();
            let holder = match holder.trim() {
                "" => "unknown".to_owned(),
                text => text.chars().filter(char::is_ascii_digit).take(20).collect(),
            };
            return Err(StoreError::Locked { path: state_dir.to_owned(), holder });
        }
        Err(errno) => return Err(failed("lock", &path)(errno.into())),
    }
    // Only for the message of whoever comes second; a full disk is no reason to give up.
    let _ = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file.into())
}
