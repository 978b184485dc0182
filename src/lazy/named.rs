//! Files of layers by the paths of an image.

use super::layer::LazyLayer;
use crate::estargz::{EntryKind, EntryNo};

/// Symbolic links that are followed in one path, as the kernel's limit is.
const LINKS: u32 = 40;
/// Files that one path may name, and directories that are looked into for them.
const FILES: usize = 100_000;

/// How many names may still be looked up, each in each layer: whoever made an image decides what its links cost.
#[derive(Debug)]
pub(super) struct Lookups(pub(super) u32);

impl Default for Lookups {
    /// Enough for every program of a `PATH` in an image of as many layers as there may be; a fraction of a second.
    fn default() -> Self {
        Self(1 << 16)
    }
}

impl Lookups {
    fn take(&mut self) -> Option<()> {
        self.0 = self.0.checked_sub(1)?;
        Some(())
    }
}

/// What a path names: of which of the layers, and which of its entries. Of a directory, all that make it up, the
/// uppermost first; there is at least one.
type Named = Vec<(usize, EntryNo)>;

/// Looks `path` up as the file system does that has `layers`, the uppermost first, one above the other: name by name,
/// through links of one layer to names of another, and past nothing that is hidden.
fn resolve(layers: &[&LazyLayer], path: &[u8], lookups: &mut Lookups) -> Option<Named> {
    // The last name first.
    let names = |path| <[u8]>::split(path, |byte| *byte == b'/').rev();
    let mut left: Vec<&[u8]> = names(path).collect();
    let root: Named = (0..layers.len()).map(|layer| (layer, EntryNo::ROOT)).collect();
    let mut trail = vec![merged(layers, root)];
    let mut links = 0;
    while let Some(name) = left.pop() {
        lookups.take()?;
        match name {
            b"" | b"." => continue,
            b".." => {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            _ => {}
        }
        let found = look(layers, trail.last()?, name, lookups)?;
        let &(layer, entry) = found.first()?;
        let index = &layers[layer].index;
        match index.entry(entry)?.kind {
            EntryKind::Directory => trail.push(found),
            EntryKind::Symlink => {
                links += 1;
                if links > LINKS {
                    return None;
                }
                let target = index.link_target(entry);
                if target.starts_with(b"/") {
                    trail.truncate(1);
                }
                left.extend(names(target));
            }
            _ => return left.is_empty().then_some(found),
        }
    }
    trail.pop()
}

/// What is called `name` in the directory that is made up of `directory`.
fn look(
    layers: &[&LazyLayer],
    directory: &Named,
    name: &[u8],
    lookups: &mut Lookups,
) -> Option<Named> {
    let mut found = Named::new();
    for &(layer, at) in directory {
        lookups.take()?;
        if let Some(entry) = layers[layer].index.lookup(at, name) {
            found.push((layer, entry));
        }
    }
    let found = merged(layers, found);
    (!found.is_empty()).then_some(found)
}

/// Without what is hidden: below anything that is no directory (as the mark of what was removed), or is opaque.
fn merged(layers: &[&LazyLayer], mut found: Named) -> Named {
    let attributes = |&(layer, entry): &(usize, EntryNo)| {
        let layer: &LazyLayer = layers[layer];
        layer.index.entry(entry)
    };
    let is_directory = |at: &(usize, EntryNo)| {
        attributes(at).is_some_and(|entry| entry.kind == EntryKind::Directory)
    };
    let shown = match found.iter().position(|at| !is_directory(at)) {
        Some(0) => 1,
        Some(first) => first,
        None => found.len(),
    };
    found.truncate(shown);
    let opaque = found.iter().position(|at| attributes(at).is_some_and(|entry| entry.opaque));
    found.truncate(opaque.map_or(shown, |at| at + 1));
    found
}

/// The file at `path` of an image with these `layers`, the uppermost first: in which layer it is, and which entry.
pub(super) fn file_in(
    layers: &[&LazyLayer],
    path: &[u8],
    lookups: &mut Lookups,
) -> Option<(usize, EntryNo)> {
    let &(layer, entry) = resolve(layers, path, lookups)?.first()?;
    let is_file = layers[layer].index.entry(entry)?.kind == EntryKind::Regular;
    is_file.then_some((layer, entry))
}

impl LazyLayer {
    /// The file at `path`, or all files below it. Symbolic links are followed as far as this layer has what they
    /// name; what other layers have of the path is theirs to find.
    pub(super) fn files_at(&self, path: &[u8]) -> Vec<EntryNo> {
        let mut files = Vec::new();
        let found = resolve(&[self], path, &mut Lookups::default());
        let mut pending: Vec<EntryNo> = found.iter().flatten().map(|(_, entry)| *entry).collect();
        let mut looked = 0;
        while let Some(entry) = pending.pop() {
            looked += 1;
            if looked > FILES {
                break;
            }
            match self.index.entry(entry).map(|found| found.kind) {
                Some(EntryKind::Regular) => files.push(entry),
                Some(EntryKind::Directory) => {
                    let children = 0..self.index.child_count(entry);
                    let children = children.filter_map(|n| self.index.child(entry, n));
                    pending.extend(children.map(|(_, child)| child).take(FILES));
                }
                _ => {}
            }
        }
        files
    }
}
