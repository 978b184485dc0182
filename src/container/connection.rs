//! The task behind a [`MonitorHandle`](super::MonitorHandle): owns the connection, keeps what is known up to date,
//! and reaps the monitor that this process started.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};

use super::handle::{Link, MonitorError, Seen};
use super::wire::{self, Message, Request};
use super::{ContainerId, Status};
use crate::sys::process::RoleChild;
use crate::sys::{readiness, socket};

/// A connection that nothing was said on.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    /// The monitor, when it is a child of this process.
    pub(super) child: Option<RoleChild>,
}

/// A request and who waits for its answer: the monitor's words where it refuses.
pub(super) struct Call {
    pub(super) request: Request,
    pub(super) answer: oneshot::Sender<Result<(), String>>,
}

/// Exchanges versions, waits for the first status, and leaves a task behind that goes on until `queue` or the
/// connection closes.
pub(super) async fn begin(
    id: &ContainerId,
    connection: Connection,
    queue: mpsc::Receiver<Call>,
) -> Result<watch::Receiver<Seen>, MonitorError> {
    let failed = |source| MonitorError::Connect { id: id.clone(), source };
    rustix::io::ioctl_fionbio(&connection.socket, true).map_err(|e| failed(e.into()))?;
    let socket = readiness::watch(connection.socket, Interest::READABLE | Interest::WRITABLE)
        .map_err(failed)?;
    let mut link = SocketLink { socket, waiting: VecDeque::new() };
    match link.greet().await {
        Ok(status) => {
            let (sender, receiver) = watch::channel(Seen { status, link: Link::Alive });
            tokio::spawn(async move {
                link.serve(&sender, queue).await;
                sender.send_modify(|seen| seen.link = Link::Closed);
                drop((link, sender));
                reap(connection.child).await;
            });
            Ok(receiver)
        }
        Err(refusal) => {
            drop(link);
            tokio::spawn(reap(connection.child));
            Err(match refusal {
                Greeting::Refused(reason) => MonitorError::Refused { id: id.clone(), reason },
                Greeting::Lost => MonitorError::Lost(id.clone()),
            })
        }
    }
}

/// Closes a connection that nothing was said on: a monitor at its other end goes.
pub(super) fn abandon(connection: Connection) {
    drop(connection.socket);
    // Without a runtime this process is ending, and its children get another parent.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(reap(connection.child));
    }
}

/// A child that is never waited for stays as a zombie while control lives.
async fn reap(child: Option<RoleChild>) {
    let Some(child) = child else { return };
    let Ok(pidfd) = child.pidfd.try_clone() else { return };
    let Ok(ended) = readiness::watch(pidfd, Interest::READABLE) else { return };
    let _ = ended.readable().await;
    drop(ended);
    let _ = child.try_wait();
}

enum Greeting {
    Refused(String),
    Lost,
}

struct SocketLink {
    socket: AsyncFd<OwnedFd>,
    waiting: VecDeque<oneshot::Sender<Result<(), String>>>,
}

impl SocketLink {
    async fn greet(&mut self) -> Result<Status, Greeting> {
        for request in [wire::hello(), Request::Watch] {
            // It may have said why it does not listen.
            let _ = self.send(&request).await;
        }
        loop {
            match self.receive().await {
                Ok(Some(Message::Status { status })) => return Ok(*status),
                Ok(Some(Message::Refused { reason })) => return Err(Greeting::Refused(reason)),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Err(Greeting::Lost),
            }
        }
    }

    async fn serve(&mut self, seen: &watch::Sender<Seen>, mut queue: mpsc::Receiver<Call>) {
        loop {
            tokio::select! {
                // Cancel-safe: a packet is taken from the socket only in the poll that returns it.
                message = self.receive() => match message {
                    Ok(Some(message)) => self.handle(message, seen),
                    Ok(None) | Err(_) => return,
                },
                // Cancel-safe by Tokio's promise.
                call = queue.recv() => {
                    // No handle is left: nobody is interested any more.
                    let Some(Call { request, answer }) = call else { return };
                    if self.send(&request).await.is_err() {
                        return;
                    }
                    self.waiting.push_back(answer);
                }
            }
        }
    }

    fn handle(&mut self, message: Message, seen: &watch::Sender<Seen>) {
        let answer = match message {
            Message::Status { status } => {
                seen.send_modify(|seen| seen.status = *status);
                return;
            }
            Message::Done => Ok(()),
            Message::Refused { reason } => Err(reason),
            Message::Hello { .. }
            | Message::ExecStarted { .. }
            | Message::ExecFailed { .. }
            | Message::ExecEnded { .. } => return,
        };
        if let Some(waiting) = self.waiting.pop_front() {
            let _ = waiting.send(answer);
        }
    }

    /// The next message; `None` when the monitor has closed. One that cannot be read, from a later program, is
    /// passed over.
    async fn receive(&self) -> io::Result<Option<Message>> {
        let mut was_reset = false;
        loop {
            let mut ready = self.socket.readable().await?;
            let received = ready.try_io(|socket| socket::receive(socket.get_ref().as_fd()));
            match received {
                Err(_would_block) => {}
                // Told once, when the peer has closed without reading everything, before what it has sent.
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset && !was_reset => {
                    was_reset = true;
                }
                Ok(Err(error)) => return Err(error),
                Ok(Ok((bytes, _))) if bytes.is_empty() => return Ok(None),
                Ok(Ok((bytes, _))) => {
                    if let Ok(message) = serde_json::from_slice(&bytes) {
                        return Ok(Some(message));
                    }
                }
            }
        }
    }

    async fn send(&self, request: &Request) -> io::Result<()> {
        let bytes = serde_json::to_vec(request).expect("a request is plain data");
        loop {
            let mut ready = self.socket.writable().await?;
            match ready.try_io(|socket| socket::send(socket.get_ref().as_fd(), &bytes, &[])) {
                Ok(sent) => return sent,
                Err(_would_block) => {}
            }
        }
    }
}
