//! From a folder to an archive.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{CopyError, failed, is};

/// An archive that is being written.
pub(super) struct Packing<W: Write> {
    pub(super) out: tar::Builder<W>,
    pub(super) left_out: Vec<PathBuf>,
}

impl<W: Write> Packing<W> {
    fn header(stat: &Stat, kind: tar::EntryType) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(0);
        header
    }

    pub(super) fn folder(
        &mut self,
        folder: &OwnedFd,
        stat: &Stat,
        path: &Path,
        name: &Path,
    ) -> Result<(), CopyError> {
        if !name.as_os_str().is_empty() {
            let mut header = Self::header(stat, tar::EntryType::Directory);
            let appended = self.out.append_data(&mut header, name, io::empty());
            appended.map_err(CopyError::Stream)?;
        }
        let read = |errno: Errno| failed("read", path)(errno.into());
        for entry in Dir::read_from(folder).map_err(read)? {
            let entry = entry.map_err(read)?;
            let child = std::ffi::OsString::from_vec(entry.file_name().to_bytes().to_vec());
            if child == "." || child == ".." {
                continue;
            }
            let (path, name) = (path.join(&child), name.join(&child));
            match self.child(folder, &child, &path, &name) {
                // It was removed meanwhile.
                Err(CopyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn child(
        &mut self,
        folder: &OwnedFd,
        child: &std::ffi::OsStr,
        path: &Path,
        name: &Path,
    ) -> Result<(), CopyError> {
        let open = |flags: OFlags| {
            let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
            let opened = rustix::fs::openat(folder, child, flags, Mode::empty());
            opened.map_err(|errno| failed("open", path)(errno.into()))
        };
        let stat = rustix::fs::statat(folder, child, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|errno| failed("look at", path)(errno.into()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.folder(&open(OFlags::RDONLY | OFlags::DIRECTORY)?, &stat, path, name)
            }
            FileType::RegularFile => {
                self.file(open(OFlags::RDONLY | OFlags::NONBLOCK)?, path, name)
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(folder, child, Vec::new());
                let target = target.map_err(|errno| failed("read", path)(errno.into()))?;
                self.link(&stat, target.as_bytes(), name)
            }
            _ => {
                self.left_out.push(path.to_owned());
                Ok(())
            }
        }
    }

    pub(super) fn file(
        &mut self,
        file: OwnedFd,
        path: &Path,
        name: &Path,
    ) -> Result<(), CopyError> {
        let stat = rustix::fs::fstat(&file).map_err(|e| failed("look at", path)(e.into()))?;
        // It may have become another one since its folder was read.
        if !is(&stat, FileType::RegularFile) {
            self.left_out.push(path.to_owned());
            return Ok(());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = Self::header(&stat, tar::EntryType::Regular);
        header.set_size(size);
        // As long as it was said to be, whatever becomes of it meanwhile.
        let content = File::from(file).chain(io::repeat(0)).take(size);
        self.out.append_data(&mut header, name, content).map_err(failed("copy", path))
    }

    pub(super) fn link(
        &mut self,
        stat: &Stat,
        target: &[u8],
        name: &Path,
    ) -> Result<(), CopyError> {
        let mut header = Self::header(stat, tar::EntryType::Symlink);
        let target = Path::new(std::ffi::OsStr::from_bytes(target));
        self.out.append_link(&mut header, name, target).map_err(CopyError::Stream)
    }
}
