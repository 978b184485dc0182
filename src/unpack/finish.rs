//! The end of a tree, when all entries are in it: links, whiteouts, attributes of directories.

use std::os::fd::AsFd as _;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::attributes::{Attributes, set_node_times};
use super::path::{show, split};
use super::tree::{Tree, TreeError, failed};
use super::xattr::Xattrs;

impl Tree<'_> {
    /// Removes the file `name` of the root, if there is one.
    pub(super) fn remove_root_file(&mut self, name: &[u8]) -> Result<(), TreeError> {
        self.writers.settle(&mut self.xattrs)?;
        self.links.remove(name);
        match rustix::fs::unlinkat(self.root, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => Ok(()),
            Err(errno) => Err(failed("remove", name)(errno)),
        }
    }

    /// Makes links and whiteouts, and sets the attributes of the directories.
    pub(super) fn finish(mut self) -> Result<Xattrs, TreeError> {
        self.writers.settle(&mut self.xattrs)?;
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
            attributes.set(directory.as_fd(), &path, None, self.defaults, &mut self.xattrs)?;
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
}
