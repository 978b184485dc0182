//! Small eStargz layers made in memory: only what the lazy engine looks at, no tar headers.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::estargz::{Flavour, IndexInput, index};
use crate::image::Digest;
use crate::sys::MappedFile;

/// Collects the files of a layer, in the order of the blob.
#[derive(Debug)]
pub struct LayerBuilder {
    blob: Vec<u8>,
    entries: Vec<Value>,
}

/// A finished layer.
#[derive(Debug, Clone)]
pub struct BuiltLayer {
    /// Digest of the blob.
    pub digest: Digest,
    /// The compressed members and something in place of the table of contents.
    pub blob: Vec<u8>,
    /// The index of its table of contents.
    pub index: Vec<u8>,
}

impl Default for LayerBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl LayerBuilder {
    /// An empty layer. The blob begins with bytes that belong to no member, as a real one does.
    #[must_use]
    pub fn new() -> Self {
        Self { blob: b"header".to_vec(), entries: Vec::new() }
    }

    /// Adds a file whose chunks have `chunk` bytes; each is a member of its own.
    #[must_use]
    pub fn file(self, name: &str, content: &[u8], chunk: usize) -> Self {
        let digest = Digest::of(content);
        self.file_with_digest(name, content, chunk, digest)
    }

    /// As [`LayerBuilder::file`], with a digest of the whole that may be a lie.
    #[must_use]
    pub fn file_with_digest(
        mut self,
        name: &str,
        content: &[u8],
        chunk: usize,
        digest: Digest,
    ) -> Self {
        for (n, bytes) in content.chunks(chunk).enumerate() {
            let offset = self.member(bytes);
            let kind = if n == 0 { "reg" } else { "chunk" };
            let mut entry = json!({
                "name": name, "type": kind, "offset": offset, "chunkOffset": n * chunk,
                "chunkSize": bytes.len(), "chunkDigest": Digest::of(bytes),
            });
            if n == 0 {
                entry["size"] = json!(content.len());
                entry["mode"] = json!(0o644);
                entry["digest"] = json!(digest);
            }
            self.entries.push(entry);
        }
        if content.is_empty() {
            self.entries.push(json!({ "name": name, "type": "reg", "mode": 0o644 }));
        }
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(mut self, name: &str, target: &str) -> Self {
        self.entries.push(json!({ "name": name, "type": "symlink", "linkName": target }));
        self
    }

    /// Adds files of one chunk each that share one member.
    #[must_use]
    pub fn packed(mut self, files: &[(&str, &[u8])]) -> Self {
        let mut joined = Vec::new();
        let offset = self.blob.len();
        for (name, content) in files {
            self.entries.push(json!({
                "name": name, "type": "reg", "size": content.len(), "mode": 0o644,
                "offset": offset, "innerOffset": joined.len(),
                "digest": Digest::of(content), "chunkDigest": Digest::of(content),
            }));
            joined.extend_from_slice(content);
        }
        self.member(&joined);
        self
    }

    /// Ends the part that is worth fetching first.
    #[must_use]
    pub fn landmark(self) -> Self {
        self.file(crate::estargz::PREFETCH_LANDMARK, &[0xf], 1)
    }

    /// The layer.
    ///
    /// # Panics
    /// When the files make no layer: a name given twice, for example.
    #[must_use]
    pub fn build(mut self) -> BuiltLayer {
        let toc_offset = self.blob.len() as u64;
        self.blob.extend_from_slice(b"table of contents and footer");
        let toc = json!({ "version": 1, "entries": self.entries }).to_string();
        let blob_size = self.blob.len() as u64;
        let input = IndexInput { blob_size, toc_offset, flavour: Flavour::Gzip };
        let index = index::build(toc.as_bytes(), &input).expect("the files make a layer");
        BuiltLayer { digest: Digest::of(&self.blob), blob: self.blob, index }
    }

    fn member(&mut self, content: &[u8]) -> usize {
        let offset = self.blob.len();
        let mut encoder = GzEncoder::new(&mut self.blob, Compression::fast());
        encoder
            .write_all(content)
            .and_then(|()| encoder.try_finish())
            .expect("memory takes everything");
        offset
    }
}

impl BuiltLayer {
    /// The index as a mapped file.
    ///
    /// # Panics
    /// When there is no room for a temporary file.
    #[must_use]
    pub fn mapped_index(&self) -> MappedFile {
        let mut file = tempfile::tempfile().expect("temporary file");
        file.write_all(&self.index).expect("room for the index");
        MappedFile::open(&file).expect("mapped index")
    }
}
