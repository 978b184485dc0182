//! The directory that a layer is unpacked into. Nothing outside of it can be reached, whatever the entries say:
//!
//! * names arrive cleaned, so they hold no `..`;
//! * the directory of every entry is resolved beneath the root's descriptor without following any link
//!   (`openat2`, `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV`);
//! * in it, the last component is created exclusively, never opened.
//!
//! Small files are created by other threads ([`super::files`]). So that nothing depends on when they are, everything
//! that could meet one of them at its path waits for them: the hashes of all paths that were used say when.
//!
//! Hard links, whiteouts, and the attributes of directories are kept until the end: a link may precede its
//! target, a whiteout counts only if its name stays free, and a directory's times change as it is filled. So the
//! result is what a lazy mount of the same layer shows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::archive::{Entry, Kind};
use super::attributes::{Attributes, Defaults, set_node_times};
use super::files::{CREATE_FLAGS, Writers};
use super::path::{is_below, show, split};
use super::xattr::Xattrs;

/// Names that are kept until the end may take this much memory; a real layer needs a hundredth.
const MAX_KEPT_BYTES: usize = 256 << 20;

/// What a hash takes in its set, which is half full at worst.
const USED_BYTES: usize = 18;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// An entry cannot be part of a tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Its path leads through something that is no directory, a link for instance.
    #[error("entry `{0}` is below something that is not a directory")]
    BelowNonDirectory(String),
    /// It would replace the root of the layer by something that is no directory.
    #[error("an entry replaces the root of the layer")]
    Root,
    /// It links to what the layer does not hold, to a directory, or in a circle.
    #[error("hard link `{name}` has no file `{target}` in the layer")]
    HardLink {
        /// The link.
        name: String,
        /// What it links to.
        target: String,
    },
    /// The layer holds more names than any real one.
    #[error("the layer has more links and directories than can be kept in memory")]
    TooLarge,
    /// The file system refused.
    #[error("could not {action} `{name}`")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which entry.
        name: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A tree in the making.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    pub(super) root: BorrowedFd<'a>,
    /// The directory of the entry before, which mostly is that of the next.
    open: Option<(Vec<u8>, Arc<OwnedFd>)>,
    pub(super) defaults: Defaults,
    pub(super) writers: Writers,
    /// Hashes of the paths that something is or was at. A hash that two paths share costs time and nothing else.
    used: HashSet<u64>,
    hasher: RandomState,
    pub(super) directories: HashMap<Vec<u8>, Attributes>,
    pub(super) links: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) whiteouts: BTreeSet<Vec<u8>>,
    pub(super) opaque: BTreeSet<Vec<u8>>,
    kept_bytes: usize,
    pub(super) xattrs: Xattrs,
}

impl<'a> Tree<'a> {
    /// A tree in the empty directory `root`.
    pub(super) fn new(root: BorrowedFd<'a>, xattrs: Xattrs) -> Result<Self, TreeError> {
        let defaults = Defaults::of(root);
        let writers = Writers::start(defaults, xattrs.empty()).map_err(|source| TreeError::Io {
            action: "start a thread for",
            name: "files".to_owned(),
            source,
        })?;
        Ok(Self {
            root,
            open: None,
            defaults,
            writers,
            used: HashSet::new(),
            hasher: RandomState::new(),
            directories: HashMap::from([(Vec::new(), Attributes::IMPLICIT)]),
            links: BTreeMap::new(),
            whiteouts: BTreeSet::new(),
            opaque: BTreeSet::new(),
            kept_bytes: 0,
            xattrs,
        })
    }

    /// Creates a file of `size` bytes, which `read` puts behind what is in its argument. It is there when something
    /// else needs it to be.
    pub(super) fn small_file<E: From<TreeError>>(
        &mut self,
        path: &[u8],
        size: usize,
        entry: &mut Entry,
        read: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        if path.is_empty() || self.is_used(path) {
            let file = self.create_file(path)?;
            let mut content = Vec::with_capacity(size);
            read(&mut content)?;
            (&file).write_all(&content).map_err(|source| TreeError::Io {
                action: "write",
                name: show(path),
                source,
            })?;
            return Ok(self.finish_file(path, &file, entry)?);
        }
        let attributes = Attributes::of(entry);
        self.directory_of(path)?;
        self.note(path)?;
        let (parent, name) = split(path);
        let (_, directory) = self.open.as_ref().expect("the directory was just opened");
        self.writers.write((directory, parent), name, attributes, size, read)
    }

    /// Creates the file at `path`, in place of what is there, for the caller to write to.
    pub(super) fn create_file(&mut self, path: &[u8]) -> Result<File, TreeError> {
        let mode = Mode::RUSR | Mode::WUSR;
        let file = self.place(path, "create the file", |directory, name| {
            rustix::fs::openat(directory, name, CREATE_FLAGS, mode)
        })?;
        Ok(File::from(file))
    }

    /// Gives a file that is written its attributes.
    pub(super) fn finish_file(
        &mut self,
        path: &[u8],
        file: &File,
        entry: &mut Entry,
    ) -> Result<(), TreeError> {
        Attributes::of(entry).set(file.as_fd(), path, None, self.defaults, &mut self.xattrs)
    }

    /// Makes the directory at `path`, or takes the one that is there; its attributes are those of `entry`.
    pub(super) fn directory(&mut self, path: &[u8], entry: &mut Entry) -> Result<(), TreeError> {
        let attributes = Attributes::of(entry);
        if !self.directories.contains_key(path) {
            self.place(path, "create the directory", |directory, name| {
                rustix::fs::mkdirat(directory, name, Mode::RWXU)
            })?;
            self.keep(path.len())?;
        }
        let xattr_bytes = attributes.xattrs.iter().map(|(name, value)| name.len() + value.len());
        self.keep(xattr_bytes.sum())?;
        self.directories.insert(path.to_vec(), attributes);
        Ok(())
    }

    /// Makes a symbolic link, device or fifo.
    pub(super) fn special(&mut self, path: &[u8], entry: &mut Entry) -> Result<(), TreeError> {
        let (action, file_type) = match entry.kind {
            Kind::Symlink => ("create the symbolic link", FileType::Symlink),
            Kind::Character => ("create the device", FileType::CharacterDevice),
            Kind::Block => ("create the device", FileType::BlockDevice),
            Kind::Fifo | Kind::File | Kind::Directory | Kind::HardLink => {
                ("create the fifo", FileType::Fifo)
            }
        };
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        let attributes = Attributes::of(entry);
        let link = entry.link.as_slice();
        self.place(path, action, |directory, name| match file_type {
            FileType::Symlink => rustix::fs::symlinkat(link, directory, name),
            _ => rustix::fs::mknodat(directory, name, file_type, Mode::RUSR | Mode::WUSR, device),
        })?;
        let defaults = self.defaults;
        let (directory, name) = self.directory_of(path)?;
        attributes
            .set_owner_and_mode_of_node(directory, name, file_type, defaults)
            .map_err(failed("set owner and mode of", path))?;
        if !attributes.xattrs.is_empty() {
            let number = directory.as_raw_fd();
            let node = [format!("/proc/self/fd/{number}/").as_bytes(), name].concat();
            for (key, value) in &attributes.xattrs {
                self.xattrs.set_node(&node, path, key, value)?;
            }
        }
        let (directory, name) = self.directory_of(path)?;
        set_node_times(directory, name, attributes.mtime).map_err(failed("set the times of", path))
    }

    /// Notes a hard link, made at the end; what has its name goes now.
    pub(super) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        // tar writes a link to itself for a file that it was told to archive twice.
        if path == target {
            return Ok(());
        }
        if self.is_used(path) {
            self.vacate(path)?;
        } else {
            self.directory_of(path)?;
            self.note(path)?;
        }
        self.keep(path.len() + target.len())?;
        self.links.insert(path.to_vec(), target.to_vec());
        Ok(())
    }

    /// Notes that `path` hides what the layers below have there.
    pub(super) fn whiteout(&mut self, path: &[u8]) -> Result<(), TreeError> {
        self.directory_of(path)?;
        self.keep(path.len())?;
        self.whiteouts.insert(path.to_vec());
        Ok(())
    }

    /// Notes that the directory hides all that the layers below have in it.
    pub(super) fn opaque(&mut self, path: &[u8]) -> Result<(), TreeError> {
        self.ensure_directory(path, path)?;
        self.keep(path.len())?;
        self.opaque.insert(path.to_vec());
        Ok(())
    }

    /// Creates what is at `path`, after removing what was there if need be.
    fn place<T>(
        &mut self,
        path: &[u8],
        action: &'static str,
        create: impl Fn(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<T>,
    ) -> Result<T, TreeError> {
        if path.is_empty() {
            return Err(TreeError::Root);
        }
        if self.is_used(path) {
            self.links.remove(path);
            self.writers.settle(&mut self.xattrs)?;
        } else {
            self.note(path)?;
        }
        let (directory, name) = self.directory_of(path)?;
        match create(directory, name) {
            Err(Errno::EXIST) => {
                self.vacate(path)?;
                let (directory, name) = self.directory_of(path)?;
                create(directory, name).map_err(failed(action, path))
            }
            other => other.map_err(failed(action, path)),
        }
    }

    /// Removes what is at `path`, with all that is below it and all that was noted for there.
    fn vacate(&mut self, path: &[u8]) -> Result<(), TreeError> {
        if path.is_empty() {
            return Err(TreeError::Root);
        }
        self.writers.settle(&mut self.xattrs)?;
        self.links.remove(path);
        let (directory, name) = self.directory_of(path)?;
        crate::store::remove_tree(directory, name).map_err(|source| TreeError::Io {
            action: "remove what is at",
            name: show(path),
            source,
        })?;
        self.xattrs.forget(path);
        if self.directories.remove(path).is_some() {
            self.open = None;
            let gone = |other: &[u8]| is_below(other, path);
            self.directories.retain(|other, _| !gone(other));
            self.links.retain(|other, _| !gone(other));
            self.whiteouts.retain(|other| !gone(other));
            self.opaque.retain(|other| other != path && !gone(other));
        }
        Ok(())
    }

    /// The directory that `path` is in, made if it is missing, and the last component of `path`.
    pub(super) fn directory_of<'p>(
        &mut self,
        path: &'p [u8],
    ) -> Result<(BorrowedFd<'_>, &'p [u8]), TreeError> {
        let (parent, name) = split(path);
        if self.open.as_ref().is_none_or(|(open, _)| open != parent) {
            self.ensure_directory(parent, path)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let descriptor = self.open_beneath(parent, flags).map_err(|errno| match errno {
                Errno::NOTDIR | Errno::LOOP => TreeError::BelowNonDirectory(show(path)),
                errno => failed("open the directory of", path)(errno),
            })?;
            self.open = Some((parent.to_vec(), Arc::new(descriptor)));
        }
        let (_, descriptor) = self.open.as_ref().expect("the directory was just opened");
        Ok((descriptor.as_fd(), name))
    }

    /// Makes the directory at `path` and those above it, as far as they are missing, for `entry`.
    fn ensure_directory(&mut self, path: &[u8], entry: &[u8]) -> Result<(), TreeError> {
        let mut end = 0;
        while !self.directories.contains_key(path) && end < path.len() {
            end = path[end + 1..]
                .iter()
                .position(|byte| *byte == b'/')
                .map_or(path.len(), |slash| end + 1 + slash);
            let ancestor = &path[..end];
            if self.directories.contains_key(ancestor) {
                continue;
            }
            if self.links.contains_key(ancestor) {
                return Err(TreeError::BelowNonDirectory(show(entry)));
            }
            if self.is_used(ancestor) {
                self.writers.settle(&mut self.xattrs)?;
            } else {
                self.note(ancestor)?;
            }
            let (above, name) = split(ancestor);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = self
                .open_beneath(above, flags)
                .and_then(|above| rustix::fs::mkdirat(above, name, Mode::RWXU));
            match made {
                Ok(()) => {}
                // It is there and no entry or implicit parent made it as a directory.
                Err(Errno::EXIST) => return Err(TreeError::BelowNonDirectory(show(entry))),
                Err(errno) => return Err(failed("create the directory", ancestor)(errno)),
            }
            self.keep(ancestor.len())?;
            self.directories.insert(ancestor.to_vec(), Attributes::IMPLICIT);
        }
        Ok(())
    }

    pub(super) fn open_beneath(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        loop {
            match rustix::fs::openat2(self.root, path, flags, Mode::empty(), BENEATH) {
                // A rename somewhere in the system raced with the walk.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Whether something may be or have been at `path`.
    fn is_used(&self, path: &[u8]) -> bool {
        self.used.contains(&self.hasher.hash_one(path))
    }

    /// From now on something is at `path`.
    fn note(&mut self, path: &[u8]) -> Result<(), TreeError> {
        self.used.insert(self.hasher.hash_one(path));
        self.count(USED_BYTES)
    }

    /// Counts memory that stays until the end.
    fn keep(&mut self, bytes: usize) -> Result<(), TreeError> {
        // What the maps need around each name.
        self.count(bytes + 128)
    }

    fn count(&mut self, bytes: usize) -> Result<(), TreeError> {
        self.kept_bytes = self.kept_bytes.saturating_add(bytes);
        if self.kept_bytes > MAX_KEPT_BYTES { Err(TreeError::TooLarge) } else { Ok(()) }
    }
}

/// Adds to an error of the kernel what was being done to which entry.
pub(super) fn failed<'a>(
    action: &'static str,
    path: &'a [u8],
) -> impl FnOnce(Errno) -> TreeError + use<'a> {
    move |errno| TreeError::Io { action, name: show(path), source: errno.into() }
}
