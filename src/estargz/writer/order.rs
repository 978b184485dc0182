//! Which entries a layer keeps, and in which order.

use std::collections::BTreeMap;

use super::source::{Kind, Source, clean};
use super::{MissingPath, Prefetch, WriteError};
use crate::estargz::is_format_name;

/// The plan of a layer.
#[derive(Debug)]
pub(super) struct Order {
    /// Positions in the source, in the order of the layer.
    pub(super) entries: Vec<usize>,
    /// How many of them stand before the prefetch landmark; `None`: nothing is to be fetched first.
    pub(super) first: Option<usize>,
    /// Paths that were to be fetched first and are not there.
    pub(super) missing: Vec<String>,
}

/// Orders `sources`. Of several entries with one path the last counts, at its own place; landmarks and table of
/// contents of an earlier conversion are left out.
pub(super) fn plan(sources: &[Source], prefetch: &Prefetch) -> Result<Order, WriteError> {
    let mut by_path = BTreeMap::new();
    for (n, source) in sources.iter().enumerate() {
        if !is_format_name(source.path.as_bytes()) {
            by_path.insert(source.path.as_str(), n);
        }
    }
    let mut picker =
        Picker { sources, by_path: &by_path, taken: vec![false; sources.len()], order: Vec::new() };
    let mut missing = Vec::new();
    let first = match prefetch {
        Prefetch::Nothing => None,
        Prefetch::Paths { paths, missing: policy } => {
            for path in paths {
                let path = clean(path);
                match (by_path.contains_key(&*path), policy) {
                    (true, _) => picker.take_first(&path),
                    (false, MissingPath::Skip) => missing.push(path),
                    (false, MissingPath::Refuse) => return Err(WriteError::Missing(path)),
                }
            }
            Some(picker.order.len())
        }
    };
    for (n, source) in sources.iter().enumerate() {
        if by_path.get(&*source.path) == Some(&n) {
            picker.take(n);
        }
    }
    let entries = picker.order;
    check_links(sources, &by_path, &entries)?;
    Ok(Order { entries, first, missing })
}

struct Picker<'s> {
    sources: &'s [Source],
    by_path: &'s BTreeMap<&'s str, usize>,
    taken: Vec<bool>,
    order: Vec<usize>,
}

impl Picker<'_> {
    fn take(&mut self, n: usize) {
        if !std::mem::replace(&mut self.taken[n], true) {
            self.order.push(n);
        }
    }

    /// Takes the entry at `path` after the directories above it and, if it is a link, after its target.
    fn take_first(&mut self, path: &str) {
        let mut chain: Vec<&str> = Vec::new();
        let mut at = path;
        while let Some((key, n)) = self.by_path.get_key_value(at) {
            // A circle of links is refused later, with its name.
            if chain.contains(key) {
                break;
            }
            chain.push(key);
            if self.sources[*n].kind != Kind::HardLink {
                break;
            }
            at = &self.sources[*n].link;
        }
        for path in chain.into_iter().rev() {
            let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
            for part in std::iter::once("").chain(parents).chain([path]) {
                if let Some(n) = self.by_path.get(part) {
                    self.take(*n);
                }
            }
        }
    }
}

/// Whoever unpacks the layer makes a link when it meets it, so its target must come before.
fn check_links(
    sources: &[Source],
    by_path: &BTreeMap<&str, usize>,
    order: &[usize],
) -> Result<(), WriteError> {
    let mut written = vec![false; sources.len()];
    for n in order {
        let source = &sources[*n];
        if source.kind == Kind::HardLink && !by_path.get(&*source.link).is_some_and(|n| written[*n])
        {
            let (path, target) = (source.path.clone(), source.link.clone());
            return Err(WriteError::HardLink { path, target });
        }
        written[*n] = true;
    }
    Ok(())
}
