//! Watching from control: a dead keeper is replaced, and the events of keeper and worker are gathered.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::io::Interest;
use tokio_util::sync::CancellationToken;

use super::channel::Channel;
use super::handle::Shared;
use super::protocol::{Answer, ConnectionEvent, KEEPER_SOCKET, Request, WORKER_SOCKET};
use super::session::Session;
use crate::sys::process::{ProcessIdentity, RoleChild};
use crate::sys::{readiness, socket};
use crate::telemetry;

/// Before somebody who is gone is looked for again.
const PAUSE: Duration = Duration::from_millis(100);
/// Before a keeper that cannot be started is tried again.
const LONG_PAUSE: Duration = Duration::from_secs(2);
/// A keeper that was told to stop takes no longer.
const END_PATIENCE: Duration = Duration::from_secs(15);

/// Starts the watching; it ends with the last handle.
pub(super) fn begin(shared: &Arc<Shared>, keeper: ProcessIdentity, child: Option<RoleChild>) {
    let stopped = shared.stopped.clone();
    let task = watch_keeper(Arc::downgrade(shared), stopped.clone(), keeper, child);
    tokio::spawn(task);
    for name in [KEEPER_SOCKET, WORKER_SOCKET] {
        tokio::spawn(gather(Arc::downgrade(shared), stopped.clone(), name));
    }
}

async fn watch_keeper(
    shared: Weak<Shared>,
    stopped: CancellationToken,
    mut keeper: ProcessIdentity,
    mut child: Option<RoleChild>,
) {
    loop {
        tokio::select! {
            // Cancel-safe: waiting for a process changes nothing.
            () = stopped.cancelled() => return,
            () = ended(keeper.open()) => {}
        }
        if let Some(child) = child.take() {
            let _ = child.try_wait();
        }
        let Some(alive) = shared.upgrade() else { return };
        // One that was told to stop has ended as it should.
        drop(alive.changing.lock().await);
        if stopped.is_cancelled() {
            return;
        }
        tracing::warn!(pid = keeper.pid, "keeper ended; starting another");
        let before = born(&alive);
        loop {
            let changing = alive.changing.lock().await;
            if stopped.is_cancelled() {
                return;
            }
            match alive.find_or_start_keeper(alive.copy.get()).await {
                Ok((next, started)) => {
                    (keeper, child) = (next, started);
                    alive.refresh_copy().await;
                    let _ = alive.events.send(ConnectionEvent::KeeperReplaced);
                    if before.is_some() && before != born(&alive) {
                        let reason = "keeper and worker died together".to_owned();
                        let _ = alive.events.send(ConnectionEvent::ConnectionLost { reason });
                    }
                    break;
                }
                Err(error) => {
                    let reason = telemetry::Chain(&error).to_string();
                    tracing::error!(reason, "keeper cannot be started");
                    let _ = alive.events.send(ConnectionEvent::KeeperFailing { reason });
                }
            }
            drop(changing);
            tokio::select! {
                // Cancel-safe: a timer.
                () = stopped.cancelled() => return,
                () = tokio::time::sleep(LONG_PAUSE) => {}
            }
        }
    }
}

/// Which connection the run directory has.
pub(super) fn born(shared: &Shared) -> Option<u64> {
    Session::open(&shared.directory).ok().map(|session| session.born())
}

/// Waits until the process behind a pidfd has ended; at once when there is none.
async fn ended(pidfd: Option<OwnedFd>) {
    let Some(pidfd) = pidfd else { return };
    match readiness::watch(pidfd, Interest::READABLE) {
        Ok(pidfd) => drop(pidfd.readable().await.map(|_| ())),
        Err(error) => {
            tracing::error!(%error, "could not watch a process");
            tokio::time::sleep(LONG_PAUSE).await;
        }
    }
}

/// Waits for the end of a child and reaps it.
pub(super) async fn reap(child: RoleChild) {
    let pidfd = child.pidfd.as_fd().try_clone_to_owned().ok();
    let _ = tokio::time::timeout(END_PATIENCE, ended(pidfd)).await;
    let _ = child.try_wait();
}

/// A pidfd of the keeper, from the peer of its socket.
pub(super) fn keeper_of(shared: &Shared) -> Option<OwnedFd> {
    let directory = std::fs::File::open(&shared.directory).ok()?;
    let connection = socket::connect(directory.as_fd(), KEEPER_SOCKET).ok()?;
    // The credentials of a listening socket are those of whoever listens.
    let pid = socket::peer(&connection).ok()?.pid;
    crate::sys::process::open_pidfd(pid).ok()
}

/// Waits until the keeper has gone, and takes its exit status if it is a child of ours.
pub(super) async fn wait_for_end(keeper: Option<OwnedFd>) {
    let copy = keeper.as_ref().and_then(|keeper| keeper.try_clone().ok());
    let _ = tokio::time::timeout(END_PATIENCE, ended(copy)).await;
    if let Some(keeper) = keeper {
        let _ = rustix::process::waitid(
            rustix::process::WaitId::PidFd(keeper.as_fd()),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOHANG,
        );
    }
}

async fn gather(shared: Weak<Shared>, stopped: CancellationToken, name: &'static str) {
    loop {
        let Some(alive) = shared.upgrade() else { return };
        let channel = alive.connect(name).await.map(|(channel, _)| channel);
        drop(alive);
        if let Ok(channel) = channel {
            tokio::select! {
                // Cancel-safe: events that are lost here have no reader any more.
                () = stopped.cancelled() => return,
                () = forward(&channel, &shared) => {}
            }
        }
        tokio::select! {
            // Cancel-safe: a timer.
            () = stopped.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

async fn forward(channel: &Channel, shared: &Weak<Shared>) {
    if channel.send(&Request::Events, &[]).await.is_err() {
        return;
    }
    while let Ok(Some((answer, _))) = channel.receive::<Answer>().await {
        let Answer::Event { event } = answer else { continue };
        let Some(shared) = shared.upgrade() else { return };
        // The first of a new connection, perhaps; before whoever hears of it asks for the copy.
        if matches!(event, ConnectionEvent::WorkerStarted { .. }) {
            shared.refresh_copy().await;
        }
        let _ = shared.events.send(event);
    }
}
