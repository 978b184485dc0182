//! What folders of the state directory occupy on disk.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{Store, StoreError, failed};

/// Files, and the bytes that they occupy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Files that are no folders.
    pub files: u64,
    /// Bytes of files and folders, in blocks that are in use: of a sparse file what it has.
    pub bytes: u64,
}

/// What is at `path` and below it, on its own file system. What cannot be looked at counts as nothing. A file with
/// several names counts once. Takes a second for some hundred thousand files: for a thread that may block.
#[must_use]
pub fn usage(path: &Path) -> Usage {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let Ok(top) = std::fs::symlink_metadata(path) else { return usage };
    let mut pending = vec![(path.to_path_buf(), top.clone())];
    while let Some((path, found)) = pending.pop() {
        if found.dev() != top.dev()
            || (found.nlink() > 1 && !found.is_dir() && !linked.insert(found.ino()))
        {
            continue;
        }
        usage.bytes += found.blocks() * 512;
        if !found.is_dir() {
            usage.files += 1;
            continue;
        }
        for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            // Of the entry itself: no link is followed.
            if let Ok(found) = entry.metadata() {
                pending.push((entry.path(), found));
            }
        }
    }
    usage
}

impl Store {
    /// Whether more than `reserve` bytes can be written. Where that cannot be told, writing tells.
    #[must_use]
    pub fn has_free(&self, reserve: u64) -> bool {
        reserve == 0 || self.free().is_none_or(|free| free > reserve)
    }

    /// Bytes that can be written, if the file system says.
    #[must_use]
    pub fn free(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(self.root()).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The error of what was not written, because some space is to stay free.
    #[must_use]
    pub fn no_room(&self) -> StoreError {
        failed("keep some space free in", self.root())(io::ErrorKind::StorageFull.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_count_once_and_holes_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        std::fs::create_dir_all(folder.join("below")).unwrap();
        let empty = usage(&folder).bytes;
        std::fs::write(folder.join("below/file"), vec![1; 100_000]).unwrap();
        let one = usage(&folder);
        assert!(one.bytes - empty >= 100_000, "{one:?}");
        std::fs::hard_link(folder.join("below/file"), folder.join("again")).unwrap();
        std::os::unix::fs::symlink("/", folder.join("link")).unwrap();
        let sparse = std::fs::File::create(folder.join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        let all = usage(&folder);
        assert!(all.bytes < one.bytes + 50_000, "{all:?}");
        assert_eq!(all.files, 3);
        assert_eq!(usage(&dir.path().join("nothing")), Usage::default());
    }
}
