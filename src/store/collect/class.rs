//! Why something may go: what the documents say of blobs and layers that nothing keeps.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::super::{Store, StoreError};
use super::Closure;
use crate::image::{Digest, Document};

/// Why something may go, in the order in which it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Nothing leads to it.
    Orphan,
    /// A pull brought it that did not come to its end.
    FailedPull,
    /// What a reference stood for before it was pulled again.
    OldGeneration,
    /// An image that no container and no services file uses.
    UnusedImage,
    /// Content of lazy layers that nothing uses at present; it is fetched again when it is read.
    IdleContent,
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Orphan => "orphan",
            Self::FailedPull => "failed pull",
            Self::OldGeneration => "old generation",
            Self::UnusedImage => "unused image",
            Self::IdleContent => "idle content",
        })
    }
}

impl Store {
    /// What the documents that nothing keeps say of blobs and layers: an image that was here as a whole, or one that
    /// was not brought here to the end.
    pub(super) fn classes(&self, kept: &Closure) -> Result<HashMap<Digest, Class>, StoreError> {
        let mut classes: HashMap<Digest, Class> = HashMap::new();
        let mut indexes = BTreeMap::new();
        for digest in self.blobs()? {
            if kept.blobs.contains(&digest) {
                continue;
            }
            let Some(bytes) = self.read_blob(digest)? else { continue };
            let manifest = match Document::parse(&bytes, None) {
                Ok(Document::Manifest(manifest)) => manifest,
                Ok(Document::Index(index)) => {
                    indexes.insert(digest, index);
                    continue;
                }
                Err(_) => continue,
            };
            let is_here = self.has_blob(manifest.config.digest)
                && manifest.layers.iter().all(|descriptor| {
                    let layer = self.layer(descriptor.digest);
                    layer.is_full() || layer.is_indexed_by(descriptor.toc_digest())
                });
            let class = if is_here { Class::OldGeneration } else { Class::FailedPull };
            let layers = manifest.layers.iter().map(|layer| layer.digest);
            for part in [digest, manifest.config.digest].into_iter().chain(layers) {
                let known = classes.entry(part).or_insert(class);
                *known = class.max(*known);
            }
        }
        for (digest, index) in indexes {
            let children =
                index.manifests.iter().filter_map(|(entry, _)| classes.get(&entry.digest));
            let class = children.copied().max().unwrap_or(Class::FailedPull);
            classes.insert(digest, class);
        }
        Ok(classes)
    }
}
