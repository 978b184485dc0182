//! Who may fetch next: foreground reads before prefetch before background fill, with bounds on connections and on
//! memory, and no more than its share for one layer.
//!
//! It grants permits and knows nothing of layers, ranges or files. Background fill is granted nothing while a
//! foreground fetch runs or waits.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Limits;
use super::link::Link;

/// Why something is fetched; the order is the order of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    /// A read of a container waits for it.
    Foreground,
    /// It will be needed soon.
    Prefetch,
    /// So that the layer gets complete.
    Background,
}

const CLASSES: usize = 3;
/// Fetches of what nobody waits for at a time on a narrow link: one on the wire while another is asked for. What is
/// on its way when a read comes is in front of it.
const NARROW: usize = 2;

#[derive(Debug)]
pub(super) struct Scheduler {
    connections: [usize; CLASSES],
    per_lane: usize,
    link: Arc<Link>,
    memory: [u64; CLASSES],
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    queues: [VecDeque<Waiter>; CLASSES],
    running: [usize; CLASSES],
    lanes: HashMap<u64, Lane>,
    memory: u64,
    foreground_reads: usize,
    last_foreground: Instant,
}

/// What one layer holds.
#[derive(Debug, Clone, Copy, Default)]
struct Lane {
    connections: usize,
    memory: u64,
    /// The part of it that is for reads.
    foreground: u64,
}

/// Why a waiter is not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    /// Its own layer holds its share: those behind it may go first.
    Lane,
    /// All is in use.
    All,
}

#[derive(Debug)]
struct Waiter {
    ask: Ask,
    grant: oneshot::Sender<Permit>,
}

/// What a fetch wants: whose lane (one per layer) and how many bytes it will hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) priority: Priority,
    pub(super) lane: u64,
    pub(super) bytes: u64,
}

/// Leave to fetch: a connection and memory. The connection is given back first.
#[derive(Debug)]
pub(super) struct Permit {
    pub(super) connection: Connection,
    pub(super) memory: Memory,
}

/// A connection in use.
#[derive(Debug)]
pub(super) struct Connection {
    scheduler: Arc<Scheduler>,
    priority: Priority,
    lane: u64,
}

/// Memory in use.
#[derive(Debug)]
pub(super) struct Memory {
    scheduler: Arc<Scheduler>,
    priority: Priority,
    lane: u64,
    bytes: u64,
}

/// A foreground read that needs the network is under way.
#[derive(Debug)]
pub(super) struct ForegroundRead {
    scheduler: Arc<Scheduler>,
}

impl Scheduler {
    pub(super) fn new(limits: &Limits, link: Arc<Link>) -> Arc<Self> {
        let connections = limits.connections.max(4);
        let memory = limits.in_flight_bytes;
        Arc::new(Self {
            connections: [connections, (connections / 2).max(1), (connections / 4).max(1)],
            per_lane: limits.connections_per_layer.max(1),
            link,
            memory: [memory, memory / 4 * 3, memory / 2],
            state: Mutex::new(State {
                queues: Default::default(),
                running: [0; CLASSES],
                lanes: HashMap::new(),
                memory: 0,
                foreground_reads: 0,
                last_foreground: Instant::now(),
            }),
        })
    }

    /// Waits for leave to fetch. Dropping the future gives up the place in the queue.
    pub(super) async fn acquire(self: &Arc<Self>, ask: Ask) -> Permit {
        let (grant, granted) = oneshot::channel();
        {
            let queue = &mut self.lock().queues[ask.priority as usize];
            // Whoever needs no memory holds some already, and may be what the others wait for.
            match ask.bytes {
                0 => queue.push_front(Waiter { ask, grant }),
                _ => queue.push_back(Waiter { ask, grant }),
            }
        }
        self.pump();
        granted.await.expect("a waiter leaves the queue only when it is granted or gave up")
    }

    /// Leave to fetch if it can be had at once.
    pub(super) fn try_acquire(self: &Arc<Self>, ask: Ask) -> Option<Permit> {
        let mut state = self.lock();
        if self.obstacle(&state, ask).is_some() {
            return None;
        }
        state.take(ask);
        drop(state);
        Some(self.permit(ask))
    }

    fn permit(self: &Arc<Self>, ask: Ask) -> Permit {
        let Ask { priority, lane, bytes } = ask;
        Permit {
            connection: Connection { scheduler: Arc::clone(self), priority, lane },
            memory: Memory { scheduler: Arc::clone(self), priority, lane, bytes },
        }
    }

    /// Marks a read of a container that has to wait for the network, for as long as the guard lives.
    pub(super) fn foreground_read(self: &Arc<Self>) -> ForegroundRead {
        let mut state = self.lock();
        state.foreground_reads += 1;
        state.last_foreground = Instant::now();
        ForegroundRead { scheduler: Arc::clone(self) }
    }

    /// How long no foreground read has needed the network.
    pub(super) fn quiet_for(&self) -> Duration {
        let state = self.lock();
        if state.foreground_reads > 0 { Duration::ZERO } else { state.last_foreground.elapsed() }
    }

    /// Bytes that permits hold.
    #[cfg(test)]
    pub(super) fn memory_held(&self) -> u64 {
        self.lock().memory
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every update is a few additions that cannot be left half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grants whatever can be granted. Permits are sent after the lock is released, because one whose receiver has
    /// gone comes back here through its `Drop`.
    fn pump(self: &Arc<Self>) {
        let mut grants = Vec::new();
        {
            let mut state = self.lock();
            for class in 0..CLASSES {
                let mut place = 0;
                while let Some(waiter) = state.queues[class].get(place) {
                    if waiter.grant.is_closed() {
                        state.queues[class].remove(place);
                        continue;
                    }
                    let ask = waiter.ask;
                    match self.obstacle(&state, ask) {
                        None => {}
                        Some(Obstacle::Lane) => {
                            place += 1;
                            continue;
                        }
                        // Strictly in order here: skipping would starve the large for the small.
                        Some(Obstacle::All) => break,
                    }
                    let Some(waiter) = state.queues[class].remove(place) else { break };
                    state.take(ask);
                    grants.push(waiter);
                }
            }
        }
        for Waiter { ask, grant } in grants {
            drop(grant.send(self.permit(ask)));
        }
    }

    fn obstacle(&self, state: &State, ask: Ask) -> Option<Obstacle> {
        let class = ask.priority as usize;
        let lane = state.lanes.get(&ask.lane).copied().unwrap_or_default();
        let total: usize = state.running.iter().sum();
        let limit = self.connections[0];
        let is_read = ask.priority == Priority::Foreground;
        let most = match self.connections[class] {
            most if is_read || !self.link.is_narrow() => most,
            most => most.min(NARROW),
        };
        let room = total < limit && state.running[class] < most;
        let has_room = match ask.priority {
            // The others hold at most three quarters of the connections together, so a read finds one; and one of a
            // layer that has none finds one although stalled layers hold all.
            Priority::Foreground => room || (lane.connections == 0 && total < 2 * limit),
            Priority::Prefetch => room,
            Priority::Background => {
                room && state.foreground_reads == 0
                    && state.running[Priority::Foreground as usize] == 0
                    && state.queues[Priority::Foreground as usize].is_empty()
                    && state.queues[Priority::Prefetch as usize].is_empty()
            }
        };
        if !has_room {
            return Some(if is_read { Obstacle::Lane } else { Obstacle::All });
        }
        if lane.connections >= self.per_lane {
            return Some(Obstacle::Lane);
        }
        // One fetch is always allowed, however large; and one read of each layer, whatever the others hold.
        if ask.bytes == 0 || state.memory == 0 || (is_read && lane.foreground == 0) {
            return None;
        }
        if lane.memory > 0 && lane.memory.saturating_add(ask.bytes) > self.memory[0] / 2 {
            return Some(Obstacle::Lane);
        }
        let fits = state.memory.saturating_add(ask.bytes) <= self.memory[class];
        match (fits, is_read) {
            (true, _) => None,
            // Behind it may wait the first read of another layer.
            (false, true) => Some(Obstacle::Lane),
            (false, false) => Some(Obstacle::All),
        }
    }
}

impl Memory {
    /// A part of it that is given back on its own; not more than there is.
    pub(super) fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        let (priority, lane) = (self.priority, self.lane);
        Self { scheduler: Arc::clone(&self.scheduler), priority, lane, bytes }
    }
}

impl State {
    fn take(&mut self, ask: Ask) {
        self.running[ask.priority as usize] += 1;
        self.memory += ask.bytes;
        let lane = self.lanes.entry(ask.lane).or_default();
        lane.connections += 1;
        lane.memory += ask.bytes;
        if ask.priority == Priority::Foreground {
            lane.foreground += ask.bytes;
        }
    }

    fn with_lane(&mut self, number: u64, change: impl FnOnce(&mut Lane)) {
        if let Some(lane) = self.lanes.get_mut(&number) {
            change(lane);
            if lane.connections == 0 && lane.memory == 0 {
                self.lanes.remove(&number);
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        {
            let mut state = self.scheduler.lock();
            state.running[self.priority as usize] -= 1;
            state.with_lane(self.lane, |lane| lane.connections -= 1);
        }
        self.scheduler.pump();
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        {
            let mut state = self.scheduler.lock();
            state.memory -= self.bytes;
            let (bytes, priority) = (self.bytes, self.priority);
            state.with_lane(self.lane, |lane| {
                lane.memory -= bytes;
                if priority == Priority::Foreground {
                    lane.foreground -= bytes;
                }
            });
        }
        self.scheduler.pump();
    }
}

impl Drop for ForegroundRead {
    fn drop(&mut self) {
        {
            let mut state = self.scheduler.lock();
            state.foreground_reads -= 1;
            state.last_foreground = Instant::now();
        }
        self.scheduler.pump();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn ask(priority: Priority, bytes: u64) -> Ask {
        Ask { priority, lane: 1, bytes }
    }

    fn scheduler(connections: usize, in_flight_bytes: u64) -> Arc<Scheduler> {
        let limits = Limits {
            connections,
            connections_per_layer: connections,
            in_flight_bytes,
            ..Limits::default()
        };
        Scheduler::new(&limits, Link::new(0))
    }

    #[test]
    fn foreground_goes_before_prefetch_before_background() {
        let scheduler = scheduler(4, 100);
        let held: Vec<_> = (0..4)
            .map(|_| scheduler.acquire(ask(Priority::Foreground, 1)).now_or_never().unwrap())
            .collect();
        let mut background = Box::pin(scheduler.acquire(ask(Priority::Background, 1)));
        let mut prefetch = Box::pin(scheduler.acquire(ask(Priority::Prefetch, 1)));
        let mut read = Box::pin(scheduler.acquire(ask(Priority::Foreground, 1)));
        assert!((&mut background).now_or_never().is_none());
        assert!((&mut prefetch).now_or_never().is_none());
        assert!((&mut read).now_or_never().is_none());
        let mut held = held.into_iter();
        drop(held.next());
        assert!((&mut prefetch).now_or_never().is_none());
        let read = (&mut read).now_or_never().expect("the read is first");
        drop(held.next());
        let prefetch = (&mut prefetch).now_or_never().expect("then the prefetch");
        drop(held);
        assert!((&mut background).now_or_never().is_none(), "a foreground fetch still runs");
        drop(read);
        let background = (&mut background).now_or_never().expect("background comes last");
        drop((prefetch, background));
        assert_eq!(scheduler.memory_held(), 0);
    }

    #[test]
    fn background_gives_way_to_a_read_that_waits_for_the_network() {
        let scheduler = scheduler(8, 100);
        let read = scheduler.foreground_read();
        let mut background = Box::pin(scheduler.acquire(ask(Priority::Background, 1)));
        assert!((&mut background).now_or_never().is_none());
        assert_eq!(scheduler.quiet_for(), Duration::ZERO);
        drop(read);
        assert!((&mut background).now_or_never().is_some());
    }

    #[test]
    fn memory_is_bounded_and_the_largest_fetch_runs_alone() {
        let scheduler = scheduler(8, 100);
        let large = scheduler.acquire(ask(Priority::Prefetch, 1000)).now_or_never().unwrap();
        let read = scheduler.acquire(ask(Priority::Foreground, 50)).now_or_never();
        assert!(read.is_some(), "one read is let through whatever the others hold");
        assert!(scheduler.acquire(ask(Priority::Foreground, 50)).now_or_never().is_none());
        drop(read);
        let Permit { connection, memory } = large;
        drop(connection);
        let mut prefetch = Box::pin(scheduler.acquire(ask(Priority::Prefetch, 60)));
        assert!((&mut prefetch).now_or_never().is_none(), "the bytes are still held");
        drop(memory);
        assert!((&mut prefetch).now_or_never().is_some());
    }

    #[test]
    fn one_layer_leaves_connections_to_the_others() {
        let limits = Limits { connections: 8, connections_per_layer: 2, ..Limits::default() };
        let scheduler = Scheduler::new(&limits, Link::new(0));
        let stalled: Vec<_> = (0..2)
            .map(|_| scheduler.acquire(ask(Priority::Foreground, 1)).now_or_never().unwrap())
            .collect();
        let mut third = Box::pin(scheduler.acquire(ask(Priority::Foreground, 1)));
        assert!((&mut third).now_or_never().is_none());
        let other = Ask { lane: 2, ..ask(Priority::Foreground, 1) };
        assert!(scheduler.acquire(other).now_or_never().is_some());
        drop(stalled);
        assert!((&mut third).now_or_never().is_some());
    }

    #[test]
    fn whoever_gives_up_leaves_nothing_behind() {
        let scheduler = scheduler(4, 10);
        let held = scheduler.acquire(ask(Priority::Foreground, 10)).now_or_never().unwrap();
        assert!(scheduler.acquire(ask(Priority::Foreground, 10)).now_or_never().is_none());
        drop(held);
        assert_eq!(scheduler.memory_held(), 0);
        assert!(scheduler.acquire(ask(Priority::Foreground, 10)).now_or_never().is_some());
    }
}
