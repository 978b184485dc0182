//! The process that answers containers' names: there while there are networks, started again when it ended.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;
use rustix::time::Timespec;

use super::bridges::BridgesOptions;
use crate::network::HostNetwork;
use crate::network::names::{NAMES_SOCKET, NamesClient, NamesError};
use crate::sys::process::{RoleChild, open_pidfd, send_signal};
use crate::sys::socket;

/// How long one that begins is waited for: a hundred times what it takes.
const TRIES: usize = 500;
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
/// How long one that ends is.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

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
        // One that was begun may wait for its predecessor's end: a second one would wait behind it.
        if self.0.is_none() {
            self.begin(directory, options).map_err(NamesError::Absent)?;
        }
        for _ in 0..TRIES {
            let ended = self.0.as_ref().is_some_and(has_ended);
            if ended || NamesClient::connect(directory).is_ok() {
                return NamesClient::connect(directory);
            }
            // An interrupted wait is a shorter one.
            let _ = rustix::thread::nanosleep(&PAUSE);
        }
        // The next time finds that it has ended, and begins another one.
        if let Some(child) = &self.0 {
            let _ = send_signal(child.pidfd.as_fd(), Signal::KILL.as_raw());
        }
        NamesClient::connect(directory)
    }

    fn begin(&mut self, directory: &Path, options: &BridgesOptions) -> io::Result<()> {
        let log = File::options().create(true).append(true).open(directory.join("names.log"));
        let group = format!("/supervisor-{}/names", options.instance);
        let command = NamesClient::command(directory, &options.log_level, &group);
        let started = log
            .and_then(|log| command.log_to(&log))
            .and_then(|command| command.spawn(&options.exe));
        self.0 = Some(started?);
        Ok(())
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

    /// Waits for one that was told to end; one that does not is ended.
    pub(super) fn wait(&mut self) {
        let Some(child) = self.0.take() else { return };
        if !ends_in_time(&child) {
            let _ = send_signal(child.pidfd.as_fd(), Signal::KILL.as_raw());
            if !ends_in_time(&child) {
                // It is in the kernel's hands, which does not let it go now. It is looked at when one is asked for.
                self.0 = Some(child);
            }
        }
    }
}

/// Waits until it has ended, for as long as one that begins is waited for. Whether it has; it is reaped then.
fn ends_in_time(child: &RoleChild) -> bool {
    let mut ended = [PollFd::new(&child.pidfd, PollFlags::IN)];
    let _ = rustix::event::poll(&mut ended, Some(&PATIENCE));
    has_ended(child)
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
