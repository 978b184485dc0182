//! Looking into a container's root file system from outside. Its content is foreign: every path is resolved inside
//! it, links included, and nothing but regular files is opened. May block on lazy content.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

/// More than any real `/etc/passwd`; a larger file is not read.
const MAX_TEXT: u64 = 4 * 1024 * 1024;

/// A directory that is `/` for whatever is resolved in it.
#[derive(Debug)]
pub(super) struct ImageRoot(OwnedFd);

impl ImageRoot {
    /// `path` itself may be a link of the host's.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    /// The text of a regular file; empty when there is none.
    pub(super) fn read_text(&self, path: &str) -> io::Result<String> {
        let file = match self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            other => File::from(other?),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > MAX_TEXT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("`{path}` in the image is not a regular file of at most 4 MiB"),
            ));
        }
        let mut bytes = Vec::new();
        file.take(MAX_TEXT).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether `path` is a directory, links followed as they lead below the root.
    ///
    /// # Errors
    /// Those of openat2(2): `NotFound`, `NotADirectory`.
    pub(super) fn check_dir(&self, path: &str) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.0, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        Ok(())
    }

    /// Where `path` is on the host, links followed as they lead below the root. Good for as long as nothing is changed
    /// there.
    pub(super) fn path_of(&self, path: &Path) -> io::Result<PathBuf> {
        let path = path.to_str().ok_or(io::ErrorKind::InvalidInput)?;
        let found = self.resolve(path, OFlags::PATH)?;
        std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
    }

    /// Opens a directory; `None` where there is none.
    pub(super) fn open_dir(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        let path = path.to_str().ok_or(io::ErrorKind::InvalidInput)?;
        match self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(folder) => Ok(Some(folder)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the directory `path` and those above it where they are absent, mode 0755, owned by root.
    pub(super) fn make_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut above = rustix::io::fcntl_dupfd_cloexec(&self.0, 3)?;
        let mut so_far = String::from("/");
        for part in path.components() {
            let name = match part {
                Component::Normal(name) => name.to_string_lossy().into_owned(),
                Component::ParentDir => "..".to_owned(),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            };
            so_far.push_str(&name);
            above = match self.resolve(&so_far, OFlags::PATH | OFlags::DIRECTORY) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let mode = Mode::from_raw_mode(0o755);
                    rustix::fs::mkdirat(above.as_fd(), name.as_str(), mode)?;
                    self.resolve(&so_far, OFlags::PATH | OFlags::DIRECTORY)?
                }
                other => other?,
            };
            so_far.push('/');
        }
        Ok(())
    }

    fn resolve(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let opened =
            rustix::fs::openat2(self.0.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), how)?;
        Ok(opened)
    }
}

/// Makes a FIFO that `owner` may read and everybody in the container may write, replacing what is there. Programs
/// that change their user after the start still write to `/dev/stdout` then; on the host the directory keeps others
/// out.
pub(super) fn make_fifo(path: &Path) -> io::Result<()> {
    let _ = std::fs::remove_file(path);
    let mode = Mode::from_raw_mode(0o622);
    rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0)?;
    // The process's umask has been applied.
    rustix::fs::chmodat(CWD, path, mode, rustix::fs::AtFlags::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_of_an_image_stay_in_it() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "host").unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/etc")).unwrap();
        fs::write(dir.path().join("usr/etc/passwd"), "image").unwrap();
        symlink("/usr/etc", dir.path().join("etc")).unwrap();
        symlink(outside.path().join("secret"), dir.path().join("usr/etc/group")).unwrap();
        let root = ImageRoot::open(dir.path()).unwrap();
        assert_eq!(root.read_text("/etc/passwd").unwrap(), "image");
        assert_eq!(root.read_text("/etc/group").unwrap(), "");
        assert_eq!(root.read_text("/etc/absent").unwrap(), "");
        symlink(outside.path(), dir.path().join("out")).unwrap();
        assert!(root.make_dir_all(Path::new("/out/new")).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        root.make_dir_all(Path::new("/etc/a/../b/./c")).unwrap();
        assert!(dir.path().join("usr/etc/b/c").is_dir());
    }

    #[test]
    fn a_fifo_in_the_place_of_a_file_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        make_fifo(&dir.path().join("passwd")).unwrap();
        assert!(ImageRoot::open(dir.path()).unwrap().read_text("/passwd").is_err());
    }
}
