//! What an installation placed: the proof that a file is ours, and the list of what goes when it is removed.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::InstallError;
use super::{Content, Item};
use crate::image::Digest;

/// Everything that was placed. Paths are as the installed host sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Installed {
    pub(super) items: Vec<Placed>,
    /// Folders that were made, outer ones first.
    pub(super) folders: Vec<PathBuf>,
}

/// One path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Placed {
    pub(super) path: PathBuf,
    pub(super) content: Seal,
    /// What an interrupted replacement may have left instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<Seal>,
}

/// What tells whether it is still the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Seal {
    Digest(String),
    Target(PathBuf),
}

impl Placed {
    /// Whether `seal` is what was placed here.
    pub(super) fn is(&self, seal: &Seal) -> bool {
        self.content == *seal || self.before.as_ref() == Some(seal)
    }
}

impl Seal {
    pub(super) fn of(item: &Item) -> Self {
        match &item.content {
            Content::File(bytes) | Content::Program(bytes) => {
                Self::Digest(Digest::of(bytes).to_string())
            }
            Content::Link(target) => Self::Target(target.clone()),
        }
    }

    /// Of what is at `path` now; `None` when there is nothing. What is neither file nor link has no seal of ours.
    pub(super) fn at(path: &Path) -> Result<Option<Self>, InstallError> {
        let failed = || InstallError::io("look at", path);
        let kind = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed()(error)),
        };
        if kind.is_symlink() {
            return fs::read_link(path).map(|target| Some(Self::Target(target))).map_err(failed());
        }
        if !kind.is_file() {
            return Ok(Some(Self::Digest("none".to_owned())));
        }
        let bytes = fs::read(path).map_err(failed())?;
        Ok(Some(Self::Digest(Digest::of(&bytes).to_string())))
    }
}

impl Installed {
    /// The record at `path`, a path of this host; `None` when there is none.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, InstallError> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| InstallError::Record { path: path.to_path_buf(), source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(InstallError::io("read", path)(error)),
        }
    }

    pub(super) fn save(&self, path: &Path) -> Result<(), InstallError> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|source| InstallError::Record { path: path.to_path_buf(), source })?;
        write(path, &text, 0o644)
    }

    pub(super) fn find(&self, path: &Path) -> Option<&Placed> {
        self.items.iter().find(|placed| placed.path == path)
    }
}

/// Writes a file so that it is there whole or not at all; a program that runs from it goes on.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), InstallError> {
    let failed = || InstallError::io("write", path);
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file =
        tempfile::Builder::new().prefix(".supervisor-").tempfile_in(folder).map_err(failed())?;
    file.write_all(bytes).map_err(failed())?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode)).map_err(failed())?;
    file.as_file().sync_all().map_err(failed())?;
    file.persist(path).map(drop).map_err(|error| failed()(error.error))
}

/// `path` of the installed host, as this host sees it.
///
/// # Errors
/// When a folder on the way, below `root`, is a link: in an image it would lead out of the image.
pub(super) fn below(root: &Path, path: &Path) -> Result<PathBuf, InstallError> {
    let mut found = root.to_path_buf();
    let names: Vec<_> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(Ok(name)),
            Component::RootDir | Component::CurDir => None,
            Component::ParentDir | Component::Prefix(_) => Some(Err(())),
        })
        .collect::<Result<_, ()>>()
        .map_err(|()| InstallError::Path(path.to_path_buf()))?;
    let Some((last, folders)) = names.split_last() else {
        return Err(InstallError::Path(path.to_path_buf()));
    };
    for name in folders {
        found.push(name);
        // On the host itself its own links are as they should be.
        let link = fs::symlink_metadata(&found).is_ok_and(|metadata| !metadata.is_dir());
        if link && (root != Path::new("/") || !found.is_dir()) {
            return Err(InstallError::NotFolder(found));
        }
    }
    found.push(last);
    Ok(found)
}
