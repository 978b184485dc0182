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

#[derive(Debug)]
pub(super) struct Scheduler {
    connections: [usize; CLASSES],
    per_lane: usize,
    memory: [u64; CLASSES],
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    queues: [VecDeque<Waiter>; CLASSES],
    running: [usize; CLASSES],
    lanes: HashMap<u64, usize>,
    memory: u64,
    foreground_memory: u64,
    foreground_reads: usize,
    last_foreground: Instant,
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
    bytes: u64,
}

/// A foreground read that needs the network is under way.
#[derive(Debug)]
pub(super) struct ForegroundRead {
    scheduler: Arc<Scheduler>,
}

impl Scheduler {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        let connections = limits.connections.max(4);
        let memory = limits.in_flight_bytes;
        Arc::new(Self {
            connections: [connections, (connections / 2).max(1), (connections / 4).max(1)],
            per_lane: limits.connections_per_layer.max(1),
            memory: [memory, memory / 4 * 3, memory / 2],
            state: Mutex::new(State {
                queues: Default::default(),
                running: [0; CLASSES],
                lanes: HashMap::new(),
                memory: 0,
                foreground_memory: 0,
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
                    if !self.has_class_room(&state, ask.priority) {
                        break;
                    }
                    if state.lanes.get(&ask.lane).is_some_and(|used| *used >= self.per_lane) {
                        place += 1;
                        continue;
                    }
                    // Strictly in order here: skipping would starve the large for the small.
                    if !self.has_memory(&state, ask) {
                        break;
                    }
                    let Some(waiter) = state.queues[class].remove(place) else { break };
                    state.take(ask);
                    grants.push(waiter);
                }
            }
        }
        for Waiter { ask, grant } in grants {
            let connection =
                Connection { scheduler: Arc::clone(self), priority: ask.priority, lane: ask.lane };
            let memory =
                Memory { scheduler: Arc::clone(self), priority: ask.priority, bytes: ask.bytes };
            drop(grant.send(Permit { connection, memory }));
        }
    }

    fn has_class_room(&self, state: &State, priority: Priority) -> bool {
        let class = priority as usize;
        let total: usize = state.running.iter().sum();
        let room = total < self.connections[0] && state.running[class] < self.connections[class];
        match priority {
            // The others hold at most three quarters of the connections together, so a read finds one.
            Priority::Foreground | Priority::Prefetch => room,
            Priority::Background => {
                room && state.foreground_reads == 0
                    && state.running[Priority::Foreground as usize] == 0
                    && state.queues[Priority::Foreground as usize].is_empty()
                    && state.queues[Priority::Prefetch as usize].is_empty()
            }
        }
    }

    fn has_memory(&self, state: &State, ask: Ask) -> bool {
        // One fetch is always allowed, however large; and one of the foreground whatever the others hold.
        ask.bytes == 0
            || state.memory == 0
            || state.memory.saturating_add(ask.bytes) <= self.memory[ask.priority as usize]
            || (ask.priority == Priority::Foreground && state.foreground_memory == 0)
    }
}

impl State {
    fn take(&mut self, ask: Ask) {
        self.running[ask.priority as usize] += 1;
        *self.lanes.entry(ask.lane).or_default() += 1;
        self.memory += ask.bytes;
        if ask.priority == Priority::Foreground {
            self.foreground_memory += ask.bytes;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        {
            let mut state = self.scheduler.lock();
            state.running[self.priority as usize] -= 1;
            if let Some(used) = state.lanes.get_mut(&self.lane) {
                *used -= 1;
                if *used == 0 {
                    state.lanes.remove(&self.lane);
                }
            }
        }
        self.scheduler.pump();
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        {
            let mut state = self.scheduler.lock();
            state.memory -= self.bytes;
            if self.priority == Priority::Foreground {
                state.foreground_memory -= self.bytes;
            }
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
        Scheduler::new(&limits)
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
        let scheduler = Scheduler::new(&limits);
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
