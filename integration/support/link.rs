//! A slow link in front of a server: a TCP proxy on loopback that limits bandwidth, adds latency and counts bytes.
//!
//! It knows nothing of HTTP; whoever wants to look at what passes gives each connection a [`Tap`]. All connections
//! share the bandwidth of the link, as they share a cable; each byte is delayed by the same time, so that throughput
//! does not depend on the delay, and a new connection costs a round trip before its first byte leaves. No slow start,
//! no loss. Threads and not Tokio: its timers have a resolution of a millisecond, a fifth of a fast link's round trip.
//!
//! Shared by the tests and by `integration/bench/link.rs`, the emulator of `scripts/bench`.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What one read takes at most where bandwidth is limited: 1.3 ms of 100 Mbit/s, so that connections share it evenly.
const PIECE: usize = 16 << 10;
/// The same where it is not: fewer system calls.
const LARGE_PIECE: usize = 256 << 10;
/// Pieces in flight for each direction of a connection; 4 MiB of large ones, 1 MiB of the others: more than the product
/// of any bandwidth and delay here.
const IN_FLIGHT: usize = 64;
/// How far the cable is booked ahead before reading pauses: longer than a scheduler's hiccup, so that none costs
/// bandwidth, and short against a round trip.
const AHEAD: Duration = Duration::from_millis(4);

/// How fast the link is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkOptions {
    /// Bits a second from the server to its clients, all connections together; `None`: unlimited.
    pub(crate) bits_per_second: Option<u64>,
    /// Each way.
    pub(crate) delay: Duration,
}

impl LinkOptions {
    /// A link of this many megabits a second, without delay.
    #[cfg_attr(not(test), expect(dead_code, reason = "the bench always has a delay to set"))]
    pub(crate) fn megabits(megabits: u64) -> Self {
        Self { bits_per_second: Some(megabits * 1_000_000), delay: Duration::ZERO }
    }

    fn is_a_wire(&self) -> bool {
        self.bits_per_second.is_none() && self.delay.is_zero()
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Requests.
    ToServer,
    /// Answers.
    ToClient,
}

/// Sees what passes on one connection: requests when the client sends them, answers when the client gets them.
pub(crate) trait Tap: Send {
    /// These bytes pass.
    fn pass(&mut self, way: Way, bytes: &[u8]);
}

/// Makes the tap of a new connection.
pub(crate) type MakeTap = dyn Fn() -> Box<dyn Tap> + Send + Sync;

/// A running link; it closes when it is dropped.
pub(crate) struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: SocketAddr,
    options: LinkOptions,
    tap: Option<Box<MakeTap>>,
    sent: AtomicU64,
    received: AtomicU64,
    connections: AtomicU64,
    /// When the cable is free again.
    free_at: Mutex<Instant>,
    /// Both ends of every open connection, by its number.
    open: Mutex<HashMap<u64, [TcpStream; 2]>>,
    is_cut: AtomicBool,
    is_closed: AtomicBool,
}

/// Bytes on their way; none at all is the end.
struct Piece {
    arrives: Instant,
    bytes: Vec<u8>,
}

/// What the two directions of a connection share.
struct Connection {
    shared: Arc<Shared>,
    /// When the handshake is over: what was read before leaves then.
    ready: Instant,
    tap: Option<Mutex<Box<dyn Tap>>>,
}

impl Link {
    /// Opens a link to `server` on a free loopback port.
    pub(crate) fn open(
        server: SocketAddr,
        options: LinkOptions,
        tap: Option<Box<MakeTap>>,
    ) -> io::Result<Self> {
        assert!(server.ip().is_loopback(), "the link leads to this machine only, not to {server}");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server,
            options,
            tap,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            free_at: Mutex::new(Instant::now()),
            open: Mutex::default(),
            is_cut: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, &accepting));
        Ok(Self { address, shared })
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that the server sent through the link so far, headers included.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Bytes that the server was sent.
    pub(crate) fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Breaks every connection and refuses further ones until [`Link::repair`].
    pub(crate) fn cut(&self) {
        self.shared.is_cut.store(true, Ordering::SeqCst);
        let open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in open.values().flatten() {
            // One that is gone already needs no end.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets connections through again.
    pub(crate) fn repair(&self) {
        self.shared.is_cut.store(false, Ordering::SeqCst);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    /// Books the cable for `length` bytes, waits until not too much is booked, and says when they are over it.
    fn carry(&self, length: usize, from: Instant) -> Instant {
        let Some(bits_per_second) = self.options.bits_per_second else { return from };
        let bits = u64::try_from(length).unwrap_or(u64::MAX).saturating_mul(8);
        let takes =
            Duration::from_nanos(bits.saturating_mul(1_000_000_000) / bits_per_second.max(1));
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            *free_at = (*free_at).max(from) + takes;
            *free_at
        };
        wait_until(until.checked_sub(AHEAD).unwrap_or(until));
        until
    }
}

/// Waits with the resolution of the kernel's timers.
fn wait_until(moment: Instant) {
    // Nobody unparks this thread on purpose; one that is woken by chance goes on waiting.
    while let Some(rest) =
        moment.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero())
    {
        std::thread::park_timeout(rest);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        // A failed accept concerns one client that is gone already.
        let Ok((client, _)) = listener.accept() else { continue };
        if shared.is_closed.load(Ordering::SeqCst) {
            return;
        }
        if shared.is_cut.load(Ordering::SeqCst) {
            continue;
        }
        // A broken connection is what the test looks at from its own end.
        let _ = connect(client, shared);
    }
}

/// Starts the threads of a connection.
fn connect(client: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let ready = Instant::now() + shared.options.delay * 2;
    let server = TcpStream::connect(shared.server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let number = shared.connections.fetch_add(1, Ordering::Relaxed);
    let ends = [client.try_clone()?, server.try_clone()?];
    {
        let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at under the lock, so that no cut is missed.
        if shared.is_cut.load(Ordering::SeqCst) {
            return Ok(());
        }
        open.insert(number, ends);
    }
    let tap = shared.tap.as_ref().map(|make| Mutex::new(make()));
    let connection = Arc::new(Connection { shared: Arc::clone(shared), ready, tap });
    let (from_client, from_server) = (client.try_clone()?, server.try_clone()?);
    let to_server = connection.start(from_client, server, Way::ToServer);
    let to_client = connection.start(from_server, client, Way::ToClient);
    std::thread::spawn(move || {
        let _ = to_server.join();
        let _ = to_client.join();
        connection.shared.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    });
    Ok(())
}

impl Connection {
    /// Starts one direction; its thread ends with it. An error ends the other direction too.
    fn start(
        self: &Arc<Self>,
        mut from: TcpStream,
        mut to: TcpStream,
        way: Way,
    ) -> std::thread::JoinHandle<()> {
        let connection = Arc::clone(self);
        std::thread::spawn(move || {
            let ended = if connection.shared.options.is_a_wire() {
                connection.pass_on(&mut from, &mut to, way)
            } else {
                let (sender, receiver) = sync_channel(IN_FLIGHT);
                let writing = Arc::clone(&connection);
                let writer = std::thread::spawn(move || writing.deliver(&receiver, &mut to, way));
                let read = connection.book(&mut from, &sender, way);
                drop(sender);
                // A writer that failed has closed its stream; one that panicked has nothing to report.
                read.and(writer.join().unwrap_or(Ok(())))
            };
            if ended.is_err() {
                let _ = from.shutdown(Shutdown::Both);
            }
        })
    }

    /// Without bandwidth and delay to keep to.
    fn pass_on(&self, from: &mut TcpStream, to: &mut TcpStream, way: Way) -> io::Result<()> {
        let mut buffer = vec![0; LARGE_PIECE];
        loop {
            let length = from.read(&mut buffer)?;
            if length == 0 {
                return to.shutdown(Shutdown::Write);
            }
            self.count(way, length);
            self.tap(way, &buffer[..length]);
            to.write_all(&buffer[..length])?;
        }
    }

    /// Reads, and decides when each piece arrives.
    fn book(&self, from: &mut TcpStream, pieces: &SyncSender<Piece>, way: Way) -> io::Result<()> {
        let is_limited = self.shared.options.bits_per_second.is_some();
        let mut buffer = vec![0; if is_limited { PIECE } else { LARGE_PIECE }];
        loop {
            let length = from.read(&mut buffer)?;
            let bytes = buffer[..length].to_vec();
            self.count(way, length);
            let leaves = Instant::now().max(self.ready);
            let over = match way {
                Way::ToServer => {
                    self.tap(way, &bytes);
                    leaves
                }
                Way::ToClient => self.shared.carry(length, leaves),
            };
            let piece = Piece { arrives: over + self.shared.options.delay, bytes };
            if pieces.send(piece).is_err() || length == 0 {
                return Ok(());
            }
        }
    }

    /// Writes each piece when it arrives.
    fn deliver(&self, pieces: &Receiver<Piece>, to: &mut TcpStream, way: Way) -> io::Result<()> {
        for Piece { arrives, bytes } in pieces {
            wait_until(arrives);
            if bytes.is_empty() {
                return to.shutdown(Shutdown::Write);
            }
            if way == Way::ToClient {
                self.tap(way, &bytes);
            }
            if let Err(error) = to.write_all(&bytes) {
                let _ = to.shutdown(Shutdown::Both);
                return Err(error);
            }
        }
        Ok(())
    }

    fn count(&self, way: Way, length: usize) {
        let counter = match way {
            Way::ToServer => &self.shared.received,
            Way::ToClient => &self.shared.sent,
        };
        counter.fetch_add(u64::try_from(length).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn tap(&self, way: Way, bytes: &[u8]) {
        if let Some(tap) = &self.tap {
            tap.lock().unwrap_or_else(PoisonError::into_inner).pass(way, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers every connection with `content` and the end.
    fn serve(content: Vec<u8>) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                let content = content.clone();
                std::thread::spawn(move || {
                    let mut hello = [0; 5];
                    client.read_exact(&mut hello)?;
                    client.write_all(&content)
                });
            }
        });
        address
    }

    fn fetch(address: SocketAddr) -> io::Result<Vec<u8>> {
        let mut connection = TcpStream::connect(address)?;
        connection.write_all(b"hello")?;
        let mut content = Vec::new();
        connection.read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn two_connections_share_the_bandwidth_and_all_bytes_are_counted() {
        let content: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).take(500_000).collect();
        let server = serve(content.clone());
        let link = Link::open(server, LinkOptions::megabits(40), None).unwrap();
        let address = link.address();
        let start = Instant::now();
        let one = std::thread::spawn(move || fetch(address));
        let two = fetch(address);
        assert!(one.join().unwrap().unwrap() == content && two.unwrap() == content);
        // 8 Mbit over 40 Mbit/s.
        let taken = start.elapsed();
        assert!(taken >= Duration::from_millis(195), "{taken:?}");
        assert_eq!((link.sent(), link.received(), link.connections()), (1_000_000, 10, 2));
    }

    #[test]
    fn an_answer_takes_a_round_trip_after_the_one_of_the_handshake() {
        let delay = Duration::from_millis(20);
        let options = LinkOptions { bits_per_second: None, delay };
        let link = Link::open(serve(b"content".to_vec()), options, None).unwrap();
        let start = Instant::now();
        let mut connection = TcpStream::connect(link.address()).unwrap();
        connection.write_all(b"hello").unwrap();
        connection.read_exact(&mut [0; 1]).unwrap();
        assert!(start.elapsed() >= delay * 4, "{:?}", start.elapsed());
    }

    #[test]
    fn a_tap_sees_both_ways() {
        struct Record(Arc<Mutex<Vec<(Way, usize)>>>);
        impl Tap for Record {
            fn pass(&mut self, way: Way, bytes: &[u8]) {
                self.0.lock().unwrap().push((way, bytes.len()));
            }
        }
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&seen);
        let options = LinkOptions { bits_per_second: None, delay: Duration::ZERO };
        let make: Box<MakeTap> = Box::new(move || Box::new(Record(Arc::clone(&record))));
        let link = Link::open(serve(vec![1; 10]), options, Some(make)).unwrap();
        assert_eq!(fetch(link.address()).unwrap().len(), 10);
        assert_eq!(*seen.lock().unwrap(), [(Way::ToServer, 5), (Way::ToClient, 10)]);
    }

    #[test]
    fn a_cut_link_breaks_and_works_again_after_its_repair() {
        let server = serve(vec![7; 100_000]);
        let options =
            LinkOptions { bits_per_second: Some(1_600_000), delay: Duration::from_millis(5) };
        let link = Link::open(server, options, None).unwrap();
        let address = link.address();
        let transfer = std::thread::spawn(move || fetch(address));
        while link.sent() == 0 {
            std::thread::yield_now();
        }
        link.cut();
        assert_ne!(transfer.join().unwrap().map_or(0, |content| content.len()), 100_000);
        assert_ne!(fetch(address).map_or(0, |content| content.len()), 100_000);
        link.repair();
        let mut connection = TcpStream::connect(address).unwrap();
        connection.write_all(b"hello").unwrap();
        let mut byte = [0; 1];
        connection.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [7]);
    }
}
