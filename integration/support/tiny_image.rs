//! An image of a few bytes with one layer, made on the spot: for tests that care about transport, not content.

use std::path::Path;

use serde_json::json;
use supervisor::image::{Digest, Platform, media_type};

use super::registry::FaultRegistry;

/// The parts of an image, as they would be sent.
pub(crate) struct TinyImage {
    pub(crate) layer: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

impl TinyImage {
    /// An image for this host whose layer has `size` bytes. They are no tar: nobody looks inside.
    pub(crate) fn new(size: usize) -> Self {
        Self::build(size, &Platform::host())
    }

    /// The same for another platform.
    pub(crate) fn build(size: usize, platform: &Platform) -> Self {
        let layer: Vec<u8> = (0..size).map(|n| (n.wrapping_mul(31) >> 3) as u8).collect();
        let config = json!({
            "os": platform.os,
            "architecture": platform.architecture,
            "config": {"Cmd": ["/hello"]},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer).to_string()]},
        })
        .to_string()
        .into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": descriptor(media_type::OCI_CONFIG, &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        })
        .to_string()
        .into_bytes();
        Self { layer, config, manifest }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Puts all parts into `registry`.
    pub(crate) fn put(&self, registry: &FaultRegistry, repository: &str, tag: &str) {
        registry.put_blob(&self.layer);
        registry.put_blob(&self.config);
        registry.put_manifest(repository, tag, media_type::OCI_MANIFEST, &self.manifest);
    }

    /// Writes the image as a layout folder with one tag.
    pub(crate) fn write(&self, folder: &Path, tag: &str) {
        let mut entry = descriptor(media_type::OCI_MANIFEST, &self.manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        self.write_blobs(folder);
        write_index(folder, &[entry]);
    }

    /// Adds the blobs to a layout folder.
    pub(crate) fn write_blobs(&self, folder: &Path) {
        let blobs = folder.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).expect("a folder for blobs");
        for bytes in [&self.layer, &self.config, &self.manifest] {
            std::fs::write(blobs.join(Digest::of(bytes).hex()), bytes).expect("a blob");
        }
    }
}

/// Writes the files that make a folder an image layout.
pub(crate) fn write_index(folder: &Path, entries: &[serde_json::Value]) {
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    std::fs::write(folder.join("index.json"), index).expect("an index");
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
        .expect("a layout mark");
}

/// What a manifest says of `bytes`.
pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    json!({
        "mediaType": media_type,
        "digest": Digest::of(bytes).to_string(),
        "size": bytes.len(),
    })
}
