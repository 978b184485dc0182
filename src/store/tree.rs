//! Removal of directory trees that hold content of images and containers.
//!
//! Each directory is resolved anew beneath the tree's own descriptor, without following a link and without
//! crossing into another mount; so nothing outside of the tree can be reached, whatever it holds, and its depth
//! costs neither descriptors nor stack. (The standard library's removal keeps one descriptor per level.)

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Removes `name` (one component) in `parent`, whatever it is, with all that is below; nothing there is no error.
///
/// A directory on which something is mounted, and those above it, are left and reported.
pub(crate) fn remove(parent: impl AsFd, name: impl rustix::path::Arg + Copy) -> io::Result<()> {
    let parent = parent.as_fd();
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::openat2(
        parent,
        name,
        flags,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    )?;
    empty(&root)?;
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Removes all that is in the directory `root`.
pub(super) fn empty(root: &OwnedFd) -> io::Result<()> {
    // Directories still to be emptied, relative to the root; a parent stands below its children.
    let mut pending: Vec<Vec<u8>> = vec![b".".to_vec()];
    let mut visited: HashSet<Vec<u8>> = HashSet::new();
    let mut first_error = None;
    while let Some(path) = pending.pop() {
        if visited.contains(&path) {
            // Its children are gone, or their errors are noted.
            if path != b"."
                && let Err(errno) = rustix::fs::unlinkat(root, path.as_slice(), AtFlags::REMOVEDIR)
                && errno != Errno::NOENT
            {
                first_error.get_or_insert(errno);
            }
            visited.remove(&path);
            continue;
        }
        let directory = match open_beneath(root.as_fd(), &path) {
            Ok(directory) => directory,
            Err(errno) => {
                first_error.get_or_insert(errno);
                continue;
            }
        };
        visited.insert(path.clone());
        let children = remove_files(&directory, &mut first_error);
        pending.push(path.clone());
        pending.extend(children.into_iter().map(|name| {
            let mut child = path.clone();
            child.push(b'/');
            child.extend_from_slice(&name);
            child
        }));
    }
    first_error.map_or(Ok(()), |errno| Err(errno.into()))
}

/// Removes everything in `directory` but its directories, whose names it returns.
fn remove_files(directory: &OwnedFd, first_error: &mut Option<Errno>) -> Vec<Vec<u8>> {
    let mut directories = Vec::new();
    let entries = match Dir::read_from(directory) {
        Ok(entries) => entries,
        Err(errno) => {
            first_error.get_or_insert(errno);
            return directories;
        }
    };
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(errno) => {
                first_error.get_or_insert(errno);
                break;
            }
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            directories.push(name.to_bytes().to_vec());
            continue;
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            // The file system does not tell types in its listing.
            Err(Errno::ISDIR | Errno::PERM) => directories.push(name.to_bytes().to_vec()),
            Err(errno) => {
                first_error.get_or_insert(errno);
            }
        }
    }
    directories
}

fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_goes_and_what_its_links_point_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), b"x").unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b/c")).unwrap();
        std::fs::write(tree.join("a/b/file"), b"x").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        std::os::unix::fs::symlink(&outside, dir.path().join("link")).unwrap();
        let parent = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        for name in ["tree", "link", "nothing"] {
            remove(&parent, name).unwrap();
        }
        assert!(!tree.exists());
        assert!(!dir.path().join("link").exists());
        assert!(outside.join("file").exists());
    }

    #[test]
    fn a_tree_deeper_than_the_limit_of_descriptors_goes() {
        let dir = tempfile::tempdir().unwrap();
        let parent = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let mut path = String::from("tree");
        for _ in 0..1_500 {
            rustix::fs::mkdirat(&parent, path.as_str(), Mode::RWXU).unwrap();
            path.push_str("/a");
        }
        remove(&parent, "tree").unwrap();
        assert!(!dir.path().join("tree").exists());
    }
}
