//! Events: what happened, told to everybody who listens, and to the log.

use std::collections::BTreeMap;

use tokio::sync::broadcast;

use super::report::{Event, EventLevel};

/// Events that a slow listener may be behind; older ones are lost to it.
const BACKLOG: usize = 1024;

/// What an event is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject<'a> {
    /// The host: images, lazy mounts, control itself.
    Host,
    /// A project.
    Project(&'a str),
    /// A service of a project.
    Service(&'a str, &'a str),
}

/// Where events are told; clones tell the same listeners.
#[derive(Debug, Clone)]
pub(super) struct EventLog(broadcast::Sender<Event>);

impl EventLog {
    pub(super) fn new() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }

    pub(super) fn sender(&self) -> broadcast::Sender<Event> {
        self.0.clone()
    }

    /// Tells an event. `kind` is a stable word, `message` is for people.
    pub(super) fn emit<'a>(
        &self,
        subject: Subject<'_>,
        level: EventLevel,
        kind: &str,
        message: impl Into<String>,
        attributes: impl IntoIterator<Item = (&'a str, String)>,
    ) {
        let (project, service) = match subject {
            Subject::Host => ("", ""),
            Subject::Project(project) => (project, ""),
            Subject::Service(project, service) => (project, service),
        };
        let message = message.into();
        match level {
            EventLevel::Info => tracing::info!(kind, project, service, "{message}"),
            EventLevel::Warning => tracing::warn!(kind, project, service, "{message}"),
            EventLevel::Error => tracing::error!(kind, project, service, "{message}"),
        }
        let attributes: BTreeMap<String, String> =
            attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        // Nobody listening is no failure.
        let _ = self.0.send(Event {
            time: jiff::Timestamp::now(),
            project: project.to_owned(),
            service: service.to_owned(),
            kind: kind.to_owned(),
            level,
            message,
            attributes,
        });
    }
}
