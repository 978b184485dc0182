//! Writes the index file of a table of contents.

use super::content::{Content, RawChunk};
use super::format::{self, HEADER, Header, NONE};
use super::node::{Kind, Node};
use super::tree::{NodeNo, ROOT, Tree};
use super::{EntryKind, IndexInput};
use crate::estargz::footer::Flavour;
use crate::estargz::toc::{self, TocError};

/// Builds the index of the layer whose table of contents is `toc_json`; the digest of that was checked.
///
/// Equal input gives equal bytes. Entries are numbered breadth first, children of a directory by name.
///
/// # Errors
/// When the table of contents is malformed or asks for what no layer can be; nothing of it is used then.
pub fn build(toc_json: &[u8], input: &IndexInput) -> Result<Vec<u8>, TocError> {
    let mut tree = Tree::new(input);
    toc::for_each(toc_json, &mut |raw| tree.add(&raw))?;
    tree.finish()?;
    let mut encoder = Encoder::new(&tree);
    encoder.number_entries()?;
    encoder.number_chunks()?;
    encoder.encode(input)
}

/// The parts of the file in the making.
struct Encoder<'t> {
    tree: &'t Tree,
    /// The node of each entry.
    order: Vec<NodeNo>,
    /// The entry of each node, [`NONE`] when no path leads to it.
    numbers: Vec<u32>,
    parents: Vec<u32>,
    links: Vec<u32>,
    /// First child and number of children of each entry.
    child_ranges: Vec<(u32, u32)>,
    children: Vec<u8>,
    /// First place and number of places of each entry in `chunk_order`.
    chunk_ranges: Vec<(u32, u32)>,
    chunk_order: Vec<u32>,
    /// Chunk, entry and place in the file, in blob order.
    chunks: Vec<(&'t RawChunk, u32, u32)>,
    strings: Vec<u8>,
}

impl<'t> Encoder<'t> {
    fn new(tree: &'t Tree) -> Self {
        Self {
            tree,
            order: vec![ROOT],
            numbers: vec![NONE; tree.nodes.len()],
            parents: vec![0],
            links: vec![2],
            child_ranges: Vec::new(),
            children: Vec::new(),
            chunk_ranges: Vec::new(),
            chunk_order: Vec::new(),
            chunks: Vec::new(),
            strings: Vec::new(),
        }
    }

    fn node(&self, entry: u32) -> &'t Node {
        &self.tree.nodes[self.order[entry as usize] as usize]
    }

    /// Walks the tree breadth first, which also leaves behind whatever no path leads to.
    fn number_entries(&mut self) -> Result<(), TocError> {
        let mut entry = 0;
        while (entry as usize) < self.order.len() {
            let node = self.node(entry);
            let first = count(self.children.len() / format::CHILD)?;
            for (name, child) in &node.children {
                let child = self.tree.resolved[*child as usize];
                let number = self.number(child, entry)?;
                self.links[number as usize] += 1;
                if self.tree.nodes[child as usize].is_dir() {
                    // `..` of the child; its own `.` is counted from the beginning.
                    self.links[entry as usize] += 1;
                }
                let (name_at, name_len) = self.string(name)?;
                for field in [name_at, name_len, number] {
                    self.children.extend(field.to_le_bytes());
                }
            }
            self.child_ranges.push((first, count(node.children.len())?));
            entry += 1;
        }
        Ok(())
    }

    fn number(&mut self, node: NodeNo, parent: u32) -> Result<u32, TocError> {
        let known = self.numbers[node as usize];
        if known != NONE {
            return Ok(known);
        }
        let number = count(self.order.len())?;
        self.numbers[node as usize] = number;
        self.order.push(node);
        self.parents.push(parent);
        self.links.push(u32::from(self.tree.nodes[node as usize].is_dir()));
        Ok(number)
    }

    fn number_chunks(&mut self) -> Result<(), TocError> {
        let mut sorted = Vec::new();
        for entry in 0..count(self.order.len())? {
            let (first, len) = self.node(entry).chunks;
            self.chunk_ranges.push((count(sorted.len())?, len));
            let chunks = self.tree.content.chunks.iter().skip(first as usize).take(len as usize);
            sorted.extend(chunks.zip(0..).map(|(chunk, n)| (chunk, entry, n)));
        }
        sorted.sort_by_key(|(chunk, entry, n)| (chunk.offset, chunk.inner_offset, *entry, *n));
        Content::refuse_overlap(sorted.iter().map(|(chunk, ..)| *chunk))?;
        self.chunk_order = vec![0; sorted.len()];
        for ((_, entry, n), number) in sorted.iter().zip(0..) {
            let (first, _) = self.chunk_ranges[*entry as usize];
            self.chunk_order[(first + n) as usize] = number;
        }
        self.chunks = sorted;
        Ok(())
    }

    fn string(&mut self, text: &[u8]) -> Result<(u32, u32), TocError> {
        let at = count(self.strings.len())?;
        self.strings.extend(text);
        Ok((at, count(text.len())?))
    }

    fn encode(mut self, input: &IndexInput) -> Result<Vec<u8>, TocError> {
        let (mut entries, mut xattrs, mut digests) = (Vec::new(), Vec::new(), Vec::new());
        for entry in 0..count(self.order.len())? {
            self.encode_entry(entry, &mut entries, &mut xattrs, &mut digests)?;
        }
        let mut header = Header {
            flavour: match input.flavour {
                Flavour::Gzip => 0,
                Flavour::Zstd => 1,
            },
            length: 0,
            blob_size: input.blob_size,
            toc_offset: input.toc_offset,
            content_size: self.chunks.iter().map(|(chunk, ..)| u64::from(chunk.size)).sum(),
            prefetch_end: self.tree.prefetch_end.unwrap_or(u64::MAX),
            entries: count(self.order.len())?,
            children: count(self.children.len() / format::CHILD)?,
            chunks: count(self.chunks.len())?,
            xattrs: count(xattrs.len() / format::XATTR)?,
            digests: count(digests.len() / format::DIGEST)?,
            strings: count(self.strings.len())?,
        };
        let [.., end] = header.sections();
        header.length = end + format::CHECKSUM as u64;
        let mut out =
            Vec::with_capacity(HEADER + entries.len() + self.chunks.len() * format::CHUNK);
        header.write(&mut out);
        out.extend(entries);
        out.extend(&self.children);
        out.extend(self.chunk_order.iter().flat_map(|number| number.to_le_bytes()));
        self.encode_chunks(&mut out)?;
        out.extend(xattrs);
        out.extend(digests);
        out.extend(&self.strings);
        out.extend(format::checksum(&out).to_le_bytes());
        Ok(out)
    }

    fn encode_entry(
        &mut self,
        entry: u32,
        entries: &mut Vec<u8>,
        xattrs: &mut Vec<u8>,
        digests: &mut Vec<u8>,
    ) -> Result<(), TocError> {
        let node = self.node(entry);
        let kind = match node.kind {
            Kind::Is(kind) => kind,
            // Links were resolved before entries were numbered.
            Kind::HardLink(_) => EntryKind::Regular,
        };
        let (first, second) = match kind {
            EntryKind::Directory => self.child_ranges[entry as usize],
            EntryKind::Regular => self.chunk_ranges[entry as usize],
            EntryKind::Symlink => self.string(&node.link_target)?,
            EntryKind::CharDevice | EntryKind::BlockDevice => node.rdev,
            EntryKind::Fifo => (0, 0),
        };
        let first_xattr = count(xattrs.len() / format::XATTR)?;
        for (name, value) in &node.xattrs {
            let (name, value) = (self.string(name)?, self.string(value)?);
            for field in [name.0, name.1, value.0, value.1] {
                xattrs.extend(field.to_le_bytes());
            }
        }
        let only_chunk = self.tree.content.chunks.get(node.chunks.0 as usize);
        let only_chunk = only_chunk.filter(|_| node.chunks.1 == 1).map(|chunk| chunk.digest);
        let digest = match node.digest {
            Some(digest) if only_chunk != Some(digest) => {
                digests.extend(digest.as_bytes());
                count(digests.len() / format::DIGEST - 1)?
            }
            _ => NONE,
        };
        let flags = u8::from(node.opaque) | u8::from(node.digest.is_some()) << 1;
        entries.extend([kind.code(), flags]);
        entries.extend(node.mode.to_le_bytes());
        entries.extend(node.uid.to_le_bytes());
        entries.extend(node.gid.to_le_bytes());
        entries.extend(self.links[entry as usize].to_le_bytes());
        entries.extend(node.size.to_le_bytes());
        entries.extend(node.mtime.to_le_bytes());
        let parent = self.parents[entry as usize];
        for field in [parent, first, second, first_xattr, count(node.xattrs.len())?, digest] {
            entries.extend(field.to_le_bytes());
        }
        Ok(())
    }

    fn encode_chunks(&self, out: &mut Vec<u8>) -> Result<(), TocError> {
        for member in self.chunks.chunk_by(|a, b| a.0.offset == b.0.offset) {
            let needed = member.iter().map(|(c, ..)| u64::from(c.inner_offset) + u64::from(c.size));
            let needed = needed.max().unwrap_or(0);
            for (chunk, entry, n) in member {
                let end = self.tree.content.member_end(chunk.offset, needed);
                let member_len =
                    u32::try_from(end - chunk.offset).map_err(|_| too_large(u64::MAX))?;
                out.extend(chunk.offset.to_le_bytes());
                out.extend(chunk.file_offset.to_le_bytes());
                for field in [member_len, chunk.inner_offset, chunk.size, *entry, *n] {
                    out.extend(field.to_le_bytes());
                }
                out.extend(chunk.digest.as_bytes());
            }
        }
        Ok(())
    }
}

/// A number or position as the file stores it.
fn count(n: usize) -> Result<u32, TocError> {
    u32::try_from(n).ok().filter(|n| *n != NONE).ok_or_else(|| too_large(n as u64))
}

fn too_large(size: u64) -> TocError {
    TocError::TooLarge { what: "index of the layer", size, limit: u64::from(u32::MAX) }
}
