//! What hangs on a connection of the lazy mounts in control: its settings, the copy of its descriptor in
//! the service manager's store, its generation for the planner, and what happens to it for the events.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{broadcast, watch};

use super::ControlOptions;
use super::events::{EventLog, Subject};
use super::lazy_events::describe;
use super::report::EventLevel;
use crate::fuse::{ConnectionEvent, Feature, Lazy, LazyOptions, Side, Xattrs};
use crate::host;
use crate::sys::notify::Notifier;

/// The connections that there are, or that something uses: each a number that tells it apart from every other of its
/// side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Generations {
    pub(super) main: Option<u64>,
    pub(super) marked: Option<u64>,
}

impl Generations {
    pub(super) fn of(self, side: Side) -> Option<u64> {
        match side {
            Side::Main => self.main,
            Side::Marked => self.marked,
        }
    }

    /// Whether `now` there is another one in the place of one of these.
    pub(super) fn was_replaced(self, now: Self) -> bool {
        let is_other = |side| self.of(side).zip(now.of(side)).is_some_and(|(its, now)| its != now);
        Side::ALL.into_iter().any(is_other)
    }

    pub(super) fn set(&mut self, side: Side, generation: Option<u64>) {
        match side {
            Side::Main => self.main = generation,
            Side::Marked => self.marked = generation,
        }
    }
}

/// What follows the connection.
#[derive(Debug)]
pub(super) struct Link {
    /// Name in the descriptor store.
    name: String,
    side: Side,
    manager: Option<Arc<Notifier>>,
    /// Generation of the connection whose descriptor is stored.
    stored: Mutex<Option<u64>>,
    generations: watch::Sender<Generations>,
    pub(super) events: EventLog,
}

impl Link {
    pub(super) fn new(
        name: String,
        side: Side,
        generations: watch::Sender<Generations>,
        manager: Option<Arc<Notifier>>,
        events: EventLog,
    ) -> Self {
        Self { name, side, manager, stored: Mutex::default(), generations, events }
    }

    /// Takes over which connection there is now.
    pub(super) fn refresh(&self, lazy: &Lazy) {
        let Some(generation) = lazy.generation() else { return };
        self.generations.send_if_modified(|known| {
            let is_other = known.of(self.side) != Some(generation);
            known.set(self.side, Some(generation));
            is_other
        });
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

/// The settings of one connection, from those of control.
pub(super) fn lazy_options(options: &ControlOptions, instance: &str, side: Side) -> LazyOptions {
    let mut lazy = LazyOptions::new(instance);
    let features = &options.features;
    lazy.side = side;
    lazy.xattrs = match side {
        Side::Main => Xattrs::Absent,
        Side::Marked => Xattrs::Served,
    };
    let group = || format!("/supervisor-{instance}/{}", side.directory());
    lazy.cgroup = features.cgroup.is_present().then(group);
    lazy.registry = options.registry.clone();
    lazy.cache_bytes = options.disk.content(options.lazy_cache_bytes);
    lazy.reserve_bytes = options.disk.reserve.unwrap_or(0);
    lazy.log_level.clone_from(&options.log_level);
    lazy.fuse = wanted(&features.fuse);
    lazy.passthrough = wanted(&features.passthrough);
    lazy.resend = wanted(&features.resend);
    lazy.landlock = wanted(&features.landlock);
    lazy.seccomp = wanted(&features.seccomp);
    lazy.mount_api = wanted(&features.mount_api);
    lazy
}

/// What is missing is tried again by those who use it, because a module may be loaded later; what is switched off
/// stays so.
fn wanted(feature: &host::Feature) -> Feature {
    if feature.is_forced_off() { Feature::Off } else { Feature::Probe }
}

/// What a connection's descriptor is called in the descriptor store.
pub(super) fn store_name(instance: &str, side: Side) -> String {
    match side {
        Side::Main => format!("fuse-{instance}"),
        Side::Marked => format!("fuse-xattr-{instance}"),
    }
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
