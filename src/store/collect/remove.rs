//! Takes away what is left over.
//!
//! A removal may be interrupted anywhere, also by a power cut. Records go before what they name, and a layer takes another
//! name, durably, before anything in it goes: what is found under the name of a layer is whole. To take away is a matter
//! of names, and quick; what was taken away is deleted afterwards, when it is in nobody's way.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use super::super::durable::{self, TEMPORARY_PREFIX};
use super::super::{ImageRecord, Store, StoreError, failed, open_folder, tree};
use super::{Class, Inventory, Item, Leftover};
use crate::image::Digest;

/// What has been taken away. Its bytes are free after [`Taken::delete`]; without that, after the next start.
#[derive(Debug)]
#[must_use = "what is not deleted occupies the disk"]
pub struct Taken {
    store: Store,
    gone: Vec<Leftover>,
    /// Names of what were layers.
    trees: Vec<PathBuf>,
    outcome: Result<(), StoreError>,
}

impl Taken {
    /// Deletes it and gives what is gone. What cannot be removed does not keep the others; the error is the first one.
    /// Blocks.
    pub fn delete(self) -> (Vec<Leftover>, Result<(), StoreError>) {
        let Self { store, gone, trees, mut outcome } = self;
        let layers = store.root.join("layers");
        if !trees.is_empty() {
            match open_folder(&layers) {
                Ok(folder) => {
                    for name in trees {
                        // What is left goes with the next start.
                        let deleted = tree::remove(&folder, name.as_path());
                        let deleted =
                            deleted.map_err(failed("remove the layer", &layers.join(&name)));
                        outcome = outcome.and(deleted);
                    }
                }
                Err(error) => outcome = outcome.and(Err(failed("open", &layers)(error))),
            }
        }
        (gone, outcome)
    }

    fn note<T>(&mut self, leftover: &Leftover, done: Result<Option<T>, StoreError>) -> Option<T> {
        match done {
            Ok(Some(done)) => {
                self.gone.push(leftover.clone());
                Some(done)
            }
            Ok(None) => None,
            Err(error) => {
                if self.outcome.is_ok() {
                    self.outcome = Err(error);
                }
                None
            }
        }
    }
}

impl Store {
    /// Takes away what is left over, except what somebody has begun to use since. What cannot be taken away is left and
    /// does not keep the others.
    pub fn take_away(&self, inventory: &Inventory) -> Taken {
        let mut taken =
            Taken { store: self.clone(), gone: Vec::new(), trees: Vec::new(), outcome: Ok(()) };
        let records = inventory.leftovers.iter().filter_map(|leftover| match &leftover.item {
            Item::Image(record) => Some((leftover, record)),
            Item::Layer(_) | Item::Blob(_) => None,
        });
        let mut all_go = true;
        for (leftover, record) in records {
            let done = self.give_up(record);
            all_go &= taken.note(leftover, done).is_some();
        }
        // Or a power cut could bring a record back, and nothing that it names.
        let images = self.root.join("images");
        if let Err(source) = durable::sync_directory(&images) {
            taken.outcome = taken.outcome.and(Err(failed("sync", &images)(source)));
            return taken;
        }
        // Of an image that stays after all, nothing is told apart from what others have: the next look does that.
        let goes = |leftover: &&Leftover| all_go || leftover.class != Class::UnusedImage;
        for leftover in inventory.leftovers.iter().filter(goes) {
            if let Item::Layer(digest) = leftover.item {
                let done = self.rename_away(digest);
                let name = taken.note(leftover, done);
                taken.trees.extend(name);
            }
        }
        let layers = self.root.join("layers");
        if !taken.trees.is_empty()
            && let Err(source) = durable::sync_directory(&layers)
        {
            // A name could come back, and below it what is left of a layer.
            taken.trees = Vec::new();
            taken.outcome = taken.outcome.and(Err(failed("sync", &layers)(source)));
            return taken;
        }
        for leftover in inventory.leftovers.iter().filter(goes) {
            if let Item::Blob(digest) = leftover.item {
                let done = self.leases.unless_held(digest, || self.remove_blob(digest));
                taken.note(leftover, done.transpose());
            }
        }
        taken
    }

    /// Removes the record of an image, unless it is another one by now, is pinned, or somebody holds what it names.
    fn give_up(&self, record: &ImageRecord) -> Result<Option<()>, StoreError> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let reference = &record.reference;
        if self.pins()?.contains(reference) || self.image(reference)?.as_ref() != Some(record) {
            return Ok(None);
        }
        let remove = || self.remove_image(reference);
        self.leases.unless_held(record.manifest, remove).transpose()
    }

    /// Gives a layer the name of something temporary; `None` if somebody holds it or it is gone.
    fn rename_away(&self, digest: Digest) -> Result<Option<PathBuf>, StoreError> {
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
