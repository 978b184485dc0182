//! Blobs: small documents of an image (manifests, indexes, configurations), each a file named by its digest.

use std::io::{self, Read as _};
use std::path::PathBuf;

use super::durable::{self, Previous};
use super::{Store, StoreError, failed};
use crate::image::Digest;

/// Documents are at most 4 MiB; a larger file is none of ours and is not read into memory.
const MAX_BLOB_BYTES: u64 = 64 << 20;

impl Store {
    /// Where the blob is, or would be.
    #[must_use]
    pub fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Whether there is such a blob. Only [`Store::read_blob`] tells whether it is intact.
    #[must_use]
    pub fn has_blob(&self, digest: Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// The content of the blob, verified. A damaged blob is removed and is `None`: it is fetched again.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn read_blob(&self, digest: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.blob_path(digest);
        let mut bytes = Vec::new();
        let read = std::fs::File::open(&path)
            .and_then(|file| file.take(MAX_BLOB_BYTES + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) if Digest::of(&bytes) == digest => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::IO.raw_os_error()) => {
                Err(failed("read the blob", &path)(error))
            }
            Ok(_) | Err(_) => {
                tracing::warn!(%digest, "a stored blob was damaged and is removed");
                std::fs::remove_file(&path).map_err(failed("remove the damaged blob", &path))?;
                Ok(None)
            }
        }
    }

    /// Stores `bytes` under their digest, which it returns. When this returns the blob survives a power cut.
    /// Several processes may write the same blob at once.
    ///
    /// # Errors
    /// When the file system refuses, for instance because it is full.
    pub fn write_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        let path = self.blob_path(digest);
        // Read rather than looked at: a damaged blob must not keep its place.
        if std::fs::read(&path).is_ok_and(|stored| stored == bytes) {
            return Ok(digest);
        }
        durable::write(&path, bytes, Previous::Discard).map_err(failed("write the blob", &path))?;
        Ok(digest)
    }

    /// Removes the blob; nothing there is no error.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove_blob(&self, digest: Digest) -> Result<(), StoreError> {
        let path = self.blob_path(digest);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove the blob", &path)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The digests of all blobs, in no order.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn blobs(&self) -> Result<Vec<Digest>, StoreError> {
        super::names(&self.root.join("blobs/sha256"))
            .map(|names| names.iter().filter_map(|name| Digest::from_hex(name).ok()).collect())
    }
}
