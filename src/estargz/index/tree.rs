//! From entries to a tree: names cleaned, parents implied, links resolved, whiteouts applied.
//!
//! Everything that the entries of a table of contents could say wrongly about each other is refused here.

use super::content::Content;
use super::node::{Kind, Node, clean, node};
use super::{EntryKind, IndexInput};
use crate::estargz::toc::{Problem, RawEntry, TocError};
use crate::estargz::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME, limit};

/// Position of a node in [`Tree::nodes`].
pub(super) type NodeNo = u32;
/// The root is made before any entry is read.
pub(super) const ROOT: NodeNo = 0;

const WHITEOUT: &[u8] = b".wh.";
/// Whiteouts of whiteouts: what aufs kept for itself, and the mark of an opaque directory.
const RESERVED: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

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
