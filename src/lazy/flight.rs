//! How missing chunks get here: one *flight* for a contiguous part of the blob, whoever asked for it, from the wait
//! for a connection to the content in the cache.
//!
//! A flight is a task of its own: readers wait for it and may leave. It takes whole members and keeps every chunk
//! that is in them. Chunks land one by one, as they arrive: a reader waits for its own and not for the rest of the
//! range. A member that is in a flight is in no other; once it has landed it is in none, and whoever still misses it
//! looks into the cache.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::error::ReadError;
use super::extent::Extent;
use super::layer::LazyLayer;
use super::scheduler::Memory;

/// The flights of a layer, by the beginnings of their members.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<u64, Flight>>);

/// A flight that others wait for.
#[derive(Debug, Clone)]
pub(super) struct Flight(Arc<Arrivals>);

/// What a flight has brought so far, for those who wait. Lives until the last reader has taken its part, and so does
/// its share of memory.
#[derive(Debug)]
struct Arrivals {
    landed: Mutex<Landed>,
    changed: watch::Sender<()>,
    interested: AtomicUsize,
}

/// A chunk, and the memory that it holds.
type Arrived = (Result<Bytes, ReadError>, Option<Arc<Memory>>);

#[derive(Debug, Default)]
struct Landed {
    /// Chunks that somebody waits for, or did: others are kept in the cache only.
    wanted: HashSet<u32>,
    chunks: HashMap<u32, Arrived>,
    end: Option<FlightEnd>,
}

/// How a flight ended.
#[derive(Debug, Clone)]
pub(super) enum FlightEnd {
    /// Every chunk that is needed has its result.
    Arrived,
    /// The source cannot be reached and nobody waits, or the flight was cut off.
    Abandoned,
    /// What had not landed will not.
    Failed(ReadError),
}

/// The content of a chunk that came.
#[derive(Debug)]
pub(super) enum Came<'a> {
    Kept(Bytes),
    /// In a buffer that is used again: nobody waited when it was inflated, so it is seldom copied.
    Lent(&'a [u8]),
}

impl<'a> From<Cow<'a, [u8]>> for Came<'a> {
    fn from(content: Cow<'a, [u8]>) -> Self {
        match content {
            Cow::Borrowed(content) => Self::Lent(content),
            Cow::Owned(content) => Self::Kept(content.into()),
        }
    }
}

impl From<Came<'_>> for Bytes {
    fn from(came: Came<'_>) -> Self {
        match came {
            Came::Kept(bytes) => bytes,
            Came::Lent(content) => Self::copy_from_slice(content),
        }
    }
}

impl Deref for Came<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Kept(bytes) => bytes,
            Self::Lent(content) => content,
        }
    }
}

/// Counts one who waits for a flight.
#[derive(Debug)]
pub(super) struct Interest(Flight);

impl Drop for Interest {
    fn drop(&mut self) {
        self.0.0.interested.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Flights {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<u64, Flight>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    fn new() -> Self {
        let landed = Mutex::default();
        let changed = watch::Sender::new(());
        Self(Arc::new(Arrivals { landed, changed, interested: AtomicUsize::new(0) }))
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Counts one who waits, until the answer is dropped.
    pub(super) fn interest(&self) -> Interest {
        self.0.interested.fetch_add(1, Ordering::AcqRel);
        Interest(self.clone())
    }

    /// Whether somebody waits for it.
    pub(super) fn is_awaited(&self) -> bool {
        self.0.interested.load(Ordering::Acquire) > 0
    }

    /// Says that somebody waits for `number`. To be called while the map of flights is locked and has the flight for
    /// it, so that it has not landed.
    pub(super) fn want(&self, number: u32) {
        self.lock().wanted.insert(number);
    }

    /// Whether somebody waits for `number`, or did.
    pub(super) fn is_wanted(&self, number: u32) -> bool {
        self.lock().wanted.contains(&number)
    }

    /// Waits until all of `numbers` have landed, or the flight has ended.
    pub(super) async fn landing(&self, numbers: &[u32]) {
        let mut changed = self.0.changed.subscribe();
        loop {
            changed.mark_unchanged();
            {
                let landed = self.lock();
                if landed.end.is_some() || numbers.iter().all(|n| landed.chunks.contains_key(n)) {
                    return;
                }
            }
            // The sender lives in `self`.
            drop(changed.changed().await);
        }
    }

    /// Waits for the end.
    pub(super) async fn end(&self) -> FlightEnd {
        let mut changed = self.0.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if let Some(end) = self.lock().end.clone() {
                return end;
            }
            // The sender lives in `self`.
            drop(changed.changed().await);
        }
    }

    /// Those of `numbers` that have landed.
    pub(super) fn take(&self, numbers: &[u32]) -> Result<Vec<(u32, Bytes)>, ReadError> {
        let landed = self.lock();
        let mut found = Vec::with_capacity(numbers.len());
        for number in numbers {
            if let Some((result, _)) = landed.chunks.get(number) {
                found.push((*number, result.clone()?));
            }
        }
        match &landed.end {
            Some(FlightEnd::Failed(error)) if found.len() < numbers.len() => Err(error.clone()),
            _ => Ok(found),
        }
    }

    /// Hands results to those who wait for them, of a member that is still in flight.
    pub(super) fn deliver(
        &self,
        results: Vec<(u32, Result<Came<'_>, ReadError>)>,
        memory: Option<Memory>,
    ) {
        let memory = memory.map(Arc::new);
        let mut landed = self.lock();
        for (number, result) in results {
            if landed.wanted.contains(&number) {
                landed.chunks.insert(number, (result.map(Bytes::from), memory.clone()));
            }
        }
        drop(landed);
        self.0.changed.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, Landed> {
        self.0.landed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the map of flights, given back however the flight ends.
#[derive(Debug)]
pub(super) struct Claim {
    layer: Arc<LazyLayer>,
    pub(super) extent: Extent,
    pub(super) flight: Flight,
    /// The chunks for which it flies; the others are fetched along, and not again when they are corrupt. `None`: all.
    needed: Option<Vec<u32>>,
}

impl Claim {
    /// Enters `extent` into the map of flights, which must have none of its members.
    pub(super) fn new(
        layer: &Arc<LazyLayer>,
        flights: &mut HashMap<u64, Flight>,
        extent: Extent,
        needed: Option<Vec<u32>>,
    ) -> Self {
        let flight = Flight::new();
        for start in layer.member_starts(extent.numbers.iter().copied()) {
            flights.insert(start, flight.clone());
        }
        for number in needed.iter().flatten() {
            flight.want(*number);
        }
        Self { layer: Arc::clone(layer), extent, flight, needed }
    }

    /// Whether the flight has not done its work before `number` has a result.
    pub(super) fn needs(&self, number: u32) -> bool {
        self.needed.as_ref().is_none_or(|needed| needed.contains(&number))
            || self.flight.is_wanted(number)
    }

    /// Ends the flight.
    pub(super) fn end(self, end: FlightEnd) {
        self.flight.lock().end = Some(end);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut flights = self.layer.flights.lock();
        for start in self.layer.member_starts(self.extent.numbers.iter().copied()) {
            remove(&mut flights, start, &self.flight);
        }
        drop(flights);
        self.flight.lock().end.get_or_insert(FlightEnd::Abandoned);
        self.flight.0.changed.send_replace(());
    }
}

impl LazyLayer {
    /// Hands the results for chunks of `member` to those who wait for them. From here on it is in no flight.
    pub(super) fn land(
        &self,
        flight: &Flight,
        member: &Extent,
        results: Vec<(u32, Result<Came<'_>, ReadError>)>,
        memory: Option<Memory>,
    ) {
        let mut flights = self.flights.lock();
        remove(&mut flights, member.range.start, flight);
        // While the map is locked: whoever found the flight in it has said what it wants.
        flight.deliver(results, memory);
    }
}

fn remove(flights: &mut HashMap<u64, Flight>, start: u64, flight: &Flight) {
    if flights.get(&start).is_some_and(|found| found.is(flight)) {
        flights.remove(&start);
    }
}
