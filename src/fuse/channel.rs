//! A SEQPACKET connection or listener on the runtime.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::protocol::{decode, encode};
use crate::sys::{readiness, socket};

/// One connection; messages of type `T` go both ways.
#[derive(Debug)]
pub(super) struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    /// Must be called on a runtime.
    pub(super) fn new(connection: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&connection, true)?;
        Ok(Self(readiness::watch(connection, Interest::READABLE | Interest::WRITABLE)?))
    }

    /// Sends one message.
    pub(super) async fn send<T: Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = encode(message);
        let send = |fd: &OwnedFd| socket::send(fd.as_fd(), &bytes, descriptors);
        self.0.async_io(Interest::WRITABLE, send).await
    }

    /// The next message and its descriptors; `None` when the other side has closed.
    pub(super) async fn receive<T: for<'de> Deserialize<'de>>(
        &self,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let receive = |fd: &OwnedFd| socket::receive(fd.as_fd());
        let (packet, descriptors) = self.0.async_io(Interest::READABLE, receive).await?;
        if packet.is_empty() {
            return Ok(None);
        }
        let message = decode(&packet).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Some((message, descriptors)))
    }
}

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// Must be called on a runtime.
    pub(super) fn new(listener: OwnedFd) -> io::Result<Self> {
        Ok(Self(readiness::watch(listener, Interest::READABLE)?))
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<Channel> {
        let accept = |fd: &OwnedFd| socket::accept(fd.as_fd());
        Channel::new(self.0.async_io(Interest::READABLE, accept).await?)
    }
}
