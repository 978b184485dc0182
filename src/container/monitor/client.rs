//! Connections to a monitor's socket.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::super::wire::{Message, Request};
use crate::sys::socket;

/// Messages that wait for a client that does not read; then it is dropped.
const PATIENCE: usize = 64;

/// One connection.
#[derive(Debug)]
pub(super) struct Client {
    socket: OwnedFd,
    /// Numbers are not reused: what began for a client that is gone goes to nobody else.
    pub(super) number: u64,
    /// Whether it wants every status.
    pub(super) watches: bool,
    waiting: VecDeque<Outgoing>,
    /// It has asked for something.
    has_asked: bool,
    pub(super) is_gone: bool,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    is_status: bool,
}

/// What a client says.
pub(super) enum Heard {
    Request(Request, Vec<OwnedFd>),
    /// Something that this program does not know.
    Unknown(String),
    Nothing,
}

impl Client {
    /// Takes a connection; only the monitor's own user and root are listened to.
    pub(super) fn new(socket: OwnedFd, number: u64) -> Option<Self> {
        let own = rustix::process::geteuid().as_raw();
        let peer = socket::peer(&socket).ok()?;
        if peer.uid != 0 && peer.uid != own {
            return None;
        }
        rustix::io::ioctl_fionbio(&socket, true).ok()?;
        Some(Self {
            socket,
            number,
            watches: false,
            waiting: VecDeque::new(),
            has_asked: false,
            is_gone: false,
        })
    }

    pub(super) fn hear(&mut self) -> Heard {
        match socket::receive(self.socket.as_fd()) {
            Ok((bytes, _)) if bytes.is_empty() => self.is_gone = true,
            Ok((bytes, descriptors)) => {
                return match serde_json::from_slice(&bytes) {
                    Ok(request) => {
                        self.has_asked |= !matches!(request, Request::Hello { .. });
                        Heard::Request(request, descriptors)
                    }
                    Err(error) => Heard::Unknown(error.to_string()),
                };
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => self.is_gone = true,
        }
        Heard::Nothing
    }

    pub(super) fn send(&mut self, message: &Message, descriptors: Vec<OwnedFd>) {
        let Ok(bytes) = serde_json::to_vec(message) else { return };
        let is_status = matches!(message, Message::Status { .. });
        // Of two statuses that wait, only the later one matters.
        if is_status && self.waiting.back().is_some_and(|last| last.is_status) {
            self.waiting.pop_back();
        }
        if self.waiting.len() >= PATIENCE {
            self.is_gone = true;
            return;
        }
        self.waiting.push_back(Outgoing { bytes, descriptors, is_status });
        self.flush();
    }

    /// Sends what waits, as far as the client reads.
    pub(super) fn flush(&mut self) {
        while let Some(next) = self.waiting.front() {
            let descriptors: Vec<BorrowedFd<'_>> =
                next.descriptors.iter().map(OwnedFd::as_fd).collect();
            match socket::send(self.socket.as_fd(), &next.bytes, &descriptors) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.is_gone = true;
                    return;
                }
            }
        }
    }

    /// Whether the monitor may go as far as this client is concerned.
    pub(super) fn has_heard_all(&self) -> bool {
        self.has_asked && self.waiting.is_empty()
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
