//! The lazy way: from the last bytes of the blob to the index that is mounted.

use bytes::Bytes;

use super::{LayerError, Layers, Progress, WantedLayer, not_lazy, store_failed};
use crate::estargz::{self, Tail, TocBytes};
use crate::image::Digest;
use crate::registry::{Blob, FetchError};
use crate::store::LayerDir;

/// Why a layer cannot be lazy. Shown in `ps` and `pull`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotLazy {
    /// The manifest gives no TOC digest, so lazy content could not be verified.
    #[error("not eStargz (no TOC digest in the manifest)")]
    NoTocDigest,
    /// The blob has no footer of the format.
    #[error("not eStargz (no table of contents in the layer)")]
    NoFooter,
    /// The table of contents is not the one that the manifest names, or is unusable.
    #[error("table of contents is unusable: {0}")]
    Toc(String),
    /// Another image has the same layer, but not the same table of contents for it.
    #[error("another image gives this layer another table of contents")]
    OtherToc,
    /// The registry sends whole blobs only.
    #[error("the registry does not serve parts of a layer")]
    NoRanges,
    /// Something on this host is missing.
    #[error("{0}")]
    Host(String),
}

impl Layers {
    /// Writes index and source of a layer, unless they are here. The inner error is a reason to pull it fully.
    pub(super) async fn index(
        &self,
        layer: &LayerDir,
        wanted: &WantedLayer,
        progress: &Progress,
    ) -> Result<Result<(), NotLazy>, LayerError> {
        let Some(expected) = wanted.descriptor.toc_digest() else {
            return Ok(Err(NotLazy::NoTocDigest));
        };
        match layer.indexed_toc() {
            Some(toc) if toc == expected => return Ok(Ok(())),
            // The index may be mounted, so it stays what it is; the unpacked layer is right for both images.
            Some(_) => return Ok(Err(NotLazy::OtherToc)),
            None => {}
        }
        let source = Self::source_of(wanted)?;
        let blob =
            self.client.blob(&wanted.source, wanted.descriptor.digest, wanted.descriptor.size);
        let toc = match fetch_toc(&blob, progress).await? {
            Ok(toc) => toc,
            Err(reason) => return Ok(Err(reason)),
        };
        let blob_size = wanted.descriptor.size;
        // A hundred thousand entries take a good part of a second, which other layers should not wait for.
        let built = tokio::task::spawn_blocking(move || build(&toc, expected, blob_size)).await;
        let index = match built {
            Ok(Ok(index)) => index,
            Ok(Err(reason)) => return Ok(Err(reason)),
            Err(_) => return Ok(Err(NotLazy::Toc("its reader failed".to_owned()))),
        };
        layer.write_source(&source).map_err(store_failed(layer))?;
        layer.write_index(expected, &index).map_err(store_failed(layer))?;
        Ok(Ok(()))
    }
}

fn build(toc: &TocBytes, expected: Digest, blob_size: u64) -> Result<Vec<u8>, NotLazy> {
    estargz::toc::verify(&toc.json, expected).map_err(|error| not_lazy(&error))?;
    estargz::index::build(&toc.json, &toc.index_input(blob_size)).map_err(|error| not_lazy(&error))
}

async fn fetch_toc(
    blob: &Blob,
    progress: &Progress,
) -> Result<Result<TocBytes, NotLazy>, LayerError> {
    let size = blob.size();
    // Never the whole blob, however small: only a part that was asked for and sent shows that parts can be had later.
    let mut from = (size - estargz::tail::first_tail_len(size)).max(1).min(size);
    let mut known = Bytes::new();
    // At most twice: the second time the start of the table of contents is known.
    loop {
        let known_from = size - known.len() as u64;
        let part = match blob.range(from..known_from).await {
            Ok(part) => part,
            Err(error) if error.is_range_unsupported() => return Ok(Err(NotLazy::NoRanges)),
            Err(source) => return Err(fetch_failed(blob, source)),
        };
        known = if known.is_empty() { part } else { [part, known].concat().into() };
        progress(known.len() as u64, known.len() as u64);
        match estargz::tail::parse(&known, size) {
            Ok(Tail::Complete(toc)) => return Ok(Ok(toc)),
            Ok(Tail::NeedFrom(earlier)) if earlier < from => from = earlier,
            Ok(Tail::NeedFrom(_) | Tail::NotEstargz) => return Ok(Err(NotLazy::NoFooter)),
            Err(error) => return Ok(Err(not_lazy(&error))),
        }
    }
}

pub(super) fn fetch_failed(blob: &Blob, source: FetchError) -> LayerError {
    LayerError::Fetch { digest: blob.digest(), source }
}
