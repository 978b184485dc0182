//! Notices that somebody changed our table: the kernel tells of every change of any rule.

use std::io;
use std::os::fd::AsFd as _;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::super::Owner;
use crate::sys::readiness;

/// Bit of the group that all changes of rules are sent to (`NFNLGRP_NFTABLES`, 7).
const RULES_GROUP: u32 = 1 << 6;
/// The kernel sends no larger datagram.
const ROOM: usize = 64 << 10;

/// Waits for changes of one table in the namespace in which it was opened.
#[derive(Debug)]
pub struct RulesWatch {
    socket: AsyncFd<OwnedFd>,
    /// The name as it stands in a message: with the zero byte that ends it, so that no longer name matches.
    table: Vec<u8>,
}

impl RulesWatch {
    /// Watches the table of `owner`.
    ///
    /// # Errors
    /// When the kernel has no nftables.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn open(owner: &Owner) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::NETFILTER);
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, RULES_GROUP))?;
        let socket = readiness::watch(socket, Interest::READABLE)?;
        let mut table = owner.table().into_bytes();
        table.push(0);
        Ok(Self { socket, table })
    }

    /// Returns when something in our table was changed, by us or by others. Cancel safe: a change that was read is
    /// told before the next wait.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            loop {
                match self.read() {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(Errno::AGAIN) => break ready.clear_ready(),
                    Err(Errno::INTR) => {}
                    // More came than there was room for: ours may have been among it.
                    Err(Errno::NOBUFS) => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }

    /// Forgets the changes that have been told but not read.
    pub fn forget(&self) {
        while matches!(self.read(), Ok(_) | Err(Errno::INTR | Errno::NOBUFS)) {}
    }

    /// Reads one message: whether it is about our table.
    fn read(&self) -> Result<bool, Errno> {
        let mut buffer = vec![0; ROOM];
        let (_, length) = rustix::net::recv(
            self.socket.get_ref().as_fd(),
            buffer.as_mut_slice(),
            RecvFlags::empty(),
        )?;
        let message = buffer.get(..length).unwrap_or_default();
        Ok(message.windows(self.table.len()).any(|window| window == self.table))
    }
}
