//! What of the store may go: which images keep what, and what is left over, in the order in which it should go.
//!
//! An image is kept by its record, by the containers that were made from it, and by whatever else its caller knows
//! ([`Uses`]). What it keeps follows from its manifest, so this is where the store looks into documents. Content of lazy
//! layers is not here: it belongs to the lazy engine, which is told which layers are left.
//!
//! A removal may be interrupted anywhere. Records go before what they name, and a layer takes another name, durably,
//! before anything in it goes: what is found under the name of a layer is whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::durable::{self, TEMPORARY_PREFIX};
use super::{Store, StoreError, failed, tree, usage};
use crate::image::{Digest, Document, ImageRef, Manifest};

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

/// What is in use.
#[derive(Debug, Clone, Default)]
pub struct Uses {
    /// Images that services files name.
    pub images: BTreeSet<ImageRef>,
    /// Manifests of containers, and of images that are mounted.
    pub manifests: BTreeSet<Digest>,
    /// Layers that are mounted for whatever reason.
    pub layers: BTreeSet<Digest>,
    /// Something uses layers of which it is not known which: none goes.
    pub unknown: Option<String>,
}

/// How far a collection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// What no record of an image leads to.
    Leftovers,
    /// Also images that nothing uses, unless they are pinned.
    Unused,
    /// This image and what only it keeps.
    Image(ImageRef),
}

/// Something that may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// The record of an image.
    Image(ImageRef),
    /// A manifest, index or configuration.
    Blob(Digest),
    /// A layer, with index or tree.
    Layer(Digest),
}

/// Something that may go, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Why.
    pub class: Class,
    /// What.
    pub item: Item,
    /// The bytes that it occupies.
    pub bytes: u64,
}

/// What is kept, and what is left over.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// In the order in which it goes.
    pub leftovers: Vec<Leftover>,
    /// Layers that stay.
    pub kept: BTreeSet<Digest>,
    /// Of these the ones that are in use at present.
    pub in_use: BTreeSet<Digest>,
    /// Images that are in use or pinned.
    pub images_in_use: BTreeSet<ImageRef>,
    /// Why layers stay that nothing is known to need.
    pub unknown: Option<String>,
}

/// What an image consists of.
#[derive(Debug, Default)]
struct Closure {
    blobs: BTreeSet<Digest>,
    layers: BTreeSet<Digest>,
}

impl Closure {
    fn add(&mut self, manifest: Digest, document: &Manifest) {
        self.blobs.extend([manifest, document.config.digest]);
        self.layers.extend(document.layers.iter().map(|layer| layer.digest));
    }
}

impl Store {
    /// Looks at everything that is here. Removes nothing. Reads every document and walks through every layer that is
    /// left over.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn inventory(&self, uses: &Uses, reach: &Reach) -> Result<Inventory, StoreError> {
        let pins = self.pins()?;
        let mut kept = Closure::default();
        let mut inventory = Inventory { unknown: uses.unknown.clone(), ..Inventory::default() };
        let mut dropped = Closure::default();
        let mut current = Closure::default();
        let mut gone = Vec::new();
        for record in self.images()? {
            let is_used = uses.images.contains(&record.reference)
                || uses.manifests.contains(&record.manifest);
            let is_needed = is_used || pins.contains(&record.reference);
            let goes = match reach {
                Reach::Leftovers => false,
                Reach::Unused => !is_needed,
                Reach::Image(image) => *image == record.reference,
            };
            // Where to go back to belongs to what is needed.
            let previous = record.previous.filter(|_| is_needed || goes);
            for manifest in [Some(record.manifest), previous].into_iter().flatten() {
                let closure = if goes { &mut dropped } else { &mut kept };
                closure.blobs.extend([manifest].into_iter().chain(record.index));
                match self.manifest(manifest)? {
                    Some(document) => {
                        closure.add(manifest, &document);
                        if is_used && manifest == record.manifest {
                            current.add(manifest, &document);
                        }
                    }
                    // One that is only a way back keeps nothing when it is lost.
                    None if manifest == record.manifest && !goes => {
                        let reason = || unreadable(manifest, &record.reference.to_string());
                        inventory.unknown.get_or_insert_with(reason);
                    }
                    None => {}
                }
            }
            if goes {
                gone.push(record.reference);
            } else if is_needed {
                inventory.images_in_use.insert(record.reference);
            }
        }
        for &manifest in &uses.manifests {
            match self.manifest(manifest)? {
                Some(document) => {
                    kept.add(manifest, &document);
                    current.add(manifest, &document);
                }
                None => {
                    let reason = || unreadable(manifest, "a container");
                    inventory.unknown.get_or_insert_with(reason);
                }
            }
        }
        let leased = self.leased();
        kept.blobs.extend(leased.iter().copied());
        for layers in [&mut kept.layers, &mut current.layers] {
            layers.extend(leased.iter().copied());
            layers.extend(uses.layers.iter().copied());
        }
        self.add_leftovers(&mut inventory, &kept, &dropped, reach, gone)?;
        inventory.kept = kept.layers;
        inventory.in_use = current.layers;
        Ok(inventory)
    }

    fn add_leftovers(
        &self,
        inventory: &mut Inventory,
        kept: &Closure,
        dropped: &Closure,
        reach: &Reach,
        gone: Vec<ImageRef>,
    ) -> Result<(), StoreError> {
        let records = gone.into_iter().map(|image| Leftover {
            class: Class::UnusedImage,
            item: Item::Image(image),
            bytes: 0,
        });
        inventory.leftovers.extend(records);
        let mut classes = self.classes(kept)?;
        classes
            .extend(dropped.blobs.iter().chain(&dropped.layers).map(|d| (*d, Class::UnusedImage)));
        let class = |digest: &Digest| classes.get(digest).copied().unwrap_or(Class::Orphan);
        let only_this = matches!(reach, Reach::Image(_));
        if inventory.unknown.is_none() {
            for layer in self.layers()? {
                let digest = layer.digest();
                if !kept.layers.contains(&digest)
                    && (!only_this || dropped.layers.contains(&digest))
                {
                    let bytes = usage(layer.path()).bytes;
                    let item = Item::Layer(digest);
                    inventory.leftovers.push(Leftover { class: class(&digest), item, bytes });
                }
            }
        }
        for digest in self.blobs()? {
            if !kept.blobs.contains(&digest) && (!only_this || dropped.blobs.contains(&digest)) {
                let bytes = usage(&self.blob_path(digest)).bytes;
                let item = Item::Blob(digest);
                inventory.leftovers.push(Leftover { class: class(&digest), item, bytes });
            }
        }
        // Records stay before what they name, and layers before the documents that tell whose they are.
        inventory.leftovers.sort_by_key(|leftover| leftover.class);
        Ok(())
    }

    /// What the documents that nothing keeps say of blobs and layers: an image that was here as a whole, or one that
    /// was not brought here to the end.
    fn classes(&self, kept: &Closure) -> Result<HashMap<Digest, Class>, StoreError> {
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

    fn manifest(&self, digest: Digest) -> Result<Option<Manifest>, StoreError> {
        let Some(bytes) = self.read_blob(digest)? else { return Ok(None) };
        Ok(match Document::parse(&bytes, None) {
            Ok(Document::Manifest(manifest)) => Some(manifest),
            Ok(Document::Index(_)) | Err(_) => None,
        })
    }

    /// Removes what is left over, except what somebody has begun to use since; `removed` is called for each that is
    /// gone. What cannot be removed is left and does not keep the others.
    ///
    /// # Errors
    /// The first one of what the file system refused.
    pub fn remove_leftovers(
        &self,
        leftovers: &[Leftover],
        mut removed: impl FnMut(&Leftover),
    ) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        let mut renamed = Vec::new();
        for leftover in leftovers {
            let done = match &leftover.item {
                Item::Image(image) => self.remove_image(image).map(|()| true),
                Item::Blob(digest) => {
                    let remove = || self.remove_blob(*digest);
                    self.leases.unless_held(*digest, remove).transpose().map(|done| done.is_some())
                }
                Item::Layer(digest) => self.take_away(*digest).map(|name| {
                    renamed.extend(name.clone());
                    name.is_some()
                }),
            };
            match done {
                Ok(true) => removed(leftover),
                Ok(false) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        if renamed.is_empty() {
            return outcome;
        }
        let layers = self.root.join("layers");
        // Or a power cut could bring a name back, and below it what is left of a layer.
        durable::sync_directory(&layers).map_err(failed("sync", &layers))?;
        let folder = super::open_folder(&layers).map_err(failed("open", &layers))?;
        for name in renamed {
            // What is left goes with the next start.
            let gone = tree::remove(&folder, name.as_path());
            outcome = outcome.and(gone.map_err(failed("remove the layer", &layers.join(&name))));
        }
        outcome
    }

    /// Gives a layer the name of something temporary; `None` if somebody holds it or it is gone.
    fn take_away(&self, digest: Digest) -> Result<Option<PathBuf>, StoreError> {
        let layer = self.layer(digest);
        let rename = |target: &Path| std::fs::rename(layer.path(), target);
        let make = || {
            let folder = self.root.join("layers");
            tempfile::Builder::new().prefix(TEMPORARY_PREFIX).rand_bytes(10).make_in(folder, rename)
        };
        match self.leases.unless_held(digest, make) {
            None => Ok(None),
            Some(Ok(renamed)) => {
                let path = renamed.into_temp_path().keep();
                let path =
                    path.map_err(|error| failed("remove the layer", layer.path())(error.error))?;
                Ok(path.file_name().map(PathBuf::from))
            }
            Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Some(Err(error)) => Err(failed("remove the layer", layer.path())(error)),
        }
    }
}

fn unreadable(manifest: Digest, whose: &str) -> String {
    format!("the manifest {} of {whose} cannot be read", manifest.short())
}

#[cfg(test)]
mod tests;
