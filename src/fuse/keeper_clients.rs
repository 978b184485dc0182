//! The keeper's socket: answers, events, and the end that somebody asks for.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use super::keeper::Keeper;
use super::keeper_mount;
use super::protocol::{
    Answer, ConnectionEvent, FailureKind, KeeperStatus, Request, Stop, WorkerState, decode, encode,
    hello_answer,
};
use super::session::Session;
use crate::sys::{fuse_device, socket};

/// How long the last worker has to notice that the connection has ended.
pub(super) const END_PATIENCE: Duration = Duration::from_secs(3);

/// Somebody who is connected.
pub(super) struct Client {
    pub(super) connection: OwnedFd,
    pub(super) wants_events: bool,
}

/// What becomes of a client, or of the keeper.
pub(super) enum Step {
    Keep,
    Drop,
    End,
}

impl Keeper {
    /// Tells an event to whoever asked for events.
    pub(super) fn publish(&mut self, event: &ConnectionEvent) {
        let message = encode(&Answer::Event { event: event.clone() });
        // A reader that does not keep up is dropped; it asks for the state when it comes back.
        self.clients.retain(|client| {
            !client.wants_events || socket::send(client.connection.as_fd(), &message, &[]).is_ok()
        });
    }

    /// Answers the next request of a client.
    pub(super) fn answer(&mut self, place: usize) -> Step {
        let Some(client) = self.clients.get_mut(place) else { return Step::Keep };
        let Ok((packet, _)) = socket::receive(client.connection.as_fd()) else {
            return Step::Drop;
        };
        if packet.is_empty() {
            return Step::Drop;
        }
        let mut step = Step::Keep;
        let mut descriptor = None;
        let mut standing = Vec::new();
        let answer = match decode(&packet) {
            Some(Request::Hello { protocol, oldest, .. }) => {
                hello_answer(&self.identity, &self.config.build, (protocol, oldest))
            }
            Some(Request::Retry) => {
                self.retry();
                Answer::Done
            }
            Some(Request::Status { .. }) => Answer::Keeper { status: self.status() },
            Some(Request::Descriptor) => {
                descriptor = Some(self.device.as_fd());
                Answer::Done
            }
            Some(Request::Events) => {
                client.wants_events = true;
                standing = self.standing();
                Answer::Done
            }
            Some(Request::Stop { how }) => match self.objection_to(how) {
                None => {
                    self.end(how);
                    step = Step::End;
                    Answer::Done
                }
                Some(answer) => answer,
            },
            _ => Answer::Failed {
                kind: FailureKind::Unsupported,
                message: "the keeper does not know this request".to_owned(),
            },
        };
        let Some(client) = self.clients.get(place) else { return step };
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        let mut sent = socket::send(client.connection.as_fd(), &encode(&answer), &descriptors);
        for event in standing {
            let message = encode(&Answer::Event { event });
            sent = sent.and_then(|_| socket::send(client.connection.as_fd(), &message, &[]));
        }
        match sent {
            Err(_) if matches!(step, Step::Keep) => Step::Drop,
            _ => step,
        }
    }

    /// What has happened and still holds. A keeper that was just started has done it before anybody could listen.
    fn standing(&self) -> Vec<ConnectionEvent> {
        let kept = self.worker_kept.clone().map(|reason| ConnectionEvent::WorkerKept { reason });
        kept.into_iter().collect()
    }

    /// Cuts the pause before the next attempt to start a worker, and tries again to succeed one of another build.
    fn retry(&mut self) {
        if self.worker.is_none() && self.restart_at.is_some() {
            self.restart_at = Some(std::time::Instant::now());
        }
        self.succeed_worker();
    }

    fn status(&self) -> KeeperStatus {
        let worker = match &self.worker {
            Some(worker) if worker.is_ready => {
                WorkerState::Running { process: worker.identity.clone() }
            }
            _ if self.attempts.is_failing() => WorkerState::Failing {
                attempts: self.attempts.count(),
                reason: self.attempts.reason().to_owned(),
            },
            _ => WorkerState::Starting,
        };
        KeeperStatus {
            process: self.identity.clone(),
            worker,
            restarts: self.restarts,
            connection: self.minor,
            generation: Session::open(&self.config.directory).map_or(0, |session| session.born()),
            build: self.config.build.clone(),
            worker_build: self.worker.as_ref().map(|worker| worker.build.clone()),
            worker_kept: self.worker_kept.clone(),
        }
    }

    fn objection_to(&self, how: Stop) -> Option<Answer> {
        let open = Session::open(&self.config.directory).map_or(0, |session| session.open_files());
        (how == Stop::IfUnused && open > 0).then(|| Answer::Failed {
            kind: FailureKind::Busy,
            message: format!("{open} files on the mount are open"),
        })
    }

    /// Ends the connection, the worker and the files of both.
    pub(super) fn end(&mut self, how: Stop) {
        if how == Stop::Force
            && let Err(error) = fuse_device::abort(self.minor)
        {
            tracing::warn!(%error, "could not abort the connection; it ends with its descriptor");
        }
        if let Err(error) = keeper_mount::detach(&self.config) {
            tracing::warn!(%error, "could not detach the mount");
        }
        if let Some(next) = self.next.take() {
            next.kill();
        }
        if let Some(worker) = self.worker.take() {
            if how == Stop::IfUnused && !worker.ends_within(END_PATIENCE) {
                // An overlay still has the file system; whoever stops us was to take care of that.
                let _ = fuse_device::abort(self.minor);
            }
            if !worker.ends_within(END_PATIENCE) {
                worker.kill();
            }
            worker.reap();
        }
        keeper_mount::sweep(&self.config);
    }
}
