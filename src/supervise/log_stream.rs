//! The output of a project's services as one stream.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{broadcast, mpsc};

use super::handle::{ControlHandle, RequestError};
use super::report::LogSource;
use crate::logs::{LogEntry, LogFollower, ReadOptions};

/// Which lines are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogTail {
    /// Only the last so many of each service; all when `None`.
    pub last: Option<usize>,
    /// Only lines of this moment or later.
    pub since: Option<Timestamp>,
    /// Only lines before this moment; ends then.
    pub until: Option<Timestamp>,
    /// Go on as lines arrive, also of services that come later.
    pub follow: bool,
}

/// One line of a service's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamedLine {
    /// Prefix of the line.
    pub container: String,
    /// Whose it is.
    pub service: String,
    /// `stdout` or `stderr`.
    pub stream: &'static str,
    /// When it was written.
    pub time: Timestamp,
    /// Without its newline.
    pub text: String,
    /// It goes on with the next line of this stream.
    pub partial: bool,
}

/// Sends the lines of a project's services to `lines`, by time as far as they are there already. Returns when the
/// services are known to exist; the lines come from a task of their own, which ends with the receiver.
///
/// # Errors
/// When project or service do not exist.
pub async fn read_logs(
    control: ControlHandle,
    project: String,
    services: Vec<String>,
    tail: LogTail,
    lines: mpsc::Sender<StreamedLine>,
) -> Result<(), RequestError> {
    // Before the first look, so that no service falls between the two.
    let (events, begin) = (control.events(), Timestamp::now());
    let sources = control.logs(project.clone(), services.clone()).await?;
    tokio::spawn(async move {
        let known = sources.iter().map(|source| source.service.clone()).collect();
        let followers = send_present(sources, tail, &lines).await;
        if !tail.follow {
            return;
        }
        let mut following = tokio::task::JoinSet::new();
        for (source, follower) in followers {
            following.spawn(follow(source, follower, lines.clone()));
        }
        let later = Later { project, services, known, until: tail.until, begin };
        tokio::select! {
            // Cancel-safe: both arms end everything, with the followers.
            () = later.follow(control, events, &lines, &mut following) => {}
            () = reached(tail.until) => {}
        }
    });
    Ok(())
}

/// Sends what is there, merged by time.
async fn send_present(
    sources: Vec<LogSource>,
    tail: LogTail,
    lines: &mpsc::Sender<StreamedLine>,
) -> Vec<(LogSource, LogFollower)> {
    let options = ReadOptions { tail: tail.last, since: tail.since, until: tail.until };
    let mut open = Vec::new();
    for source in sources {
        match LogFollower::open(&source.path, options) {
            Ok(mut follower) => {
                let next = follower.ready_entry().ok().flatten();
                open.push((source, follower, next));
            }
            Err(error) => {
                tracing::warn!(service = source.service, %error, "its log cannot be read")
            }
        }
    }
    loop {
        let oldest = open
            .iter_mut()
            .filter(|(_, _, next)| next.is_some())
            .min_by_key(|(_, _, next)| next.as_ref().map(|entry| entry.time));
        let Some((source, follower, next)) = oldest else { break };
        if let Some(entry) = next.take()
            && lines.send(streamed(source, &entry)).await.is_err()
        {
            return Vec::new();
        }
        *next = follower.ready_entry().ok().flatten();
    }
    open.into_iter().map(|(source, follower, _)| (source, follower)).collect()
}

async fn follow(source: LogSource, mut follower: LogFollower, lines: mpsc::Sender<StreamedLine>) {
    loop {
        tokio::select! {
            // Cancel-safe: an entry is either returned or still to come.
            () = lines.closed() => return,
            entry = follower.next_entry() => match entry {
                Ok(entry) => if lines.send(streamed(&source, &entry)).await.is_err() { return },
                Err(error) => {
                    tracing::warn!(service = source.service, %error, "its log cannot be followed");
                    return;
                }
            }
        }
    }
}

/// Ends a little after `until`, when what was written before it has been read.
async fn reached(until: Option<Timestamp>) {
    const READING: Duration = Duration::from_millis(200);
    let Some(until) = until else { return std::future::pending().await };
    let left = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
    tokio::time::sleep(left.saturating_add(READING)).await;
}

/// Services that come into the project while it is followed.
struct Later {
    project: String,
    services: Vec<String>,
    known: BTreeSet<String>,
    until: Option<Timestamp>,
    /// What they wrote before is not asked for.
    begin: Timestamp,
}

impl Later {
    async fn follow(
        mut self,
        control: ControlHandle,
        mut events: broadcast::Receiver<super::report::Event>,
        lines: &mpsc::Sender<StreamedLine>,
        following: &mut tokio::task::JoinSet<()>,
    ) {
        loop {
            let event = tokio::select! {
                // Cancel-safe: receiving takes an event or none.
                () = lines.closed() => return,
                event = events.recv() => event,
            };
            match event {
                Err(broadcast::error::RecvError::Closed) => return,
                Ok(event) if event.project != self.project || event.kind != "container-created" => {
                    continue;
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            }
            let sources = control.logs(self.project.clone(), self.services.clone()).await;
            for source in sources.unwrap_or_default() {
                if !self.known.insert(source.service.clone()) {
                    continue;
                }
                let options =
                    ReadOptions { tail: None, since: Some(self.begin), until: self.until };
                if let Ok(follower) = LogFollower::open(&source.path, options) {
                    following.spawn(follow(source, follower, lines.clone()));
                }
            }
        }
    }
}

fn streamed(source: &LogSource, entry: &LogEntry) -> StreamedLine {
    StreamedLine {
        container: source.container.clone(),
        service: source.service.clone(),
        stream: entry.stream.name(),
        time: entry.time,
        text: entry.text().to_owned(),
        partial: entry.is_partial(),
    }
}
