//! The full way: the blob streams into a confined child that unpacks it.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::index::fetch_failed;
use super::{LayerError, Layers, Progress, WantedLayer, store_failed};
use crate::registry::{Blob, FetchError};
use crate::store::LayerDir;
use crate::unpack::{self, ChildError, DigestCheck, UnpackInput};

/// Pieces of the network that wait for the unpacking child; each is at most a few hundred KiB.
const PIECES: usize = 32;

/// Bytes of a layer between two looks at the free space; unpacked they are some times as many.
const LOOK: u64 = 2 << 20;

/// Layers that are unpacked at the same time: all processors are busy with two or three, and a small layer, which is
/// mostly waiting for its first byte, should not keep others from beginning.
pub(super) fn parallel() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).clamp(4, 8)
}

impl Layers {
    /// Fetches, verifies and unpacks a layer, and publishes it.
    pub(super) async fn unpack(
        &self,
        layer: &LayerDir,
        wanted: &WantedLayer,
        progress: &Progress,
    ) -> Result<(), LayerError> {
        let source = Self::source_of(wanted).await?;
        let _permit = self.unpacking.acquire().await.ok();
        let digest = wanted.descriptor.digest;
        let blob = self.client.blob(&wanted.source, digest, wanted.descriptor.size);
        let input = UnpackInput {
            compression: source.compression,
            digest,
            size: source.size,
            diff_id: source.diff_id,
        };
        let failed = move |source| LayerError::Unpack { digest, source: Arc::new(source) };
        let staging = layer.staging().map_err(store_failed(layer))?;
        let (reader, writer) =
            unpack::blob_pipe().map_err(|source| failed(ChildError::Start(source)))?;
        let child = unpack::run_child(&self.exe, &input, DigestCheck::Caller, staging, reader)
            .map_err(failed)?;
        let unpacking = tokio::task::spawn_blocking(move || child.wait());
        let has_room = || self.store.has_free(self.reserve);
        let fed = feed(&blob, writer, has_room, progress).await;
        let unpacked =
            unpacking.await.map_err(|error| failed(ChildError::Report(error.to_string())))?;
        // The child sees only a stream that ended early when the fetch fails, so the fetch's error comes first.
        let fed = fed.map_err(|source| fetch_failed(&blob, source))?;
        if fed == Fed::NoRoom {
            return Err(store_failed(layer)(self.store.no_room()));
        }
        let finished = unpacked.map_err(failed)?;
        if fed == Fed::InPart {
            let detail = "it reports success and did not read the whole layer".to_owned();
            return Err(failed(ChildError::Report(detail)));
        }
        for gap in &finished.unconfined {
            tracing::debug!(gap, "layers are unpacked with less confinement than wanted");
        }
        let staging = finished.staging;
        layer.write_source(&source).map_err(store_failed(layer))?;
        let layer = layer.clone();
        let error = store_failed(&layer);
        tokio::task::spawn_blocking(move || layer.publish_full(staging))
            .await
            .map_err(|join| failed(ChildError::Report(join.to_string())))?
            .map_err(error)
    }
}

/// How much of a blob the child took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fed {
    /// All of it, and it is what its digest says.
    Whole,
    /// Not all; its report says why.
    InPart,
    /// Not all, because the disk has no more than what is to stay free.
    NoRoom,
}

/// Writes the blob into the pipe, and verifies it. A child that has gone away ends it without an error.
async fn feed(
    blob: &Blob,
    writer: OwnedFd,
    has_room: impl Fn() -> bool,
    progress: &Progress,
) -> Result<Fed, FetchError> {
    let (pieces, mut waiting) = mpsc::channel::<Bytes>(PIECES);
    let mut pipe = File::from(writer);
    let writing = tokio::task::spawn_blocking(move || {
        while let Some(piece) = waiting.blocking_recv() {
            if pipe.write_all(&piece).is_err() {
                return Fed::InPart;
            }
        }
        Fed::Whole
    });
    let (mut done, mut look_at) = (0, 0);
    let result = async {
        let mut stream = blob.stream().await?;
        while let Some(piece) = stream.next().await {
            let piece = piece?;
            if done >= look_at {
                look_at = done + LOOK;
                if !has_room() {
                    return Ok(Fed::NoRoom);
                }
            }
            done += piece.len() as u64;
            progress(done, blob.size());
            if pieces.send(piece).await.is_err() {
                return Ok(Fed::InPart);
            }
        }
        Ok(Fed::Whole)
    }
    .await;
    drop(pieces);
    let written = writing.await.unwrap_or(Fed::InPart);
    result.map(|streamed| match streamed {
        Fed::NoRoom => Fed::NoRoom,
        streamed if streamed == written => streamed,
        Fed::Whole | Fed::InPart => Fed::InPart,
    })
}
