//! Removing exactly what was placed.

use std::fs;
use std::io;
use std::path::Path;

use super::error::InstallError;
use super::record::{Installed, Placed, Seal, below};
use super::{Change, ChangeKind};

/// Removes what the record at `record` says was placed below `root`, the record, and the folders that were made and
/// are empty. What somebody changed stays and is told.
///
/// # Errors
/// When nothing is installed; when a file operation fails, after which it can be done again.
pub fn remove(root: &Path, record: &Path) -> Result<Vec<Change>, InstallError> {
    let record_file = below(root, record)?;
    let Some(known) = Installed::load(&record_file)? else {
        return Err(InstallError::NotInstalled(record_file));
    };
    let mut changes = Vec::new();
    // Last placed first: a unit is disabled before it goes.
    for placed in known.items.iter().rev() {
        changes.extend(take_away(root, placed)?);
    }
    fs::remove_file(&record_file).map_err(InstallError::io("remove", &record_file))?;
    for folder in known.folders.iter().rev() {
        let path = below(root, folder)?;
        match fs::remove_dir(&path) {
            Ok(()) => changes.push(Change { path: folder.clone(), kind: ChangeKind::Removed }),
            // Somebody else's things are in it by now, or it went before.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound
                ) => {}
            Err(error) => return Err(InstallError::io("remove", path)(error)),
        }
    }
    Ok(changes)
}

/// Removes one path if it is as it was placed; `None` when it has gone already.
pub(super) fn take_away(root: &Path, placed: &Placed) -> Result<Option<Change>, InstallError> {
    let path = below(root, &placed.path)?;
    let kind = match Seal::at(&path)? {
        None => return Ok(None),
        Some(now) if placed.is(&now) => {
            fs::remove_file(&path).map_err(InstallError::io("remove", &path))?;
            ChangeKind::Removed
        }
        Some(_) => ChangeKind::Kept,
    };
    Ok(Some(Change { path: placed.path.clone(), kind }))
}
