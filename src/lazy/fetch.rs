//! What a flight does: wait for a connection, fetch, inflate, verify, keep, and once more what was corrupt.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::cache::{Finished, Verify};
use super::error::ReadError;
use super::event::LazyEvent;
use super::flight::{Claim, Extent, FlightEnd, Landed};
use super::layer::{LazyLayer, piece};
use super::scheduler::{Ask, Memory, Permit, Priority};
use super::source::SourceError;
use crate::estargz::{ChunkError, chunk};
use crate::telemetry::Chain;

impl LazyLayer {
    pub(super) async fn fly(
        self: &Arc<Self>,
        claim: &Claim,
        priority: Priority,
        permit: Option<Permit>,
    ) -> Result<Landed, FlightEnd> {
        // Whoever found a chunk missing may have looked before an earlier flight landed.
        let numbers = claim.extent.numbers.clone();
        let local = self.blocking(move |layer| layer.local_chunks(&numbers));
        let local = local.await.map_err(FlightEnd::Failed)?;
        let mut chunks: HashMap<u32, Result<Bytes, ReadError>> =
            local.into_iter().map(|(number, bytes)| (number, Ok(bytes))).collect();
        let missing = claim.extent.numbers.iter().filter(|n| !chunks.contains_key(n));
        let Some(extent) = self.extent_of(missing.copied()) else {
            return Ok(Landed { chunks, end: FlightEnd::Arrived, _memory: Vec::new() });
        };
        let (bytes, memory) = self.fetch(claim, &extent, priority, permit).await?;
        let mut memory = vec![memory];
        let decoded = self.decode(&extent, bytes).await?;
        let mut suspects = Vec::new();
        for (number, result) in decoded {
            match result {
                Ok(bytes) => drop(chunks.insert(number, Ok(bytes))),
                Err(_) => suspects.push(number),
            }
        }
        // Once more, each member alone: a transfer can go wrong, and one bad member must not cost the others.
        while let Some(member) = suspects.first().and_then(|number| self.member_of(*number)) {
            let (bytes, share) = self.fetch_again(claim, &member).await?;
            memory.push(share);
            for (number, result) in self.decode(&member, bytes).await? {
                let is_suspect = suspects.contains(&number);
                match result {
                    Ok(bytes) => drop(chunks.insert(number, Ok(bytes))),
                    Err(error) if is_suspect => {
                        drop(chunks.insert(number, Err(self.corrupt(number, error))));
                    }
                    Err(_) => {}
                }
            }
            suspects.retain(|number| !member.numbers.contains(number));
        }
        Ok(Landed { chunks, end: FlightEnd::Arrived, _memory: memory })
    }

    /// The compressed bytes of a member that was in an extent of this flight, whose share of memory is still held.
    async fn fetch_again(
        &self,
        claim: &Claim,
        member: &Extent,
    ) -> Result<(Bytes, Memory), FlightEnd> {
        let member = Extent { content: 0, ..member.clone() };
        self.fetch(claim, &member, Priority::Foreground, None).await
    }

    /// The compressed bytes of `extent`. Waits while the source is lost and somebody needs them.
    async fn fetch(
        &self,
        claim: &Claim,
        extent: &Extent,
        priority: Priority,
        mut permit: Option<Permit>,
    ) -> Result<(Bytes, Memory), FlightEnd> {
        let expected = extent.range.end - extent.range.start;
        let mut priority = priority;
        loop {
            if self.health.is_lost() {
                // Readers that wait for the end of the outage keep background from its turn, and this may become
                // the probe that they wait for.
                drop(permit.take());
                priority = Priority::Foreground;
            }
            let admission = tokio::select! {
                admission = self.health.admit() => admission,
                () = self.closed.cancelled() => return Err(self.closed_end()),
            };
            let bytes = if extent.content == 0 { 0 } else { expected + extent.content };
            let ask = Ask { priority, lane: self.lane, bytes };
            let Permit { connection, memory } = match permit.take() {
                Some(permit) => permit,
                None => self.shared.scheduler.acquire(ask).await,
            };
            let fetched = tokio::select! {
                fetched = self.source.fetch(extent.range.clone()) => fetched,
                () = self.closed.cancelled() => return Err(self.closed_end()),
            };
            drop(connection);
            let error = match fetched {
                Ok(bytes) if bytes.len() as u64 == expected => {
                    if let Some(after) = admission.answered() {
                        self.tell(LazyEvent::SourceBack { layer: self.digest, after });
                    }
                    return Ok((bytes, memory));
                }
                Ok(bytes) => SourceError::refused(format!(
                    "{} bytes came where {expected} were asked for",
                    bytes.len()
                )),
                Err(error) => error,
            };
            let reason = Chain(&error).to_string();
            match error {
                SourceError::Unreachable { retry_after, .. } => {
                    if admission.failed(retry_after) {
                        self.tell(LazyEvent::SourceLost { layer: self.digest, reason });
                    }
                    if claim.flight.interested.load(Ordering::Acquire) == 0 {
                        return Err(FlightEnd::Abandoned);
                    }
                }
                SourceError::Refused { .. } => {
                    if let Some(after) = admission.answered() {
                        self.tell(LazyEvent::SourceBack { layer: self.digest, after });
                    }
                    let error = ReadError::Refused { layer: self.digest, source: Arc::new(error) };
                    self.refusals.refuse_source(error.clone());
                    self.tell(LazyEvent::SourceRefused { layer: self.digest, reason });
                    return Err(FlightEnd::Failed(error));
                }
            }
        }
    }

    /// Inflates, verifies and keeps the chunks of `extent`.
    async fn decode(
        self: &Arc<Self>,
        extent: &Extent,
        bytes: Bytes,
    ) -> Result<Vec<(u32, Result<Bytes, ChunkError>)>, FlightEnd> {
        let Ok(_turn) = self.shared.decoders.acquire().await else {
            return Err(self.closed_end());
        };
        let extent = extent.clone();
        self.blocking(move |layer| layer.decode_blocking(&extent, &bytes))
            .await
            .map_err(FlightEnd::Failed)
    }

    fn decode_blocking(
        &self,
        extent: &Extent,
        bytes: &Bytes,
    ) -> Vec<(u32, Result<Bytes, ChunkError>)> {
        let mut decoded = Vec::with_capacity(extent.numbers.len());
        let mut at = 0;
        while let Some(member) = extent.numbers.get(at).and_then(|n| self.member_of(*n)) {
            at += member.numbers.len().max(1);
            let chunks: Vec<_> =
                member.numbers.iter().filter_map(|n| Some((*n, self.chunk_of(*n)?))).collect();
            let inside = |at: u64| {
                let within = at.saturating_sub(extent.range.start);
                usize::try_from(within).map_or(bytes.len(), |within| within.min(bytes.len()))
            };
            let compressed = &bytes[inside(member.range.start)..inside(member.range.end)];
            let pieces: Vec<_> =
                chunks.iter().map(|(_, (chunk, _, _))| chunk::Piece::from(chunk)).collect();
            let results = chunk::decode_many(self.index.flavour(), compressed, &pieces);
            for ((number, (chunk, entry, n)), result) in chunks.into_iter().zip(results) {
                let result = result.map(Bytes::from);
                if let Ok(bytes) = &result
                    && let Ok(place) = self.place(entry)
                    && self.shared.cache.keep(&place, &piece(&chunk, n), bytes)
                {
                    self.progress.set(number, chunk.size);
                }
                decoded.push((number, result));
            }
        }
        decoded
    }

    /// The chunks among `numbers` that are in the cache. Blocks.
    fn local_chunks(&self, numbers: &[u32]) -> Vec<(u32, Bytes)> {
        let local = numbers.iter().filter_map(|number| {
            let (chunk, entry, n) = self.chunk_of(*number)?;
            let (place, piece) = (self.place(entry).ok()?, piece(&chunk, n));
            let cache = &self.shared.cache;
            let on_disk = cache
                .find(&place, Verify::Now)
                .and_then(|content| cache.read_piece(&piece, &content));
            let bytes = on_disk.or_else(|| {
                // There may be room for it now.
                let bytes = cache.remembered(&chunk.digest)?;
                match cache.keep(&place, &piece, &bytes) {
                    true => self.progress.set(*number, chunk.size),
                    false => self.forget(*number, chunk.size),
                }
                Some(bytes)
            });
            if bytes.is_none() {
                self.forget(*number, chunk.size);
            }
            Some((*number, bytes?))
        });
        local.collect()
    }

    /// Publishes files that became complete with `numbers`, and the layer if it did. Blocks.
    pub(super) fn settle(&self, numbers: &[u32]) {
        let mut last = None;
        for (_, entry, _) in numbers.iter().filter_map(|number| self.chunk_of(*number)) {
            if last.replace(entry) == Some(entry) {
                continue;
            }
            let Ok(place) = self.place(entry) else { continue };
            if place.chunks > 1
                && let Finished::Mismatch { expected, found } = self.shared.cache.finish(&place)
            {
                let layer = self.digest;
                self.tell(LazyEvent::FileMismatch { layer, expected, found });
            }
        }
        if self.is_complete() && !self.is_announced.swap(true, Ordering::AcqRel) {
            self.save_hint();
            // So that a complete image needs no look at its content after a power cut.
            if let Err(error) = self.shared.cache.sync() {
                tracing::warn!(error = %Chain(&error), layer = %self.digest, "could not sync content");
            }
            self.tell(LazyEvent::LayerComplete { layer: self.digest });
        } else {
            self.save_hint_if_grown();
        }
    }

    /// A chunk was not in the cache, whatever was believed.
    fn forget(&self, number: u32, size: u32) {
        if self.progress.is_set(number) {
            self.progress.unset(number, size);
            self.is_announced.store(false, Ordering::Release);
        }
    }

    fn corrupt(&self, number: u32, source: ChunkError) -> ReadError {
        let (path, offset) =
            self.chunk_of(number).map_or_else(Default::default, |(chunk, e, _)| {
                (String::from_utf8_lossy(&self.index.path(e)).into_owned(), chunk.file_offset)
            });
        let reason = Chain(&source).to_string();
        self.tell(LazyEvent::ChunkCorrupt {
            layer: self.digest,
            path: path.clone(),
            offset,
            reason,
        });
        let error = ReadError::Corrupt { path, offset, source: Arc::new(source) };
        self.refusals.refuse_chunk(number, error.clone());
        error
    }

    pub(super) fn tell(&self, event: LazyEvent) {
        self.shared.events.send(event);
    }

    fn closed_end(&self) -> FlightEnd {
        FlightEnd::Failed(ReadError::Closed(self.digest))
    }
}
