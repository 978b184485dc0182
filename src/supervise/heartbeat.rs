//! What the service manager hears while control runs: that the loop turns, and one line on how things are.
//!
//! That control is ready, reloads or ends is said by whoever knows: the command line.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::reconcile::ServiceStatus;
use crate::sys::notify::Notifier;

/// Beats come this many times as often as they must.
const BEATS: u32 = 2;
/// One that could not be sent is tried again after this part of the time that is left.
const RETRIES: u32 = 8;

/// The service manager, if there is one.
#[derive(Debug)]
pub(super) struct ServiceManager {
    notifier: Option<Arc<Notifier>>,
    /// How often it must hear from us.
    watchdog: Option<Duration>,
    next_beat: Instant,
    said: String,
}

impl ServiceManager {
    pub(super) fn new(
        notifier: Option<Arc<Notifier>>,
        watchdog: Option<Duration>,
        now: Instant,
    ) -> Self {
        Self { notifier, watchdog, next_beat: now, said: String::new() }
    }

    /// The loop has turned: says so when it is time to, and how things are when that has changed.
    pub(super) fn turned<'a, K>(
        &mut self,
        services: impl IntoIterator<Item = (K, &'a ServiceStatus)>,
        now: Instant,
    ) {
        let Some(notifier) = &self.notifier else { return };
        let status = summary(services.into_iter().map(|(_, service)| service.phase.word()));
        if status != self.said {
            match notifier.status(&status) {
                Ok(()) => self.said = status,
                Err(error) => tracing::debug!(%error, "the service manager was not told a status"),
            }
        }
        if let Some(interval) = self.watchdog.filter(|_| now >= self.next_beat) {
            self.next_beat = now + interval / BEATS;
            if let Err(error) = notifier.watchdog() {
                tracing::warn!(%error, "the service manager did not hear that all is well");
                self.next_beat = now + interval / RETRIES;
            }
        }
    }

    /// How long the loop may wait before it has to turn again for the service manager's sake.
    pub(super) fn patience(&self, now: Instant) -> Option<Duration> {
        self.notifier.as_ref()?;
        self.watchdog?;
        Some(self.next_beat.saturating_duration_since(now))
    }
}

/// Such as `3 services run, 1 pulling`.
fn summary(words: impl Iterator<Item = &'static str>) -> String {
    let mut counts = BTreeMap::new();
    for word in words {
        *counts.entry(word).or_insert(0_usize) += 1;
    }
    let running = counts.remove("running").unwrap_or_default();
    let mut text = match running {
        0 if counts.is_empty() => return "no services".to_owned(),
        1 => "1 service runs".to_owned(),
        many => format!("{many} services run"),
    };
    for (word, count) in counts {
        text.push_str(&format!(", {count} {word}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    fn heard(manager: &UnixDatagram) -> Vec<String> {
        manager.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        std::iter::from_fn(|| {
            let length = manager.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })
        .collect()
    }

    #[test]
    fn a_summary_names_what_runs_first() {
        let text = |words: &[&'static str]| summary(words.iter().copied());
        assert_eq!(text(&[]), "no services");
        assert_eq!(text(&["running"]), "1 service runs");
        assert_eq!(
            text(&["pulling", "running", "running", "exited"]),
            "2 services run, 1 exited, 1 pulling"
        );
        assert_eq!(text(&["waiting"]), "0 services run, 1 waiting");
    }

    #[test]
    fn a_loop_that_turns_beats_at_half_the_time_and_one_that_does_not_is_silent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let notifier = Arc::new(Notifier::new(path.as_os_str()).unwrap());
        let start = Instant::now();
        let mut manager = ServiceManager::new(Some(notifier), Some(Duration::from_secs(60)), start);
        let none = || std::iter::empty::<((), &ServiceStatus)>();
        manager.turned(none(), start);
        assert_eq!(heard(&socket), ["STATUS=no services", "WATCHDOG=1"]);
        // Turning often is no reason to say it often.
        manager.turned(none(), start);
        assert!(heard(&socket).is_empty());
        assert_eq!(manager.patience(start), Some(Duration::from_secs(30)));
        let late = start + Duration::from_secs(45);
        assert_eq!(manager.patience(late), Some(Duration::ZERO));
        manager.turned(none(), late);
        assert_eq!(heard(&socket), ["WATCHDOG=1"]);
    }

    #[test]
    fn a_beat_that_is_not_heard_is_repeated_before_it_is_too_late() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let notifier = Arc::new(Notifier::new(path.as_os_str()).unwrap());
        let start = Instant::now();
        let mut manager = ServiceManager::new(Some(notifier), Some(Duration::from_secs(60)), start);
        manager.turned(std::iter::empty::<((), &ServiceStatus)>(), start);
        assert_eq!(manager.patience(start), Some(Duration::from_millis(7500)));
    }

    #[test]
    fn without_a_manager_the_loop_waits_for_ever() {
        let now = Instant::now();
        let manager = ServiceManager::new(None, Some(Duration::from_secs(1)), now);
        assert_eq!(manager.patience(now), None);
    }
}
