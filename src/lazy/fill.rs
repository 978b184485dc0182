//! What is fetched before anyone asks: the prefetch of a layer, and its background fill.
//!
//! Both walk the chunks in the order of the blob and ask for large ranges. A flight is claimed only once it may
//! start, so that a read never waits for one that is queued. The background fill also looks at what earlier
//! processes left in the cache, and so corrects the count of local bytes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::cache::{Content, Room, Verify};
use super::event::LazyEvent;
use super::extent::Extent;
use super::flight::FlightEnd;
use super::layer::{LazyLayer, piece};
use super::scheduler::{Ask, Priority};
use super::transfer::HOLDS;
use crate::estargz::EntryNo;

/// Flights of one fill at a time: enough that one is on the wire while another is inflated.
const FLIGHTS: usize = 3;

/// Content between two notes of what is local: so much is counted late after a crash.
const HINT_INTERVAL: u64 = 64 << 20;

/// Chunks that are looked at in one go on a blocking thread.
const LOOK: u32 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Background {
    /// Begins by itself, as the limits say.
    Auto,
    Started,
    Paused,
}

/// The switches of a layer's fill.
#[derive(Debug)]
pub(super) struct Fill {
    background: watch::Sender<Background>,
    /// Prefetches that run.
    pub(super) prefetches: watch::Sender<u32>,
    /// Whether that of the landmark does.
    is_marked_running: AtomicBool,
}

impl Default for Fill {
    fn default() -> Self {
        Self {
            background: watch::Sender::new(Background::Auto),
            prefetches: watch::Sender::new(0),
            is_marked_running: AtomicBool::new(false),
        }
    }
}

/// What came of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Walk {
    /// All is local, or refused.
    Done,
    /// Something is in the way: the source, or the disk.
    Hindered,
    /// The cache may not hold more.
    Full,
}

impl LazyLayer {
    /// Begins to fetch what the maker of the layer marked as needed first; once, and again only after it has ended.
    /// False if there is nothing of the kind, or it runs already.
    pub fn start_prefetch(&self) -> bool {
        if self.is_complete() {
            return false;
        }
        let (Some(numbers), Ok(layer)) = (self.prefetch_numbers(), self.strong()) else {
            return false;
        };
        let begins = !self.fill.is_marked_running.swap(true, Ordering::AcqRel);
        if begins {
            self.prefetch_later(layer, vec![numbers], |layer| {
                layer.fill.is_marked_running.store(false, Ordering::Release);
            });
        }
        begins
    }

    /// Begins to fetch these files, whatever the maker of the layer marked.
    pub fn start_prefetch_of(&self, entries: &[EntryNo]) {
        let Ok(layer) = self.strong() else { return };
        let mut numbers: Vec<u32> = entries
            .iter()
            .flat_map(|entry| {
                let chunks = 0..self.index.chunk_count(*entry);
                chunks.filter_map(|n| self.index.chunk(*entry, n)).map(|chunk| chunk.number.0)
            })
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut runs: Vec<Range<u32>> = Vec::new();
        for number in numbers {
            match runs.last_mut() {
                Some(run) if run.end == number => run.end += 1,
                _ => runs.push(number..number + 1),
            }
        }
        if !runs.is_empty() {
            self.prefetch_later(layer, runs, |_| {});
        }
    }

    /// Begins to fetch the files at `paths`, and all below those that are directories; of an image's path, each layer
    /// brings what it has. True if this one has any that is not here.
    pub fn prefetch_paths<P: AsRef<[u8]>>(&self, paths: &[P]) -> bool {
        if self.is_complete() {
            return false;
        }
        let found: Vec<EntryNo> =
            paths.iter().flat_map(|path| self.files_at(path.as_ref())).collect();
        self.start_prefetch_of(&found);
        !found.is_empty()
    }

    /// Whether a prefetch runs.
    #[must_use]
    pub fn is_prefetching(&self) -> bool {
        *self.fill.prefetches.borrow() > 0
    }

    /// Waits until every prefetch that was started has ended, with or without success; returns at once when none was.
    pub async fn prefetched(&self) {
        let mut running = self.fill.prefetches.subscribe();
        tokio::select! {
            // Both only wait.
            _ = running.wait_for(|running| *running == 0) => {}
            () = self.closed.cancelled() => {}
        }
    }

    /// Begins the background fill now, or goes on with it.
    pub fn start_background(&self) {
        self.fill.background.send_replace(Background::Started);
    }

    /// Looks once more whether there is room for the background fill, if it has ended for want of it.
    pub(super) fn look_again(&self) {
        self.fill.background.send_modify(|_| {});
    }

    /// Begins no further fetch in the background until told to start.
    pub fn pause_background(&self) {
        self.fill.background.send_replace(Background::Paused);
    }

    fn prefetch_later(
        &self,
        layer: Arc<Self>,
        numbers: Vec<Range<u32>>,
        ended: impl FnOnce(&Self) + Send + 'static,
    ) {
        self.fill.prefetches.send_modify(|running| *running += 1);
        self.shared.runtime.spawn(async move {
            for numbers in numbers {
                if layer.walk(numbers, Priority::Prefetch).await != Walk::Done {
                    break;
                }
            }
            ended(&layer);
            layer.fill.prefetches.send_modify(|running| *running -= 1);
            let local_bytes = layer.local_bytes();
            layer.tell(LazyEvent::PrefetchDone { layer: layer.digest, local_bytes });
            drop(layer.blocking(Self::save_hint).await);
        });
    }

    /// The chunks in front of the landmark.
    pub(super) fn prefetch_numbers(&self) -> Option<Range<u32>> {
        let numbers = 0..self.landmark?;
        (!numbers.is_empty()).then_some(numbers)
    }

    /// Starts the task that runs the background fill when its time has come. It holds the layer only while it works.
    pub(super) fn start_pilot(self: &Arc<Self>) {
        let (this, closed) = (Arc::downgrade(self), self.closed.clone());
        let mut switch = self.fill.background.subscribe();
        let (limits, shared) = (self.shared.limits.clone(), Arc::clone(&self.shared));
        let opened = Instant::now();
        let pilot = async move {
            loop {
                let state = *switch.borrow_and_update();
                // Until content is evicted and somebody wants it back.
                if this.upgrade().is_none_or(|layer| layer.is_complete()) {
                    if switch.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                match (state, limits.background_after) {
                    (Background::Started, _) => {}
                    (Background::Auto, Some(after)) => {
                        let age = opened.elapsed();
                        let quiet = shared.scheduler.quiet_for();
                        let wait = after.saturating_sub(age);
                        let wait = wait.max(limits.background_quiet.saturating_sub(quiet));
                        if !wait.is_zero() {
                            tokio::select! {
                                // Both only wait.
                                () = tokio::time::sleep(wait) => {}
                                changed = switch.changed() => if changed.is_err() { return },
                            }
                            continue;
                        }
                    }
                    (Background::Paused, _) | (Background::Auto, None) => {
                        if switch.changed().await.is_err() {
                            return;
                        }
                        continue;
                    }
                }
                let Some(layer) = this.upgrade() else { return };
                let walked = layer.walk(0..layer.index.chunks(), Priority::Background).await;
                if layer.is_complete() {
                    drop(layer.blocking(|layer| layer.settle(&[])).await);
                    continue;
                }
                let pause = match walked {
                    // What is left was refused.
                    Walk::Done => Some(limits.refusal_memory),
                    Walk::Hindered => Some(limits.background_pause),
                    // What reads evict is not for the fill to bring back.
                    Walk::Full => None,
                };
                drop(layer);
                let Some(pause) = pause else {
                    if switch.changed().await.is_err() {
                        return;
                    }
                    continue;
                };
                tokio::select! {
                    // Both only wait.
                    () = tokio::time::sleep(pause) => {}
                    changed = switch.changed() => if changed.is_err() { return },
                }
            }
        };
        self.shared.runtime.spawn(async move { closed.run_until_cancelled(pilot).await });
    }

    /// Fetches what is missing of the chunks `numbers`.
    pub(super) async fn walk(self: &Arc<Self>, numbers: Range<u32>, priority: Priority) -> Walk {
        let mut flights = JoinSet::new();
        let (mut at, mut walked) = (numbers.start, Walk::Done);
        let mut noted = self.local_bytes();
        let (mut brought, mut is_full) = (0, false);
        loop {
            let is_paused = || {
                priority == Priority::Background
                    && *self.fill.background.borrow() == Background::Paused
            };
            if self.is_closed() || is_paused() {
                walked = Walk::Hindered;
            }
            if walked == Walk::Hindered || at >= numbers.end {
                break;
            }
            let end = numbers.end;
            let looked = self.blocking(move |layer| {
                let (extent, next) = layer.next_extent(at..end);
                // Without room it goes on looking, so that what is here is counted.
                let room = (extent.as_ref())
                    .and_then(|extent| layer.room_for(priority, brought, extent.content));
                (extent, next, room)
            });
            let Ok((extent, next, room)) = looked.await else { return Walk::Hindered };
            at = next;
            if self.local_bytes().saturating_sub(noted) >= HINT_INTERVAL {
                noted = self.local_bytes();
                drop(self.blocking(Self::save_hint).await);
            }
            let Some(extent) = extent else { continue };
            let Some(room) = room else {
                is_full = true;
                continue;
            };
            brought += extent.content;
            let room = Arc::new(room);
            if flights.len() >= FLIGHTS {
                walked = worse(walked, flights.join_next().await);
            }
            let bytes = (extent.length() + extent.content).min(HOLDS);
            let ask = Ask { priority, lane: self.lane, bytes };
            let permit = tokio::select! {
                // The place in the queue is lost with the layer only.
                permit = self.shared.scheduler.acquire(ask) => permit,
                () = self.closed.cancelled() => return Walk::Hindered,
            };
            if is_paused() {
                walked = Walk::Hindered;
                break;
            }
            for flight in self.begin(&extent, priority, permit) {
                let (layer, room) = (Arc::clone(self), Arc::clone(&room));
                flights.spawn(async move {
                    let _room = room;
                    match flight.end().await {
                        FlightEnd::Arrived if !layer.shared.cache.is_degraded() => Walk::Done,
                        // Content that cannot be kept is not worth fetching ahead.
                        FlightEnd::Arrived | FlightEnd::Abandoned | FlightEnd::Failed(_) => {
                            Walk::Hindered
                        }
                    }
                });
            }
        }
        while let Some(joined) = flights.join_next().await {
            walked = worse(walked, Some(joined));
        }
        if is_full && walked == Walk::Done {
            return Walk::Full;
        }
        // What was in someone else's flight may not have landed, or not have been kept.
        let mut left = numbers.filter(|number| !self.progress.is_set(*number));
        if left.any(|number| self.refusal(number).is_none()) { Walk::Hindered } else { walked }
    }

    /// Room in the cache for `content`, after a walk has brought so much. Blocks.
    fn room_for(&self, priority: Priority, brought: u64, content: u64) -> Option<Room> {
        let cache = &self.shared.cache;
        match (priority, cache.budget()) {
            (Priority::Background, _) => cache.reserve(content),
            // It may cost what has not been used for long, but not what it brought itself.
            (_, Some(budget)) if brought + content > budget / 2 => None,
            _ => Some(Room::unbounded()),
        }
    }

    /// Counts what is here of the next of the chunks `numbers`, and gives where to go on. Blocks.
    pub(super) fn look_for_local(&self, numbers: Range<u32>) -> u32 {
        self.next_extent(numbers).1
    }

    /// The next extent to fetch of the chunks `numbers`, and where to go on. Blocks.
    fn next_extent(&self, numbers: Range<u32>) -> (Option<Extent>, u32) {
        let most = self.extent_bytes();
        let mut extent: Option<Extent> = None;
        let mut file: Option<(EntryNo, Option<Content>)> = None;
        let mut at = numbers.start;
        let stop = numbers.end.min(at.saturating_add(LOOK));
        while at < stop {
            let number = at;
            at += 1;
            if self.progress.is_set(number) || self.refusal(number).is_some() {
                continue;
            }
            let Some((chunk, entry, n)) = self.chunk_of(number) else { continue };
            if file.as_ref().is_none_or(|(of, _)| *of != entry) {
                let Ok(place) = self.place(entry) else { continue };
                let content = self.shared.cache.find(&place, Verify::Now);
                file = Some((entry, content));
            }
            let Some((_, content)) = &file else { continue };
            let piece = piece(&chunk, n);
            let is_local = content
                .as_ref()
                .is_some_and(|content| self.shared.cache.has_piece(&piece, content));
            if is_local {
                self.progress.set(number, chunk.size);
                let count = self.index.chunk_count(entry);
                if count > 1 && n + 1 == count {
                    // A process that was killed may have left it whole and unpublished.
                    self.settle(&[number]);
                }
                continue;
            }
            let Some(member) = self.member_of(number) else { continue };
            let past = member.numbers.last().map_or(at, |last| last + 1);
            match extent.as_mut() {
                Some(extent) if self.fits(extent, &member, most) => extent.append(member),
                Some(_) => return (extent, number),
                None => extent = Some(member),
            }
            at = past.max(at);
        }
        (extent, at)
    }
}

fn worse(walked: Walk, joined: Option<Result<Walk, tokio::task::JoinError>>) -> Walk {
    match joined {
        None | Some(Ok(Walk::Done)) => walked,
        Some(Ok(Walk::Hindered | Walk::Full) | Err(_)) => Walk::Hindered,
    }
}
