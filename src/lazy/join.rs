//! Readers and fills on their way to a flight: joined where one is under way, begun where none is.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::error::ReadError;
use super::extent::Extent;
use super::flight::{Claim, Flight, FlightEnd, Interest};
use super::layer::LazyLayer;
use super::scheduler::{Permit, Priority};
use crate::estargz::{Chunk, EntryNo};

/// How often a reader joins flights that end without a result for it, before it gives up. Each such end is a race
/// with another reader that left, so that even a second one is rare.
const MAX_ROUNDS: u32 = 32;

/// A flight that a reader waits for, and the chunks that it wants of it.
#[derive(Debug)]
struct Joined {
    flight: Flight,
    _interest: Interest,
    numbers: Vec<u32>,
}

impl Joined {
    fn new(flight: &Flight, numbers: Vec<u32>) -> Self {
        Self { flight: flight.clone(), _interest: flight.interest(), numbers }
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
            for joined in layer.join(&missing) {
                self.wait_for(&joined, &mut waited).await?;
                found.extend(joined.flight.take(&joined.numbers)?);
            }
        }
        Err(ReadError::Interrupted(self.digest))
    }

    /// Waits for the chunks of a flight, but not for ever for a source that is lost.
    async fn wait_for(&self, joined: &Joined, waited: &mut Duration) -> Result<(), ReadError> {
        loop {
            let limit = self.shared.limits.wait_limit;
            let left = limit.map_or(Duration::MAX, |limit| limit.saturating_sub(*waited));
            let began = Instant::now();
            tokio::select! {
                // All three only wait: the flight goes on without us.
                () = joined.flight.landing(&joined.numbers) => {
                    *waited += began.elapsed();
                    return Ok(());
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
    fn join(self: &Arc<Self>, missing: &[u32]) -> Vec<Joined> {
        let mut joined: Vec<Joined> = Vec::new();
        let mut extents: Vec<(Extent, Vec<u32>)> = Vec::new();
        let most = self.shared.limits.extent_bytes;
        let claims: Vec<Claim> = {
            let mut flights = self.flights.lock();
            let mut numbers = missing.to_vec();
            numbers.sort_unstable();
            for number in numbers {
                if let Some((extent, needed)) = extents.last_mut()
                    && extent.reaches(number)
                {
                    needed.push(number);
                    continue;
                }
                let Some(member) = self.member_of(number) else { continue };
                if let Some(flight) = flights.get(&member.range.start) {
                    flight.want(number);
                    match joined.iter_mut().find(|other| other.flight.is(flight)) {
                        Some(other) => other.numbers.push(number),
                        None => joined.push(Joined::new(flight, vec![number])),
                    }
                    continue;
                }
                match extents.last_mut() {
                    Some((last, needed)) if self.fits(last, &member, most) => {
                        last.append(member);
                        needed.push(number);
                    }
                    Some(_) | None => extents.push((member, vec![number])),
                }
            }
            if let [(extent, _)] = &mut *extents {
                self.widen(extent, &flights);
            }
            let claim = |(extent, needed)| Claim::new(self, &mut flights, extent, Some(needed));
            extents.into_iter().map(claim).collect()
        };
        for claim in claims {
            let numbers = missing.iter().copied().filter(|n| claim.flight.is_wanted(*n)).collect();
            joined.push(Joined::new(&claim.flight, numbers));
            self.launch(claim, Priority::Foreground, None);
        }
        joined
    }

    /// Begins flights for what of `extent` is in none, the first with the permit in hand.
    pub(super) fn begin(
        self: &Arc<Self>,
        extent: &Extent,
        priority: Priority,
        permit: Permit,
    ) -> Vec<Flight> {
        let claims: Vec<Claim> = {
            let mut flights = self.flights.lock();
            let is_free = |number: &u32| {
                let start = self.chunk_of(*number).map(|(chunk, _, _)| chunk.member.start);
                start.is_some_and(|start| !flights.contains_key(&start))
            };
            // What others bring makes a gap that is not fetched again.
            let free = extent.numbers.iter().copied().filter(is_free);
            let free = self.extents_of(free.collect::<Vec<_>>().into_iter());
            free.into_iter().map(|free| Claim::new(self, &mut flights, free, None)).collect()
        };
        let mut permit = Some(permit);
        let launch = |claim: Claim| {
            let flight = claim.flight.clone();
            self.launch(claim, priority, permit.take());
            flight
        };
        claims.into_iter().map(launch).collect()
    }

    fn launch(self: &Arc<Self>, claim: Claim, priority: Priority, permit: Option<Permit>) {
        let layer = Arc::clone(self);
        self.shared.runtime.spawn(async move {
            let flown = layer.fly(&claim, priority, permit).await;
            let numbers = claim.extent.numbers.clone();
            claim.end(flown.err().unwrap_or(FlightEnd::Arrived));
            // After the readers have their bytes: hashing a large file takes its time.
            drop(layer.blocking(move |layer| layer.settle(&numbers)).await);
        });
    }
}
