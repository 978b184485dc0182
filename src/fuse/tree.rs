//! The file system as a plain type: layers by slot, inode numbers, attributes, names. No kernel protocol here.
//!
//! The root (inode 1) lists one directory per layer, named by slot and digest prefix. An inode below it is its slot
//! in the high and its entry in the low half: `slot << 32 | entry`. Everything below a layer's directory is
//! immutable; the root is not, and whoever answers the kernel must not let it cache the root's names.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::errno::Refusal;
use super::options::Xattrs;
use crate::estargz::{Entry, EntryKind, EntryNo};
use crate::image::Digest;
use crate::lazy::Opened;

/// Inode of the root of the mount.
pub(super) const ROOT: u64 = 1;

/// A layer as the translator sees it. Entries are numbered from 0, the root of the layer.
pub(super) trait Layer: Send + Sync + 'static {
    fn attributes(&self, entry: u32) -> Option<Entry>;
    fn lookup(&self, dir: u32, name: &[u8]) -> Option<u32>;
    fn child(&self, dir: u32, place: u32) -> Option<(&[u8], u32)>;
    fn parent(&self, entry: u32) -> u32;
    fn link_target(&self, entry: u32) -> &[u8];
    fn xattr(&self, entry: u32, name: &[u8]) -> Option<Vec<u8>>;
    fn xattr_names(&self, entry: u32) -> Vec<Vec<u8>>;
    /// Bytes of all contents.
    fn content_size(&self) -> u64;
    /// Nobody has `entry` open any more.
    fn closed(&self, entry: u32);
    /// How the file can be served, if that is known without waiting.
    fn open_local(&self, entry: u32) -> Result<Option<Opened>, Refusal>;
    /// How the file can be served; may fetch it first.
    fn open(self: Arc<Self>, entry: u32) -> BoxFuture<'static, Result<Opened, Refusal>>;
    /// All content of a small file, if it is local and is opened for the first time.
    fn first_content(&self, entry: u32) -> Option<Bytes>;
    /// Content as of `read`, if it is local.
    fn read_local(&self, entry: u32, offset: u64, length: u32) -> Result<Option<Bytes>, Refusal>;
    /// Content from `offset`, short only at the end of the file.
    fn read(
        self: Arc<Self>,
        entry: u32,
        offset: u64,
        length: u32,
    ) -> BoxFuture<'static, Result<Bytes, Refusal>>;
}

/// Under which name opaque directories are marked. Overlayfs reads one of the two, depending on its `userxattr`
/// option; answering both would make copies of layers wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpaqueXattr {
    /// `trusted.overlay.opaque`.
    #[default]
    Trusted,
    /// `user.overlay.opaque`.
    User,
}

impl OpaqueXattr {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.overlay.opaque",
            Self::User => b"user.overlay.opaque",
        }
    }
}

/// What a slot serves.
enum Place {
    Ready {
        digest: Digest,
        layer: Arc<dyn Layer>,
    },
    /// The layer could not be opened; it stays visible, and everything in it is an error.
    Broken {
        digest: Digest,
    },
}

/// An inode, taken apart.
#[derive(Clone)]
pub(super) enum Node {
    /// The root of the mount.
    Root,
    /// An entry of a layer.
    Entry { slot: u32, entry: u32, layer: Arc<dyn Layer> },
}

/// One line of a directory listing.
pub(super) struct Listed {
    pub(super) ino: u64,
    pub(super) name: Vec<u8>,
    /// The position after it.
    pub(super) next: u64,
}

/// All layers of the mount.
pub(super) struct Tree {
    places: RwLock<BTreeMap<u32, Place>>,
    opaque: OpaqueXattr,
    xattrs: Xattrs,
}

/// The name of a layer's directory.
pub(super) fn directory_name(slot: u32, digest: Digest) -> String {
    format!("{slot}-{}", &digest.hex()[..12])
}

/// The inode of an entry.
pub(super) fn inode(slot: u32, entry: u32) -> u64 {
    u64::from(slot) << 32 | u64::from(entry)
}

impl Tree {
    pub(super) fn new(opaque: OpaqueXattr, xattrs: Xattrs) -> Self {
        Self { places: RwLock::default(), opaque, xattrs }
    }

    pub(super) fn insert(&self, slot: u32, digest: Digest, layer: Arc<dyn Layer>) {
        self.write().insert(slot, Place::Ready { digest, layer });
    }

    pub(super) fn insert_broken(&self, slot: u32, digest: Digest) {
        self.write().insert(slot, Place::Broken { digest });
    }

    pub(super) fn remove(&self, slot: u32) {
        self.write().remove(&slot);
    }

    /// Bytes of the contents of all layers.
    pub(super) fn content_size(&self) -> u64 {
        let size = |place: &Place| match place {
            Place::Ready { layer, .. } => layer.content_size(),
            Place::Broken { .. } => 0,
        };
        self.read_places().values().map(size).sum()
    }

    /// Takes an inode apart.
    pub(super) fn node(&self, ino: u64) -> Result<Node, Refusal> {
        if ino == ROOT {
            return Ok(Node::Root);
        }
        let (slot, entry) = split(ino);
        match self.read_places().get(&slot) {
            Some(Place::Ready { layer, .. }) => {
                Ok(Node::Entry { slot, entry, layer: Arc::clone(layer) })
            }
            // The directory itself must stay visible, or it would be looked for in vain.
            Some(Place::Broken { .. }) => Err(Refusal::Broken),
            None => Err(Refusal::Released),
        }
    }

    /// The layer and the entry that an inode stands for, if the layer is served.
    pub(super) fn origin(&self, ino: u64) -> Option<(Digest, EntryNo)> {
        let (slot, entry) = split(ino);
        match self.read_places().get(&slot)? {
            Place::Ready { digest, .. } => Some((*digest, EntryNo(entry))),
            Place::Broken { .. } => None,
        }
    }

    /// The entry of a layer, and its attributes.
    pub(super) fn entry(&self, ino: u64) -> Result<(Arc<dyn Layer>, u32, Entry), Refusal> {
        match self.node(ino)? {
            Node::Root => Err(Refusal::NotFile),
            Node::Entry { entry, layer, .. } => {
                let attributes = layer.attributes(entry).ok_or(Refusal::NotFound)?;
                Ok((layer, entry, attributes))
            }
        }
    }

    /// Attributes of any inode.
    pub(super) fn attributes(&self, ino: u64) -> Result<Entry, Refusal> {
        match self.node(ino) {
            Ok(Node::Root) => Ok(self.root()),
            Ok(Node::Entry { entry, layer, .. }) => {
                layer.attributes(entry).ok_or(Refusal::NotFound)
            }
            Err(Refusal::Broken) if split(ino).1 == 0 => Ok(plain_directory(0)),
            Err(refusal) => Err(refusal),
        }
    }

    /// The root. Its time tells the kernel whether the listing that it keeps is the present one: a slot is never used
    /// twice, so a digest over their numbers is as good as a time, and the same after a take-over.
    fn root(&self) -> Entry {
        let places = self.read_places();
        let digest = places.keys().fold(0xcbf2_9ce4_8422_2325, |digest: u64, slot| {
            (digest ^ u64::from(*slot)).wrapping_mul(0x0100_0000_01b3)
        });
        let count = u32::try_from(places.len()).unwrap_or(u32::MAX);
        Entry { mtime: i64::try_from(digest >> 33).unwrap_or_default(), ..plain_directory(count) }
    }

    /// The inode of `name` in the directory `parent`.
    pub(super) fn lookup(&self, parent: u64, name: &[u8]) -> Result<u64, Refusal> {
        match self.node(parent)? {
            Node::Root => {
                let places = self.read_places();
                let slot = name.split(|byte| *byte == b'-').next().unwrap_or_default();
                let slot = std::str::from_utf8(slot).ok().and_then(|text| text.parse().ok());
                let slot: u32 = slot.ok_or(Refusal::NotFound)?;
                let (Place::Ready { digest, .. } | Place::Broken { digest }) =
                    places.get(&slot).ok_or(Refusal::NotFound)?;
                if directory_name(slot, *digest).as_bytes() == name {
                    Ok(inode(slot, 0))
                } else {
                    Err(Refusal::NotFound)
                }
            }
            Node::Entry { slot, entry, layer } => {
                directory(layer.as_ref(), entry)?;
                layer.lookup(entry, name).map(|child| inode(slot, child)).ok_or(Refusal::NotFound)
            }
        }
    }

    /// The inode of the directory above.
    fn parent(&self, ino: u64) -> u64 {
        match self.node(ino) {
            Ok(Node::Entry { slot, entry, layer }) if entry != 0 => {
                inode(slot, layer.parent(entry))
            }
            _ => ROOT,
        }
    }

    /// Gives the lines of a directory from position `from` to `line` until it says that it has enough.
    pub(super) fn list(
        &self,
        ino: u64,
        from: u64,
        mut line: impl FnMut(Listed) -> bool,
    ) -> Result<(), Refusal> {
        let node = self.node(ino)?;
        if let Node::Entry { entry, layer, .. } = &node {
            directory(layer.as_ref(), *entry)?;
        }
        let mut position = from;
        if position == 0 {
            position = 1;
            if line(Listed { ino, name: b".".to_vec(), next: 1 }) {
                return Ok(());
            }
        }
        if position == 1 {
            position = 2;
            if line(Listed { ino: self.parent(ino), name: b"..".to_vec(), next: 2 }) {
                return Ok(());
            }
        }
        match node {
            Node::Root => {
                // Positions are slots here, so that a listing goes on after layers come and go.
                let first = u32::try_from(position - 2).unwrap_or(u32::MAX);
                let lines: Vec<(u32, Digest)> = self
                    .read_places()
                    .range(first..)
                    .map(|(slot, Place::Ready { digest, .. } | Place::Broken { digest })| {
                        (*slot, *digest)
                    })
                    .collect();
                for (slot, digest) in lines {
                    let name = directory_name(slot, digest).into_bytes();
                    let listed = Listed { ino: inode(slot, 0), name, next: u64::from(slot) + 3 };
                    if line(listed) {
                        break;
                    }
                }
            }
            Node::Entry { slot, entry, layer } => {
                let mut place = u32::try_from(position - 2).unwrap_or(u32::MAX);
                while let Some((name, child)) = layer.child(entry, place) {
                    place += 1;
                    let next = u64::from(place) + 2;
                    if line(Listed { ino: inode(slot, child), name: name.to_vec(), next }) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// The target of a symbolic link.
    pub(super) fn link_target(&self, ino: u64) -> Result<Vec<u8>, Refusal> {
        let (layer, entry, attributes) = self.entry(ino)?;
        if attributes.kind != EntryKind::Symlink {
            return Err(Refusal::NotLink);
        }
        Ok(layer.link_target(entry).to_vec())
    }

    /// The value of an extended attribute.
    pub(super) fn xattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, Refusal> {
        // overlayfs asks for its `metacopy` with every regular file that it looks up; the kernel keeps no answer but
        // this one.
        if self.xattrs == Xattrs::Absent {
            return Err(Refusal::NoAttributes);
        }
        if is_overlay(name) && name != self.opaque.name() {
            return Err(Refusal::NoAttribute);
        }
        let Node::Entry { entry, layer, .. } = self.node(ino)? else {
            return Err(Refusal::NoAttribute);
        };
        if name == self.opaque.name() {
            let is_opaque = layer.attributes(entry).is_some_and(|attributes| attributes.opaque);
            return if is_opaque { Ok(b"y".to_vec()) } else { Err(Refusal::NoAttribute) };
        }
        layer.xattr(entry, name).ok_or(Refusal::NoAttribute)
    }

    /// The names of the extended attributes, each followed by a zero byte.
    pub(super) fn xattr_names(&self, ino: u64) -> Result<Vec<u8>, Refusal> {
        let Node::Entry { entry, layer, .. } = self.node(ino)? else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        if layer.attributes(entry).is_some_and(|attributes| attributes.opaque) {
            names.extend_from_slice(self.opaque.name());
            names.push(0);
        }
        for name in layer.xattr_names(entry) {
            if !is_overlay(&name) {
                names.extend_from_slice(&name);
                names.push(0);
            }
        }
        Ok(names)
    }

    fn read_places(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<u32, Place>> {
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<u32, Place>> {
        self.places.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn split(ino: u64) -> (u32, u32) {
    let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    (half(ino >> 32), half(ino))
}

fn directory(layer: &dyn Layer, entry: u32) -> Result<(), Refusal> {
    match layer.attributes(entry) {
        Some(attributes) if attributes.kind == EntryKind::Directory => Ok(()),
        Some(_) => Err(Refusal::NotDirectory),
        None => Err(Refusal::NotFound),
    }
}

/// Attributes that steer overlayfs; an image must not have a say in them.
fn is_overlay(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

fn plain_directory(children: u32) -> Entry {
    Entry {
        kind: EntryKind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        size: 0,
        mtime: 0,
        rdev: (0, 0),
        nlink: children.saturating_add(2),
        opaque: false,
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
