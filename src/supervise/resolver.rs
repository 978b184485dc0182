//! The process that answers containers' names: there while there are networks, started again when it ended.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::process::Signal;

use super::bridges::BridgesOptions;
use crate::network::HostNetwork;
use crate::network::names::{NAMES_SOCKET, NamesClient, NamesError};
use crate::sys::process::{RoleChild, open_pidfd, send_signal};
use crate::sys::socket;

/// How long one that begins is waited for: a hundred times what it takes.
const TRIES: usize = 500;
const PAUSE: rustix::time::Timespec = rustix::time::Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// The resolver, if this control began it.
#[derive(Debug, Default)]
pub(super) struct Resolver(Option<RoleChild>);

impl Resolver {
    /// The way to the resolver of `network`, which is started where none runs.
    pub(super) fn ensure(
        &mut self,
        network: &HostNetwork,
        options: &BridgesOptions,
    ) -> Result<NamesClient, NamesError> {
        if self.0.as_ref().is_some_and(has_ended) {
            self.0 = None;
        }
        let directory = network.directory();
        match NamesClient::connect(directory) {
            Err(NamesError::Absent(_)) => {}
            answer => return answer,
        }
        let log = File::options().create(true).append(true).open(directory.join("names.log"));
        let group = format!("/supervisor-{}/names", options.instance);
        let command = NamesClient::command(directory, &options.log_level, &group);
        let started = log
            .and_then(|log| command.log_to(&log))
            .and_then(|command| command.spawn(&options.exe));
        self.0 = Some(started.map_err(NamesError::Absent)?);
        for _ in 0..TRIES {
            let ended = self.0.as_ref().is_some_and(has_ended);
            if ended || NamesClient::connect(directory).is_ok() {
                break;
            }
            // An interrupted wait is a shorter one.
            let _ = rustix::thread::nanosleep(&PAUSE);
        }
        NamesClient::connect(directory)
    }

    /// Ends one that does not answer. Whether there was one.
    pub(super) fn end(&mut self, directory: &Path) -> bool {
        let killed = match &self.0 {
            // It is reaped when another one is asked for.
            Some(child) => send_signal(child.pidfd.as_fd(), Signal::KILL.as_raw()),
            // An earlier control began it. The credentials of a connection are those of whoever listens, and the folder
            // is ours alone.
            None => listener(directory)
                .and_then(open_pidfd)
                .and_then(|pidfd| send_signal(pidfd.as_fd(), Signal::KILL.as_raw())),
        };
        if let Err(error) = &killed {
            tracing::warn!(%error, "a resolver that hangs cannot be ended");
        }
        killed.is_ok()
    }

    /// Waits for one that was told to end.
    pub(super) fn wait(&mut self) {
        if let Some(resolver) = self.0.take() {
            let _ = resolver.wait();
        }
    }
}

/// Whether it has ended; reaps it.
fn has_ended(child: &RoleChild) -> bool {
    child.try_wait().map_or(true, |ended| ended.is_some())
}

/// The process that listens on the resolver's socket.
fn listener(directory: &Path) -> io::Result<i32> {
    let directory = File::open(directory)?;
    socket::peer(socket::connect_now(directory.as_fd(), NAMES_SOCKET)?).map(|peer| peer.pid)
}
