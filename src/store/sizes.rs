//! What layers occupy on disk, counted once for each: what is published of a layer does not change.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use super::durable::TEMPORARY_PREFIX;
use super::{LayerDir, Store, StoreError, usage};
use crate::image::Digest;

/// Of which parts of a layer the size is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Parts {
    tree: bool,
    index: bool,
}

/// The sizes that are known.
#[derive(Debug, Default)]
pub(super) struct Sizes(Mutex<HashMap<Digest, (Parts, u64)>>);

impl Store {
    /// Bytes that a layer occupies, but for what is in the making. Blocks for as long as it takes to walk through it,
    /// the first time.
    #[must_use]
    pub fn layer_bytes(&self, layer: &LayerDir) -> u64 {
        let parts = Parts { tree: layer.is_full(), index: layer.index_path().is_file() };
        let known = self.sizes.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = known.get(&layer.digest()).filter(|(of, _)| *of == parts) {
            return *bytes;
        }
        drop(known);
        let names = super::names(layer.path()).unwrap_or_default();
        let published = names.iter().filter(|name| !name.starts_with(TEMPORARY_PREFIX));
        let bytes = published.map(|name| usage(&layer.path().join(name)).bytes).sum();
        let mut known = self.sizes.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(layer.digest(), (parts, bytes));
        bytes
    }

    /// Bytes that all layers occupy together, but for what is in the making. Blocks.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn layers_bytes(&self) -> Result<u64, StoreError> {
        let layers = self.layers()?;
        let bytes = layers.iter().map(|layer| self.layer_bytes(layer)).sum();
        let mut known = self.sizes.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > layers.len() {
            let here: HashSet<Digest> = layers.iter().map(LayerDir::digest).collect();
            known.retain(|digest, _| here.contains(digest));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_counted_anew_when_it_has_more_parts_and_not_for_what_is_in_the_making() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state")).unwrap();
        let layer = store.layer(Digest::of(b"layer"));
        layer.write_index(Digest::of(b"toc"), &[1; 10_000]).unwrap();
        let indexed = store.layer_bytes(&layer);
        assert!(indexed >= 10_000);
        let staging = layer.staging().unwrap();
        std::fs::write(staging.path().join("file"), vec![1; 100_000]).unwrap();
        assert_eq!(store.layer_bytes(&layer), indexed);
        layer.publish_full(staging).unwrap();
        assert!(store.layer_bytes(&layer) >= indexed + 100_000);
        assert_eq!(store.layers_bytes().unwrap(), store.layer_bytes(&layer));
        std::fs::remove_dir_all(layer.path()).unwrap();
        assert_eq!(store.layers_bytes().unwrap(), 0);
    }
}
