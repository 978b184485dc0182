//! The files of the cache as a directory listing shows them: for whoever counts, evicts, or only looks.

use std::collections::HashMap;
use std::io;
use std::ops::{AddAssign, ControlFlow};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::image::Digest;

/// When something was last used, the oldest first: in an earlier process (written then), or in this one (a count).
pub(super) type LastUse = (Option<u64>, i128);

/// A file that may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::lazy) struct Candidate {
    pub(super) last_use: LastUse,
    pub(super) bytes: u64,
    pub(super) is_partial: bool,
    pub(super) key: [u8; 32],
}

/// Files, and the bytes that they occupy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// How many.
    pub files: u64,
    /// What they occupy on disk.
    pub bytes: u64,
}

impl AddAssign for Found {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

/// The files that are there, less those that were taken out.
#[derive(Debug, Default)]
pub struct Survey(HashMap<Digest, Vec<Candidate>>);

impl Survey {
    /// Looks at the cache in `files_dir`, whoever uses it. One that is not there has nothing.
    pub(in crate::lazy) fn of(files_dir: &std::path::Path) -> io::Result<Self> {
        use std::os::fd::AsFd as _;
        let mut survey = Self::default();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = match rustix::fs::open(files_dir, flags, Mode::empty()) {
            Ok(root) => root,
            Err(rustix::io::Errno::NOENT) => return Ok(survey),
            Err(error) => return Err(error.into()),
        };
        match each_file(root.as_fd(), |_| None, |candidate| survey.add(candidate)) {
            // Nobody has ever used it.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(survey),
        }
    }

    pub(super) fn add(&mut self, candidate: Candidate) {
        self.0.entry(Digest::from_bytes(candidate.key)).or_default().push(candidate);
    }

    /// Takes out what is called `key`.
    pub(in crate::lazy) fn take(&mut self, key: &Digest) -> Found {
        sum(self.0.remove(key).iter().flatten())
    }

    /// What is left.
    #[must_use]
    pub fn rest(&self) -> Found {
        sum(self.0.values().flatten())
    }

    pub(super) fn into_rest(self) -> impl Iterator<Item = Candidate> {
        self.0.into_values().flatten()
    }
}

fn sum<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> Found {
    let mut all = Found::default();
    candidates.for_each(|candidate| all += Found { files: 1, bytes: candidate.bytes });
    all
}

/// Every file of the cache in `root`, complete or not.
pub(super) fn each_file(
    root: BorrowedFd<'_>,
    last_use: impl Fn(&Digest) -> Option<u64>,
    mut found: impl FnMut(Candidate),
) -> io::Result<()> {
    // Of an incomplete file, data and map together. These first: one that is published meanwhile is then seen twice. The
    // other way round it is not seen at all, and whoever counts believes that there is less than there is.
    let mut partials: HashMap<[u8; 32], Candidate> = HashMap::new();
    each_in(&directory(root, "partial")?, &last_use, &mut |candidate, is_map| {
        let both = Candidate { is_partial: true, ..candidate };
        let pair = partials.entry(candidate.key).or_insert(Candidate { bytes: 0, ..both });
        pair.bytes += candidate.bytes;
        if !is_map {
            pair.last_use = candidate.last_use;
        }
    })?;
    partials.into_values().for_each(&mut found);
    each_whole(root, |directory| {
        each_in(directory, &last_use, &mut |candidate, _| found(candidate))?;
        Ok(ControlFlow::Continue(()))
    })
}

/// Whether a complete file of up to so many bytes is there.
pub(super) fn has_whole_file_up_to(root: BorrowedFd<'_>, largest: u64) -> io::Result<bool> {
    let mut is_found = false;
    each_whole(root, |directory| {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
            let size = stat.ok().and_then(|stat| u64::try_from(stat.st_size).ok());
            is_found |= !is_dots(name.to_bytes()) && size.is_some_and(|size| size <= largest);
            if is_found {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(is_found)
}

/// Each of the directories of complete files.
fn each_whole(
    root: BorrowedFd<'_>,
    mut found: impl FnMut(&OwnedFd) -> io::Result<ControlFlow<()>>,
) -> io::Result<()> {
    let whole = directory(root, "sha256")?;
    for entry in Dir::read_from(&whole)? {
        let entry = entry?;
        if is_dots(entry.file_name().to_bytes()) {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = rustix::fs::openat(&whole, entry.file_name(), flags, Mode::empty());
        let Ok(directory) = opened else { continue };
        if found(&directory)?.is_break() {
            break;
        }
    }
    Ok(())
}

fn each_in(
    directory: &OwnedFd,
    last_use: &impl Fn(&Digest) -> Option<u64>,
    found: &mut impl FnMut(Candidate, bool),
) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Ok(text) = name.to_str() else { continue };
        let (hex, is_map) = text.strip_suffix(".map").map_or((text, false), |hex| (hex, true));
        let Ok(key) = Digest::from_hex(hex) else { continue };
        // Gone since: renamed, or thrown away as damaged.
        let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        // The modification time is a stamp; this one is when it was written, or verified, last.
        let written = i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec);
        found(
            Candidate {
                last_use: (last_use(&key), written),
                bytes: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
                is_partial: false,
                key: *key.as_bytes(),
            },
            is_map,
        );
    }
    Ok(())
}

pub(super) fn directory(root: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat(root, name, flags, Mode::empty())?)
}

pub(super) fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}
