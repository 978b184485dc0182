//! Where an installed supervisor's files go, and how they come and go again.
//!
//! Owns the unit files (`unit`) and the placing of files below a root, with a record of what was placed
//! ([`place()`], [`remove()`]). Prints nothing, and tells no service manager anything.

mod error;
mod place;
mod record;
mod remove;
mod unit;

use std::path::{Path, PathBuf};

pub use error::InstallError;
pub use place::place;
pub use remove::remove;
pub use unit::{SERVICE, SHUTDOWN_SERVICE, UnitOptions, service_unit, shutdown_unit};

/// Where systemd looks for the units of a host's administrator.
pub const UNIT_FOLDER: &str = "/etc/systemd/system";

/// Something that is placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Absolute, as the installed host sees it.
    pub path: PathBuf,
    /// What is there.
    pub content: Content,
}

/// What is placed at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A file with these bytes that everybody may read.
    File(Vec<u8>),
    /// The same, and run.
    Program(Vec<u8>),
    /// A symbolic link to this target.
    Link(PathBuf),
}

/// What was done about one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// As the installed host sees it.
    pub path: PathBuf,
    /// What was done.
    pub kind: ChangeKind,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was not there before.
    Placed,
    /// An older one of ours was there.
    Replaced,
    /// It was there as it should be.
    Unchanged,
    /// It is gone.
    Removed,
    /// Somebody changed it since it was placed, so it stays.
    Kept,
}

/// The units of a host with systemd, and the links that enable them.
///
/// # Errors
/// When a path cannot be written into a unit file.
pub fn units(options: &UnitOptions) -> Result<Vec<Item>, InstallError> {
    let folder = Path::new(UNIT_FOLDER);
    let mut items = Vec::new();
    for (name, text) in
        [(SERVICE, service_unit(options)?), (SHUTDOWN_SERVICE, shutdown_unit(options)?)]
    {
        let path = folder.join(name);
        items.push(Item { path: path.clone(), content: Content::File(text.into_bytes()) });
        items.push(Item {
            path: folder.join("multi-user.target.wants").join(name),
            content: Content::Link(path),
        });
    }
    Ok(items)
}

/// Where the record of what was placed below `prefix` is.
#[must_use]
pub fn record_path(prefix: &Path) -> PathBuf {
    prefix.join("lib/supervisor/installed.json")
}

#[cfg(test)]
mod tests;
