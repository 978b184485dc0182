//! Folders of certificates as Docker has them: `*.crt` are authorities, `*.cert` with a `*.key` of the same name is who
//! we are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{HostsError, Trust};

/// Adds what `folder` holds.
pub(super) fn add(folder: &Path, trust: &mut Trust) -> Result<(), HostsError> {
    let failed =
        |error: io::Error| HostsError { path: folder.to_owned(), problem: error.to_string() };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(());
        }
        Err(error) => return Err(failed(error)),
    };
    let paths: io::Result<Vec<PathBuf>> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(failed)?;
    paths.sort();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => trust.authorities.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                if !key.exists() {
                    let problem = format!("its key `{}` is missing", key.display());
                    return Err(HostsError { path, problem });
                }
                // A second one would be for another registry behind the same name.
                trust.identity.get_or_insert((path, Some(key)));
            }
            _ => {}
        }
    }
    Ok(())
}
