//! From an archive to a folder.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{CopyError, Owners, failed, is};

/// A folder that is being written.
pub(super) struct Unpacking {
    pub(super) folder: OwnedFd,
    pub(super) owners: Owners,
    /// Of folders, whose times change with what is put into them.
    pub(super) times: Vec<(PathBuf, u64)>,
    pub(super) left_out: Vec<PathBuf>,
}

impl Unpacking {
    pub(super) fn entry(&mut self, mut entry: tar::Entry<'_, impl Read>) -> Result<(), CopyError> {
        let written = entry.path().map_err(CopyError::Stream)?.into_owned();
        let mut path = PathBuf::new();
        for part in written.components() {
            match part {
                Component::Normal(part) => path.push(part),
                Component::CurDir | Component::RootDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(CopyError::Outside(written));
                }
            }
        }
        let Some(name) = path.file_name().map(std::ffi::OsStr::to_owned) else { return Ok(()) };
        let header = entry.header();
        let kind = header.entry_type();
        // Who did not own it there does not get a program here that runs as who copied it.
        let bits = if self.owners == Owners::Own { 0o777 } else { 0o7777 };
        let mode = Mode::from_raw_mode(header.mode().unwrap_or(0o644) & bits);
        let time = header.mtime().unwrap_or(0);
        let number = |id: io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok());
        let owner = (number(header.uid()), number(header.gid()));
        let write = |source: io::Error| failed("write", &path)(source);
        let parent = self.parent(&path).map_err(write)?;
        match kind {
            tar::EntryType::Directory => {
                match rustix::fs::mkdirat(&parent, &*name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(write(errno.into())),
                }
                let folder = open_beneath(parent.as_fd(), Path::new(&name)).map_err(write)?;
                self.settle(folder.as_fd(), owner, Some(mode)).map_err(write)?;
                self.times.push((path, time));
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name().map_err(CopyError::Stream)?.unwrap_or_default();
                clear(parent.as_fd(), &name).map_err(write)?;
                rustix::fs::symlinkat(&*target, &parent, &*name).map_err(|e| write(e.into()))?;
                if self.owners == Owners::Same {
                    let chowned = rustix::fs::chownat(
                        &parent,
                        &*name,
                        owner.0.map(rustix::fs::Uid::from_raw),
                        owner.1.map(rustix::fs::Gid::from_raw),
                        AtFlags::SYMLINK_NOFOLLOW,
                    );
                    chowned.map_err(|errno| write(errno.into()))?;
                }
            }
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                clear_unless_file(parent.as_fd(), &name).map_err(write)?;
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::TRUNC
                    | OFlags::NOFOLLOW
                    | OFlags::NONBLOCK
                    | OFlags::CLOEXEC;
                let opened = rustix::fs::openat(&parent, &*name, flags, Mode::from_raw_mode(0o600));
                let mut file = File::from(opened.map_err(|errno| write(errno.into()))?);
                io::copy(&mut entry, &mut file).map_err(write)?;
                self.settle(file.as_fd(), owner, Some(mode)).map_err(write)?;
                // Best effort, as the times of folders.
                if let Some(time) = UNIX_EPOCH.checked_add(Duration::from_secs(time)) {
                    let _ = file.set_modified(time);
                }
            }
            _ => self.left_out.push(path),
        }
        Ok(())
    }

    /// The folder that `path` is in. Folders that the archive does not name are made.
    fn parent(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut folder = rustix::io::fcntl_dupfd_cloexec(&self.folder, 3)?;
        let above = path.parent().unwrap_or(Path::new(""));
        for part in above.components() {
            let part = Path::new(part.as_os_str());
            folder = match open_beneath(folder.as_fd(), part) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    rustix::fs::mkdirat(&folder, part, Mode::from_raw_mode(0o755))?;
                    open_beneath(folder.as_fd(), part)?
                }
                other => other?,
            };
        }
        Ok(folder)
    }

    fn settle(
        &self,
        file: BorrowedFd<'_>,
        (uid, gid): (Option<u32>, Option<u32>),
        mode: Option<Mode>,
    ) -> io::Result<()> {
        if self.owners == Owners::Same {
            std::os::unix::fs::fchown(file, uid, gid)?;
        }
        if let Some(mode) = mode {
            rustix::fs::fchmod(file, mode)?;
        }
        Ok(())
    }

    /// Times last: writing into a folder changes its own.
    pub(super) fn finish(&mut self) {
        for (path, time) in std::mem::take(&mut self.times).into_iter().rev() {
            let Ok(parent) = self.parent(&path) else { continue };
            let Some(name) = path.file_name() else { continue };
            let Ok(folder) = open_beneath(parent.as_fd(), Path::new(name)) else { continue };
            if let Some(time) = UNIX_EPOCH.checked_add(Duration::from_secs(time)) {
                let _ = File::from(folder).set_modified(time);
            }
        }
    }
}

/// A folder in `folder`; no link is followed.
fn open_beneath(folder: BorrowedFd<'_>, name: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(folder, name, flags, Mode::empty(), how)?)
}

/// Removes what is in the way of a link; a folder is not.
fn clear(folder: BorrowedFd<'_>, name: &std::ffi::OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The same for a file: one that is there keeps its other names.
fn clear_unless_file(folder: BorrowedFd<'_>, name: &std::ffi::OsStr) -> io::Result<()> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Ok(stat) if is(&stat, FileType::RegularFile) => Ok(()),
        Ok(_) => clear(folder, name),
        Err(errno) => Err(errno.into()),
    }
}
