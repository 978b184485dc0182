//! Named volumes: made at their first use, with what the image has where they are mounted. The copy is made before any
//! container sees the volume, by one at a time, and again from the start when it was interrupted.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::image_root::ImageRoot;

/// Deepest folder that is copied; each level holds two descriptors.
const MAX_DEPTH: u32 = 128;
/// Most bytes of a list of extended attributes, and of one of them (limits of Linux).
const MAX_XATTR: usize = 65_536;
/// Stands beside the volume's folder while it is filled.
const MARK: &str = "copying";
/// Held while it is filled.
const LOCK: &str = "lock";

/// Makes the volume whose content is in `data`, and fills it from `target` in the image if it is empty.
pub(super) fn prepare(root: &ImageRoot, target: &Path, data: &Path, copy: bool) -> io::Result<()> {
    let folder = data.parent().unwrap_or(data);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let lock = File::options().create(true).append(true).open(folder.join(LOCK))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    // What the container's users may do there is decided by the image or by its programs; others cannot come here.
    fs::DirBuilder::new().recursive(true).mode(0o755).create(data)?;
    let mark = folder.join(MARK);
    let is_new = mark.exists() || fs::read_dir(data)?.next().is_none();
    if !copy || !is_new {
        return Ok(());
    }
    let Some(from) = root.open_dir(target)? else { return Ok(()) };
    File::create(&mark)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let to = rustix::fs::openat(CWD, data, flags, Mode::empty())?;
    let mut copier = Copier { top: to.as_fd(), links: HashMap::new() };
    copier.folder(from.as_fd(), to.as_fd(), &PathBuf::new(), 0)?;
    attributes(from.as_fd(), to.as_fd(), &rustix::fs::fstat(&from)?)?;
    // The mark must not be gone before what it guards is there.
    rustix::fs::syncfs(&to)?;
    fs::remove_file(mark)
}

struct Copier<'a> {
    top: BorrowedFd<'a>,
    /// Where a file with several names was copied to.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copier<'_> {
    fn folder(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &Path,
        depth: u32,
    ) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other("folders of the image are nested too deeply"));
        }
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let below = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                match rustix::fs::mkdirat(to, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
                let (inner, made) = (open(from, name, flags)?, open(to, name, flags)?);
                self.folder(inner.as_fd(), made.as_fd(), &below, depth + 1)?;
                attributes(inner.as_fd(), made.as_fd(), &stat)?;
            } else {
                // Of an attempt that was interrupted.
                match rustix::fs::unlinkat(to, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
                self.leaf(from, to, name, &stat, &below)?;
            }
        }
        Ok(())
    }

    fn leaf(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
        path: &Path,
    ) -> io::Result<()> {
        let owner = (
            Some(rustix::fs::Uid::from_raw(stat.st_uid)),
            Some(rustix::fs::Gid::from_raw(stat.st_gid)),
        );
        let kind = FileType::from_raw_mode(stat.st_mode);
        let id = (stat.st_dev, stat.st_ino);
        if let Some(known) = self.links.get(&id) {
            rustix::fs::linkat(self.top, known, to, name, AtFlags::empty())?;
            return Ok(());
        }
        match kind {
            FileType::RegularFile => {
                let source = open(from, name, OFlags::NOFOLLOW | OFlags::NONBLOCK)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let made = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
                let (mut source, mut made) = (File::from(source), File::from(made));
                io::copy(&mut source, &mut made)?;
                attributes(source.as_fd(), made.as_fd(), stat)?;
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&link, to, name)?;
                rustix::fs::chownat(to, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            _ => {
                let mode = Mode::from_raw_mode(stat.st_mode);
                rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?;
                rustix::fs::chownat(to, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
                // The process's umask has been applied.
                rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
            }
        }
        if stat.st_nlink > 1 {
            self.links.insert(id, path.to_owned());
        }
        Ok(())
    }
}

fn open(folder: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(folder, name, flags, Mode::empty())?)
}

/// Owner, extended attributes, mode and times; in this order, because a change of the owner takes capabilities and
/// set-user-id bits away.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    rustix::fs::fchown(
        to,
        Some(rustix::fs::Uid::from_raw(stat.st_uid)),
        Some(rustix::fs::Gid::from_raw(stat.st_gid)),
    )?;
    let mut names = vec![0_u8; MAX_XATTR];
    let length = match rustix::fs::flistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP | Errno::NOSYS) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut value = vec![0_u8; if length == 0 { 0 } else { MAX_XATTR }];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // Labels and what overlay file systems keep are of the file system that they are on.
        if !name.starts_with(b"user.") && name != b"security.capability" {
            continue;
        }
        let length = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        match rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    let time = |sec, nsec| rustix::fs::Timespec { tv_sec: sec, tv_nsec: nsec };
    let nanos = |nanos| i64::try_from(nanos).unwrap_or(0);
    let times = rustix::fs::Timestamps {
        last_access: time(stat.st_atime, nanos(stat.st_atime_nsec)),
        last_modification: time(stat.st_mtime, nanos(stat.st_mtime_nsec)),
    };
    rustix::fs::futimens(to, &times)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_new_volume_gets_what_the_image_has_there_and_keeps_its_own_later() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::create_dir_all(image.join("srv/deep/er")).unwrap();
        fs::write(image.join("srv/a"), "one").unwrap();
        fs::set_permissions(image.join("srv/a"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::hard_link(image.join("srv/a"), image.join("srv/deep/b")).unwrap();
        symlink("/etc/passwd", image.join("srv/deep/er/link")).unwrap();
        fs::set_permissions(image.join("srv"), fs::Permissions::from_mode(0o1770)).unwrap();
        std::os::unix::fs::chown(image.join("srv"), Some(33), Some(34)).unwrap();
        symlink("/srv", image.join("data")).unwrap();
        let root = ImageRoot::open(&image).unwrap();
        let data = dir.path().join("volumes/v/data");
        prepare(&root, Path::new("/data"), &data, true).unwrap();
        let metadata = fs::metadata(&data).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (33, 34, 0o1770));
        let (a, b) = (data.join("a").metadata().unwrap(), data.join("deep/b").metadata().unwrap());
        assert_eq!((a.ino(), a.mode() & 0o7777), (b.ino(), 0o4711));
        assert_eq!(a.mtime_nsec(), image.join("srv/a").metadata().unwrap().mtime_nsec());
        assert_eq!(fs::read_link(data.join("deep/er/link")).unwrap(), Path::new("/etc/passwd"));
        // Not again, once something is there.
        fs::remove_file(data.join("a")).unwrap();
        prepare(&root, Path::new("/data"), &data, true).unwrap();
        assert!(!data.join("a").exists());
        // But again when it was interrupted.
        fs::write(data.join("../copying"), "").unwrap();
        prepare(&root, Path::new("/data"), &data, true).unwrap();
        assert_eq!(fs::read_to_string(data.join("a")).unwrap(), "one");
        assert!(!data.join("../copying").exists());
    }

    #[test]
    fn where_the_image_has_no_folder_the_volume_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::create_dir_all(image.join("srv")).unwrap();
        fs::write(image.join("srv/a"), "one").unwrap();
        let root = ImageRoot::open(&image).unwrap();
        for (name, target, copy) in
            [("x", "/none", true), ("y", "/srv/a", true), ("z", "/srv", false)]
        {
            let data = dir.path().join("volumes").join(name).join("data");
            prepare(&root, Path::new(target), &data, copy).unwrap();
            assert_eq!(fs::read_dir(&data).unwrap().count(), 0, "{name}");
        }
    }
}
