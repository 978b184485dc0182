//! Asking keeper and worker: one request and one answer a connection, tried again while one of them is replaced.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use tokio::time::Instant;

use super::channel::Channel;
use super::handle::{PATIENCE, RETRY, Shared};
use super::handle_error::LazyError;
use super::protocol::{Answer, KEEPER_SOCKET, Request, WORKER_SOCKET, check_versions, hello};
use crate::sys::process::ProcessIdentity;
use crate::sys::socket;

/// Who answered.
pub(super) struct Peer {
    pub(super) process: ProcessIdentity,
    pub(super) build: String,
}

impl Shared {
    /// Connects and says hello.
    pub(super) async fn connect(&self, name: &str) -> io::Result<(Channel, Peer)> {
        let channel = Channel::new(socket::connect(self.handle.as_fd(), name)?)?;
        channel.send(&hello(&self.options.build), &[]).await?;
        let answer = tokio::time::timeout(PATIENCE, channel.receive::<Answer>()).await;
        match answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
            Some((Answer::Hello { process, build, protocol, oldest }, _)) => {
                check_versions(protocol, oldest).map_err(io::Error::other)?;
                Ok((channel, Peer { process, build }))
            }
            Some((Answer::Failed { message, .. }, _)) => Err(io::Error::other(message)),
            Some(_) => Err(io::Error::from(io::ErrorKind::InvalidData)),
            None => Err(io::Error::from(io::ErrorKind::ConnectionReset)),
        }
    }

    /// One request, one answer, one attempt.
    pub(super) async fn ask(
        &self,
        name: &str,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<(Answer, Vec<OwnedFd>)> {
        let (channel, _) = self.connect(name).await?;
        channel.send(request, descriptors).await?;
        channel
            .receive::<Answer>()
            .await?
            .ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset))
    }

    async fn ask_patiently(
        &self,
        role: &'static str,
        name: &str,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Answer, Vec<OwnedFd>), LazyError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.ask(name, request, descriptors).await {
                Ok((Answer::Failed { kind, message }, _)) => {
                    return Err(LazyError::Refused { kind, message });
                }
                Ok(answer) => return Ok(answer),
                Err(source) if Instant::now() >= deadline || self.stopped.is_cancelled() => {
                    return Err(LazyError::Silent { role, source });
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    pub(super) async fn worker(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer, LazyError> {
        Ok(self.ask_patiently("worker", WORKER_SOCKET, request, descriptors).await?.0)
    }

    pub(super) async fn keeper(
        &self,
        request: &Request,
    ) -> Result<(Answer, Vec<OwnedFd>), LazyError> {
        self.ask_patiently("keeper", KEEPER_SOCKET, request, &[]).await
    }
}
