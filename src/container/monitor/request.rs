//! What clients ask for.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use super::super::wire::{Message, OLDEST_PROTOCOL, Request};
use super::super::{ExecRequest, Outcome, Phase, Signal};
use super::client::Heard;
use super::run::{Init, Monitor, stopping};
use super::session::Session;
use crate::boundary::Boundary;
use crate::sys::process::send_signal;
use crate::version::versions;

impl Monitor {
    pub(super) fn on_client(&mut self, number: u64) {
        loop {
            let Some(client) = self.clients.iter_mut().find(|client| client.number == number)
            else {
                return;
            };
            client.flush();
            let answer = match client.hear() {
                Heard::Nothing => return,
                Heard::Unknown(words) => {
                    Some(Message::Refused { reason: format!("unknown request: {words}") })
                }
                Heard::Request(request, descriptors) => {
                    self.on_request(number, request, descriptors)
                }
            };
            if let Some(message) = answer {
                self.send(number, &message, Vec::new());
            }
        }
    }

    fn on_request(
        &mut self,
        client: u64,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Message> {
        let done = |result: Result<(), String>| match result {
            Ok(()) => Some(Message::Done),
            Err(reason) => Some(Message::Refused { reason }),
        };
        match request {
            // A later one is no obstacle: what it has added is refused by name when it is asked for.
            Request::Hello { version } if version < OLDEST_PROTOCOL => {
                let reason = format!("there is no version {version} of the monitor's protocol");
                Some(Message::Refused { reason })
            }
            Request::Hello { version: _ } => Some(Message::Hello {
                version: versions().monitor,
                id: self.launch.id.clone(),
                software: versions().build.to_owned(),
            }),
            Request::Status => Some(Message::Status { status: Box::new(self.status.clone()) }),
            Request::Watch => {
                if let Some(client) = self.clients.iter_mut().find(|c| c.number == client) {
                    client.watches = true;
                }
                Some(Message::Status { status: Box::new(self.status.clone()) })
            }
            Request::Stop { signal, grace_ms } => {
                self.stop(signal, grace_ms);
                Some(Message::Done)
            }
            Request::Signal { signal } => done(self.signal(signal)),
            Request::Exec { exec } => self.exec(client, &exec, descriptors),
        }
    }

    fn stop(&mut self, signal: Option<Signal>, grace_ms: Option<u64>) {
        if self.outcome.is_some() {
            return;
        }
        self.stop_requested = true;
        // What is on its way out need not be well.
        self.end_health();
        if self.starting.is_some() && !self.init.as_ref().is_some_and(Init::has_begun) {
            self.kill_all();
            let reason = "it was stopped before it had started".to_owned();
            self.end_with(Outcome::NotStarted { reason, code: 125 });
            return;
        }
        let grace = Duration::from_millis(grace_ms.unwrap_or(self.launch.stop.grace_ms));
        let now = Instant::now();
        let kill_at = now.checked_add(grace);
        self.kill_at = match (self.kill_at, kill_at) {
            (Some(earlier), Some(at)) => Some(earlier.min(at)),
            (known, at) => known.or(at),
        };
        if grace.is_zero() {
            self.kill_at = Some(now);
        } else {
            let _ = self.signal(signal.unwrap_or(self.launch.stop.signal));
        }
        Boundary::STOP_ASKED.reach(&self.launch.run_dir);
        if let Phase::Running { process, started_at } = &self.status.phase {
            self.status.phase = stopping(process.clone(), *started_at);
            self.tell_status();
        }
    }

    fn signal(&self, signal: Signal) -> Result<(), String> {
        // The program may run although the child that has started it did not come to say so.
        let init = self
            .init
            .as_ref()
            .filter(|init| self.outcome.is_none() && (self.starting.is_none() || init.has_begun()));
        let init = init.ok_or("the container does not run")?;
        send_signal(init.pidfd.as_fd(), i32::from(signal.number()))
            .map_err(|error| format!("could not send {signal}: {error}"))
    }

    fn exec(
        &mut self,
        client: u64,
        request: &ExecRequest,
        streams: Vec<OwnedFd>,
    ) -> Option<Message> {
        let failed =
            |reason: &str| Some(Message::ExecFailed { reason: reason.to_owned(), code: 125 });
        let expected = if request.terminal.is_some() { 0 } else { 3 };
        if request.args.first().is_none_or(String::is_empty) {
            return failed("no command is given");
        }
        if streams.len() != expected {
            return failed("the standard streams did not come along");
        }
        let init = match &self.init {
            Some(init) if self.starting.is_none() && self.outcome.is_none() => init.process.pid,
            _ => return failed("the container does not run"),
        };
        let monitor = self.identity.pid;
        match Session::begin(&self.launch, monitor, init, client, request, streams) {
            Ok(session) => {
                self.sessions.push(session);
                None
            }
            Err(error) => failed(&format!("could not fork: {error}")),
        }
    }
}
