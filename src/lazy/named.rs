//! Files of a layer by the paths of an image.

use super::layer::LazyLayer;
use crate::estargz::{EntryKind, EntryNo};

/// Symbolic links that are followed in one path, as the kernel's limit is.
const LINKS: u32 = 40;
/// Files that one path may name, and directories that are looked into for them.
const FILES: usize = 100_000;

impl LazyLayer {
    /// The file at `path`, if this layer has one.
    pub(super) fn file_at(&self, path: &[u8]) -> Option<EntryNo> {
        let entry = self.resolve(path)?;
        (self.index.entry(entry)?.kind == EntryKind::Regular).then_some(entry)
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
