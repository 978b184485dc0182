//! What of the store may go: which images keep what, and what is left over, in the order in which it should go.
//!
//! An image is kept by its record, by the containers that were made from it, and by whatever else its caller knows
//! ([`Uses`]). What it keeps follows from its manifest, so this is where the store looks into documents. Content of lazy
//! layers is not here: it belongs to the lazy engine, which is told which layers are left.
//!
//! What cannot be read may need anything: while it is not known what is needed, nothing goes but an image by its name.

mod class;
mod remove;

use std::collections::BTreeSet;
use std::sync::Arc;

pub use self::class::Class;
pub use self::remove::Taken;
use super::lease::Look;
use super::{ImageRecord, LayerDir, Store, StoreError, usage};
use crate::image::{Digest, Document, ImageRef, Manifest};

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
    /// This image, unless it is in use or pinned, and what only it keeps.
    Image(ImageRef),
    /// What is in the way of a pull: leftovers, and, if that gives back `bytes` besides, what its image stood for before
    /// what it stands for now, and images that nothing uses and that are not pinned, the oldest first, as far as
    /// necessary.
    Room {
        /// The image that is pulled.
        image: ImageRef,
        /// What is to be given back besides leftovers.
        bytes: u64,
    },
}

/// Something that may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// The record of an image, as it was found.
    Image(Box<ImageRecord>),
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
    /// Those of images that are in use or pinned.
    pub needed: BTreeSet<Digest>,
    /// Images that are in use or pinned.
    pub images_in_use: BTreeSet<ImageRef>,
    /// Why things stay that nothing is known to need.
    pub unknown: Option<String>,
    /// What is let go from the look on is not left over.
    _look: Option<Arc<Look>>,
}

/// What an image consists of.
#[derive(Debug, Default)]
struct Closure {
    blobs: BTreeSet<Digest>,
    layers: BTreeSet<Digest>,
}

impl Closure {
    fn add(&mut self, other: &Self) {
        self.blobs.extend(&other.blobs);
        self.layers.extend(&other.layers);
    }
}

/// A recorded image.
#[derive(Debug)]
struct Known {
    record: ImageRecord,
    /// What it stands for.
    own: Closure,
    /// What it stood for before.
    previous: Option<Closure>,
    /// Its manifest cannot be read.
    is_damaged: bool,
    is_used: bool,
    /// Used or pinned.
    is_needed: bool,
}

/// What a collection gives up that it could keep.
#[derive(Debug, Default)]
struct GivenUp {
    images: BTreeSet<ImageRef>,
    previous_of: Option<ImageRef>,
}

impl GivenUp {
    /// Divides images into what is kept of them and what goes with those that go. Where to go back to belongs to what
    /// is needed.
    fn divide(&self, images: &[Known], fixed: &Closure) -> (Closure, Closure) {
        let (mut kept, mut dropped) = (Closure::default(), Closure::default());
        kept.add(fixed);
        for image in images {
            let reference = &image.record.reference;
            let goes = self.images.contains(reference);
            let closure = if goes { &mut dropped } else { &mut kept };
            closure.add(&image.own);
            let is_way_back = image.is_needed && self.previous_of.as_ref() != Some(reference);
            if let Some(previous) = image.previous.as_ref().filter(|_| is_way_back || goes) {
                closure.add(previous);
            }
        }
        (kept, dropped)
    }
}

impl Store {
    /// Looks at everything that is here. Removes nothing. Reads every document; walks through layers whose size is not
    /// known.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn inventory(&self, uses: &Uses, reach: &Reach) -> Result<Inventory, StoreError> {
        let look = Arc::new(self.leases.look());
        let (pins, lost_pins) = self.pins_and_doubt()?;
        let (records, lost_records) = self.images_and_doubt()?;
        let mut unknown = uses.unknown.clone().or(lost_pins).or(lost_records);
        let mut images = Vec::with_capacity(records.len());
        for record in records {
            let is_used = uses.images.contains(&record.reference)
                || uses.manifests.contains(&record.manifest);
            let is_needed = is_used || pins.contains(&record.reference);
            let (mut own, is_read) = self.parts(record.manifest)?;
            own.blobs.extend(record.index);
            // One that is only a way back keeps nothing when it is lost.
            let previous = record.previous.map(|manifest| self.parts(manifest)).transpose()?;
            let previous = previous.map(|(parts, _)| parts);
            images.push(Known { record, own, previous, is_damaged: !is_read, is_used, is_needed });
        }
        let mut fixed = Closure::default();
        for &manifest in &uses.manifests {
            let (parts, is_read) = self.parts(manifest)?;
            fixed.add(&parts);
            if !is_read {
                unknown.get_or_insert_with(|| unreadable(manifest, "a container"));
            }
        }
        fixed.layers.extend(&uses.layers);
        let leased = self.leased();
        fixed.blobs.extend(leased.iter().copied());
        fixed.layers.extend(leased);
        // The damaged manifest of one that goes is in nobody's way.
        let named = |known: &Known| matches!(reach, Reach::Image(image) if *image == known.record.reference && !known.is_needed);
        if let Some(damaged) = images.iter().find(|known| known.is_damaged && !named(known)) {
            let ImageRecord { manifest, reference, .. } = &damaged.record;
            unknown.get_or_insert_with(|| {
                let reason = unreadable(*manifest, &format!("`{reference}`"));
                format!(
                    "{reason}; pull it again, or remove it with `supervisor image rm {reference}`"
                )
            });
        }
        let layers = self.layers()?;
        let given_up = match reach {
            Reach::Leftovers => GivenUp::default(),
            Reach::Image(_) => GivenUp::of(images.iter().filter(|known| named(known))),
            Reach::Unused | Reach::Room { .. } if unknown.is_some() => GivenUp::default(),
            Reach::Unused => GivenUp::of(images.iter().filter(|known| !known.is_needed)),
            Reach::Room { image, bytes } => {
                self.in_the_way(&images, &fixed, &layers, image, *bytes)
            }
        };
        let (kept, dropped) = given_up.divide(&images, &fixed);
        let mut inventory = Inventory { unknown, _look: Some(look), ..Inventory::default() };
        self.add_leftovers(&mut inventory, &kept, &dropped, &layers, reach)?;
        let mut current = fixed;
        for known in images {
            if known.is_used {
                current.add(&known.own);
            }
            let goes = given_up.images.contains(&known.record.reference);
            if known.is_needed {
                inventory.needed.extend(&known.own.layers);
                inventory.images_in_use.insert(known.record.reference.clone());
            }
            if goes {
                let item = Item::Image(Box::new(known.record));
                inventory.leftovers.push(Leftover { class: Class::UnusedImage, item, bytes: 0 });
            }
        }
        // In this order they go; of one class records before what they name, and layers before documents.
        let rank = |item: &Item| match item {
            Item::Image(_) => 0,
            Item::Layer(_) => 1,
            Item::Blob(_) => 2,
        };
        inventory.leftovers.sort_by_key(|leftover| (leftover.class, rank(&leftover.item)));
        inventory.kept = kept.layers;
        inventory.in_use = current.layers;
        Ok(inventory)
    }

    /// What is given up for a pull of `image`, so that `bytes` come back; nothing if they would not.
    fn in_the_way(
        &self,
        images: &[Known],
        fixed: &Closure,
        layers: &[LayerDir],
        image: &ImageRef,
        bytes: u64,
    ) -> GivenUp {
        let left = |given_up: &GivenUp| -> u64 {
            let (kept, _) = given_up.divide(images, fixed);
            let left = layers.iter().filter(|layer| !kept.layers.contains(&layer.digest()));
            left.map(|layer| self.layer_bytes(layer)).sum()
        };
        let before = left(&GivenUp::default());
        let is_enough = |given_up: &GivenUp| left(given_up).saturating_sub(before) >= bytes;
        // The pull puts what the image stands for now in its place, in any case.
        let mut given_up = GivenUp { previous_of: Some(image.clone()), ..GivenUp::default() };
        if is_enough(&given_up) {
            return given_up;
        }
        let unused = images.iter().filter(|known| !known.is_needed);
        let mut unused: Vec<_> = unused.filter(|known| known.record.reference != *image).collect();
        unused.sort_by_key(|known| known.record.pulled_at);
        for known in unused {
            given_up.images.insert(known.record.reference.clone());
            if is_enough(&given_up) {
                return given_up;
            }
        }
        GivenUp::default()
    }

    fn add_leftovers(
        &self,
        inventory: &mut Inventory,
        kept: &Closure,
        dropped: &Closure,
        layers: &[LayerDir],
        reach: &Reach,
    ) -> Result<(), StoreError> {
        if inventory.unknown.is_some() {
            return Ok(());
        }
        let mut classes = self.classes(kept)?;
        classes
            .extend(dropped.blobs.iter().chain(&dropped.layers).map(|d| (*d, Class::UnusedImage)));
        let class = |digest: &Digest| classes.get(digest).copied().unwrap_or(Class::Orphan);
        let only_this = matches!(reach, Reach::Image(_));
        for layer in layers {
            let digest = layer.digest();
            if !kept.layers.contains(&digest) && (!only_this || dropped.layers.contains(&digest)) {
                let (class, bytes) = (class(&digest), self.layer_bytes(layer));
                inventory.leftovers.push(Leftover { class, item: Item::Layer(digest), bytes });
            }
        }
        for digest in self.blobs()? {
            if !kept.blobs.contains(&digest) && (!only_this || dropped.blobs.contains(&digest)) {
                let (class, bytes) = (class(&digest), usage(&self.blob_path(digest)).bytes);
                inventory.leftovers.push(Leftover { class, item: Item::Blob(digest), bytes });
            }
        }
        Ok(())
    }

    /// What a manifest leads to, and whether it could be read.
    fn parts(&self, manifest: Digest) -> Result<(Closure, bool), StoreError> {
        let mut parts = Closure::default();
        parts.blobs.insert(manifest);
        let document = self.manifest(manifest)?;
        if let Some(document) = &document {
            parts.blobs.insert(document.config.digest);
            parts.layers.extend(document.layers.iter().map(|layer| layer.digest));
        }
        Ok((parts, document.is_some()))
    }

    fn manifest(&self, digest: Digest) -> Result<Option<Manifest>, StoreError> {
        let Some(bytes) = self.read_blob(digest)? else { return Ok(None) };
        Ok(match Document::parse(&bytes, None) {
            Ok(Document::Manifest(manifest)) => Some(manifest),
            Ok(Document::Index(_)) | Err(_) => None,
        })
    }
}

impl GivenUp {
    fn of<'a>(images: impl Iterator<Item = &'a Known>) -> Self {
        let images = images.map(|known| known.record.reference.clone()).collect();
        Self { images, previous_of: None }
    }
}

fn unreadable(manifest: Digest, whose: &str) -> String {
    format!("the manifest {} of {whose} cannot be read", manifest.short())
}

#[cfg(test)]
mod tests;
