//! One path of a layer, as its entry describes it, every field checked on its own.

use std::collections::BTreeMap;

use super::EntryKind;
use super::tree::NodeNo;
use crate::estargz::limit;
use crate::estargz::toc::{Problem, RawEntry};
use crate::image::Digest;

/// Name and value of an extended attribute.
pub(super) type Xattr = (Box<[u8]>, Box<[u8]>);

/// What a path is in the end; a later entry of the same name has replaced an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Is(EntryKind),
    /// The cleaned path that it shares an inode with.
    HardLink(Vec<u8>),
}

/// One path of the layer.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) rdev: (u32, u32),
    pub(super) opaque: bool,
    pub(super) link_target: Box<[u8]>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) digest: Option<Digest>,
    /// Chunks `.0 .. .0 + .1` of the content table.
    pub(super) chunks: (u32, u32),
    pub(super) children: BTreeMap<Box<[u8]>, NodeNo>,
}

impl Node {
    pub(super) fn new(kind: Kind, mode: u16) -> Self {
        Self {
            kind,
            mode,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 0,
            rdev: (0, 0),
            opaque: false,
            link_target: Box::default(),
            xattrs: Vec::new(),
            digest: None,
            chunks: (0, 0),
            children: BTreeMap::new(),
        }
    }

    /// A directory that the layer names only as the parent of something.
    pub(super) fn implied() -> Self {
        Self::new(Kind::Is(EntryKind::Directory), 0o755)
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind == Kind::Is(EntryKind::Directory)
    }
}

/// The components of a name, resolved as an absolute path is, so that `..` never leads out.
pub(super) fn clean(name: &str) -> Result<Vec<&[u8]>, Problem> {
    if name.contains('\u{fffd}') {
        return Err(Problem::ReplacedName);
    }
    if name.contains('\0') {
        return Err(Problem::Name("it contains a NUL"));
    }
    if name.len() > limit::PATH {
        return Err(Problem::Name("the path is too long"));
    }
    let mut components = Vec::new();
    for component in name.split('/') {
        match component {
            "" | "." => {}
            ".." => _ = components.pop(),
            _ if component.len() > limit::NAME => {
                return Err(Problem::Name("a component is too long"));
            }
            _ => components.push(component.as_bytes()),
        }
    }
    if components.len() > limit::DEPTH {
        return Err(Problem::Name("too many directories above it"));
    }
    Ok(components)
}

/// The node that an entry describes.
pub(super) fn node(raw: &RawEntry<'_>) -> Result<Node, Problem> {
    let kind = match &*raw.kind {
        "dir" => Kind::Is(EntryKind::Directory),
        "reg" => Kind::Is(EntryKind::Regular),
        "symlink" => Kind::Is(EntryKind::Symlink),
        "char" => Kind::Is(EntryKind::CharDevice),
        "block" => Kind::Is(EntryKind::BlockDevice),
        "fifo" => Kind::Is(EntryKind::Fifo),
        "hardlink" => {
            let components = clean(&raw.link_name)?;
            return Ok(Node::new(Kind::HardLink(components.join(&b'/')), 0));
        }
        other => return Err(Problem::Kind(other.escape_debug().take(40).collect())),
    };
    // Old writers put the bits of the file type in as well.
    let mode = u16::try_from(raw.mode & 0o7777).unwrap_or_default();
    let mut node = Node::new(kind, mode);
    // The largest number is the kernel's "no such owner".
    node.uid = number("uid", raw.uid, u32::MAX - 1)?;
    node.gid = number("gid", raw.gid, u32::MAX - 1)?;
    node.mtime = mtime(&raw.modtime)?;
    node.xattrs = xattrs(raw)?;
    match node.kind {
        Kind::Is(EntryKind::Regular) => {
            node.size = u64::try_from(raw.size)
                .map_err(|_| Problem::Range { field: "size", value: raw.size })?;
            node.digest = digest(&raw.digest)?;
        }
        Kind::Is(EntryKind::Symlink) => {
            node.link_target = link_target(&raw.link_name)?;
            node.size = node.link_target.len() as u64;
        }
        Kind::Is(EntryKind::CharDevice | EntryKind::BlockDevice) => {
            node.rdev = (
                number("devMajor", raw.dev_major, limit::DEVICE.0)?,
                number("devMinor", raw.dev_minor, limit::DEVICE.1)?,
            );
        }
        _ => {}
    }
    Ok(node)
}

fn number(field: &'static str, value: i64, max: u32) -> Result<u32, Problem> {
    u32::try_from(value).ok().filter(|number| *number <= max).ok_or(Problem::Range { field, value })
}

/// Whole seconds since the epoch, which an absent time stands for too; fractions are cut off.
fn mtime(text: &str) -> Result<i64, Problem> {
    if text.is_empty() {
        return Ok(0);
    }
    let bad = || Problem::Time(text.escape_debug().take(60).collect());
    let time: jiff::Timestamp = text.parse().map_err(|_| bad())?;
    Ok(time.as_nanosecond().div_euclid(1_000_000_000).try_into().unwrap_or(0))
}

/// The digest in `text`, if any.
pub(super) fn digest(text: &str) -> Result<Option<Digest>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let bad = |_| Problem::Digest(text.escape_debug().take(80).collect());
    text.parse().map(Some).map_err(bad)
}

fn link_target(target: &str) -> Result<Box<[u8]>, Problem> {
    if target.contains('\u{fffd}') {
        return Err(Problem::ReplacedName);
    }
    match target.len() {
        0 => Err(Problem::Link("it is empty")),
        len if len >= limit::PATH => Err(Problem::Link("it is too long")),
        _ if target.contains('\0') => Err(Problem::Link("it contains a NUL")),
        _ => Ok(target.as_bytes().into()),
    }
}

/// Attributes of the image, without those that would steer an overlayfs above the layer.
fn xattrs(raw: &RawEntry<'_>) -> Result<Vec<Xattr>, Problem> {
    use base64::Engine as _;
    let mut kept = Vec::new();
    for (name, value) in raw.xattrs.iter().flatten() {
        if name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.") {
            continue;
        }
        let bad = || Problem::Xattr(name.escape_debug().take(80).collect());
        if name.contains('\u{fffd}') {
            return Err(Problem::ReplacedName);
        }
        if name.is_empty() || name.len() > limit::NAME || name.contains('\0') {
            return Err(bad());
        }
        let value = value.as_deref().unwrap_or_default();
        let value = base64::engine::general_purpose::STANDARD.decode(value).map_err(|_| bad())?;
        if value.len() > limit::XATTR_VALUE {
            return Err(bad());
        }
        kept.push((name.as_bytes().into(), value.into()));
    }
    Ok(kept)
}
