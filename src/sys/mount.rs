//! Mounts as descriptors (the mount API of Linux 5.2), with the older call where a kernel or file system needs it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags,
};

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Id of the mount; unique while it exists.
    pub id: u64,
    /// Id of the mount that it is mounted on.
    pub parent: u64,
    /// Device number `major:minor`.
    pub device: String,
    /// Path inside the file system that is its root.
    pub root: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// File system type.
    pub fs_type: String,
    /// What was mounted, as given.
    pub source: String,
}

/// The mounts that this thread sees, in mount order: a thread may have a namespace of its own.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse_mountinfo(&std::fs::read("/proc/thread-self/mountinfo")?))
}

fn parse_mountinfo(text: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
        Some(Mount {
            id: text(fields.first()?).parse().ok()?,
            parent: text(fields.get(1)?).parse().ok()?,
            device: text(fields.get(2)?),
            root: text(fields.get(3)?),
            mount_point: PathBuf::from(OsStr::from_bytes(&unescape(fields.get(4)?))),
            fs_type: text(fields.get(dash + 1)?),
            source: text(fields.get(dash + 2)?),
        })
    };
    text.split(|&byte| byte == b'\n').filter_map(line).collect()
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, tail @ ..] = rest {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) =
            (*byte, tail)
        {
            out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            out.push(*byte);
            rest = tail;
        }
    }
    out
}

/// A file system that is being configured; errors carry what the kernel logged about it.
#[derive(Debug)]
pub struct FsContext(OwnedFd);

impl FsContext {
    /// Begins to mount a file system of `fs_type`.
    ///
    /// # Errors
    /// `ENODEV` when the kernel has no such file system, `ENOSYS` before Linux 5.2.
    pub fn open(fs_type: &str) -> io::Result<Self> {
        Ok(Self(rustix::mount::fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?))
    }

    /// Sets an option that has a value.
    ///
    /// # Errors
    /// `EINVAL` for an option or value that the file system does not know.
    pub fn set(&self, key: &str, value: impl AsRef<OsStr>) -> io::Result<()> {
        let value = value.as_ref();
        rustix::mount::fsconfig_set_string(&self.0, key, value)
            .map_err(|error| self.explain(error, key))
    }

    /// Sets an option that has no value.
    ///
    /// # Errors
    /// As [`FsContext::set`].
    pub fn set_flag(&self, key: &str) -> io::Result<()> {
        rustix::mount::fsconfig_set_flag(&self.0, key).map_err(|error| self.explain(error, key))
    }

    /// Creates the file system and a mount of it that is attached nowhere yet.
    ///
    /// # Errors
    /// Those of the file system, with its own words where it logged some.
    pub fn mount(self, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
        rustix::mount::fsconfig_create(&self.0).map_err(|error| self.explain(error, "create"))?;
        rustix::mount::fsmount(&self.0, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|error| self.explain(error, "mount"))
    }

    /// The kernel's words are read from the context, one message a read.
    fn explain(&self, error: rustix::io::Errno, step: &str) -> io::Error {
        let mut messages = Vec::new();
        let mut buffer = [0; 1024];
        while let Ok(read @ 1..) = rustix::io::read(&self.0, &mut buffer) {
            let message = String::from_utf8_lossy(&buffer[..read]).trim().to_owned();
            messages.push(
                message.split_once(' ').map_or(message.clone(), |(_, words)| words.to_owned()),
            );
        }
        let error = io::Error::from(error);
        if messages.is_empty() {
            return error;
        }
        io::Error::new(error.kind(), format!("{step}: {} ({error})", messages.join("; ")))
    }
}

/// Attaches a detached mount to the directory `target`.
///
/// # Errors
/// Those of move_mount(2).
pub fn attach(mount: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    rustix::mount::move_mount(
        mount,
        "",
        rustix::fs::CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// Mounts a FUSE connection whose server will read `device`, attached nowhere yet: read-only, nothing on it sets
/// user ids, is a device, or can be executed through this mount (programs execute through the overlay above it).
///
/// # Errors
/// `ENODEV` when the kernel has no FUSE.
pub fn fuse(device: BorrowedFd<'_>, source: &str) -> io::Result<OwnedFd> {
    let context = FsContext::open("fuse")?;
    context.set("source", source)?;
    context.set("subtype", "supervisor")?;
    context.set("fd", device.as_raw_fd().to_string())?;
    context.set("rootmode", "40000")?;
    context.set("user_id", "0")?;
    context.set("group_id", "0")?;
    context.set_flag("allow_other")?;
    context.set_flag("ro")?;
    context.mount(
        MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
}

/// As [`fuse`], attached at `target`. Before Linux 5.2, and where a sandbox hides the newer calls, the old one does it.
///
/// # Errors
/// As [`fuse`]; those of attaching.
pub fn fuse_at(
    device: BorrowedFd<'_>,
    source: &str,
    target: &Path,
    call: MountCall,
) -> io::Result<()> {
    if call != MountCall::Legacy {
        match fuse(device, source) {
            Ok(mount) => return attach(mount.as_fd(), target),
            Err(error) if call == MountCall::Best && error.kind() == io::ErrorKind::Unsupported => {
            }
            Err(error) => return Err(error),
        }
    }
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options =
        format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    mount_legacy(source, target, "fuse.supervisor", flags, &options)
}

/// An empty file system in memory that is attached nowhere and goes with its last user.
///
/// # Errors
/// Those of the mount API.
pub fn empty() -> io::Result<OwnedFd> {
    let context = FsContext::open("tmpfs")?;
    context.set("source", "supervisor")?;
    context.set("mode", "0755")?;
    context.mount(MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)
}

/// The writable part of an overlay.
#[derive(Debug, Clone)]
pub struct Upper {
    /// Holds what is written.
    pub dir: PathBuf,
    /// Empty directory of the same file system, for the kernel.
    pub work: PathBuf,
    /// Skip every sync of the upper file system; a crash of the host then makes the upper unusable.
    pub volatile: bool,
}

/// Which system call mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountCall {
    /// The newest that the kernel has: overlays name their layers one by one (`lowerdir+`, Linux 6.7).
    Best,
    /// The newest or nothing: to find out what the kernel has.
    Newest,
    /// mount(2), whose options fit in one page.
    Legacy,
}

/// An overlay to be mounted.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// Names the mount in the mount table.
    pub source: &'a str,
    /// Read-only layers, lowest first; at least one, or two without a writable part.
    pub lower: &'a [PathBuf],
    /// The writable part.
    pub upper: Option<&'a Upper>,
}

/// Mounts `overlay` at `target`.
///
/// # Errors
/// Those of the kernel, with its own words where it logged some.
pub fn overlay(overlay: Overlay<'_>, target: &Path, call: MountCall) -> io::Result<()> {
    if call == MountCall::Legacy {
        return overlay_legacy(overlay, target);
    }
    match overlay_by_layers(overlay) {
        Ok(mount) => attach(mount.as_fd(), target),
        // Before 6.7 the option is unknown, before 5.2 the call.
        Err(error)
            if call == MountCall::Best
                && matches!(
                    error.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
                ) =>
        {
            overlay_legacy(overlay, target).map_err(|legacy| {
                io::Error::new(legacy.kind(), format!("{legacy} (and by the newer call: {error})"))
            })
        }
        Err(error) => Err(error),
    }
}

fn overlay_by_layers(overlay: Overlay<'_>) -> io::Result<OwnedFd> {
    let Overlay { source, lower, upper } = overlay;
    let context = FsContext::open("overlay")?;
    context.set("source", source)?;
    // The topmost layer is appended first.
    for dir in lower.iter().rev() {
        context.set("lowerdir+", dir)?;
    }
    if let Some(upper) = upper {
        context.set("upperdir", &upper.dir)?;
        context.set("workdir", &upper.work)?;
        if upper.volatile {
            context.set_flag("volatile")?;
        }
    }
    context.mount(MountAttrFlags::empty())
}

/// Bytes of options that mount(2) takes: a page without its last byte.
const OPTIONS_LIMIT: usize = 4095;

fn overlay_legacy(overlay: Overlay<'_>, target: &Path) -> io::Result<()> {
    let Overlay { source, lower, upper } = overlay;
    let open = |dir: &Path| {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        rustix::fs::open(dir, flags, rustix::fs::Mode::empty())
    };
    // Each directory is named by a link to a descriptor of it: the names are short, and nothing in them has to be
    // escaped (colons separate layers, commas options, and what a backslash does has changed between kernels).
    let layers = lower.iter().rev().map(|dir| open(dir)).collect::<Result<Vec<_>, _>>()?;
    let writable = match upper {
        Some(upper) => Some((open(&upper.dir)?, open(&upper.work)?, upper.volatile)),
        None => None,
    };
    let options = |prefix: &str| {
        let names: Vec<String> =
            layers.iter().map(|fd| format!("{prefix}{}", fd.as_raw_fd())).collect();
        let mut options = format!("lowerdir={}", names.join(":"));
        if let Some((dir, work, volatile)) = &writable {
            let (dir, work) = (dir.as_raw_fd(), work.as_raw_fd());
            options.push_str(&format!(",upperdir={prefix}{dir},workdir={prefix}{work}"));
            options.push_str(if *volatile { ",volatile" } else { "" });
        }
        options
    };
    let long = options("/proc/self/fd/");
    if long.len() <= OPTIONS_LIMIT {
        return mount_legacy(source, target, "overlay", MountFlags::empty(), &long);
    }
    // From about 200 layers on, even that is too long. The names alone are enough for who stands in that directory:
    // a thread, because the working directory of this one is its own business.
    let (short, target) = (options(""), std::path::absolute(target)?);
    let mount = || {
        // SAFETY: unsharing the working directory touches no descriptor table and no memory.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?;
        rustix::process::chdir("/proc/self/fd")?;
        mount_legacy(source, &target, "overlay", MountFlags::empty(), &short)
    };
    std::thread::scope(|scope| scope.spawn(mount).join())
        .unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
}

fn mount_legacy(
    source: &str,
    target: &Path,
    fs_type: &str,
    flags: MountFlags,
    options: &str,
) -> io::Result<()> {
    let options = std::ffi::CString::new(options)
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(rustix::mount::mount(source, target, fs_type, flags, Some(options.as_c_str()))?)
}

/// Mounts an empty file system in memory at `target`.
///
/// # Errors
/// Those of mount(2).
pub fn tmpfs_at(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount_legacy("supervisor", target, "tmpfs", flags, "mode=0755")
}

/// Gives this process a mount namespace of its own, into which later mounts and unmounts of the host propagate, and
/// out of which nothing does.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub fn enter_private_namespace() -> io::Result<()> {
    // SAFETY: unsharing only the mount namespace touches no descriptor table and no memory.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    Ok(())
}

/// Unmounts what is on top at `target`.
///
/// # Errors
/// `EBUSY` while something uses it, `EINVAL` when nothing is mounted there.
pub fn unmount(target: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(target, UnmountFlags::NOFOLLOW)?)
}

/// Takes what is on top at `target` out of this namespace at once; it goes when its last user has gone.
///
/// # Errors
/// `EINVAL` when nothing is mounted there.
pub fn detach(target: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_its_escapes_and_optional_fields() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
            37 36 0:5 / /plain rw - tmpfs none rw\nnonsense\n";
        let mounts = parse_mountinfo(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].mount_point, Path::new("/mnt 2"));
        assert_eq!((mounts[0].fs_type.as_str(), mounts[0].root.as_str()), ("ext3", "/mnt1"));
        assert_eq!((mounts[1].id, mounts[1].parent), (37, 36));
    }

    #[test]
    fn this_process_sees_proc() {
        assert!(mounts().unwrap().iter().any(|mount| mount.mount_point == Path::new("/proc")));
    }
}
