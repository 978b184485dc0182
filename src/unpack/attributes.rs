//! Owner, mode, times and extended attributes of what is unpacked.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};

use super::archive::Entry;
use super::tree::{TreeError, failed};
use super::xattr::Xattrs;

/// Set only after the owner, which takes them away.
const SPECIAL_BITS: u32 = 0o7000;

/// What new files of this tree have without being given it, so that it need not be set on each.
///
/// It is the same in all of the tree: directories get their own owners and modes, which some file systems hand on to
/// what is created in them, only when everything in them is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    owner: Option<(u32, u32)>,
    /// Whether a file has exactly the mode that it is created with: no umask and no default access control list.
    modes: bool,
}

impl Defaults {
    /// Finds out with a file without a name; where that cannot be had, everything is set on every file.
    pub(super) fn of(root: BorrowedFd<'_>) -> Self {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let all = Mode::RWXU | Mode::RWXG | Mode::RWXO;
        match rustix::fs::openat(root, c".", flags, all).and_then(rustix::fs::fstat) {
            Ok(stat) => Self {
                owner: Some((stat.st_uid, stat.st_gid)),
                modes: Mode::from_raw_mode(stat.st_mode) == all,
            },
            Err(_) => Self { owner: None, modes: false },
        }
    }
}

/// What an entry says of itself beside its content.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    pub(super) mtime: i64,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    /// Of a directory that no entry describes.
    pub(super) const IMPLICIT: Self =
        Self { mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() };

    /// Takes the attributes out of `entry`.
    pub(super) fn of(entry: &mut Entry) -> Self {
        let (mode, uid, gid, mtime) = (entry.mode, entry.uid, entry.gid, entry.mtime);
        Self { mode, uid, gid, mtime, xattrs: std::mem::take(&mut entry.xattrs) }
    }

    /// The mode to create a file with.
    pub(super) fn first_mode(&self, defaults: Defaults) -> Mode {
        if defaults.modes && self.mode & SPECIAL_BITS == 0 {
            Mode::from_raw_mode(self.mode)
        } else {
            Mode::RUSR | Mode::WUSR
        }
    }

    /// For an open file or directory that was just created, with the mode `created`.
    ///
    /// The mode after the owner: chown(2) takes setuid bits away; capabilities after both, for the same reason;
    /// times last.
    pub(super) fn set(
        &self,
        file: BorrowedFd<'_>,
        path: &[u8],
        created: Option<Mode>,
        defaults: Defaults,
        xattrs: &mut Xattrs,
    ) -> Result<(), TreeError> {
        let owner_and_mode = || -> rustix::io::Result<()> {
            if defaults.owner != Some((self.uid, self.gid)) {
                let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
                rustix::fs::fchown(file, Some(uid), Some(gid))?;
            }
            let mode = Mode::from_raw_mode(self.mode);
            if defaults.modes && self.mode & SPECIAL_BITS == 0 && created == Some(mode) {
                return Ok(());
            }
            rustix::fs::fchmod(file, mode)
        };
        owner_and_mode().map_err(failed("set owner and mode of", path))?;
        for (name, value) in &self.xattrs {
            xattrs.set(file, path, name, value)?;
        }
        rustix::fs::futimens(file, &times(self.mtime)).map_err(failed("set the times of", path))
    }

    /// For a node that cannot be opened. The name was just created in a directory that nobody else can reach, so
    /// it still is what it was.
    pub(super) fn set_owner_and_mode_of_node(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        file_type: FileType,
        defaults: Defaults,
    ) -> rustix::io::Result<()> {
        if defaults.owner != Some((self.uid, self.gid)) {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if file_type == FileType::Symlink {
            // Links have no mode of their own.
            return Ok(());
        }
        rustix::fs::chmodat(directory, name, Mode::from_raw_mode(self.mode), AtFlags::empty())
    }
}

/// Sets the times of a node, and of a symbolic link its own.
pub(super) fn set_node_times(
    directory: BorrowedFd<'_>,
    name: &[u8],
    mtime: i64,
) -> rustix::io::Result<()> {
    rustix::fs::utimensat(directory, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
}

/// The same whole second for all times: lazy layers keep no more.
pub(super) fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
