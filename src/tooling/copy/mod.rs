//! Copying files between two roots, one of which is a container's, as a stream in tar form between them.
//!
//! What is in a container is foreign, and changes while it is read: every path is resolved below its root, links
//! included, and below the folder that is written to no link is followed at all.

mod pack;
mod unpack;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};

use pack::Packing;
use unpack::Unpacking;

/// Why something was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Something cannot be read or written.
    #[error("could not {action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The stream between the two cannot be read or written.
    #[error("could not copy the archive")]
    Stream(#[source] io::Error),
    /// What is in the archive cannot be written below the folder.
    #[error("the archive has `{}`, which is not below its folder", .0.display())]
    Outside(PathBuf),
    /// Source and destination do not fit.
    #[error("{0}")]
    Destination(String),
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CopyError + 'a {
    move |source| CopyError::Io { action, path: path.to_owned(), source }
}

/// Whose files they become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Those of this process.
    Own,
    /// The same users and groups, by number.
    Same,
}

/// Whether a source that is a link is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// The link itself is copied.
    Keep,
    /// What it leads to.
    Follow,
}

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Absent,
    /// A folder.
    Folder,
    /// Anything else.
    File,
}

/// A directory that is `/` for whatever is copied from or to it.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// `path` itself is the host's, for instance `/proc/PID/root`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, CopyError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, path, flags, Mode::empty());
        Ok(Self(opened.map_err(|errno| failed("open", path)(errno.into()))?))
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // The kernel takes no flag beside that one that would mean nothing.
        let more = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NOCTTY };
        let flags = flags | OFlags::CLOEXEC | more;
        Ok(rustix::fs::openat2(self.0.as_fd(), path, flags, Mode::empty(), how)?)
    }

    /// What is at `path`, links followed.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn kind(&self, path: &Path) -> Result<Kind, CopyError> {
        match self.resolve(path, OFlags::PATH) {
            Ok(found) => {
                let stat =
                    rustix::fs::fstat(&found).map_err(|e| failed("look at", path)(e.into()))?;
                Ok(if is(&stat, FileType::Directory) { Kind::Folder } else { Kind::File })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kind::Absent),
            Err(error) => Err(failed("look at", path)(error)),
        }
    }

    /// Writes what is at `path` to `out` in tar form, called `name` there; of a folder with an empty name only what is
    /// in it. Gives what was left out: what is neither file, folder nor link.
    ///
    /// # Errors
    /// When something cannot be read, or `out` cannot be written.
    pub fn pack(
        &self,
        path: &Path,
        name: &Path,
        links: Links,
        out: impl Write,
    ) -> Result<Vec<PathBuf>, CopyError> {
        let follow = if links == Links::Keep { OFlags::NOFOLLOW } else { OFlags::empty() };
        let found = self.resolve(path, OFlags::PATH | follow).map_err(failed("open", path))?;
        let stat = rustix::fs::fstat(&found).map_err(|e| failed("look at", path)(e.into()))?;
        let mut packing = Packing { out: tar::Builder::new(out), left_out: Vec::new() };
        packing.out.follow_symlinks(false);
        if is(&stat, FileType::Directory) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let folder = rustix::fs::openat(&found, ".", flags, Mode::empty());
            let folder = folder.map_err(|e| failed("open", path)(e.into()))?;
            packing.folder(&folder, &stat, path, name)?;
        } else if is(&stat, FileType::Symlink) {
            let target = rustix::fs::readlinkat(&found, "", Vec::new());
            let target = target.map_err(|e| failed("read", path)(e.into()))?;
            packing.link(&stat, target.as_bytes(), name)?;
        } else if is(&stat, FileType::RegularFile) {
            let opened = self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK);
            packing.file(opened.map_err(failed("open", path))?, path, name)?;
        } else {
            packing.left_out.push(path.to_owned());
        }
        packing.out.finish().map_err(CopyError::Stream)?;
        Ok(packing.left_out)
    }

    /// Writes what `archive` has, in tar form, below the folder `path`. Gives what was left out.
    ///
    /// # Errors
    /// When the archive cannot be read, has names that are not below its folder, or something cannot be written.
    pub fn unpack(
        &self,
        path: &Path,
        archive: impl Read,
        owners: Owners,
    ) -> Result<Vec<PathBuf>, CopyError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let folder = self.resolve(path, flags).map_err(failed("open", path))?;
        let mut unpacking = Unpacking { folder, owners, times: Vec::new(), left_out: Vec::new() };
        let mut archive = tar::Archive::new(archive);
        for entry in archive.entries().map_err(CopyError::Stream)? {
            unpacking.entry(entry.map_err(CopyError::Stream)?)?;
        }
        unpacking.finish();
        // What follows the end of an archive is read too, so that its writer is not left with a broken pipe.
        let mut rest = archive.into_inner();
        io::copy(&mut rest, &mut io::sink()).map_err(CopyError::Stream)?;
        Ok(unpacking.left_out)
    }
}

fn is(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

/// Where a copy goes: the folder that is written to, and the name of the copy in it; an empty one means that only what
/// is in the source is copied.
///
/// # Errors
/// When source and destination do not fit, as `cp` has it.
pub fn place(
    source: (&Path, Kind),
    only_content: bool,
    destination: (&Path, Kind),
) -> Result<(PathBuf, PathBuf), CopyError> {
    let (from, kind) = source;
    let (to, there) = destination;
    let wrong = |message: String| Err(CopyError::Destination(message));
    let base = || PathBuf::from(from.file_name().unwrap_or_default());
    match (kind, there) {
        (Kind::Absent, _) => wrong(format!("`{}` does not exist", from.display())),
        (Kind::Folder, Kind::File) => {
            wrong(format!("`{}` is a folder and `{}` is none", from.display(), to.display()))
        }
        (Kind::Folder, Kind::Folder) if only_content => Ok((to.to_owned(), PathBuf::new())),
        (_, Kind::Folder) => Ok((to.to_owned(), base())),
        (Kind::File, Kind::Absent) if to.as_os_str().as_bytes().ends_with(b"/") => {
            wrong(format!("the folder `{}` does not exist", to.display()))
        }
        (_, Kind::Absent | Kind::File) => {
            let parent = to.parent().unwrap_or(Path::new("/"));
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok((parent.to_owned(), PathBuf::from(to.file_name().unwrap_or_default())))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::time::UNIX_EPOCH;

    use super::*;

    fn copy(from: &Path, to: &Path, name: &str, links: Links) -> Result<Vec<PathBuf>, CopyError> {
        let mut bytes = Vec::new();
        Root::open(from)?.pack(Path::new("/src"), Path::new(name), links, &mut bytes)?;
        Root::open(to)?.unpack(Path::new("/"), bytes.as_slice(), Owners::Same)
    }

    #[test]
    fn a_tree_is_the_same_on_the_other_side() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let src = from.path().join("src");
        let long = "n".repeat(150);
        fs::create_dir_all(src.join("deep").join(&long)).unwrap();
        fs::write(src.join("deep").join(&long).join("file"), "content").unwrap();
        fs::write(src.join("run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(src.join("run"), fs::Permissions::from_mode(0o4750)).unwrap();
        symlink("/etc/passwd", src.join("link")).unwrap();
        copy(from.path(), to.path(), "copy", Links::Keep).unwrap();
        let copied = to.path().join("copy");
        let text = fs::read_to_string(copied.join("deep").join(&long).join("file")).unwrap();
        assert_eq!(text, "content");
        assert_eq!(fs::metadata(copied.join("run")).unwrap().permissions().mode() & 0o7777, 0o4750);
        assert_eq!(fs::read_link(copied.join("link")).unwrap(), Path::new("/etc/passwd"));
        let times = [src.join("deep"), copied.join("deep")];
        let [one, other] = times.map(|path| fs::metadata(path).unwrap().modified().unwrap());
        let seconds =
            |time: std::time::SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(seconds(one), seconds(other));
        // Only what is in it, over what is there.
        fs::write(src.join("run"), "other").unwrap();
        copy(from.path(), &copied, "", Links::Keep).unwrap();
        assert_eq!(fs::read_to_string(copied.join("run")).unwrap(), "other");
    }

    #[test]
    fn links_lead_nowhere_outside_of_their_root() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("inside"), "inside").unwrap();
        symlink("/inside", from.path().join("src")).unwrap();
        copy(from.path(), to.path(), "copy", Links::Follow).unwrap();
        assert_eq!(fs::read_to_string(to.path().join("copy")).unwrap(), "inside");
        copy(from.path(), to.path(), "copy", Links::Keep).unwrap();
        assert_eq!(fs::read_link(to.path().join("copy")).unwrap(), Path::new("/inside"));
        // An archive that makes a link and then writes through it.
        let outside = tempfile::tempdir().unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, "out", outside.path()).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        archive.append_data(&mut header, "out/file", &b"x"[..]).unwrap();
        let bytes = archive.into_inner().unwrap();
        let root = Root::open(to.path()).unwrap();
        assert!(root.unpack(Path::new("/"), bytes.as_slice(), Owners::Own).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_copy_with_another_owner_runs_as_nobody_else() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("src"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(from.path().join("src"), fs::Permissions::from_mode(0o6755)).unwrap();
        let mut bytes = Vec::new();
        let root = Root::open(from.path()).unwrap();
        root.pack(Path::new("/src"), Path::new("run"), Links::Keep, &mut bytes).unwrap();
        let root = Root::open(to.path()).unwrap();
        root.unpack(Path::new("/"), bytes.as_slice(), Owners::Own).unwrap();
        let mode = fs::metadata(to.path().join("run")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }

    #[test]
    fn what_is_no_file_is_left_out() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(from.path().join("src")).unwrap();
        let path = from.path().join("src/fifo");
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let root = Root::open(from.path()).unwrap();
        let left = root.pack(Path::new("/src"), Path::new("x"), Links::Keep, io::sink()).unwrap();
        assert_eq!(left, [Path::new("/src/fifo")]);
        // A file over a pipe replaces it, and waits for nobody.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "file").unwrap();
        let there = to.path().join("fifo");
        rustix::fs::mknodat(CWD, &there, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        copy(from.path(), to.path(), "", Links::Keep).unwrap();
        assert_eq!(fs::read_to_string(there).unwrap(), "file");
    }

    #[test]
    fn a_copy_goes_where_cp_puts_it() {
        use Kind::{Absent, File, Folder};
        let to = |kind, only, there, to: &'static str| {
            let place = place((Path::new("/a/src"), kind), only, (Path::new(to), there)).ok();
            place.map(|(folder, name)| (folder.display().to_string(), name.display().to_string()))
        };
        let at = |folder: &str, name: &str| Some((folder.to_owned(), name.to_owned()));
        assert_eq!(to(File, false, Folder, "/t"), at("/t", "src"));
        assert_eq!(to(File, false, Absent, "/t/new"), at("/t", "new"));
        assert_eq!(to(File, false, File, "/t/old"), at("/t", "old"));
        assert_eq!(to(File, false, Absent, "/t/new/"), None);
        assert_eq!(to(Folder, false, Folder, "/t"), at("/t", "src"));
        assert_eq!(to(Folder, true, Folder, "/t"), at("/t", ""));
        assert_eq!(to(Folder, true, Absent, "/t/new"), at("/t", "new"));
        assert_eq!(to(Folder, false, File, "/t/old"), None);
        assert_eq!(to(Absent, false, Folder, "/t"), None);
    }
}
