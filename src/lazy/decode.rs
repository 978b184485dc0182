//! From compressed members to content in the cache and in the hands of those who wait. Everything here blocks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::buffers::Buffers;
use super::cache::{Finished, Verify};
use super::error::ReadError;
use super::event::LazyEvent;
use super::extent::Extent;
use super::flight::{Came, Flight};
use super::layer::{LazyLayer, piece};
use super::scheduler::Memory;
use crate::estargz::{ChunkError, chunk};
use crate::telemetry::Chain;

/// Chunks that came and are not what they should be.
pub(super) type Suspects = Vec<(u32, ChunkError)>;

impl LazyLayer {
    /// Inflates, verifies, keeps and lands the members of `batch`, first those that somebody waits for. Gives the
    /// chunks that are not what they should be.
    pub(super) fn decode(
        &self,
        flight: &Flight,
        batch: &Extent,
        bytes: &[Bytes],
        mut memory: Memory,
    ) -> Suspects {
        let Buffers { mut joined, mut content } = self.shared.buffers.take();
        let bytes: &[u8] = match bytes {
            [bytes] => bytes,
            several => {
                joined.clear();
                several.iter().for_each(|piece| joined.extend_from_slice(piece));
                &joined
            }
        };
        let is_awaited = |member: &Extent| member.numbers.iter().any(|n| flight.is_wanted(*n));
        let (mut members, later): (Vec<Extent>, Vec<Extent>) =
            self.members_in(batch).into_iter().partition(is_awaited);
        members.extend(later);
        let mut wrong = Vec::new();
        for member in members {
            let share = memory.split(member.length() + member.content);
            let inside = |at: u64| {
                let within = at.saturating_sub(batch.range.start);
                usize::try_from(within).map_or(bytes.len(), |within| within.min(bytes.len()))
            };
            let compressed = &bytes[inside(member.range.start)..inside(member.range.end)];
            let mut sound = Vec::with_capacity(member.numbers.len());
            let lent = (!is_awaited(&member)).then_some(&mut content);
            for (number, result) in self.decode_member(&member, compressed, lent) {
                match result {
                    Ok(came) => sound.push((number, Ok(came))),
                    Err(error) => wrong.push((number, error)),
                }
            }
            if sound.len() == member.numbers.len() {
                self.land(flight, &member, sound, Some(share));
            } else {
                flight.deliver(sound, Some(share));
            }
        }
        self.shared.buffers.give_back(Buffers { joined, content });
        wrong
    }

    /// With a buffer, the content of a member that nobody waits for is only lent.
    fn decode_member<'b>(
        &self,
        member: &Extent,
        compressed: &[u8],
        buffer: Option<&'b mut Vec<u8>>,
    ) -> Vec<(u32, Result<Came<'b>, ChunkError>)> {
        let chunks: Vec<_> =
            member.numbers.iter().filter_map(|n| Some((*n, self.chunk_of(*n)?))).collect();
        let pieces: Vec<_> =
            chunks.iter().map(|(_, (chunk, _, _))| chunk::Piece::from(chunk)).collect();
        let flavour = self.index.flavour();
        let results: Vec<Result<Came<'b>, ChunkError>> = match buffer {
            Some(buffer) => chunk::decode_into(flavour, compressed, &pieces, buffer)
                .into_iter()
                .map(|result| result.map(Came::from))
                .collect(),
            None => chunk::decode_many(flavour, compressed, &pieces)
                .into_iter()
                .map(|result| result.map(|bytes| Came::Kept(bytes.into())))
                .collect(),
        };
        let kept = chunks.into_iter().zip(results).map(|((number, (chunk, entry, n)), result)| {
            if let Ok(bytes) = &result
                && let Ok(place) = self.place(entry)
                && let Some(_landing) = self.shared.cache.keep(&place, &piece(&chunk, n), bytes)
            {
                self.progress.set(number, chunk.size);
            }
            (number, result)
        });
        kept.collect()
    }

    /// Lands what of `numbers` is in the cache, and gives the others.
    pub(super) fn land_local(&self, flight: &Flight, numbers: &[u32]) -> Vec<u32> {
        let mut missing = Vec::new();
        let mut at = 0;
        while let Some(member) = numbers.get(at).and_then(|number| self.member_of(*number)) {
            let mut local = Vec::new();
            let mut is_whole = true;
            for number in &member.numbers {
                if flight.is_wanted(*number) {
                    match self.local_chunk(*number) {
                        Some(bytes) => local.push((*number, Ok(Came::Kept(bytes)))),
                        None => is_whole = false,
                    }
                } else {
                    is_whole &= self.is_local(*number);
                }
            }
            at += member.numbers.len().max(1);
            if is_whole {
                self.land(flight, &member, local, None);
            } else {
                flight.deliver(local, None);
                missing.extend(member.numbers);
            }
        }
        missing
    }

    /// Whether `number` is in the cache, as far as can be told without reading it.
    fn is_local(&self, number: u32) -> bool {
        let Some((chunk, entry, n)) = self.chunk_of(number) else { return false };
        if self.progress.is_set(number) {
            return true;
        }
        let Ok(place) = self.place(entry) else { return false };
        let cache = &self.shared.cache;
        let found = cache.find(&place, Verify::Later);
        let is_local = found.is_some_and(|content| cache.has_piece(&piece(&chunk, n), &content));
        if is_local {
            self.progress.set(number, chunk.size);
        }
        is_local
    }

    /// The content of `number`, if it is in the cache.
    fn local_chunk(&self, number: u32) -> Option<Bytes> {
        let (chunk, entry, n) = self.chunk_of(number)?;
        let (place, piece) = (self.place(entry).ok()?, piece(&chunk, n));
        let cache = &self.shared.cache;
        let on_disk =
            cache.find(&place, Verify::Now).and_then(|content| cache.read_piece(&piece, &content));
        let bytes = on_disk.or_else(|| {
            // There may be room for it now.
            let bytes = cache.remembered(&chunk.digest)?;
            match cache.keep(&place, &piece, &bytes) {
                Some(_landing) => self.progress.set(number, chunk.size),
                None => self.forget(number, chunk.size),
            }
            Some(bytes)
        });
        if bytes.is_none() {
            self.forget(number, chunk.size);
        }
        bytes
    }

    pub(super) fn members_in(&self, extent: &Extent) -> VecDeque<Extent> {
        let mut members = VecDeque::new();
        let mut at = 0;
        while let Some(member) = extent.numbers.get(at).and_then(|n| self.member_of(*n)) {
            at += member.numbers.len().max(1);
            members.push_back(member);
        }
        members
    }

    /// Publishes files that became complete with `numbers`, and the layer if it did. Blocks.
    pub(super) fn settle(&self, numbers: &[u32]) {
        let mut last = None;
        for (_, entry, _) in numbers.iter().filter_map(|number| self.chunk_of(*number)) {
            if last.replace(entry) == Some(entry) || self.index.chunk_count(entry) <= 1 {
                continue;
            }
            let Ok(place) = self.place(entry) else { continue };
            if let Finished::Mismatch { expected, found } = self.shared.cache.finish(&place) {
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
    pub(super) fn forget(&self, number: u32, size: u32) {
        if self.progress.is_set(number) {
            self.progress.unset(number, size);
            self.is_announced.store(false, Ordering::Release);
        }
    }

    /// Gives up on a chunk that was corrupt twice, for a while.
    pub(super) fn corrupt(&self, number: u32, source: ChunkError) -> ReadError {
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
}
