//! Images that the user wants kept, whether or not anything uses them.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use super::{Record, Store, StoreError, aside, record};
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

/// What became of a wish to keep an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinned {
    /// It is kept from now on.
    Now,
    /// It was kept already.
    Already,
    /// There is no such image.
    NoImage,
}

impl Store {
    /// The images that are kept.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn pins(&self) -> Result<BTreeSet<ImageRef>, StoreError> {
        Ok(self.pins_and_doubt()?.0)
    }

    /// The same, and why there may be more: what said so cannot be read, or was set aside and never replaced.
    pub(super) fn pins_and_doubt(
        &self,
    ) -> Result<(BTreeSet<ImageRef>, Option<String>), StoreError> {
        let path = self.root.join("pins");
        if let Some(pins) = self.load::<Pins>(&path)? {
            return Ok((pins.images, None));
        }
        let is_lost = path.exists() || aside::is_set_aside(&path);
        let doubt = is_lost.then(|| {
            let path = path.display();
            format!("which images are pinned cannot be read; pin what is to stay again, or remove `{path}.*`")
        });
        Ok((BTreeSet::new(), doubt))
    }

    /// Keeps an image from now on, if it is here.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn pin(&self, image: &ImageRef) -> Result<Pinned, StoreError> {
        // Nobody removes its record between the look and the pin.
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.image(image)?.is_none() {
            return Ok(Pinned::NoImage);
        }
        let is_new = self.change_pins(|pins| pins.insert(image.clone()))?;
        Ok(if is_new { Pinned::Now } else { Pinned::Already })
    }

    /// Keeps it no more than others. False if it was not kept.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn unpin(&self, image: &ImageRef) -> Result<bool, StoreError> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.change_pins(|pins| pins.remove(image))
    }

    /// By one at a time: of two changes at once one would be lost.
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
