//! One layer on its way into a layout: a tar in, a named eStargz blob and its descriptor out. Blocking.

use std::fs::File;
use std::io::{self, BufWriter, Seek as _};

use super::{Layout, LayoutError};
use crate::estargz::{WriteError, WriterOptions, write_layer};
use crate::image::{Descriptor, Digest, annotation};

/// What every layer that we write is called; eStargz is legal gzip, and says so to those that do not know it.
pub(super) const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A layer that was written.
#[derive(Debug)]
pub(super) struct Encoded {
    /// For the manifest, with the annotations that make the layer lazy.
    pub(super) descriptor: Descriptor,
    /// For the configuration.
    pub(super) diff_id: Digest,
    /// Paths of the priority list that this layer does not have.
    pub(super) missing: Vec<String>,
}

/// Why a layer could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The tar cannot be expressed as eStargz, or could not be read.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The layout did not take the blob.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The file that holds the tar failed.
    #[error("could not read the spooled tar of the layer")]
    Spool(#[source] io::Error),
}

/// Writes `tar`, from its beginning, as an eStargz layer into `layout`.
pub(super) fn encode(
    layout: &Layout,
    tar: &mut File,
    options: &WriterOptions,
) -> Result<Encoded, EncodeError> {
    tar.rewind().map_err(EncodeError::Spool)?;
    let blob = layout.temporary()?;
    let written = write_layer(tar, options, BufWriter::new(blob.as_file()))?;
    layout.publish(blob, written.digest)?;
    let annotations = [
        (annotation::TOC_DIGEST.to_owned(), written.toc_digest.to_string()),
        (annotation::UNCOMPRESSED_SIZE.to_owned(), written.uncompressed_size.to_string()),
    ];
    Ok(Encoded {
        descriptor: Descriptor {
            media_type: LAYER_TYPE.to_owned(),
            digest: written.digest,
            size: written.size,
            annotations: annotations.into(),
        },
        diff_id: written.diff_id,
        missing: written.missing,
    })
}
