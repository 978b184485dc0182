//! Owner, mode, times and extended attributes of what is unpacked.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid};

use super::archive::Entry;

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

    /// For an open file or directory.
    pub(super) fn set_owner_and_mode(&self, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        rustix::fs::fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(self.mode))
    }

    /// For a node that cannot be opened. The name was just created in a directory that nobody else can reach, so
    /// it still is what it was.
    pub(super) fn set_owner_and_mode_of_node(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        file_type: FileType,
    ) -> rustix::io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
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
