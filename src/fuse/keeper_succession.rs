//! A worker of this build takes the place of one of another build, without a read that fails or waits for long.
//!
//! The next worker is started beside the one that serves. It reads the state of the connection and the indexes of its
//! layers, and says that it stands by, or why it cannot serve; then the other goes on and nothing was touched. Once it
//! stands by, the other is killed: what that one leaves unanswered the kernel sends again. Waiting for its requests to
//! be answered first would wait for registries.

use std::os::fd::AsFd as _;

use super::connect;
use super::keeper::Keeper;
use super::keeper_worker::RunningWorker;
use super::options::Place;
use super::protocol::{ConnectionEvent, Leash};
use super::session::Session;
use crate::sys::process;

impl Keeper {
    /// Begins it, if the worker is one of another build.
    pub(super) fn succeed_worker(&mut self) {
        let Some(worker) = &self.worker else { return };
        if worker.build == self.config.build || self.next.is_some() {
            return;
        }
        let granted = Session::open(&self.config.directory)
            .ok()
            .and_then(|session| connect::granted(&session));
        if !granted.is_some_and(|granted| granted.resend) {
            return self.keep_worker("this kernel cannot send requests again (it needs Linux 6.9)");
        }
        let device = self.device.as_fd();
        match RunningWorker::start(&self.config, &self.exe, device, Place::Succeed) {
            Ok(next) => self.next = Some(next),
            Err(error) => self.keep_worker(&format!("the next could not be started: {error}")),
        }
    }

    /// The worker that is to succeed said something, or ended.
    pub(super) fn hear_next(&mut self) {
        let Some(next) = &mut self.next else { return };
        match next.hear() {
            Some(Leash::Standby) => {
                next.stands_by = true;
                match &mut self.worker {
                    Some(worker) => {
                        worker.reason =
                            Some("a worker of another build takes its place".to_owned());
                        tracing::info!(
                            pid = worker.identity.pid,
                            "the next worker is ready; this one is killed"
                        );
                        let _ = process::send_signal(worker.pidfd.as_fd(), 9);
                    }
                    None => self.promote(),
                }
            }
            Some(Leash::Failed { message }) => next.reason = Some(message),
            Some(Leash::Ready) | None => {}
        }
        let Some(next) = &self.next else { return };
        if process::has_ended(next.pidfd.as_fd()) {
            let end = next.reap();
            self.next = None;
            if self.worker.is_some() {
                self.keep_worker(&end.reason);
            } else {
                self.count_failure(end.reason);
            }
        }
    }

    /// The place is free: whoever stands by takes it.
    pub(super) fn promote(&mut self) {
        if let Some(mut next) = self.next.take_if(|next| next.stands_by) {
            next.begin();
            self.worker = Some(next);
            self.worker_kept = None;
            self.watchdog.reset();
        }
    }

    fn keep_worker(&mut self, reason: &str) {
        tracing::warn!(reason, "a worker of another build goes on");
        self.worker_kept = Some(reason.to_owned());
        self.publish(&ConnectionEvent::WorkerKept { reason: reason.to_owned() });
    }
}
