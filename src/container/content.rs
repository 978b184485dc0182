//! Configs and secrets: files that are written into the run directory, which is memory on a usual host, and that the
//! container sees read-only.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::RunPaths;
use crate::image::Digest;

/// More than any config of people; it is memory.
const MAX_SIZE: u64 = 16 << 20;

/// A file that is written at the start, anew each time.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// What is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// File of the host that is copied where there is no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permission bits.
    pub mode: u32,
}

impl std::fmt::Debug for Content {
    /// Without the text, which may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content")
            .field("text", &self.text.as_ref().map(String::len))
            .field("file", &self.file)
            .field("owner", &(self.uid, self.gid))
            .field("mode", &self.mode)
            .finish()
    }
}

/// Folder of them all.
pub(super) fn folder(paths: &RunPaths) -> PathBuf {
    paths.dir.join("granted")
}

/// Where the file that is mounted at `target` is.
pub(super) fn path(paths: &RunPaths, target: &Path) -> PathBuf {
    folder(paths).join(Digest::of(target.as_os_str().as_encoded_bytes()).hex())
}

/// Writes it, anew at each start.
pub(super) fn write(paths: &RunPaths, target: &Path, content: &Content) -> io::Result<()> {
    let bytes = match (&content.text, &content.file) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(file)) => read(file)?,
        (None, None) => Vec::new(),
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder(paths))?;
    let path = path(paths, target);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(&bytes)?;
    fchown(&file, Some(content.uid), Some(content.gid))?;
    // After the owner, which takes bits away.
    file.set_permissions(fs::Permissions::from_mode(content.mode))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let told = |error: io::Error| {
        io::Error::new(error.kind(), format!("could not read `{}`: {error}", path.display()))
    };
    let metadata = fs::metadata(path).map_err(told)?;
    if !metadata.is_file() || metadata.len() > MAX_SIZE {
        let what = format!("`{}` is no regular file of at most 16 MiB", path.display());
        return Err(io::Error::other(what));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut bytes)).map_err(told)?;
    Ok(bytes)
}
