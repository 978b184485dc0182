//! Descriptors: what a manifest says of a blob.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Digest;

/// Annotation keys that we read and write.
pub mod annotation {
    /// Digest of the uncompressed TOC JSON of an eStargz layer; makes a layer lazy.
    pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
    /// Size of the layer when inflated, in decimal.
    pub const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";
    /// Tag of a manifest inside an image layout's index.
    pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
}

/// How the tar of a layer is compressed, by its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, of one or many members.
    Gzip,
    /// zstd, of one or many frames.
    Zstd,
}

/// Digest, size and media type of a blob, with the annotations that its referrer gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// As written in the manifest.
    pub media_type: String,
    /// Names the content.
    pub digest: Digest,
    /// Exact length in bytes.
    pub size: u64,
    /// Trustworthy as far as the document that holds the descriptor is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The compression that the media type names, for layers of the OCI and the Docker kind;
    /// `None` for a media type that is no layer of these.
    #[must_use]
    pub fn compression(&self) -> Option<Compression> {
        // Non-distributable layers carry the same tar under another name.
        let kind = self
            .media_type
            .strip_prefix("application/vnd.oci.image.layer.v1.")
            .or_else(|| {
                self.media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1.")
            })
            .or_else(|| self.media_type.strip_prefix("application/vnd.docker.image.rootfs.diff."))
            .or_else(|| {
                self.media_type.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff.")
            })?;
        match kind {
            "tar" => Some(Compression::None),
            "tar+gzip" | "tar.gzip" => Some(Compression::Gzip),
            "tar+zstd" | "tar.zstd" => Some(Compression::Zstd),
            _ => None,
        }
    }

    /// The TOC digest that the manifest gives this layer, which is what makes lazy content verifiable.
    #[must_use]
    pub fn toc_digest(&self) -> Option<Digest> {
        self.annotations.get(annotation::TOC_DIGEST)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_media_types_of_both_families_are_known() {
        for (media_type, expected) in [
            ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar", Some(Compression::None)),
            ("application/vnd.oci.image.config.v1+json", None),
        ] {
            let descriptor = Descriptor {
                media_type: media_type.to_owned(),
                digest: Digest::of(b""),
                size: 0,
                annotations: BTreeMap::new(),
            };
            assert_eq!(descriptor.compression(), expected, "{media_type}");
        }
    }
}
