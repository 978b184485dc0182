//! What becomes of a file that cannot be used: it is set aside under another name, and told.
//!
//! Nothing is destroyed that somebody may want to look at, and nothing grows without bound: of each file the last few
//! unreadable copies are kept.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::{durable, tree};

/// Unreadable copies that are kept of one file.
const MOST_ASIDE: usize = 5;
/// Findings that wait to be told; more at once are one disaster, which the log tells.
const MOST_FINDINGS: usize = 256;

const UNREADABLE: &str = ".unreadable-";
const VERSION: &str = ".version-";

/// Something of ours that could not be used as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The record.
    pub path: PathBuf,
    /// What was wrong with it.
    pub reason: String,
    /// What became of it.
    pub kept: Kept,
    /// Its name now, where it was set aside.
    pub aside: Option<PathBuf>,
    /// Whether the copy from before its last save took its place.
    pub recovered: bool,
}

/// What became of a record that could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It has another name.
    Aside,
    /// It is where it was, for the newer program that wrote it, or since it cannot be moved.
    InPlace,
    /// There was none, only its previous copy.
    Nowhere,
}

/// Something that was set aside earlier.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetAside {
    /// Where it is.
    pub path: PathBuf,
    /// What it was before.
    pub record: PathBuf,
    /// Whether a newer program wrote it; else it was unreadable.
    pub newer: bool,
}

/// Findings that nobody has told yet.
#[derive(Debug, Default)]
pub(super) struct Findings(Mutex<Pending>);

#[derive(Debug, Default)]
struct Pending {
    untold: Vec<Finding>,
    /// Records that stay as they are are found again with every look, and told once.
    in_place: BTreeSet<PathBuf>,
}

impl Findings {
    pub(super) fn add(&self, finding: Finding) {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = finding.kept == Kept::InPlace && !pending.in_place.insert(finding.path.clone());
        if known {
            return;
        }
        tracing::warn!(
            path = %finding.path.display(),
            reason = finding.reason,
            aside = ?finding.aside,
            recovered = finding.recovered,
            "a record cannot be used"
        );
        if pending.untold.len() < MOST_FINDINGS {
            pending.untold.push(finding);
        }
    }

    pub(super) fn take(&self) -> Vec<Finding> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).untold)
    }
}

/// Renames what is at `path`, file or folder, to `<path>.unreadable-<time>`, and removes the oldest such copies when
/// there are many.
pub(super) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S.%6fZ");
    let aside = rename(path, &format!("{UNREADABLE}{time}"))?;
    forget_oldest(path);
    Ok(aside)
}

/// Renames the record of a newer program out of the way of ours.
pub(super) fn keep_version(path: &Path, version: u32) -> io::Result<PathBuf> {
    rename(path, &format!("{VERSION}{version}"))
}

/// Renames `path` to the first free of `<path><suffix>`, `<path><suffix>-2`, ….
fn rename(path: &Path, suffix: &str) -> io::Result<PathBuf> {
    for number in 1_u32..1000 {
        let suffix = if number == 1 { suffix.to_owned() } else { format!("{suffix}-{number}") };
        let aside = durable::with_suffix(path, &suffix);
        match rustix::fs::renameat_with(CWD, path, CWD, &aside, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(aside),
            Err(Errno::EXIST) => {}
            // A file system without this kind of rename; the name has the time in it.
            Err(Errno::INVAL) if !aside.exists() => {
                std::fs::rename(path, &aside)?;
                return Ok(aside);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Best effort: what stays only takes room.
fn forget_oldest(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return };
    let prefix = format!("{}{UNREADABLE}", name.to_string_lossy());
    let mut copies = super::names(folder).unwrap_or_default();
    copies.retain(|name| name.starts_with(&prefix));
    // The time is in the name.
    copies.sort_unstable();
    let surplus = copies.len().saturating_sub(MOST_ASIDE);
    for name in &copies[..surplus] {
        if let Ok(folder) = super::open_folder(folder) {
            let _ = tree::remove(folder, name);
        }
    }
}

/// What was set aside of the record at `path`, or of its previous copy.
fn copies_of(path: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(record)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let is_copy = |name: &&String| {
        let Some(rest) = name.strip_prefix(&*record.to_string_lossy()) else { return false };
        let rest = rest.strip_prefix(".prev").unwrap_or(rest);
        rest.starts_with(UNREADABLE) || rest.starts_with(VERSION)
    };
    let names = super::names(folder).unwrap_or_default();
    names.iter().filter(is_copy).map(|name| folder.join(name)).collect()
}

/// Whether something was set aside of the record at `path`.
pub fn is_set_aside(path: &Path) -> bool {
    !copies_of(path).is_empty()
}

/// Removes what was set aside of the record at `path`, for who gives it up. Best effort.
pub fn forget(path: &Path) {
    for copy in copies_of(path) {
        if let (Some(folder), Some(name)) = (copy.parent(), copy.file_name())
            && let Ok(folder) = super::open_folder(folder)
        {
            let _ = tree::remove(folder, name);
        }
    }
}

/// Everything below a state directory that was set aside, also by earlier processes, sorted. What cannot be listed
/// is left out.
#[must_use]
pub fn set_aside_below(state_dir: &Path) -> Vec<SetAside> {
    let mut found = Vec::new();
    let in_folder = |folder: &Path, found: &mut Vec<SetAside>| {
        for name in super::names(folder).unwrap_or_default() {
            let split = name.split_once(UNREADABLE).map(|(record, _)| (record, false));
            let split = split.or(name.split_once(VERSION).map(|(record, _)| (record, true)));
            if let Some((record, newer)) = split {
                let (path, record) = (folder.join(&name), folder.join(record));
                found.push(SetAside { path, record, newer });
            }
        }
    };
    for folder in ["", "images", "services", "containers", "layers", "files"] {
        in_folder(&state_dir.join(folder), &mut found);
    }
    for folder in ["services", "containers", "layers"].map(|name| state_dir.join(name)) {
        for name in super::names(&folder).unwrap_or_default() {
            in_folder(&folder.join(name), &mut found);
        }
    }
    let logs = state_dir.join("logs");
    for project in super::names(&logs).unwrap_or_default() {
        let project = logs.join(project);
        for service in super::names(&project).unwrap_or_default() {
            in_folder(&project.join(service), &mut found);
        }
    }
    found.sort_unstable();
    found
}
