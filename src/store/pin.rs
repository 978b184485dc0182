//! Images that the user wants kept, whether or not anything uses them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Record, Store, StoreError, record};
use crate::image::ImageRef;

/// Beside the images and not in their records: a pull replaces those.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Pins {
    images: BTreeSet<ImageRef>,
}

impl Record for Pins {
    const KIND: &'static str = "pins";
    const VERSION: u32 = 1;
}

impl Store {
    /// The images that are kept.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn pins(&self) -> Result<BTreeSet<ImageRef>, StoreError> {
        Ok(self.load::<Pins>(&self.root.join("pins"))?.unwrap_or_default().images)
    }

    /// Keeps an image from now on. False if it was kept already.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn pin(&self, image: &ImageRef) -> Result<bool, StoreError> {
        self.change_pins(|pins| pins.insert(image.clone()))
    }

    /// Keeps it no more than others. False if it was not kept.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn unpin(&self, image: &ImageRef) -> Result<bool, StoreError> {
        self.change_pins(|pins| pins.remove(image))
    }

    fn change_pins(
        &self,
        change: impl FnOnce(&mut BTreeSet<ImageRef>) -> bool,
    ) -> Result<bool, StoreError> {
        let mut pins = Pins { images: self.pins()? };
        let is_changed = change(&mut pins.images);
        if is_changed {
            record::save_with_copy(&self.root.join("pins"), &pins)?;
        }
        Ok(is_changed)
    }
}
