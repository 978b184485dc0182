//! Waiting for whatever comes next.

use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use super::health::{Health, ProbeSource};
use super::output::Output;
use super::run::Monitor;

/// What has something to say.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    /// A signal; a child has ended.
    Signals,
    /// A client connects.
    Listener,
    /// Output of the container, by the number of the stream.
    Output(usize),
    /// A client, by its number.
    Client(u64),
    /// The child that starts the container.
    Starting,
    /// The child that starts the program of a session, by its position.
    Session(usize),
    /// A check of the container's health.
    Probe(ProbeSource),
    /// The child that cleans up.
    Finishing,
    /// A first process that is nobody's child.
    Init,
}

impl Monitor {
    /// Everything that the loop waits for.
    fn polled(&self) -> Vec<(Source, PollFd<'_>)> {
        let input = PollFlags::IN;
        let mut all = vec![
            (Source::Signals, PollFd::new(&self.begin.signals, input)),
            (Source::Listener, PollFd::new(&self.begin.listener, input)),
        ];
        for (number, fd) in self.output.iter().flat_map(Output::descriptors).enumerate() {
            all.push((Source::Output(number), PollFd::from_borrowed_fd(fd, input)));
        }
        for client in &self.clients {
            let mut flags = input;
            flags.set(PollFlags::OUT, client.has_waiting());
            all.push((Source::Client(client.number), PollFd::new(client, flags)));
        }
        all.extend(self.starting.iter().map(|child| (Source::Starting, PollFd::new(child, input))));
        all.extend(
            self.finishing.iter().map(|child| (Source::Finishing, PollFd::new(child, input))),
        );
        for (number, session) in self.sessions.iter().enumerate() {
            let child = session.child.iter();
            all.extend(child.map(|child| (Source::Session(number), PollFd::new(child, input))));
        }
        let probes = self.health.iter().flat_map(Health::polled);
        all.extend(
            probes.map(|(source, fd)| (Source::Probe(source), PollFd::from_borrowed_fd(fd, input))),
        );
        // One that is being asked how it ended is ready all the time.
        let init = self.init.iter().filter(|init| !init.is_child && self.exit_until.is_none());
        all.extend(init.map(|init| (Source::Init, PollFd::new(&init.pidfd, input))));
        all
    }

    /// Waits until something has happened or a deadline has passed.
    pub(super) fn wait(&self) -> Vec<Source> {
        let (sources, mut polled): (Vec<Source>, Vec<PollFd<'_>>) =
            self.polled().into_iter().unzip();
        let timeout = self.next_deadline().and_then(|at| {
            let left = at.saturating_duration_since(Instant::now());
            rustix::time::Timespec::try_from(left).ok()
        });
        if rustix::event::poll(&mut polled, timeout.as_ref()).is_err() {
            // Interrupted: the caller looks at its deadlines and comes again.
            return Vec::new();
        }
        let ready = sources.into_iter().zip(&polled).filter(|(_, fd)| !fd.revents().is_empty());
        ready.map(|(source, _)| source).collect()
    }
}
