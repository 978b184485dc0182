//! The place in a container's namespace where the resolver listens.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{BorrowedFd, OwnedFd};

use super::RESOLVER;
use crate::network::rules::{NftError, apply_text};
use crate::sys::netns;

/// How many free ports are tried: a port that is free for datagrams may be taken for streams.
const ATTEMPTS: usize = 16;

/// Two sockets in a container's namespace, reached at port 53 of [`RESOLVER`].
#[derive(Debug)]
pub struct Entry {
    /// For datagrams.
    pub udp: OwnedFd,
    /// For streams; listens.
    pub tcp: OwnedFd,
}

/// A container has no resolver.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Its namespace cannot be entered, or no socket be opened there.
    #[error("could not open the resolver's sockets in the container's network")]
    Socket(#[source] io::Error),
    /// Port 53 cannot be led to them.
    #[error("could not lead port 53 of `{RESOLVER}` to the resolver")]
    Redirect(#[source] NftError),
}

/// Opens the sockets and leads port 53 to them. A container whose entry is opened again has the new one.
///
/// The port itself stays free: a container that is a DNS server takes port 53 of all its addresses.
///
/// # Errors
/// When the namespace cannot be entered, its loopback interface is down, or the host has no `nft`.
pub fn open_entry(namespace: BorrowedFd<'_>) -> Result<Entry, EntryError> {
    netns::within(namespace, || {
        let (udp, tcp, port) = listen().map_err(EntryError::Socket)?;
        apply_text(&redirect(port)).map_err(EntryError::Redirect)?;
        Ok(Entry { udp: udp.into(), tcp: tcp.into() })
    })
    .map_err(EntryError::Socket)?
}

fn listen() -> io::Result<(UdpSocket, TcpListener, u16)> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let udp = UdpSocket::bind(SocketAddr::from((RESOLVER, 0)))?;
        let port = udp.local_addr()?.port();
        match TcpListener::bind(SocketAddr::from((RESOLVER, port))) {
            Ok(tcp) => {
                udp.set_nonblocking(true)?;
                tcp.set_nonblocking(true)?;
                return Ok((udp, tcp, port));
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

/// A table of the container's namespace; it goes with that. IPv4 only, as the address is.
fn redirect(port: u16) -> String {
    let rules: String = ["udp", "tcp"]
        .map(|kind| format!("\t\tip daddr {RESOLVER} {kind} dport 53 dnat to {RESOLVER}:{port}\n"))
        .concat();
    format!(
        "table ip supervisor-names\ndelete table ip supervisor-names\ntable ip supervisor-names {{\n\tchain output \
         {{\n\t\ttype nat hook output priority -100; policy accept;\n{rules}\t}}\n}}\n"
    )
}
