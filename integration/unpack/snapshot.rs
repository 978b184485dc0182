//! A directory tree as a map, to be compared.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use supervisor::image::Digest;

/// What is compared of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: char,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    /// Content of a file, target of a symbolic link.
    pub(crate) content: Option<Digest>,
    pub(crate) target: Vec<u8>,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// First path, in order, of the same inode; of files with several names.
    pub(crate) same_as: Option<Vec<u8>>,
}

/// All of the tree at `root`; the root itself is the empty path.
pub(crate) fn snapshot(root: &Path) -> BTreeMap<Vec<u8>, Node> {
    let mut nodes = BTreeMap::new();
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let at = root.join(OsStr::from_bytes(&path));
        let metadata = std::fs::symlink_metadata(&at).unwrap();
        if metadata.is_dir() {
            for entry in std::fs::read_dir(&at).unwrap() {
                let name = entry.unwrap().file_name();
                let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                pending.push([&path, separator, name.as_bytes()].concat());
            }
        }
        nodes.insert(path, (node(&at, &metadata), metadata));
    }
    let mut first = BTreeMap::new();
    let with_inode: Vec<_> = nodes.into_iter().collect();
    with_inode
        .into_iter()
        .map(|(path, (mut node, metadata))| {
            if !metadata.is_dir() && metadata.nlink() > 1 {
                let known = first.entry(metadata.ino()).or_insert_with(|| path.clone());
                node.same_as = Some(known.clone());
            }
            (path, node)
        })
        .collect()
}

fn node(at: &Path, metadata: &std::fs::Metadata) -> Node {
    let file_type = metadata.file_type();
    let kind = match file_type {
        t if t.is_dir() => 'd',
        t if t.is_file() => 'f',
        t if t.is_symlink() => 'l',
        t if t.is_char_device() => 'c',
        t if t.is_block_device() => 'b',
        _ => 'p',
    };
    let device = if matches!(kind, 'c' | 'b') {
        (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()))
    } else {
        (0, 0)
    };
    let target = match kind {
        'l' => std::fs::read_link(at).unwrap().as_os_str().as_bytes().to_vec(),
        _ => Vec::new(),
    };
    Node {
        kind,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        content: (kind == 'f').then(|| Digest::of(&std::fs::read(at).unwrap())),
        target,
        device,
        xattrs: xattrs(at),
        same_as: None,
    }
}

pub(crate) fn xattrs(at: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(at, &mut names).unwrap();
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::lgetxattr(at, name, &mut value).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}
