//! A slow link in front of a server: a TCP proxy on loopback that limits bandwidth, adds latency and counts bytes.
//!
//! It knows nothing of HTTP. All connections share the bandwidth of the link, as they share a cable; each byte is
//! delayed by the same time, so that throughput does not depend on the delay.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::time::Instant;

/// What one read takes at most: 1.3 ms of a 100 Mbit/s link, so that connections share it evenly.
const PIECE: usize = 16 << 10;
/// Pieces in flight for each direction of a connection; 1 MiB, more than the product of any bandwidth and delay here.
const IN_FLIGHT: usize = 64;

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
    pub(crate) fn megabits(megabits: u64) -> Self {
        Self { bits_per_second: Some(megabits * 1_000_000), delay: Duration::ZERO }
    }
}

/// A running link; it closes when it is dropped.
#[derive(Debug)]
pub(crate) struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
    accept: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    options: LinkOptions,
    sent: AtomicU64,
    received: AtomicU64,
    connections: AtomicU64,
    /// When the cable is free again.
    free_at: Mutex<Instant>,
    cut: AtomicBool,
    cut_changed: Notify,
}

impl Link {
    /// Opens a link to `server` on a free loopback port.
    pub(crate) async fn open(server: SocketAddr, options: LinkOptions) -> io::Result<Self> {
        assert!(server.ip().is_loopback(), "tests talk to this machine only, not to {server}");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server,
            options,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            free_at: Mutex::new(Instant::now()),
            cut: AtomicBool::new(false),
            cut_changed: Notify::new(),
        });
        let accept = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, accept })
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
        self.shared.cut.store(true, Ordering::SeqCst);
        self.shared.cut_changed.notify_waiters();
    }

    /// Lets connections through again.
    pub(crate) fn repair(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accept.abort();
        self.cut();
    }
}

impl Shared {
    /// Waits for the link's turn to carry `length` bytes.
    async fn carry(&self, length: usize) {
        let Some(bits_per_second) = self.options.bits_per_second else { return };
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        let takes = Duration::from_nanos(
            length.saturating_mul(8).saturating_mul(1_000_000_000) / bits_per_second.max(1),
        );
        let until = {
            let mut free_at = self.free_at.lock().await;
            *free_at = (*free_at).max(Instant::now()) + takes;
            *free_at
        };
        tokio::time::sleep_until(until).await;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        // A failed accept concerns one client that is gone already.
        let Ok((client, _)) = listener.accept().await else { continue };
        if shared.cut.load(Ordering::SeqCst) {
            continue;
        }
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let cut = shared.cut_changed.notified();
            tokio::pin!(cut);
            // Registered before the flag is looked at, so that no cut is missed.
            cut.as_mut().enable();
            if shared.cut.load(Ordering::SeqCst) {
                return;
            }
            tokio::select! {
                () = cut => {}
                // A broken connection is what the test looks at from its own end.
                _ = connect(client, &shared) => {}
            }
        });
    }
}

async fn connect(client: TcpStream, shared: &Shared) -> io::Result<()> {
    tokio::time::sleep(shared.options.delay).await;
    let server = TcpStream::connect(shared.server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(
        direction(from_client, to_server, shared, Way::ToServer),
        direction(from_server, to_client, shared, Way::ToClient),
    )?;
    Ok(())
}

#[derive(Clone, Copy)]
enum Way {
    ToServer,
    ToClient,
}

async fn direction(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    way: Way,
) -> io::Result<()> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let read = async move {
        let mut buffer = vec![0; PIECE];
        loop {
            let length = from.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            let count = u64::try_from(length).unwrap_or(u64::MAX);
            match way {
                Way::ToServer => shared.received.fetch_add(count, Ordering::Relaxed),
                Way::ToClient => {
                    shared.carry(length).await;
                    shared.sent.fetch_add(count, Ordering::Relaxed)
                }
            };
            let arrives = Instant::now() + shared.options.delay;
            if sender.send((arrives, buffer[..length].to_vec())).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((arrives, piece)) = receiver.recv().await {
            tokio::time::sleep_until(arrives).await;
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    let (_, _): ((), ()) = tokio::try_join!(read, write)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers every connection with `content` and the end.
    async fn serve(content: Vec<u8>) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let content = content.clone();
                tokio::spawn(async move {
                    let mut hello = [0; 5];
                    client.read_exact(&mut hello).await?;
                    client.write_all(&content).await
                });
            }
        });
        address
    }

    async fn fetch(address: SocketAddr) -> io::Result<Vec<u8>> {
        let mut connection = TcpStream::connect(address).await?;
        connection.write_all(b"hello").await?;
        let mut content = Vec::new();
        connection.read_to_end(&mut content).await?;
        Ok(content)
    }

    #[tokio::test]
    async fn two_connections_share_the_bandwidth_and_all_bytes_are_counted() {
        let content: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).take(500_000).collect();
        let server = serve(content.clone()).await;
        let link = Link::open(server, LinkOptions::megabits(40)).await.unwrap();
        let start = Instant::now();
        let (one, two) = tokio::join!(fetch(link.address()), fetch(link.address()));
        assert!(one.unwrap() == content && two.unwrap() == content);
        // 8 Mbit over 40 Mbit/s.
        let taken = start.elapsed();
        assert!(taken >= Duration::from_millis(195), "{taken:?}");
        assert_eq!((link.sent(), link.received(), link.connections()), (1_000_000, 10, 2));
    }

    #[tokio::test]
    async fn a_cut_link_breaks_and_works_again_after_its_repair() {
        let server = serve(vec![7; 100_000]).await;
        let options =
            LinkOptions { bits_per_second: Some(1_600_000), delay: Duration::from_millis(5) };
        let link = Link::open(server, options).await.unwrap();
        let transfer = tokio::spawn(fetch(link.address()));
        while link.sent() == 0 {
            tokio::task::yield_now().await;
        }
        link.cut();
        assert_ne!(transfer.await.unwrap().map_or(0, |content| content.len()), 100_000);
        assert_ne!(fetch(link.address()).await.map_or(0, |content| content.len()), 100_000);
        link.repair();
        let mut connection = TcpStream::connect(link.address()).await.unwrap();
        connection.write_all(b"hello").await.unwrap();
        let mut byte = [0; 1];
        connection.read_exact(&mut byte).await.unwrap();
        assert_eq!(byte, [7]);
    }
}
