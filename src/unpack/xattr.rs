//! Extended attributes: which ones an image may set, and what happens where the kernel refuses.

use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::path::{is_below, show};
use super::tree::TreeError;

/// What a process without CAP_SYS_ADMIN cannot set.
const PRIVILEGED: [&[u8]; 2] = [b"trusted.", b"security."];

/// Attributes with which overlayfs steers lookups; an image that sets them could redirect them.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// An attribute that the unpacking process was not allowed to set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeferredXattr {
    /// Path in the layer.
    pub path: Vec<u8>,
    /// Name of the attribute.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// What to do with an attribute that needs more privileges than this process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// The layer cannot be unpacked.
    Fail,
    /// Somebody with more privileges sets it afterwards.
    Defer,
}

/// Sets attributes, and remembers which were not set.
#[derive(Debug)]
pub(super) struct Xattrs {
    denied: Denied,
    pub(super) deferred: Vec<DeferredXattr>,
    /// Attributes that this file system cannot keep.
    pub(super) unsupported: u64,
}

impl Xattrs {
    pub(super) fn new(denied: Denied) -> Self {
        Self { denied, deferred: Vec::new(), unsupported: 0 }
    }

    /// Another one for the same layer.
    pub(super) fn empty(&self) -> Self {
        Self::new(self.denied)
    }

    /// Takes what `other` remembers.
    pub(super) fn absorb(&mut self, other: &mut Self) {
        self.deferred.append(&mut other.deferred);
        self.unsupported += std::mem::take(&mut other.unsupported);
    }

    /// Forgets what was remembered of `path` and all below it.
    pub(super) fn forget(&mut self, path: &[u8]) {
        self.deferred.retain(|xattr| xattr.path != path && !is_below(&xattr.path, path));
    }

    /// Sets an attribute of an open file or directory.
    pub(super) fn set(
        &mut self,
        file: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        value: &[u8],
    ) -> Result<(), TreeError> {
        let result = rustix::fs::fsetxattr(file, name, value, XattrFlags::empty());
        self.outcome(result, path, name, value)
    }

    /// Sets an attribute of what is at `node`, a symbolic link, device or fifo.
    pub(super) fn set_node(
        &mut self,
        node: &[u8],
        path: &[u8],
        name: &[u8],
        value: &[u8],
    ) -> Result<(), TreeError> {
        let result = rustix::fs::lsetxattr(node, name, value, XattrFlags::empty());
        if result == Err(Errno::PERM) && name.starts_with(b"user.") {
            // No file system of Linux keeps user attributes of these.
            self.unsupported += 1;
            return Ok(());
        }
        self.outcome(result, path, name, value)
    }

    fn outcome(
        &mut self,
        result: rustix::io::Result<()>,
        path: &[u8],
        name: &[u8],
        value: &[u8],
    ) -> Result<(), TreeError> {
        let privileged = PRIVILEGED.iter().any(|prefix| name.starts_with(prefix));
        match result {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) if name != b"trusted.overlay.opaque" => {
                self.unsupported += 1;
                Ok(())
            }
            Err(Errno::PERM) if privileged && self.denied == Denied::Defer => {
                let (path, name, value) = (path.to_vec(), name.to_vec(), value.to_vec());
                self.deferred.push(DeferredXattr { path, name, value });
                Ok(())
            }
            Err(errno) => Err(TreeError::Io {
                action: "set an extended attribute of",
                name: show(path),
                // A file system whose space for attributes is too small says that the disk is full.
                source: match errno {
                    Errno::NOSPC => std::io::Error::other(format!(
                        "no room for `{}` of {} bytes",
                        show(name),
                        value.len()
                    )),
                    errno => errno.into(),
                },
            }),
        }
    }
}

/// Whether an image's own attribute is left out.
pub(super) fn is_neutralized(name: &[u8]) -> bool {
    OVERLAY.iter().any(|prefix| name.starts_with(prefix))
}
