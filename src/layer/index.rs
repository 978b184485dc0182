//! The lazy way: from the last bytes of the blob to the index that is mounted.

use bytes::Bytes;

use super::{LayerError, Layers, Progress, WantedLayer, not_lazy, store_failed};
use crate::estargz::{self, Tail};
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
        let blob =
            self.client.blob(&wanted.source, wanted.descriptor.digest, wanted.descriptor.size);
        let index = match self.fetch_index(&blob, expected, progress).await? {
            Ok(index) => index,
            Err(reason) => return Ok(Err(reason)),
        };
        // Only now: the configuration is on its way at the same time.
        let source = Self::source_of(wanted).await?;
        layer.write_source(&source).map_err(store_failed(layer))?;
        layer.write_index(expected, &index).map_err(store_failed(layer))?;
        Ok(Ok(()))
    }

    /// The index of the table of contents at the end of `blob`.
    async fn fetch_index(
        &self,
        blob: &Blob,
        expected: Digest,
        progress: &Progress,
    ) -> Result<Result<Vec<u8>, NotLazy>, LayerError> {
        let size = blob.size();
        // Never the whole blob, however small: only a part that was asked for and sent shows that parts can be had
        // later.
        let mut from = (size - estargz::tail::first_tail_len(size)).max(1).min(size);
        let mut known = Bytes::new();
        let mut _large = None;
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
            let tail = known.clone();
            let read = {
                let _alone = self.reading.lock().await;
                // A hundred thousand entries take a good part of a second.
                tokio::task::spawn_blocking(move || read_tail(&tail, size, expected)).await
            };
            match read {
                Ok(ReadTail::Index(index)) => return Ok(Ok(index)),
                Ok(ReadTail::NeedFrom(earlier)) if earlier < from => from = earlier,
                Ok(ReadTail::NeedFrom(_)) => return Ok(Err(NotLazy::NoFooter)),
                Ok(ReadTail::NotLazy(reason)) => return Ok(Err(reason)),
                Err(_) => return Ok(Err(NotLazy::Toc("its reader failed".to_owned()))),
            }
            _large = self.large_tails.acquire().await.ok();
        }
    }
}

/// What the last bytes of a blob gave.
enum ReadTail {
    Index(Vec<u8>),
    NeedFrom(u64),
    NotLazy(NotLazy),
}

fn read_tail(tail: &[u8], blob_size: u64, expected: Digest) -> ReadTail {
    let built = match estargz::tail::parse(tail, blob_size) {
        Ok(Tail::NeedFrom(from)) => return ReadTail::NeedFrom(from),
        Ok(Tail::NotEstargz) => return ReadTail::NotLazy(NotLazy::NoFooter),
        Ok(Tail::Complete(toc)) => estargz::toc::verify(&toc.json, expected)
            .and_then(|()| estargz::index::build(&toc.json, &toc.index_input(blob_size))),
        Err(error) => Err(error),
    };
    match built {
        Ok(index) => ReadTail::Index(index),
        Err(error) => ReadTail::NotLazy(not_lazy(&error)),
    }
}

pub(super) fn fetch_failed(blob: &Blob, source: FetchError) -> LayerError {
    LayerError::Fetch { digest: blob.digest(), source }
}
