//! Other images that are seen in a container: mounted read-only in the monitor's namespace, from where the runtime
//! binds them. May block on lazy content.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::RunPaths;
use super::image_root::ImageRoot;
use crate::image::Digest;
use crate::sys::mount::MountCall;
use crate::sys::read_only_overlay;

/// Mounts the image whose layers are `layers` for `target`. Returns what is bound there: `subpath` of it, which is looked
/// up as if the image were all that there is.
pub(super) fn prepare(
    paths: &RunPaths,
    target: &Path,
    layers: &[PathBuf],
    subpath: Option<&Path>,
    call: MountCall,
) -> io::Result<PathBuf> {
    let name = Digest::of(target.as_os_str().as_encoded_bytes()).hex();
    let place = paths.dir.join("images").join(name);
    fs::create_dir_all(&place)?;
    read_only_overlay::mount("supervisor", layers, &place, call)?;
    match subpath {
        None => Ok(place),
        Some(subpath) => ImageRoot::open(&place)?.path_of(subpath),
    }
}
