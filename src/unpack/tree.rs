//! The directory that a layer is unpacked into. Nothing outside of it can be reached, whatever the entries say:
//!
//! * names arrive cleaned, so they hold no `..`;
//! * the directory of every entry is resolved beneath the root's descriptor without following any link
//!   (`openat2`, `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV`);
//! * in it, the last component is created exclusively, never opened.
//!
//! Hard links, whiteouts, and the attributes of directories are kept until the end: a link may precede its
//! target, a whiteout counts only if its name stays free, and a directory's times change as it is filled. So the
//! result is what a lazy mount of the same layer shows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::archive::{Entry, Kind};
use super::attributes::{Attributes, set_node_times, times};
use super::path::{is_below, show, split};
use super::xattr::Xattrs;

/// Names that are kept until the end may take this much memory; a real layer needs a hundredth.
const MAX_KEPT_BYTES: usize = 256 << 20;

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
    root: BorrowedFd<'a>,
    /// The directory of the entry before, which mostly is that of the next.
    open: Option<(Vec<u8>, OwnedFd)>,
    directories: HashMap<Vec<u8>, Attributes>,
    links: BTreeMap<Vec<u8>, Vec<u8>>,
    whiteouts: BTreeSet<Vec<u8>>,
    opaque: BTreeSet<Vec<u8>>,
    kept_bytes: usize,
    pub(super) xattrs: Xattrs,
}

impl<'a> Tree<'a> {
    /// A tree in the empty directory `root`.
    pub(super) fn new(root: BorrowedFd<'a>, xattrs: Xattrs) -> Self {
        Self {
            root,
            open: None,
            directories: HashMap::from([(Vec::new(), Attributes::IMPLICIT)]),
            links: BTreeMap::new(),
            whiteouts: BTreeSet::new(),
            opaque: BTreeSet::new(),
            kept_bytes: 0,
            xattrs,
        }
    }

    /// Creates the file at `path`, in place of what is there, for the caller to write to.
    pub(super) fn create_file(&mut self, path: &[u8]) -> Result<File, TreeError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = self.place(path, "create the file", |directory, name| {
            rustix::fs::openat(directory, name, flags, mode)
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
        self.set_attributes(path, file.as_fd(), &Attributes::of(entry))
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
        let (directory, name) = self.directory_of(path)?;
        attributes
            .set_owner_and_mode_of_node(directory, name, file_type)
            .map_err(failed("set owner and mode of", path))?;
        let node = [format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(), name].concat();
        for (key, value) in &attributes.xattrs {
            self.xattrs.set_node(&node, path, key, value)?;
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
        self.vacate(path)?;
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

    /// Removes the file `name` of the root, if there is one.
    pub(super) fn remove_root_file(&mut self, name: &[u8]) -> Result<(), TreeError> {
        self.links.remove(name);
        match rustix::fs::unlinkat(self.root, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => Ok(()),
            Err(errno) => Err(failed("remove", name)(errno)),
        }
    }

    /// Makes links and whiteouts, and sets the attributes of the directories.
    pub(super) fn finish(mut self) -> Result<Xattrs, TreeError> {
        self.make_links()?;
        for path in std::mem::take(&mut self.whiteouts) {
            let (directory, name) = self.directory_of(&path)?;
            let made =
                rustix::fs::mknodat(directory, name, FileType::CharacterDevice, Mode::empty(), 0);
            match made.and_then(|()| set_node_times(directory, name, 0)) {
                // The layer has the name itself, which hides what is below just as well.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed("create the whiteout of", &path)(errno)),
            }
        }
        let mut directories = std::mem::take(&mut self.directories);
        for path in std::mem::take(&mut self.opaque) {
            let attributes = directories.entry(path).or_insert(Attributes::IMPLICIT);
            attributes.xattrs.push((b"trusted.overlay.opaque".to_vec(), b"y".to_vec()));
        }
        for (path, attributes) in directories {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = self.open_beneath(&path, flags).map_err(failed("open", &path))?;
            self.set_attributes(&path, directory.as_fd(), &attributes)?;
        }
        Ok(self.xattrs)
    }

    fn make_links(&mut self) -> Result<(), TreeError> {
        let links = std::mem::take(&mut self.links);
        for (path, first) in &links {
            let missing = || TreeError::HardLink { name: show(path), target: show(first) };
            // A link to a link; a circle has more steps than there are links.
            let mut target = first;
            let mut steps = 0;
            while let Some(next) = links.get(target) {
                target = next;
                steps += 1;
                if steps > links.len() {
                    return Err(missing());
                }
            }
            let (from, from_name) = split(target);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let from = self.open_beneath(from, flags).map_err(|_| missing())?;
            let (to, to_name) = self.directory_of(path)?;
            // Without AT_SYMLINK_FOLLOW a link to a symbolic link stays one.
            match rustix::fs::linkat(&from, from_name, to, to_name, AtFlags::empty()) {
                Ok(()) => {}
                // EPERM is the answer for a directory.
                Err(Errno::NOENT | Errno::PERM) => return Err(missing()),
                Err(Errno::EXIST) => return Err(TreeError::BelowNonDirectory(show(path))),
                Err(errno) => return Err(failed("create the hard link", path)(errno)),
            }
        }
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
        self.links.remove(path);
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
        self.links.remove(path);
        let (directory, name) = self.directory_of(path)?;
        crate::store::remove_tree(directory, name).map_err(|source| TreeError::Io {
            action: "remove what is at",
            name: show(path),
            source,
        })?;
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
    fn directory_of<'p>(
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
            self.open = Some((parent.to_vec(), descriptor));
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

    fn open_beneath(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        loop {
            match rustix::fs::openat2(self.root, path, flags, Mode::empty(), BENEATH) {
                // A rename somewhere in the system raced with the walk.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// The mode after the owner: chown(2) takes setuid bits away; capabilities after both, for the same reason;
    /// times last.
    fn set_attributes(
        &mut self,
        path: &[u8],
        file: BorrowedFd<'_>,
        attributes: &Attributes,
    ) -> Result<(), TreeError> {
        attributes.set_owner_and_mode(file).map_err(failed("set owner and mode of", path))?;
        for (name, value) in &attributes.xattrs {
            self.xattrs.set(file, path, name, value)?;
        }
        rustix::fs::futimens(file, &times(attributes.mtime))
            .map_err(failed("set the times of", path))
    }

    /// Counts memory that stays until the end.
    fn keep(&mut self, bytes: usize) -> Result<(), TreeError> {
        // What the maps need around each name.
        self.kept_bytes = self.kept_bytes.saturating_add(bytes + 128);
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
