//! One range on its way: taken as it comes, inflated beside that, and raced by a second transfer when nothing comes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use tokio::task::{JoinError, JoinSet};

use super::buffers::AtWork;
use super::decode::Suspects;
use super::error::ReadError;
use super::extent::Extent;
use super::flight::{Flight, FlightEnd};
use super::intake::Intake;
use super::layer::LazyLayer;
use super::scheduler::{Ask, Connection, Memory, Priority};
use super::source::SourceError;

/// Parts of one range that are inflated at a time.
const JOBS: usize = 2;
/// Bytes that have come and wait to be inflated; beyond them the sender waits.
const HELD: usize = 1 << 20;
/// What a transfer holds with that and with what is being inflated, besides chunks that somebody waits for.
pub(super) const HOLDS: u64 = 4 << 20;

/// How often a transfer that pauses looks whether it may go on, and how long it pauses at most: so long that it leaves
/// the link to a read, and not for ever to a reader whose source sends next to nothing.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSES: u32 = 100;

/// Why a transfer did not bring all of its range.
pub(super) enum Broken {
    Source(SourceError),
    Ended(FlightEnd),
}

/// The bytes of a range, as they come.
type Pieces<'a> = BoxStream<'a, Result<Bytes, SourceError>>;

pub(super) struct Transfer<'a> {
    layer: &'a Arc<LazyLayer>,
    flight: &'a Flight,
    pub(super) intake: Intake,
    /// Members that arrived and are being inflated.
    jobs: JoinSet<Result<Suspects, ReadError>>,
    pub(super) suspects: Suspects,
    /// Buffers for inflating are kept meanwhile.
    _at_work: AtWork,
}

impl<'a> Transfer<'a> {
    pub(super) fn new(layer: &'a Arc<LazyLayer>, flight: &'a Flight, intake: Intake) -> Self {
        let at_work = layer.shared.buffers.at_work();
        Self {
            layer,
            flight,
            intake,
            jobs: JoinSet::new(),
            suspects: Suspects::new(),
            _at_work: at_work,
        }
    }

    /// Takes what is missing, which `memory` is for.
    pub(super) async fn receive(&mut self, memory: &mut Memory, ask: Ask) -> Result<(), Broken> {
        let layer = self.layer;
        let mut race = Race { first: self.ask_source(), second: None };
        let mut may_race = true;
        let (mut since, mut asked) = (Instant::now(), Some(Instant::now()));
        let link = &layer.shared.link;
        let (mut urgent, mut receiving, mut pauses) = (None, None, 0);
        while !self.intake.is_complete() {
            while self.jobs.len() < JOBS && self.inflate_next(memory) {}
            if self.flight.is_awaited() {
                urgent.get_or_insert_with(|| link.urgent());
            } else {
                urgent = None;
                if pauses < PAUSES && link.is_needed_by_others() {
                    pauses += 1;
                    // It is we who wait: that says nothing of the link, nor of who answers.
                    (receiving, asked) = (None, None);
                    tokio::time::sleep(PAUSE).await;
                    since = Instant::now();
                    continue;
                }
            }
            let patience = layer.pace.patience(&layer.shared.limits);
            let is_full = self.jobs.len() >= JOBS && self.intake.held() >= HELD;
            if is_full {
                // How long we take says nothing of the link.
                receiving = None;
            }
            let piece = tokio::select! {
                piece = race.next(layer), if !is_full => piece,
                Some(done) = self.jobs.join_next(), if !self.jobs.is_empty() => {
                    self.collect(done).map_err(Broken::Ended)?;
                    if is_full {
                        since = Instant::now();
                    }
                    continue;
                }
                () = tokio::time::sleep_until((since + patience).into()), if may_race && !is_full => {
                    since = Instant::now();
                    // One that nobody waits for has time; somebody may, when it is looked at next.
                    if !self.flight.is_awaited() {
                        continue;
                    }
                    let extra = Ask { bytes: 0, priority: Priority::Foreground, ..ask };
                    if let Some(permit) = layer.shared.scheduler.try_acquire(extra) {
                        may_race = false;
                        layer.shared.counters.races.fetch_add(1, Ordering::Relaxed);
                        tracing::debug!(layer = %layer.digest, "a transfer stalls, racing it");
                        race.second = Some((permit.connection, self.ask_source()));
                    }
                    continue;
                }
                () = layer.closed.cancelled() => return Err(Broken::Ended(layer.closed_end())),
            };
            if let Some(asked) = asked.take() {
                layer.pace.answered_after(asked.elapsed());
            }
            since = Instant::now();
            let bytes = match piece {
                Some(piece) => piece.map_err(Broken::Source)?,
                None => return Err(refused("fewer bytes came than were asked for")),
            };
            layer.shared.counters.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            match &receiving {
                None => receiving = Some(link.receiving()),
                Some(receiving) => receiving.came(bytes.len()),
            }
            if !self.intake.push(bytes) {
                return Err(refused("more bytes came than were asked for"));
            }
        }
        while self.inflate_next(memory) {}
        Ok(())
    }

    /// Waits until everything that has arrived has landed.
    pub(super) async fn finish(&mut self) -> Result<(), FlightEnd> {
        while let Some(done) = self.jobs.join_next().await {
            self.collect(done)?;
        }
        Ok(())
    }

    fn ask_source(&self) -> Pieces<'a> {
        self.layer.shared.counters.requests.fetch_add(1, Ordering::Relaxed);
        self.layer.source.stream(self.intake.position()..self.intake.end())
    }

    /// Inflates, verifies, keeps and lands what has arrived, in a task of its own. False if it is nothing.
    fn inflate_next(&mut self, memory: &mut Memory) -> bool {
        let Some((batch, bytes)) = self.intake.batch() else { return false };
        let share = memory.split(batch.length() + batch.content);
        self.jobs.spawn(inflate(Arc::clone(self.layer), self.flight.clone(), batch, bytes, share));
        true
    }

    fn collect(
        &mut self,
        done: Result<Result<Suspects, ReadError>, JoinError>,
    ) -> Result<(), FlightEnd> {
        let wrong = done.map_err(|_| self.layer.closed_end())?.map_err(FlightEnd::Failed)?;
        self.suspects.extend(wrong);
        Ok(())
    }
}

async fn inflate(
    layer: Arc<LazyLayer>,
    flight: Flight,
    batch: Extent,
    bytes: Vec<Bytes>,
    memory: Memory,
) -> Result<Suspects, ReadError> {
    let Ok(_turn) = layer.shared.decoders.acquire().await else {
        return Err(ReadError::Closed(layer.digest));
    };
    layer.blocking(move |layer| layer.decode(&flight, &batch, &bytes, memory)).await
}

fn refused(what: &str) -> Broken {
    Broken::Source(SourceError::refused(what))
}

/// A transfer, and perhaps a second one of the same bytes. Whichever brings something first goes on alone.
struct Race<'a> {
    first: Pieces<'a>,
    second: Option<(Connection, Pieces<'a>)>,
}

impl Race<'_> {
    /// The next piece. Nothing is lost when the future is dropped.
    async fn next(&mut self, layer: &LazyLayer) -> Option<Result<Bytes, SourceError>> {
        loop {
            let Some((_, second)) = self.second.as_mut() else { return self.first.next().await };
            let (piece, is_second) = tokio::select! {
                piece = self.first.next() => (piece, false),
                piece = second.next() => (piece, true),
            };
            let came = matches!(piece, Some(Ok(_)));
            let second = self.second.take();
            // One that fails leaves it to the other.
            if came == is_second
                && let Some((_, pieces)) = second
            {
                self.first = pieces;
            }
            if came {
                if is_second {
                    layer.shared.counters.races_won.fetch_add(1, Ordering::Relaxed);
                }
                return piece;
            }
        }
    }
}
