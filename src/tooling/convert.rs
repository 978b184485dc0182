//! Any image into one whose layers can be mounted lazily.
//!
//! Each layer is streamed from its source into a spooled tar, verified on the way, and written anew as eStargz. What
//! comes out has other digests but the same content, order of layers and settings. Layers that are eStargz already
//! are copied as they are, unless a prefetch list asks for another order of their content.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::Value;

use super::encode::{Encoded, encode};
use super::manifest::{finish, with_diff_ids};
use super::{EncodeError, Layout, LayoutError, Made};
use crate::estargz::{MissingPath, Prefetch, WriterOptions};
use crate::image::{
    Compression, Descriptor, Digest, Hasher, ImageRef, Manifest, Platform, annotation,
};
use crate::registry::{Blob, BlobStream, Client, FetchError};

/// How to convert.
#[derive(Debug, Clone, Default)]
pub struct ConvertOptions {
    /// Paths whose content is fetched before anything else is read, in this order; each is looked for in every layer.
    pub prefetch: Vec<String>,
    /// Chunks and compression; its own prefetch list is replaced by the one above.
    pub writer: WriterOptions,
}

/// An image that was converted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// What was written.
    pub made: Made,
    /// Of `prefetch`, the paths that no layer has.
    pub missing: Vec<String>,
}

/// Why an image could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The source, or a part of it, is not to be had.
    #[error("could not read the image")]
    Fetch(#[from] FetchError),
    /// Images are written into layout folders only.
    #[error("`{0}` is not an image layout; write to `oci:DIR[:TAG]`")]
    Target(ImageRef),
    /// A layer of a kind that we do not know: encrypted, or no tar.
    #[error("layer {layer} is of type `{media_type}`, which cannot be converted")]
    LayerType {
        /// Counted from 1, the lowest.
        layer: usize,
        /// As written in the manifest.
        media_type: String,
    },
    /// A layer's blob does not inflate.
    #[error("could not inflate layer {layer}")]
    Inflate {
        /// Counted from 1, the lowest.
        layer: usize,
        /// What the decompressor, the disk or the source said.
        #[source]
        source: io::Error,
    },
    /// A layer does not inflate to what the configuration says.
    #[error("layer {layer} inflates to `{found}` instead of `{expected}`")]
    DiffId {
        /// Counted from 1, the lowest.
        layer: usize,
        /// As written in the configuration.
        expected: Digest,
        /// Of the inflated bytes.
        found: Digest,
    },
    /// A layer could not be written.
    #[error("could not write layer {layer}")]
    Encode {
        /// Counted from 1, the lowest.
        layer: usize,
        /// Why.
        #[source]
        source: EncodeError,
    },
    /// The layout could not be written.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The thread that worked on a layer panicked.
    #[error("the conversion of layer {layer} was aborted")]
    Aborted {
        /// Counted from 1, the lowest.
        layer: usize,
    },
}

/// Converts `source`, as built for `platform`, into the layout that `target` names.
///
/// # Errors
/// When the source cannot be read or is not what its digests say, holds something that eStargz cannot express, or the
/// target cannot be written. Nothing is listed in the target then.
pub async fn convert(
    client: &Client,
    source: &ImageRef,
    platform: &Platform,
    target: &ImageRef,
    options: &ConvertOptions,
) -> Result<Converted, ConvertError> {
    let ImageRef::Layout { path, tag } = target else {
        return Err(ConvertError::Target(target.clone()));
    };
    let image = client.resolve(source, platform).await?;
    let layout = Arc::new(Layout::open_or_create(path)?);
    let mut writer = options.writer.clone();
    writer.prefetch = if options.prefetch.is_empty() {
        Prefetch::Nothing
    } else {
        // A path is in one of the layers, and missing in the others.
        Prefetch::Paths { paths: options.prefetch.clone(), missing: MissingPath::Skip }
    };
    let writer = Arc::new(writer);

    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    let mut missing = options.prefetch.clone();
    for (number, (layer, diff_id)) in
        image.manifest.layers.iter().zip(&image.config.diff_ids).enumerate()
    {
        let blob = client.blob(&image.source, layer.digest, layer.size);
        let job = Job {
            number: number + 1,
            descriptor: layer.clone(),
            diff_id: *diff_id,
            layout: Arc::clone(&layout),
            writer: Arc::clone(&writer),
        };
        let encoded = job.run(&blob).await?;
        missing.retain(|path| encoded.missing.contains(path));
        layers.push(encoded.descriptor);
        diff_ids.push(encoded.diff_id);
    }
    let mut config: Value = serde_json::from_slice(&image.config_bytes).unwrap_or_default();
    with_diff_ids(&mut config, &diff_ids);
    let Manifest { annotations, .. } = &image.manifest;
    let made = finish(&layout, &config, layers, annotations, (platform, tag.as_deref()))?;
    Ok(Converted { made, missing })
}

/// One layer to convert.
struct Job {
    number: usize,
    descriptor: Descriptor,
    diff_id: Digest,
    layout: Arc<Layout>,
    writer: Arc<WriterOptions>,
}

impl Job {
    async fn run(self, blob: &Blob) -> Result<Encoded, ConvertError> {
        let Some(compression) = self.descriptor.compression() else {
            let media_type = self.descriptor.media_type.clone();
            return Err(ConvertError::LayerType { layer: self.number, media_type });
        };
        let layer = self.number;
        let reader = StreamReader {
            runtime: tokio::runtime::Handle::current(),
            stream: blob.stream().await?,
            part: Bytes::new(),
        };
        let is_lazy = compression == Compression::Gzip && self.descriptor.toc_digest().is_some();
        tokio::task::spawn_blocking(move || {
            if is_lazy && self.writer.prefetch == Prefetch::Nothing {
                self.copy(reader)
            } else {
                self.rewrite(reader)
            }
        })
        .await
        .unwrap_or(Err(ConvertError::Aborted { layer }))
    }

    fn copy(self, mut blob: StreamReader) -> Result<Encoded, ConvertError> {
        let failed = |source| ConvertError::Inflate { layer: self.number, source };
        let file = self.layout.temporary()?;
        io::copy(&mut blob, &mut BufWriter::new(file.as_file())).map_err(failed)?;
        self.layout.publish(file, self.descriptor.digest)?;
        Ok(Encoded { descriptor: self.descriptor, diff_id: self.diff_id, missing: Vec::new() })
    }

    fn rewrite(self, blob: StreamReader) -> Result<Encoded, ConvertError> {
        let layer = self.number;
        let inflate = |source| ConvertError::Inflate { layer, source };
        // Spooled because the order of entries in the new layer is known only after the last entry of the old one.
        let mut spool = tempfile::tempfile_in(self.layout.root())
            .map_err(|source| LayoutError::Io { path: self.layout.root().to_owned(), source })?;
        let found = spool_tar(blob, &mut spool).map_err(inflate)?;
        if found != self.diff_id {
            return Err(ConvertError::DiffId { layer, expected: self.diff_id, found });
        }
        let mut encoded = encode(&self.layout, &mut spool, &self.writer)
            .map_err(|source| ConvertError::Encode { layer, source })?;
        // What the builder noted of the layer still holds; what it noted of the blob does not.
        for (key, value) in self.descriptor.annotations {
            let of_the_blob = key == annotation::TOC_DIGEST
                || key == annotation::UNCOMPRESSED_SIZE
                || key.starts_with("io.github.containers.zstd-chunked.")
                || key.starts_with("containerd.io/snapshot/");
            if !of_the_blob {
                encoded.descriptor.annotations.entry(key).or_insert(value);
            }
        }
        Ok(encoded)
    }
}

/// Inflates `blob` into `spool` and gives the digest of the inflated bytes. The compression is what the blob's first
/// bytes say: there are builders whose media type is wrong.
fn spool_tar(blob: impl Read, spool: &mut File) -> io::Result<Digest> {
    let mut blob = BufReader::with_capacity(256 << 10, blob);
    let start = blob.fill_buf()?;
    let compression = if start.starts_with(&[0x1f, 0x8b]) {
        Compression::Gzip
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || (start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18])
    {
        Compression::Zstd
    } else {
        Compression::None
    };
    let mut out = HashingWriter { inner: BufWriter::new(&mut *spool), hasher: Hasher::new() };
    match compression {
        Compression::Gzip => {
            io::copy(&mut flate2::bufread::MultiGzDecoder::new(&mut blob), &mut out)?
        }
        Compression::Zstd => {
            io::copy(&mut zstd::stream::read::Decoder::with_buffer(&mut blob)?, &mut out)?
        }
        Compression::None => io::copy(&mut blob, &mut out)?,
    };
    // The blob's own digest is known only at its very end.
    io::copy(&mut blob, &mut io::sink())?;
    out.inner.flush()?;
    Ok(out.hasher.finish())
}

struct HashingWriter<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: io::Write> io::Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A blob's stream for code that blocks; to be used on threads that may.
struct StreamReader {
    runtime: tokio::runtime::Handle,
    stream: BlobStream,
    part: Bytes,
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() {
            match self.runtime.block_on(self.stream.next()) {
                None => return Ok(0),
                Some(part) => self.part = part.map_err(io::Error::other)?,
            }
        }
        let length = buffer.len().min(self.part.len());
        buffer[..length].copy_from_slice(&self.part.split_to(length));
        Ok(length)
    }
}
