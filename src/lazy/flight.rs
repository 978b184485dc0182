//! How missing chunks get here: one *flight* for a contiguous part of the blob, whoever asked for it, from the wait
//! for a connection to the content in the cache.
//!
//! A flight is a task of its own: readers wait for it and may leave. It takes whole members and keeps every chunk
//! that is in them. A member that is in a flight is in no other.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use super::cache::{Finished, Verify};
use super::error::ReadError;
use super::event::LazyEvent;
use super::layer::{LazyLayer, piece};
use super::scheduler::{Ask, Memory, Permit, Priority};
use super::source::SourceError;
use crate::estargz::{Chunk, ChunkError, ChunkNo, EntryNo, chunk};
use crate::telemetry::Chain;

/// Members of the blob and all their chunks, in the order of the blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) range: Range<u64>,
    pub(super) numbers: Vec<u32>,
    /// Inflated bytes of the chunks.
    pub(super) content: u64,
}

/// The flights of a layer, by the beginnings of their members.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<u64, Flight>>);

/// A flight that others wait for.
#[derive(Debug, Clone)]
pub(super) struct Flight {
    landed: watch::Receiver<Option<Arc<Landed>>>,
    interested: Arc<AtomicUsize>,
}

/// What a flight brought. Lives until the last reader has taken its part, and so does its share of memory.
#[derive(Debug)]
pub(super) struct Landed {
    chunks: HashMap<u32, Result<Bytes, ReadError>>,
    pub(super) end: FlightEnd,
    _memory: Vec<Memory>,
}

/// How often a reader joins flights that end without a result for it, before it gives up. Each such end is a race
/// with another reader that left, so that even a second one is rare.
const MAX_ROUNDS: u32 = 32;

/// How a flight ended.
#[derive(Debug, Clone)]
pub(super) enum FlightEnd {
    /// Every chunk has its result.
    Arrived,
    /// The source cannot be reached and nobody waits.
    Abandoned,
    /// Nothing was fetched.
    Failed(ReadError),
}

/// Counts one who waits for a flight.
#[derive(Debug)]
struct Interest(Arc<AtomicUsize>);

impl Interest {
    fn in_flight(flight: &Flight) -> Self {
        flight.interested.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(&flight.interested))
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Flight>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.interested, &other.interested)
    }

    /// Waits for the end; `None` if it was cut off.
    pub(super) async fn landing(&mut self) -> Option<Arc<Landed>> {
        self.landed.wait_for(Option::is_some).await.ok().and_then(|landed| landed.clone())
    }
}

/// A place in the map of flights, given back however the flight ends.
#[derive(Debug)]
struct Claim {
    layer: Arc<LazyLayer>,
    extent: Extent,
    flight: Flight,
    sender: watch::Sender<Option<Arc<Landed>>>,
}

impl Claim {
    fn land(self, landed: Landed) {
        let landed = Arc::new(landed);
        self.sender.send_replace(Some(landed));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut flights = self.layer.flights.lock();
        for start in self.layer.member_starts(&self.extent) {
            flights.remove(&start);
        }
    }
}

impl LazyLayer {
    /// The chunks `wanted` of a file, fetched where they are not local.
    pub(super) async fn read_missing(
        &self,
        entry: EntryNo,
        wanted: Range<u32>,
    ) -> Result<Vec<(Chunk, Bytes)>, ReadError> {
        let layer = self.strong()?;
        let _reading = self.shared.scheduler.foreground_read();
        let chunks: Vec<Chunk> = wanted.filter_map(|n| self.index.chunk(entry, n)).collect();
        let mut found: HashMap<u32, Bytes> = HashMap::new();
        let mut waited = Duration::ZERO;
        for _ in 0..MAX_ROUNDS {
            let mut missing = Vec::new();
            for chunk in &chunks {
                let number = chunk.number.0;
                if found.contains_key(&number) {
                    continue;
                }
                if let Some(bytes) = self.shared.cache.remembered(&chunk.digest) {
                    found.insert(number, bytes);
                } else if let Some(error) = self.refusal(number) {
                    return Err(error);
                } else {
                    missing.push(number);
                }
            }
            if missing.is_empty() {
                let ordered = chunks.into_iter().filter_map(|chunk| {
                    let bytes = found.remove(&chunk.number.0)?;
                    Some((chunk, bytes))
                });
                return Ok(ordered.collect());
            }
            for (mut flight, _interest) in layer.join(&missing) {
                let Some(landed) = self.wait_for(&mut flight, &mut waited).await? else { continue };
                if let FlightEnd::Failed(error) = &landed.end {
                    return Err(error.clone());
                }
                for number in &missing {
                    if let Some(result) = landed.chunks.get(number) {
                        found.insert(*number, result.clone()?);
                    }
                }
            }
        }
        Err(ReadError::Interrupted(self.digest))
    }

    /// Waits for `flight`, but not for ever for a source that is lost. `None`: it ended without a result.
    async fn wait_for(
        &self,
        flight: &mut Flight,
        waited: &mut Duration,
    ) -> Result<Option<Arc<Landed>>, ReadError> {
        loop {
            let limit = self.shared.limits.wait_limit;
            let left = limit.map_or(Duration::MAX, |limit| limit.saturating_sub(*waited));
            let began = Instant::now();
            tokio::select! {
                // All three only wait: the flight goes on without us.
                landed = flight.landing() => {
                    *waited += began.elapsed();
                    return Ok(landed);
                }
                () = self.closed.cancelled() => return Err(ReadError::Closed(self.digest)),
                () = tokio::time::sleep(left), if limit.is_some() => {
                    *waited += began.elapsed();
                    if self.health.is_lost() {
                        return Err(ReadError::Unavailable { layer: self.digest, waited: *waited });
                    }
                    // Slow is not lost: the clock starts again.
                    *waited = Duration::ZERO;
                }
            }
        }
    }

    /// The flights that bring the chunks `missing`: those under way, and further ones that begin here.
    fn join(self: &Arc<Self>, missing: &[u32]) -> Vec<(Flight, Interest)> {
        let mut joined: Vec<(Flight, Interest)> = Vec::new();
        let mut extents: Vec<Extent> = Vec::new();
        let claims: Vec<Claim> = {
            let mut flights = self.flights.lock();
            let mut numbers = missing.to_vec();
            numbers.sort_unstable();
            for number in numbers {
                if extents.last().is_some_and(|extent| extent.reaches(number)) {
                    continue;
                }
                let Some(member) = self.member_of(number) else { continue };
                match flights.get(&member.range.start) {
                    Some(flight) => {
                        if !joined.iter().any(|(other, _)| other.is(flight)) {
                            joined.push((flight.clone(), Interest::in_flight(flight)));
                        }
                    }
                    None => match extents.last_mut() {
                        Some(last) if self.fits(last, &member) => last.append(member),
                        Some(_) | None => extents.push(member),
                    },
                }
            }
            extents.into_iter().map(|extent| self.claim(&mut flights, extent)).collect()
        };
        for claim in claims {
            joined.push((claim.flight.clone(), Interest::in_flight(&claim.flight)));
            self.launch(claim, Priority::Foreground, None);
        }
        joined
    }

    /// Begins a flight for what of `extent` is in none, with a permit in hand.
    pub(super) fn begin(
        self: &Arc<Self>,
        extent: &Extent,
        priority: Priority,
        permit: Permit,
    ) -> Option<Flight> {
        let claim = {
            let mut flights = self.flights.lock();
            let mut free: Option<Extent> = None;
            for number in &extent.numbers {
                let is_taken = free.as_ref().is_some_and(|free| free.reaches(*number));
                let Some(member) = (!is_taken).then(|| self.member_of(*number)).flatten() else {
                    continue;
                };
                if !flights.contains_key(&member.range.start) {
                    match free.as_mut() {
                        Some(free) => free.append(member),
                        None => free = Some(member),
                    }
                }
            }
            self.claim(&mut flights, free?)
        };
        let flight = claim.flight.clone();
        self.launch(claim, priority, Some(permit));
        Some(flight)
    }

    fn claim(self: &Arc<Self>, flights: &mut HashMap<u64, Flight>, extent: Extent) -> Claim {
        let (sender, landed) = watch::channel(None);
        let flight = Flight { landed, interested: Arc::default() };
        for start in self.member_starts(&extent) {
            flights.insert(start, flight.clone());
        }
        Claim { layer: Arc::clone(self), extent, flight, sender }
    }

    fn launch(self: &Arc<Self>, claim: Claim, priority: Priority, permit: Option<Permit>) {
        let layer = Arc::clone(self);
        self.shared.runtime.spawn(async move {
            let landed = layer.fly(&claim, priority, permit).await;
            let landed = landed.unwrap_or_else(|end| Landed {
                chunks: HashMap::new(),
                end,
                _memory: Vec::new(),
            });
            let numbers = claim.extent.numbers.clone();
            claim.land(landed);
            // After the readers have their bytes: hashing a large file takes its time.
            drop(layer.blocking(move |layer| layer.settle(&numbers)).await);
        });
    }

    async fn fly(
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
                    self.refuse_source(error.clone());
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
        self.refuse_chunk(number, error.clone());
        error
    }

    pub(super) fn tell(&self, event: LazyEvent) {
        self.shared.events.send(event);
    }

    fn closed_end(&self) -> FlightEnd {
        FlightEnd::Failed(ReadError::Closed(self.digest))
    }

    pub(super) fn chunk_of(&self, number: u32) -> Option<(Chunk, EntryNo, u32)> {
        let (entry, n) = self.index.chunk_by_number(ChunkNo(number))?;
        Some((self.index.chunk(entry, n)?, entry, n))
    }

    /// The member that holds `number`, with all its chunks.
    pub(super) fn member_of(&self, number: u32) -> Option<Extent> {
        let (chunk, _, _) = self.chunk_of(number)?;
        let numbers: Vec<u32> = self.index.member_chunks(ChunkNo(number)).collect();
        let content = numbers.iter().filter_map(|n| self.chunk_of(*n));
        let content = content.map(|(chunk, _, _)| u64::from(chunk.size)).sum();
        Some(Extent { range: chunk.member, numbers, content })
    }

    /// The members that hold `numbers`, which are in the order of the blob.
    fn extent_of(&self, numbers: impl Iterator<Item = u32>) -> Option<Extent> {
        let mut extent: Option<Extent> = None;
        for number in numbers {
            if extent.as_ref().is_some_and(|extent| extent.reaches(number)) {
                continue;
            }
            let member = self.member_of(number)?;
            match extent.as_mut() {
                Some(extent) => extent.append(member),
                None => extent = Some(member),
            }
        }
        extent
    }

    fn member_starts(&self, extent: &Extent) -> Vec<u64> {
        let chunks = extent.numbers.iter().filter_map(|number| self.chunk_of(*number));
        let mut starts: Vec<u64> = chunks.map(|(chunk, _, _)| chunk.member.start).collect();
        starts.dedup();
        starts
    }

    /// Whether `member`, which lies behind `extent`, is fetched together with it.
    pub(super) fn fits(&self, extent: &Extent, member: &Extent) -> bool {
        let limits = &self.shared.limits;
        member.range.start >= extent.range.start
            && member.range.start.saturating_sub(extent.range.end) <= limits.extent_gap
            && member.range.end.saturating_sub(extent.range.start) <= limits.extent_bytes
    }
}

impl Extent {
    /// Whether `number`, which is not before the extent's last member, is in it.
    fn reaches(&self, number: u32) -> bool {
        self.numbers.last().is_some_and(|last| number <= *last)
    }

    /// Adds a member that lies behind.
    pub(super) fn append(&mut self, member: Self) {
        self.range.end = self.range.end.max(member.range.end);
        self.content += member.content;
        self.numbers.extend(member.numbers);
    }
}
