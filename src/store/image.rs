//! Images: what a reference stood for when it was pulled.

use serde::{Deserialize, Serialize};

use super::{Record, Store, StoreError, record};
use crate::image::{Digest, ImageRef, Platform};

/// One pulled image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// As the user wrote it, made complete.
    pub reference: ImageRef,
    /// The manifest that runs here; a blob of the store.
    pub manifest: Digest,
    /// The index that led to it, if there was one; a blob of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Digest>,
    /// The platform that was chosen.
    pub platform: Platform,
    /// When the reference was resolved.
    pub pulled_at: jiff::Timestamp,
    /// The manifest that it stood for before, which is kept to go back to as long as the image is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Digest>,
}

impl Record for ImageRecord {
    const KIND: &'static str = "image";
    const VERSION: u32 = 1;
}

impl Store {
    /// Remembers what `image.reference` stands for, in place of what it stood for before.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn record_image(&self, image: &ImageRecord) -> Result<(), StoreError> {
        Ok(record::save_with_copy(&self.image_path(&image.reference), image)?)
    }

    /// What `reference` stood for when it was last pulled. An unreadable record is set aside and is `None`.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn image(&self, reference: &ImageRef) -> Result<Option<ImageRecord>, StoreError> {
        Ok(self.load(&self.image_path(reference))?)
    }

    /// All images, ordered by reference. Unreadable records are set aside and left out.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        let folder = self.root.join("images");
        let mut keys: Vec<String> = super::names(&folder)?
            .into_iter()
            // A record of which a crash left only the previous copy counts too.
            .map(|name| name.strip_suffix(".prev").map(str::to_owned).unwrap_or(name))
            .filter(|name| Digest::from_hex(name).is_ok())
            .collect();
        keys.sort_unstable();
        keys.dedup();
        let mut images = Vec::new();
        for key in keys {
            // One that cannot be read now does not hide the others.
            images.extend(self.load::<ImageRecord>(&folder.join(key)).unwrap_or_default());
        }
        images.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(images)
    }

    /// Forgets what `reference` stands for. Its blobs and layers stay until they are collected.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove_image(&self, reference: &ImageRef) -> Result<(), StoreError> {
        Ok(record::remove(&self.image_path(reference))?)
    }

    /// The key is a digest, since a reference holds `/` and may be longer than a file name.
    fn image_path(&self, reference: &ImageRef) -> std::path::PathBuf {
        self.root.join("images").join(Digest::of(reference.to_string().as_bytes()).hex())
    }
}
