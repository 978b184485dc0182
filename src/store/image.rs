//! Images: what a reference stood for when it was pulled.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Record, Store, StoreError, aside, record};
use crate::image::{Digest, ImageRef, Platform};
use crate::telemetry::Chain;

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
        Ok(self.images_and_doubt()?.0)
    }

    /// The same, and why there may be more: a record that cannot be read, or was set aside and never replaced.
    pub(super) fn images_and_doubt(
        &self,
    ) -> Result<(Vec<ImageRecord>, Option<String>), StoreError> {
        let folder = self.root.join("images");
        // A record of which a crash left only the previous copy counts too, and so does what was set aside.
        let keys = || -> Result<BTreeSet<String>, StoreError> {
            let names = super::names(&folder)?;
            let keys = names.iter().filter_map(|name| name.split('.').next());
            Ok(keys.filter(|key| Digest::from_hex(key).is_ok()).map(str::to_owned).collect())
        };
        let mut images = Vec::new();
        let mut found = BTreeSet::new();
        let mut doubt = None;
        for key in keys()? {
            match self.load::<ImageRecord>(&folder.join(&key)) {
                Ok(Some(image)) => {
                    images.push(image);
                    found.insert(key);
                }
                Ok(None) => {}
                // One that cannot be read now does not hide the others.
                Err(error) => doubt = Some(Chain(&error).to_string()),
            }
        }
        // Asked again: one may have been removed meanwhile, or set aside just now.
        if let Some(lost) = keys()?.into_iter().find(|key| !found.contains(key)) {
            let path = folder.join(lost);
            doubt.get_or_insert_with(|| {
                let path = path.display();
                format!("the record of an image cannot be read; pull its image again, or give it up by removing `{path}.*`")
            });
        }
        images.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok((images, doubt))
    }

    /// Forgets what `reference` stands for. Its blobs and layers stay until they are collected.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove_image(&self, reference: &ImageRef) -> Result<(), StoreError> {
        let path = self.image_path(reference);
        record::remove(&path)?;
        // Whoever gives the image up gives up what was unreadable of it.
        aside::forget(&path);
        Ok(())
    }

    /// The key is a digest, since a reference holds `/` and may be longer than a file name.
    fn image_path(&self, reference: &ImageRef) -> std::path::PathBuf {
        self.root.join("images").join(Digest::of(reference.to_string().as_bytes()).hex())
    }
}
