//! Writing OCI image layout folders: blobs, then the entry in `index.json` that makes an image of them.
//!
//! Every file appears under its name complete or not at all, and an image is listed after everything that it needs
//! is there; what a killed run leaves is unlisted blobs and hidden temporary files. Reading layouts is `registry`'s.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::image::{Descriptor, Digest, Platform, annotation, media_type};

/// An OCI image layout folder that images are written into.
#[derive(Debug)]
pub struct Layout {
    root: PathBuf,
    blobs: PathBuf,
}

/// Why a layout folder could not be written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A file of the layout could not be read or written.
    #[error("could not write `{path}` of the image layout")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// There is something at the destination, and it is no image layout.
    #[error("`{0}` is not empty and holds no image layout")]
    NotALayout(PathBuf),
    /// The layout's list of images makes no sense.
    #[error("`{path}` is not a valid image index")]
    Index {
        /// The `index.json`.
        path: PathBuf,
        /// Where it fails.
        #[source]
        source: serde_json::Error,
    },
}

/// Attaches the path that an I/O error is about.
fn at(path: &Path) -> impl FnOnce(io::Error) -> LayoutError + '_ {
    |source| LayoutError::Io { path: path.to_owned(), source }
}

impl Layout {
    /// The layout at `root`, which is made when there is nothing.
    ///
    /// # Errors
    /// When the folder cannot be made, or holds something else than an image layout.
    pub fn open_or_create(root: &Path) -> Result<Self, LayoutError> {
        let blobs = root.join("blobs/sha256");
        let marker = root.join("oci-layout");
        fs::create_dir_all(root).map_err(at(root))?;
        let layout = Self { root: root.to_owned(), blobs };
        if !marker.try_exists().map_err(at(&marker))? {
            // A folder full of something else would otherwise be littered with blobs after a slip of the pen.
            if fs::read_dir(root).map_err(at(root))?.next().is_some() {
                return Err(LayoutError::NotALayout(root.to_owned()));
            }
            layout.replace(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        fs::create_dir_all(&layout.blobs).map_err(at(&layout.blobs))?;
        Ok(layout)
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the blob with this digest is or will be.
    #[must_use]
    pub fn blob_path(&self, digest: Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// A file in this layout's file system to collect something in: a blob in the making, or a spooled layer.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn temporary(&self) -> Result<NamedTempFile, LayoutError> {
        tempfile::Builder::new().prefix(".part-").tempfile_in(&self.root).map_err(at(&self.root))
    }

    /// Gives `blob`, whose content the caller knows to have this digest, its name.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub fn publish(&self, blob: NamedTempFile, digest: Digest) -> Result<(), LayoutError> {
        self.persist(blob, &self.blob_path(digest))
    }

    /// Stores a document and describes it.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub fn write_document(&self, kind: &str, bytes: &[u8]) -> Result<Descriptor, LayoutError> {
        let digest = Digest::of(bytes);
        self.replace(&self.blob_path(digest), bytes)?;
        Ok(Descriptor {
            media_type: kind.to_owned(),
            digest,
            size: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            annotations: std::collections::BTreeMap::new(),
        })
    }

    /// Lists `manifest` under `tag`, in place of what had this tag; `None` stands for the image without a tag.
    ///
    /// # Errors
    /// When `index.json` is damaged or cannot be written.
    pub fn list(
        &self,
        manifest: &Descriptor,
        platform: &Platform,
        tag: Option<&str>,
    ) -> Result<(), LayoutError> {
        let path = self.root.join("index.json");
        let _lock = self.lock()?;
        let mut index = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| LayoutError::Index { path: path.clone(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": []})
            }
            Err(error) => return Err(at(&path)(error)),
        };
        let manifests =
            index.get_mut("manifests").and_then(Value::as_array_mut).ok_or_else(|| {
                let source = <serde_json::Error as serde::de::Error>::missing_field("manifests");
                LayoutError::Index { path: path.clone(), source }
            })?;
        manifests.retain(|entry| entry["annotations"][annotation::REF_NAME].as_str() != tag);
        let mut entry = json!({
            "mediaType": manifest.media_type,
            "digest": manifest.digest.to_string(),
            "size": manifest.size,
            "platform": {"architecture": platform.architecture, "os": platform.os},
        });
        if let Some(variant) = &platform.variant {
            entry["platform"]["variant"] = json!(variant);
        }
        if let Some(tag) = tag {
            entry["annotations"] = json!({annotation::REF_NAME: tag});
        }
        manifests.push(entry);
        self.replace(&path, index.to_string().as_bytes())
    }

    /// Two programs that list an image at the same time would lose one of them.
    fn lock(&self) -> Result<File, LayoutError> {
        let folder = File::open(&self.root).map_err(at(&self.root))?;
        folder.lock().map_err(at(&self.root))?;
        Ok(folder)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), LayoutError> {
        let mut file = self.temporary()?;
        file.write_all(bytes).map_err(at(path))?;
        self.persist(file, path)
    }

    fn persist(&self, file: NamedTempFile, path: &Path) -> Result<(), LayoutError> {
        // Temporary files are private; a layout is made to be read by other tools and users.
        file.as_file().set_permissions(Permissions::from_mode(0o644)).map_err(at(path))?;
        file.as_file().sync_all().map_err(at(path))?;
        file.persist(path).map_err(|error| at(path)(error.error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(root: &Path) -> Vec<String> {
        let index: Value =
            serde_json::from_slice(&fs::read(root.join("index.json")).unwrap()).unwrap();
        index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| {
                entry["annotations"][annotation::REF_NAME].as_str().unwrap_or("-").to_owned()
            })
            .collect()
    }

    #[test]
    fn an_image_replaces_the_one_with_its_tag_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("images");
        let layout = Layout::open_or_create(&root).unwrap();
        let manifest = layout.write_document(media_type::OCI_MANIFEST, b"{}").unwrap();
        let platform = Platform::new("linux", "arm", Some("v7"));
        for tag in [Some("a"), None, Some("b"), Some("a"), None] {
            layout.list(&manifest, &platform, tag).unwrap();
        }
        assert_eq!(names(&root), ["b", "a", "-"]);
        assert_eq!(fs::read(layout.blob_path(manifest.digest)).unwrap(), b"{}");
        let mut left: Vec<_> =
            fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["blobs", "index.json", "oci-layout"]);
        assert!(Layout::open_or_create(&root).is_ok());
    }

    #[test]
    fn a_folder_of_something_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.txt"), "…").unwrap();
        let error = Layout::open_or_create(folder.path()).unwrap_err();
        assert!(matches!(error, LayoutError::NotALayout(_)), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_index_is_reported_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::open_or_create(folder.path()).unwrap();
        let manifest = layout.write_document(media_type::OCI_MANIFEST, b"{}").unwrap();
        let index = folder.path().join("index.json");
        for damaged in ["", "[]", r#"{"manifests":7}"#] {
            fs::write(&index, damaged).unwrap();
            let error = layout.list(&manifest, &Platform::host(), None).unwrap_err();
            assert!(matches!(error, LayoutError::Index { .. }), "{error}");
            assert_eq!(fs::read_to_string(&index).unwrap(), damaged);
        }
    }
}
