//! Waiting for whatever comes next.

use std::time::Instant;

use rustix::event::PollFd;

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
    /// The child that cleans up.
    Finishing,
    /// A first process that is nobody's child.
    Init,
}

impl Monitor {
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
