//! Images made on the spot that run: the layers of the golden shell image, and layers of the test above them.

use std::io::{Cursor, Read as _, Write as _};
use std::path::Path;

use serde_json::{Value, json};
use supervisor::estargz::{self, Prefetch, Tail, WriterOptions};
use supervisor::image::{Digest, media_type};

use super::registry::FaultRegistry;
use super::tiny_image::{descriptor, write_index};
use crate::golden::golden;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const TOC: &str = "containerd.io/snapshot/stargz/toc.digest";

/// A layer as a manifest and a registry have it.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) blob: Vec<u8>,
    descriptor: Value,
    diff_id: Digest,
}

impl Layer {
    fn new(media_type: &str, blob: Vec<u8>, diff_id: Digest) -> Self {
        Self { descriptor: descriptor(media_type, &blob), blob, diff_id }
    }

    /// An eStargz layer with chunks of 64 KiB.
    pub(crate) fn lazy(tar: Vec<u8>) -> Self {
        let mut blob = Vec::new();
        let options = WriterOptions {
            level: 1,
            chunk_size: 64 << 10,
            min_chunk_size: 0,
            prefetch: Prefetch::Nothing,
        };
        let written = estargz::write_layer(&mut Cursor::new(tar), &options, &mut blob).unwrap();
        let layer = Self::new(GZIP, blob, written.diff_id);
        layer.with_toc_digest(written.toc_digest)
    }

    /// The same with another table of contents, whatever that says; the tar inside stays.
    pub(crate) fn with_toc(self, change: impl FnOnce(&mut Value)) -> Self {
        let size = self.blob.len() as u64;
        let Ok(Tail::Complete(toc)) = estargz::tail::parse(&self.blob, size) else {
            panic!("no table of contents");
        };
        let mut json = serde_json::from_slice(&toc.json).unwrap();
        change(&mut json);
        let json = serde_json::to_vec(&json).unwrap();
        let tar = super::tar::TarBuilder::default().file("stargz.index.json", &json).finish();
        let at = usize::try_from(toc.toc_offset).unwrap();
        // The footer names the offset of the table, which stays where it was.
        let blob = [&self.blob[..at], &gzip(&tar), &self.blob[self.blob.len() - 51..]].concat();
        let mut inflated = Vec::new();
        flate2::read::MultiGzDecoder::new(&blob[..]).read_to_end(&mut inflated).unwrap();
        Self::new(GZIP, blob, Digest::of(&inflated)).with_toc_digest(Digest::of(&json))
    }

    /// Whose descriptor names this digest of the table of contents.
    pub(crate) fn with_toc_digest(mut self, digest: Digest) -> Self {
        self.descriptor["annotations"] = json!({TOC: digest.to_string()});
        self
    }

    pub(crate) fn gzip(tar: &[u8]) -> Self {
        Self::new(GZIP, gzip(tar), Digest::of(tar))
    }

    pub(crate) fn zstd(tar: &[u8]) -> Self {
        Self::new(ZSTD, zstd::encode_all(tar, 1).unwrap(), Digest::of(tar))
    }

    pub(crate) fn plain(tar: &[u8]) -> Self {
        Self::new(PLAIN, tar.to_vec(), Digest::of(tar))
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image in the making.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    layers: Vec<Layer>,
}

impl Image {
    /// An image with a shell, BusyBox and `/etc/passwd`, all lazy.
    pub(crate) fn shell() -> Self {
        let blob = |descriptor: &Value| {
            let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
            std::fs::read(golden("small-esgz").join("blobs/sha256").join(digest.hex())).unwrap()
        };
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let index = json(&std::fs::read(golden("small-esgz").join("index.json")).unwrap());
        let manifest = json(&blob(&index["manifests"][0]));
        let config = json(&blob(&manifest["config"]));
        let ids = config["rootfs"]["diff_ids"].as_array().unwrap();
        let layers = manifest["layers"].as_array().unwrap().iter().zip(ids);
        let layer = |(descriptor, id): (&Value, &Value)| Layer {
            blob: blob(descriptor),
            descriptor: descriptor.clone(),
            diff_id: id.as_str().unwrap().parse().unwrap(),
        };
        Self { layers: layers.map(layer).collect() }
    }

    /// The same with one more layer.
    pub(crate) fn and(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Of its layers.
    pub(crate) fn layer_count(&self) -> usize {
        self.layers.len()
    }

    fn config(&self) -> Vec<u8> {
        let ids: Vec<_> = self.layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let platform = supervisor::image::Platform::host();
        let value = json!({
            "os": platform.os,
            "architecture": platform.architecture,
            "config": {
                "Cmd": ["sleep", "1000"],
                "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
                "StopSignal": "SIGKILL",
            },
            "rootfs": {"type": "layers", "diff_ids": ids},
        });
        value.to_string().into_bytes()
    }

    pub(crate) fn manifest(&self) -> Vec<u8> {
        let layers: Vec<_> = self.layers.iter().map(|layer| &layer.descriptor).collect();
        let value = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": descriptor(media_type::OCI_CONFIG, &self.config()),
            "layers": layers,
        });
        value.to_string().into_bytes()
    }

    /// Puts it into `registry` as `app:v1` and returns the reference.
    pub(crate) fn put(&self, registry: &FaultRegistry) -> String {
        for layer in &self.layers {
            registry.put_blob(&layer.blob);
        }
        registry.put_blob(&self.config());
        registry.put_manifest("app", "v1", media_type::OCI_MANIFEST, &self.manifest());
        format!("{}/app:v1", registry.host())
    }

    /// Writes it as a layout folder with the tag `v1`.
    pub(crate) fn write(&self, folder: &Path) {
        let blobs = folder.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let (config, manifest) = (self.config(), self.manifest());
        let parts = self.layers.iter().map(|layer| &layer.blob).chain([&config, &manifest]);
        for bytes in parts {
            std::fs::write(blobs.join(Digest::of(bytes).hex()), bytes).unwrap();
        }
        let mut entry = descriptor(media_type::OCI_MANIFEST, &manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
        write_index(folder, &[entry]);
    }
}

/// A services file with one service, `app`; `more` is further lines of it.
pub(crate) fn app(image: &str, more: &str) -> String {
    format!("name: faults\nservices:\n  app:\n    image: {image}\n    network_mode: none\n{more}")
}
