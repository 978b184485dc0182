//! Events: what happened, told to everybody who listens, to the journal, and to the log.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use tokio::sync::broadcast;

use super::journal::{self, Journal};
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
pub(super) struct EventLog {
    listeners: broadcast::Sender<Event>,
    /// Locked while an event is numbered, written and told, so that all three have one order.
    journal: Arc<Mutex<Journal>>,
}

/// Events of the past, and what happens from then on, without a gap or a repetition between them.
#[derive(Debug)]
pub struct EventHistory {
    files: Vec<File>,
    before: u64,
    /// Everything that happens after the past.
    pub coming: broadcast::Receiver<Event>,
}

impl EventHistory {
    /// Reads the events of the past, oldest first. It reads files, so a caller in a runtime uses a blocking thread.
    #[must_use]
    pub fn read_past(&mut self) -> Vec<Event> {
        let files = std::mem::take(&mut self.files).into_iter().flat_map(journal::events);
        files.filter(|event| event.sequence < self.before).collect()
    }
}

impl EventLog {
    /// With a journal in `folder`, which control goes on with if there is one.
    pub(super) fn open(folder: &Path) -> Self {
        Self {
            listeners: broadcast::channel(BACKLOG).0,
            journal: Arc::new(Mutex::new(Journal::open(folder))),
        }
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.listeners.subscribe()
    }

    pub(super) fn history(&self) -> EventHistory {
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        EventHistory {
            files: journal.files(),
            before: journal.upcoming(),
            coming: self.listeners.subscribe(),
        }
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
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = journal.lost();
        let event = Event {
            sequence: journal.take_number(),
            time: Timestamp::now(),
            project: project.to_owned(),
            service: service.to_owned(),
            kind: kind.to_owned(),
            level,
            message,
            attributes,
        };
        let kept = journal.append(&event).is_ok();
        // Nobody listening is no failure.
        let _ = self.listeners.send(event);
        if kept && lost > 0 {
            let event = Event {
                sequence: journal.take_number(),
                time: Timestamp::now(),
                project: String::new(),
                service: String::new(),
                kind: "events-lost".to_owned(),
                level: EventLevel::Warning,
                message: format!("{lost} earlier events could not be written to the journal"),
                attributes: BTreeMap::from([("count".to_owned(), lost.to_string())]),
            };
            let _ = journal.append(&event);
            let _ = self.listeners.send(event);
        }
    }
}
