//! From the kernel's requests to the tree and back: the implementation of fuser's trait, which only translates.
//!
//! Names, attributes and directories are answered at once on fuser's threads; opens and reads that may have to wait
//! for content are answered later from the runtime, so that a slow registry never stops a `stat`. A request is never
//! answered twice and never not at all: dropping a reply, as a panic does, answers it with an I/O error.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use tokio::runtime;

use super::backing;
use super::connect::Negotiation;
use super::errno::Refusal;
use super::handles::{Handle, Mode};
use super::served::Served;
use super::tree::ROOT;
use crate::estargz::{Entry, EntryKind};

/// Below a layer's directory nothing ever changes. The kernel counts in jiffies, so no larger number is longer.
const FOREVER: Duration = Duration::from_secs(1 << 31);
/// At the root layers come and go.
const NOW: Duration = Duration::ZERO;
const BLOCK: u64 = 4096;

/// The file system that fuser drives.
pub(super) struct Translator {
    pub(super) served: Arc<Served>,
    pub(super) runtime: runtime::Handle,
    pub(super) negotiation: Negotiation,
}

fn file_attr(ino: u64, attributes: &Entry) -> FileAttr {
    let age = Duration::from_secs(attributes.mtime.unsigned_abs());
    let time = if attributes.mtime < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(age)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(age)
    };
    let time = time.unwrap_or(SystemTime::UNIX_EPOCH);
    let (major, minor) = attributes.rdev;
    FileAttr {
        ino: INodeNo(ino),
        size: attributes.size,
        blocks: attributes.size.div_ceil(BLOCK) * (BLOCK / 512),
        // The format keeps one time; the others would only be invented.
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attributes.kind),
        perm: permissions(attributes),
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        // The kernel's 32-bit encoding of device numbers.
        rdev: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
        blksize: 4096,
        flags: 0,
    }
}

/// Linux gives every symbolic link all permissions, whatever an archive says.
fn permissions(attributes: &Entry) -> u16 {
    if attributes.kind == EntryKind::Symlink {
        0o777
    } else {
        u16::try_from(attributes.mode & 0o7777).unwrap_or_default()
    }
}

fn file_type(kind: EntryKind) -> FileType {
    match kind {
        EntryKind::Directory => FileType::Directory,
        EntryKind::Regular => FileType::RegularFile,
        EntryKind::Symlink => FileType::Symlink,
        EntryKind::CharDevice => FileType::CharDevice,
        EntryKind::BlockDevice => FileType::BlockDevice,
        EntryKind::Fifo => FileType::NamedPipe,
    }
}

fn reply_xattr(value: Result<Vec<u8>, Refusal>, size: u32, reply: ReplyXattr) {
    let value = match value {
        Ok(value) => value,
        Err(refusal) => return reply.error(refusal.into()),
    };
    match (u32::try_from(value.len()), size) {
        (Ok(length), 0) => reply.size(length),
        (Ok(length), _) if length <= size => reply.data(&value),
        _ => reply.error(Refusal::Range.into()),
    }
}

impl Served {
    fn attr(&self, ino: u64) -> Result<(FileAttr, Duration), Refusal> {
        let attributes = self.tree.attributes(ino)?;
        let ttl = if ino == ROOT { NOW } else { FOREVER };
        Ok((file_attr(ino, &attributes), ttl))
    }
}

fn reply_open(opened: Result<Handle, Refusal>, reply: ReplyOpen) {
    match opened {
        // NOFLUSH: a FLUSH that no server answers would put whoever closes the file into an unkillable sleep.
        Ok(Handle { number, mode: Mode::Cached }) => {
            reply.opened(
                FileHandle(number),
                FopenFlags::FOPEN_NOFLUSH | FopenFlags::FOPEN_KEEP_CACHE,
            );
        }
        // The kernel refuses KEEP_CACHE beside passthrough.
        Ok(Handle { number, mode: Mode::Passthrough { backing: id } }) => {
            backing::reply_passthrough(reply, FileHandle(number), FopenFlags::FOPEN_NOFLUSH, id);
        }
        Err(refusal) => reply.error(refusal.into()),
    }
}

impl Translator {
    /// Counts a request that was taken. A panic in one must not take the thread that serves all others.
    fn guarded(&self, operation: &'static str, body: impl FnOnce()) {
        self.served.taken.fetch_add(1, Ordering::Relaxed);
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            tracing::error!(operation, "a request panicked and was answered with an I/O error");
        }
    }
}

impl fuser::Filesystem for Translator {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.negotiation.apply(config)
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.guarded("lookup", || match self.served.tree.lookup(parent.0, name.as_bytes()) {
            Ok(ino) => match self.served.attr(ino) {
                Ok((attr, ttl)) => {
                    let entry_ttl = if parent.0 == ROOT { NOW } else { FOREVER };
                    reply.entry_with_ttls(&ttl, &entry_ttl, &attr, Generation(0));
                }
                Err(refusal) => reply.error(refusal.into()),
            },
            // Inode 0 is an answer that may be kept: there is no such name and there never will be.
            Err(Refusal::NotFound) if parent.0 != ROOT => {
                let nothing = Entry {
                    kind: EntryKind::Regular,
                    mode: 0,
                    uid: 0,
                    gid: 0,
                    size: 0,
                    mtime: 0,
                    rdev: (0, 0),
                    nlink: 0,
                    opaque: false,
                };
                reply.entry(&FOREVER, &file_attr(0, &nothing), Generation(0));
            }
            Err(refusal) => reply.error(refusal.into()),
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.guarded("getattr", || match self.served.attr(ino.0) {
            Ok((attr, ttl)) => reply.attr(&ttl, &attr),
            Err(refusal) => reply.error(refusal.into()),
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.guarded("readlink", || match self.served.tree.link_target(ino.0) {
            Ok(target) => reply.data(&target),
            Err(refusal) => reply.error(refusal.into()),
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != fuser::OpenAccMode::O_RDONLY {
            return reply.error(Refusal::ReadOnly.into());
        }
        let (served, unique) = (Arc::clone(&self.served), request.unique().0);
        self.guarded("open", || match served.open_local(ino.0, unique) {
            Ok(None) => {
                let served = Arc::clone(&self.served);
                self.runtime.spawn(async move {
                    let opened = served.open(ino.0, unique).await;
                    reply_open(opened, reply);
                });
            }
            Ok(Some(handle)) => reply_open(Ok(handle), reply),
            Err(refusal) => reply_open(Err(refusal), reply),
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.guarded("read", || {
            let (layer, entry) = match self.served.tree.entry(ino.0) {
                Ok((layer, entry, _)) => (layer, entry),
                Err(refusal) => return reply.error(refusal.into()),
            };
            match layer.read_local(entry, offset, size) {
                Ok(Some(content)) => reply.data(&content),
                Ok(None) => {
                    self.runtime.spawn(async move {
                        match layer.read(entry, offset, size).await {
                            Ok(content) => reply.data(&content),
                            Err(refusal) => reply.error(refusal.into()),
                        }
                    });
                }
                Err(refusal) => reply.error(refusal.into()),
            }
        });
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.guarded("release", || {
            let is_last = self.served.handles.release(ino.0, handle.0);
            reply.ok();
            if is_last && let Ok((layer, entry, _)) = self.served.tree.entry(ino.0) {
                layer.closed(entry);
            }
        });
    }

    /// Only for openers of before the first NOFLUSH reply, of which there are none; never left unanswered.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Said once, the kernel opens directories by itself and keeps all listings: two requests less for each
        // directory that is listed again, of which a tree has one in ten files.
        if self.negotiation.looks_at_times() {
            return reply.error(Errno::ENOSYS);
        }
        let flags = if ino.0 == ROOT {
            FopenFlags::empty()
        } else {
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
        };
        reply.opened(FileHandle(0), flags);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.guarded("readdir", || {
            let listed = self.served.tree.list(ino.0, offset, |line| {
                let kind = self
                    .served
                    .tree
                    .attributes(line.ino)
                    .map_or(EntryKind::Regular, |found| found.kind);
                reply.add(
                    INodeNo(line.ino),
                    line.next,
                    file_type(kind),
                    OsStr::from_bytes(&line.name),
                )
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(refusal) => reply.error(refusal.into()),
            }
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.guarded("readdirplus", || {
            let ttl = if ino.0 == ROOT { NOW } else { FOREVER };
            let listed = self.served.tree.list(ino.0, offset, |line| {
                let Ok((attr, _)) = self.served.attr(line.ino) else { return false };
                let name = OsStr::from_bytes(&line.name);
                reply.add(INodeNo(line.ino), line.next, name, &ttl, &attr, Generation(0))
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(refusal) => reply.error(refusal.into()),
            }
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = self.served.tree.content_size().div_ceil(BLOCK);
        reply.statfs(blocks, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.guarded("getxattr", || {
            reply_xattr(self.served.tree.xattr(ino.0, name.as_bytes()), size, reply);
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.guarded("listxattr", || reply_xattr(self.served.tree.xattr_names(ino.0), size, reply));
    }
}
