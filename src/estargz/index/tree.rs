//! From entries to a tree: names cleaned, parents implied, links resolved, whiteouts applied.
//!
//! Everything that the entries of a table of contents could say wrongly about each other is refused here.

use std::collections::BTreeMap;

use super::content::Content;
use super::{EntryKind, IndexInput};
use crate::estargz::toc::{Problem, RawEntry, TocError};
use crate::estargz::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME, limit};
use crate::image::Digest;

/// Position of a node in [`Tree::nodes`].
pub(super) type NodeNo = u32;
/// The root is made before any entry is read.
pub(super) const ROOT: NodeNo = 0;

const WHITEOUT: &[u8] = b".wh.";
/// Whiteouts of whiteouts: what aufs kept for itself, and the mark of an opaque directory.
const RESERVED: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

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
    pub(super) xattrs: Vec<(Box<[u8]>, Box<[u8]>)>,
    pub(super) digest: Option<Digest>,
    /// Chunks `.0 .. .0 + .1` of the content table.
    pub(super) chunks: (u32, u32),
    pub(super) children: BTreeMap<Box<[u8]>, NodeNo>,
}

impl Node {
    fn new(kind: Kind, mode: u16) -> Self {
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
    fn implied() -> Self {
        Self::new(Kind::Is(EntryKind::Directory), 0o755)
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind == Kind::Is(EntryKind::Directory)
    }
}

/// The tree in the making.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
    pub(super) content: Content,
    /// Where a hard link leads; filled by [`Tree::finish`].
    pub(super) resolved: Vec<NodeNo>,
    pub(super) prefetch_end: Option<u64>,
    whiteouts: Vec<(NodeNo, Box<[u8]>)>,
    /// The file that `chunk` entries belong to; `None` for one that no path shows.
    open: Option<Open>,
}

/// A file whose chunks are being read.
#[derive(Debug)]
struct Open {
    node: Option<NodeNo>,
    name: String,
}

impl Tree {
    pub(super) fn new(input: &IndexInput) -> Self {
        Self {
            nodes: vec![Node::implied()],
            content: Content::new(input.toc_offset),
            resolved: Vec::new(),
            prefetch_end: None,
            whiteouts: Vec::new(),
            open: None,
        }
    }

    /// Takes the next entry of the table of contents.
    pub(super) fn add(&mut self, raw: &RawEntry<'_>) -> Result<(), TocError> {
        self.place(raw).map_err(|failure| match failure {
            Failure::Problem(problem) => problem.of(&raw.name),
            Failure::TooMany => too_many(),
        })
    }

    fn place(&mut self, raw: &RawEntry<'_>) -> Result<(), Failure> {
        if raw.kind == "chunk" {
            if self.open.is_none() {
                return Err(Problem::Chunks("a chunk follows no file").into());
            }
            return Ok(self.content.add_chunk(raw)?);
        }
        self.close()?;
        let components = clean(&raw.name)?;
        let mut node = node(raw)?;
        let is_data = node.kind == Kind::Is(EntryKind::Regular);
        if is_data {
            self.content.begin_file(raw, node.size)?;
        }
        let target = match components.split_last() {
            None if node.is_dir() => Some(ROOT),
            None => return Err(Problem::Root.into()),
            Some((base, parents)) => self.target(base, parents)?,
        };
        if let Some(target) = target {
            let slot = self.nodes.get_mut(target as usize).ok_or(Failure::TooMany)?;
            node.children = std::mem::take(&mut slot.children);
            // Opacity is said of a path, by another entry than that of the directory.
            node.opaque = slot.opaque;
            *slot = node;
        }
        if is_data {
            self.open = Some(Open { node: target, name: raw.name.clone().into_owned() });
        }
        Ok(())
    }

    /// The node for `base` below `parents`; `None` when no path shows the entry.
    fn target(&mut self, base: &[u8], parents: &[&[u8]]) -> Result<Option<NodeNo>, Failure> {
        if parents.iter().any(|name| name.starts_with(WHITEOUT)) {
            return Ok(None);
        }
        let hidden = base.starts_with(RESERVED) && base != OPAQUE;
        if hidden {
            return Ok(None);
        }
        let mut parent = ROOT;
        for name in parents {
            parent = self.child(parent, name)?;
        }
        if base == OPAQUE {
            self.nodes[parent as usize].opaque = true;
            return Ok(None);
        }
        if let Some(name) = base.strip_prefix(WHITEOUT) {
            if matches!(name, b"" | b"." | b"..") {
                return Err(Problem::Name("a whiteout of nothing").into());
            }
            if self.whiteouts.len() >= limit::ENTRIES as usize {
                return Err(Failure::TooMany);
            }
            self.whiteouts.push((parent, name.into()));
            return Ok(None);
        }
        self.child(parent, base).map(Some)
    }

    /// The child of this name, made as a directory when it is not there.
    fn child(&mut self, parent: NodeNo, name: &[u8]) -> Result<NodeNo, Failure> {
        if let Some(found) = self.nodes[parent as usize].children.get(name) {
            return Ok(*found);
        }
        self.insert(parent, name, Node::implied())
    }

    fn insert(&mut self, parent: NodeNo, name: &[u8], node: Node) -> Result<NodeNo, Failure> {
        let number = u32::try_from(self.nodes.len())
            .ok()
            .filter(|number| *number < limit::ENTRIES)
            .ok_or(Failure::TooMany)?;
        self.nodes.push(node);
        self.nodes[parent as usize].children.insert(name.into(), number);
        Ok(number)
    }

    /// Ends the file whose chunks were read last.
    fn close(&mut self) -> Result<(), Failure> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let chunks = self.content.end_file().map_err(|problem| {
            Failure::Problem(match problem {
                // The entry at hand is the next one; the message is about this one.
                Problem::Chunks(_) => Problem::Chunks("the file before is not complete"),
                other => other,
            })
        })?;
        if let Some(node) = open.node {
            self.nodes[node as usize].chunks = chunks;
        }
        Ok(())
    }

    /// Applies what needs all entries: whiteouts, links, landmarks.
    pub(super) fn finish(&mut self) -> Result<(), TocError> {
        let last = self.open.as_ref().map(|open| open.name.clone()).unwrap_or_default();
        self.close().map_err(|failure| failure.of(&last))?;
        for (parent, name) in std::mem::take(&mut self.whiteouts) {
            if !self.nodes[parent as usize].children.contains_key(&name) {
                let whiteout = Node::new(Kind::Is(EntryKind::CharDevice), 0);
                let shown = String::from_utf8_lossy(&name).into_owned();
                self.insert(parent, &name, whiteout).map_err(|failure| failure.of(&shown))?;
            }
        }
        self.refuse_children_of_files()?;
        self.resolve_links()?;
        self.take_landmarks();
        self.content.sort_members();
        Ok(())
    }

    fn refuse_children_of_files(&self) -> Result<(), TocError> {
        let wrong = |node: &Node| !node.is_dir() && (node.opaque || !node.children.is_empty());
        match self.nodes.iter().position(wrong) {
            None => Ok(()),
            Some(number) => Err(Problem::NotDirectory.of(&self.path(number))),
        }
    }

    /// A path of the node, for a message; searching is enough for something that happens once.
    fn path(&self, number: usize) -> String {
        let mut path = String::new();
        let mut wanted = number;
        while let Some((parent, name)) = self.nodes.iter().enumerate().find_map(|(parent, node)| {
            let child = node.children.iter().find(|(_, child)| **child as usize == wanted)?;
            Some((parent, String::from_utf8_lossy(child.0)))
        }) {
            path = if path.is_empty() { name.into_owned() } else { format!("{name}/{path}") };
            // Only names lead down, so this ends at the root.
            wanted = parent;
        }
        path
    }

    fn resolve_links(&mut self) -> Result<(), TocError> {
        const OPEN: NodeNo = NodeNo::MAX;
        const ON_THE_WAY: NodeNo = NodeNo::MAX - 1;
        let mut resolved = vec![OPEN; self.nodes.len()];
        let mut chain = Vec::new();
        for start in 0..self.nodes.len() {
            let mut at = start;
            let end = loop {
                match resolved[at] {
                    OPEN => {}
                    ON_THE_WAY => {
                        return Err(Problem::Link("it leads back to itself").of(&self.path(start)));
                    }
                    known => break known,
                }
                let Kind::HardLink(target) = &self.nodes[at].kind else {
                    break u32::try_from(at).unwrap_or(OPEN);
                };
                resolved[at] = ON_THE_WAY;
                chain.push(at);
                at = self.find(target).ok_or_else(|| {
                    Problem::Link("no such file in this layer").of(&self.path(start))
                })?;
                if self.nodes[at].is_dir() {
                    return Err(Problem::Link("a directory").of(&self.path(start)));
                }
            };
            resolved[start] = end;
            for passed in chain.drain(..) {
                resolved[passed] = end;
            }
        }
        self.resolved = resolved;
        Ok(())
    }

    fn find(&self, path: &[u8]) -> Option<usize> {
        let mut at = ROOT as usize;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            at = *self.nodes[at].children.get(name)? as usize;
        }
        Some(at)
    }

    fn take_landmarks(&mut self) {
        let root = &mut self.nodes[ROOT as usize].children;
        root.remove(TOC_NAME.as_bytes());
        let nothing = root.remove(NO_PREFETCH_LANDMARK.as_bytes()).is_some();
        let landmark = root.remove(PREFETCH_LANDMARK.as_bytes());
        if let Some(landmark) = landmark.filter(|_| !nothing) {
            let (first, count) = self.nodes[landmark as usize].chunks;
            self.prefetch_end = (count > 0)
                .then(|| self.content.chunks.get(first as usize))
                .flatten()
                .map(|c| c.offset);
        }
    }
}

/// Why an entry cannot be placed.
#[derive(Debug)]
enum Failure {
    Problem(Problem),
    TooMany,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl Failure {
    fn of(self, name: &str) -> TocError {
        match self {
            Self::Problem(problem) => problem.of(name),
            Self::TooMany => too_many(),
        }
    }
}

fn too_many() -> TocError {
    let limit = u64::from(limit::ENTRIES);
    TocError::TooLarge { what: "number of files and directories", size: limit + 1, limit }
}

/// The components of a name, resolved as an absolute path is, so that `..` never leads out.
fn clean(name: &str) -> Result<Vec<&[u8]>, Problem> {
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
fn node(raw: &RawEntry<'_>) -> Result<Node, Problem> {
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
fn xattrs(raw: &RawEntry<'_>) -> Result<Vec<(Box<[u8]>, Box<[u8]>)>, Problem> {
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
