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

use super::error::ReadError;
use super::layer::LazyLayer;
use super::scheduler::{Memory, Permit, Priority};
use crate::estargz::{Chunk, ChunkNo, EntryNo};

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
    pub(super) interested: Arc<AtomicUsize>,
}

/// What a flight brought. Lives until the last reader has taken its part, and so does its share of memory.
#[derive(Debug)]
pub(super) struct Landed {
    pub(super) chunks: HashMap<u32, Result<Bytes, ReadError>>,
    pub(super) end: FlightEnd,
    pub(super) _memory: Vec<Memory>,
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
pub(super) struct Claim {
    layer: Arc<LazyLayer>,
    pub(super) extent: Extent,
    pub(super) flight: Flight,
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
    pub(super) fn extent_of(&self, numbers: impl Iterator<Item = u32>) -> Option<Extent> {
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
