//! Requests to the kernel about links, addresses and routes; each waits for its answer.
//!
//! A socket acts in the namespace in which it was opened, whatever thread uses it.

use std::io;
use std::os::fd::BorrowedFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;

use crate::sys::netns;

/// How often a listing is begun again because something changed meanwhile.
const DUMP_ATTEMPTS: usize = 8;
/// Length of a message's header, and what messages are padded to.
const HEADER: usize = 16;

/// A connection to the kernel.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// In the namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// In another namespace.
    pub(super) fn open_in(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        netns::within(namespace, Self::open)?
    }

    /// Asks for a change, and returns once it is made.
    pub(super) fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.answers(|_| ()).map(drop)
    }

    /// Asks for one thing.
    pub(super) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK)?;
        let mut found = None;
        self.answers(|answer| found = Some(answer))?;
        found.ok_or_else(|| Errno::NODATA.into())
    }

    /// Asks for everything of a kind.
    pub(super) fn list(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            let mut all = Vec::new();
            if self.answers(|answer| all.push(answer))? == Listing::Whole {
                return Ok(all);
            }
        }
        Err(Errno::INTR.into())
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut packet =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        self.sequence = self.sequence.wrapping_add(1);
        packet.header.flags = flags;
        packet.header.sequence_number = self.sequence;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Takes the answers to the last request until the one that ends them.
    fn answers(&mut self, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<Listing> {
        let mut listing = Listing::Whole;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while rest.len() >= HEADER {
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]);
                let length = usize::try_from(length).unwrap_or(0);
                if length < HEADER || length > rest.len() {
                    break;
                }
                let (one, _) = rest.split_at(length);
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                // A link of a kind that the decoder does not know is none of ours.
                let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(one) else {
                    continue;
                };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                if message.header.flags & NLM_F_DUMP_INTR != 0 {
                    listing = Listing::Torn;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(listing),
                    NetlinkPayload::Error(answer) if answer.code.is_none() => return Ok(listing),
                    NetlinkPayload::Error(answer) => return Err(answer.to_io()),
                    NetlinkPayload::InnerMessage(message) => each(message),
                    _ => {}
                }
            }
        }
    }
}

/// Whether what was listed is of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listing {
    Whole,
    Torn,
}
