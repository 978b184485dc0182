//! Placing files: all conflicts are found before anything is changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::InstallError;
use super::record::{Installed, Placed, Seal, below, write};
use super::{Change, ChangeKind, Content, Item};

/// Places `items` below `root` and keeps a record of them at `record`; what an earlier installation placed and this one
/// does not goes. Doing it again changes nothing.
///
/// # Errors
/// When something in the way is not ours or was changed, in which case nothing was touched; when a file operation
/// fails, after which it can be done again or undone with [`super::remove()`].
pub fn place(root: &Path, record: &Path, items: &[Item]) -> Result<Vec<Change>, InstallError> {
    let record_file = below(root, record)?;
    let known = Installed::load(&record_file)?;
    if known.is_none() && fs::symlink_metadata(&record_file).is_ok() {
        return Err(InstallError::Foreign(record_file));
    }
    let known = known.unwrap_or_default();
    let kinds: Vec<ChangeKind> =
        items.iter().map(|item| foresee(root, &known, item)).collect::<Result<_, _>>()?;
    let stale: Vec<Placed> = known
        .items
        .iter()
        .filter(|placed| !items.iter().any(|item| item.path == placed.path))
        .cloned()
        .collect();

    // The record comes first, so that whatever is interrupted can be removed.
    let mut next = Installed { folders: known.folders.clone(), items: stale.clone() };
    for path in items.iter().map(|item| item.path.as_path()).chain([record]) {
        note_folders(root, path, &mut next.folders)?;
    }
    next.items.extend(items.iter().map(|item| {
        Placed {
            path: item.path.clone(),
            content: Seal::of(item),
            before: known
                .find(&item.path)
                .map(|placed| placed.content.clone())
                .filter(|before| *before != Seal::of(item)),
        }
    }));
    make_folders(root, record)?;
    next.save(&record_file)?;

    let mut changes = Vec::new();
    for (item, kind) in items.iter().zip(kinds) {
        if kind != ChangeKind::Unchanged {
            make_folders(root, &item.path)?;
            put(&below(root, &item.path)?, &item.content)?;
        }
        changes.push(Change { path: item.path.clone(), kind });
    }
    for placed in &stale {
        if let Some(change) = super::remove::take_away(root, placed)? {
            changes.push(change);
        }
    }
    next.items.retain(|placed| !stale.contains(placed));
    next.items.iter_mut().for_each(|placed| placed.before = None);
    next.save(&record_file)?;
    Ok(changes)
}

fn foresee(root: &Path, known: &Installed, item: &Item) -> Result<ChangeKind, InstallError> {
    let path = below(root, &item.path)?;
    match (Seal::at(&path)?, known.find(&item.path)) {
        (None, _) => Ok(ChangeKind::Placed),
        (Some(now), _) if now == Seal::of(item) => Ok(ChangeKind::Unchanged),
        (Some(now), Some(placed)) if placed.is(&now) => Ok(ChangeKind::Replaced),
        (Some(_), Some(_)) => Err(InstallError::Changed(path)),
        (Some(_), None) => Err(InstallError::Foreign(path)),
    }
}

fn put(path: &Path, content: &Content) -> Result<(), InstallError> {
    match content {
        Content::File(bytes) => write(path, bytes, 0o644),
        Content::Program(bytes) => write(path, bytes, 0o755),
        Content::Link(target) => {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(InstallError::io("replace", path)(error));
                }
                _ => {}
            }
            std::os::unix::fs::symlink(target, path).map_err(InstallError::io("link", path))
        }
    }
}

/// The folders above `path`, outer ones first, as the installed host sees them.
fn folders_above(path: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = path
        .ancestors()
        .skip(1)
        .filter(|folder| folder.parent().is_some())
        .map(Path::to_path_buf)
        .collect();
    folders.reverse();
    folders
}

fn note_folders(root: &Path, path: &Path, noted: &mut Vec<PathBuf>) -> Result<(), InstallError> {
    for folder in folders_above(path) {
        if !noted.contains(&folder) && !below(root, &folder)?.exists() {
            noted.push(folder);
        }
    }
    Ok(())
}

fn make_folders(root: &Path, path: &Path) -> Result<(), InstallError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let folder = below(root, path)?;
    let folder = folder.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)
        .map_err(InstallError::io("create the folder", folder))
}
