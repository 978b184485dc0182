//! Speaking to the resolver: by control, and by whoever starts a container. Blocks; answers come at once.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use super::role::{NAMES_ROLE, NAMES_SOCKET, NAMES_TABLE, Reply, Request, VERSION};
use super::{Entry, NameTable};
use crate::sys::process::RoleCommand;
use crate::sys::socket;

/// The resolver cannot be told something.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// It does not run.
    #[error("the resolver of services' names does not run")]
    Absent(#[source] io::Error),
    /// It does not answer, or not in the way it should.
    #[error("could not speak to the resolver of services' names")]
    Connection(#[source] io::Error),
    /// Its table cannot be written.
    #[error("could not write the table of names")]
    Table(#[source] io::Error),
    /// It refused.
    #[error("the resolver of services' names refused: {0}")]
    Refused(String),
}

/// A connection to the resolver of a directory.
#[derive(Debug)]
pub struct NamesClient {
    connection: OwnedFd,
}

impl NamesClient {
    /// How the resolver of `directory` is started, in the control group `group`.
    #[must_use]
    pub fn command(directory: &Path, level: &str, group: &str) -> RoleCommand {
        let own = [crate::ROLE_ARGUMENT, NAMES_ROLE].map(std::ffi::OsStr::new);
        let rest = [directory.as_os_str(), level.as_ref(), group.as_ref()];
        RoleCommand::new(own.into_iter().chain(rest))
    }

    /// Connects.
    ///
    /// # Errors
    /// [`NamesError::Absent`] when nobody listens.
    pub fn connect(directory: &Path) -> Result<Self, NamesError> {
        let directory = File::open(directory).map_err(NamesError::Absent)?;
        // One that was stopped accepts nobody, and its queue is full at some time.
        let connection = socket::connect_now(directory.as_fd(), NAMES_SOCKET).map_err(|error| {
            match error.kind() {
                io::ErrorKind::WouldBlock => NamesError::Connection(error),
                _ => NamesError::Absent(error),
            }
        })?;
        rustix::io::ioctl_fionbio(&connection, false)
            .map_err(|error| NamesError::Connection(error.into()))?;
        // It is alone on its host and does nothing that lasts; one that was stopped must not stop its callers.
        let patience = Some(std::time::Duration::from_secs(3));
        for timeout in [rustix::net::sockopt::Timeout::Recv, rustix::net::sockopt::Timeout::Send] {
            rustix::net::sockopt::set_socket_timeout(&connection, timeout, patience)
                .map_err(|error| NamesError::Connection(error.into()))?;
        }
        let client = Self { connection };
        match client.ask(&Request::Hello { version: VERSION }, &[])? {
            Reply::Hello { .. } => Ok(client),
            _ => Err(NamesError::Connection(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Writes `table` where the resolver of `directory` looks at its start. One that runs must be told:
    /// [`NamesClient::reload`].
    ///
    /// # Errors
    /// When it cannot be written; the older one is still there.
    pub fn write_table(directory: &Path, table: &NameTable) -> Result<(), NamesError> {
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            file.write_all(&serde_json::to_vec(table)?)?;
            // Not synced: it is of this boot, and written anew in the next.
            file.persist(directory.join(NAMES_TABLE)).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(NamesError::Table)
    }

    /// Makes it read its table again.
    ///
    /// # Errors
    /// As [`NamesClient::adopt`].
    pub fn reload(&self) -> Result<(), NamesError> {
        self.tell(&Request::Reload, &[])
    }

    /// Hands a container's sockets over; it is answered from then on.
    ///
    /// # Errors
    /// When the resolver does not answer or refuses.
    pub fn adopt(&self, client: &str, entry: &Entry) -> Result<(), NamesError> {
        let request = Request::Adopt { client: client.to_owned() };
        self.tell(&request, &[entry.udp.as_fd(), entry.tcp.as_fd()])
    }

    /// Closes a container's sockets, so that its network can go.
    ///
    /// # Errors
    /// As [`NamesClient::adopt`].
    pub fn release(&self, client: &str) -> Result<(), NamesError> {
        self.tell(&Request::Release { client: client.to_owned() }, &[])
    }

    /// Whom it serves.
    ///
    /// # Errors
    /// As [`NamesClient::adopt`].
    pub fn clients(&self) -> Result<Vec<String>, NamesError> {
        match self.ask(&Request::List, &[])? {
            Reply::Clients { clients } => Ok(clients),
            Reply::Failed { message } => Err(NamesError::Refused(message)),
            _ => Err(NamesError::Connection(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// As [`NamesClient::adopt`].
    pub fn stop(&self) -> Result<(), NamesError> {
        self.tell(&Request::Stop, &[])
    }

    fn tell(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), NamesError> {
        match self.ask(request, descriptors)? {
            Reply::Done => Ok(()),
            Reply::Failed { message } => Err(NamesError::Refused(message)),
            _ => Err(NamesError::Connection(io::ErrorKind::InvalidData.into())),
        }
    }

    fn ask(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<Reply, NamesError> {
        let speak = || -> io::Result<Reply> {
            let message = serde_json::to_vec(request)?;
            socket::send(self.connection.as_fd(), &message, descriptors)?;
            let (reply, _) = socket::receive(self.connection.as_fd())?;
            if reply.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(serde_json::from_slice(&reply)?)
        };
        speak().map_err(NamesError::Connection)
    }
}
