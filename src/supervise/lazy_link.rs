//! What hangs on the connection of the lazy mounts in control: the copy of its descriptor in the service manager's
//! store, its generation for the planner, and what happens to it for the events.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{broadcast, watch};

use super::events::{EventLog, Subject};
use super::lazy_events::describe;
use super::report::EventLevel;
use crate::fuse::{ConnectionEvent, Lazy};
use crate::sys::notify::Notifier;

/// What follows the connection.
#[derive(Debug)]
pub(super) struct Link {
    /// Name in the descriptor store.
    name: String,
    manager: Option<Arc<Notifier>>,
    /// Generation of the connection whose descriptor is stored.
    stored: Mutex<Option<u64>>,
    pub(super) generation: watch::Sender<Option<u64>>,
    pub(super) events: EventLog,
}

impl Link {
    pub(super) fn new(instance: &str, manager: Option<Arc<Notifier>>, events: EventLog) -> Self {
        Self {
            name: store_name(instance),
            manager,
            stored: Mutex::default(),
            generation: watch::Sender::new(None),
            events,
        }
    }

    /// Takes over which connection there is now.
    pub(super) fn refresh(&self, lazy: &Lazy) {
        let Some(generation) = lazy.generation() else { return };
        self.generation.send_if_modified(|known| known.replace(generation) != Some(generation));
        let Some(manager) = &self.manager else { return };
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        if *stored == Some(generation) {
            return;
        }
        let Some(copy) = lazy.held_copy() else { return };
        // One of an earlier connection is of no use, and the store has little room.
        let told = manager
            .forget(&self.name)
            .and_then(|()| manager.store(&self.name, std::os::fd::AsFd::as_fd(&copy)));
        match told {
            Ok(()) => *stored = Some(generation),
            Err(error) => {
                tracing::warn!(%error, "the service manager keeps no copy of the lazy connection");
            }
        }
    }

    /// The connection is taken down.
    pub(super) fn forget(&self) {
        *self.stored.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(manager) = &self.manager
            && let Err(error) = manager.forget(&self.name)
        {
            tracing::warn!(%error, "the service manager was not told to close a descriptor");
        }
    }
}

/// What the connection's descriptor is called in the descriptor store.
pub(super) fn store_name(instance: &str) -> String {
    format!("fuse-{instance}")
}

/// Passes on what happens to the connection until it is taken down.
pub(super) async fn tell(
    mut receiver: broadcast::Receiver<ConnectionEvent>,
    link: Arc<Link>,
    lazy: Weak<Lazy>,
) {
    loop {
        let event = match receiver.recv().await {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if matches!(
            event,
            ConnectionEvent::WorkerStarted { .. }
                | ConnectionEvent::ConnectionLost { .. }
                | ConnectionEvent::KeeperReplaced
        ) && let Some(lazy) = lazy.upgrade()
        {
            link.refresh(&lazy);
        }
        let (level, kind, message) = describe(&event);
        link.events.emit(Subject::Host, level, kind, message, []);
    }
}

/// Says that a keeper of another build was left in its place.
pub(super) fn tell_kept_keeper(lazy: &Lazy, events: &EventLog) {
    if let Some(reason) = lazy.kept_keeper() {
        let message = format!("the keeper of another build goes on: {reason}");
        events.emit(Subject::Host, EventLevel::Warning, "keeper-kept", message, []);
    }
}

/// Who uses the connection, for whoever would end it by force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Users {
    /// Only what is being taken down.
    OnlyThis,
    /// Others too.
    Others,
}

impl Users {
    /// Given whether containers of others run, and what images people look into: those are nobody's project's.
    pub(super) fn of(others_run: bool, image_mounts: std::io::Result<Vec<PathBuf>>) -> Self {
        let are_none = image_mounts.is_ok_and(|mounts| mounts.is_empty());
        if others_run || !are_none { Self::Others } else { Self::OnlyThis }
    }
}
