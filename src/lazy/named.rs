//! Files of a layer by the paths of an image.

use super::layer::LazyLayer;
use crate::estargz::{EntryKind, EntryNo};

/// Symbolic links that are followed in one path, as the kernel's limit is.
const LINKS: u32 = 40;
/// Files that one path may name, and directories that are looked into for them.
const FILES: usize = 100_000;

impl LazyLayer {
    /// Reads the beginning of the first of `paths` that is a file of this layer, because somebody is about to: the wait
    /// for it, and what is fetched along, are the same, only that they begin now. False if it has none of them.
    pub fn expect<P: AsRef<[u8]>>(&self, paths: &[P]) -> bool {
        let is_file = |entry: &EntryNo| {
            self.index.entry(*entry).is_some_and(|found| found.kind == EntryKind::Regular)
        };
        let mut files = paths.iter().filter_map(|path| self.resolve(path.as_ref())).filter(is_file);
        let Some(entry) = files.next() else { return false };
        // What the maker of the layer marked has this too, in fewer requests.
        if !self.is_complete()
            && self.prefetch_numbers().is_none()
            && let Ok(layer) = self.strong()
        {
            // Whoever comes to read it is told what goes wrong.
            self.shared.runtime.spawn(async move { drop(layer.read(entry, 0, 1).await) });
        }
        true
    }

    /// The file at `path`, or all files below it. Symbolic links are followed as far as this layer has what they
    /// name; what other layers have of the path is theirs to find.
    pub(super) fn files_at(&self, path: &[u8]) -> Vec<EntryNo> {
        let mut files = Vec::new();
        let mut pending: Vec<EntryNo> = self.resolve(path).into_iter().collect();
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

    fn resolve(&self, path: &[u8]) -> Option<EntryNo> {
        // The last name first.
        let names = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect()
        };
        let mut left = names(path);
        let mut at = EntryNo::ROOT;
        let mut links = 0;
        while let Some(name) = left.pop() {
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    at = self.index.parent(at);
                    continue;
                }
                _ => {}
            }
            let next = self.index.lookup(at, &name)?;
            if self.index.entry(next)?.kind != EntryKind::Symlink {
                at = next;
                continue;
            }
            links += 1;
            if links > LINKS {
                return None;
            }
            let target = self.index.link_target(next);
            if target.starts_with(b"/") {
                at = EntryNo::ROOT;
            }
            left.extend(names(target));
        }
        Some(at)
    }
}
