//! Whether the source of a layer answers, and who may try next while it does not.
//!
//! During an outage one fetch of the layer probes at a time, with growing pauses, and all others wait for its
//! result: a hundred waiting reads are not a hundred times the load on a registry that is coming back.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Limits;

#[derive(Debug)]
pub(super) struct Health {
    retry_min: Duration,
    retry_max: Duration,
    outage: Mutex<Option<Outage>>,
    changed: Notify,
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    failures: u32,
    next_try: Instant,
    is_probing: bool,
}

/// Leave to try; a probe that is dropped without a result lets the next one try.
#[derive(Debug)]
pub(super) struct Admission<'a> {
    health: &'a Health,
    is_probe: bool,
}

impl Health {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            retry_min: limits.retry_min,
            retry_max: limits.retry_max,
            outage: Mutex::new(None),
            changed: Notify::new(),
        }
    }

    /// Whether the source did not answer when it was last asked.
    pub(super) fn is_lost(&self) -> bool {
        self.lock().is_some()
    }

    /// Waits until the source may be asked: at once while it answers.
    pub(super) async fn admit(&self) -> Admission<'_> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Registered before the state is looked at, so that no change is missed in between.
            changed.as_mut().enable();
            let wait = {
                let mut outage = self.lock();
                match outage.as_mut() {
                    None => return Admission { health: self, is_probe: false },
                    Some(outage) if outage.is_probing => None,
                    Some(outage) => {
                        let wait = outage.next_try.saturating_duration_since(Instant::now());
                        if wait.is_zero() {
                            outage.is_probing = true;
                            return Admission { health: self, is_probe: true };
                        }
                        Some(wait)
                    }
                }
            };
            match wait {
                None => changed.await,
                Some(wait) => drop(tokio::time::timeout(wait, changed).await),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Outage>> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admission<'_> {
    /// The source answered. How long it had not, when this ends an outage.
    pub(super) fn answered(self) -> Option<Duration> {
        let ended = self.health.lock().take();
        if ended.is_some() {
            self.health.changed.notify_waiters();
        }
        ended.map(|outage| outage.since.elapsed())
    }

    /// The source did not answer, and asked to be left alone for `retry_after`. True when this begins an outage.
    pub(super) fn failed(self, retry_after: Option<Duration>) -> bool {
        let now = Instant::now();
        let mut state = self.health.lock();
        let begins = state.is_none();
        let outage = state.get_or_insert(Outage {
            since: now,
            failures: 0,
            next_try: now,
            is_probing: false,
        });
        // Fetches that were under way when the outage began count as one failure with the first.
        if begins || self.is_probe {
            let pause = self
                .health
                .retry_min
                .saturating_mul(1_u32.checked_shl(outage.failures).unwrap_or(u32::MAX))
                .max(retry_after.unwrap_or_default())
                .min(self.health.retry_max);
            outage.failures = (outage.failures + 1).min(16);
            outage.next_try = now + jittered(pause);
        }
        begins
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            if let Some(outage) = self.health.lock().as_mut() {
                outage.is_probing = false;
            }
            self.health.changed.notify_waiters();
        }
    }
}

/// Between three quarters of `pause` and all of it, so that hosts that lost a registry together do not return
/// together. The standard library's hasher keys are randomness enough for that.
fn jittered(pause: Duration) -> Duration {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u8(0);
    let quarters = u32::try_from(hasher.finish() % 256).unwrap_or(0);
    pause * 3 / 4 + pause * quarters / 1024
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn health() -> Health {
        let limits = Limits {
            retry_min: Duration::from_millis(5),
            retry_max: Duration::from_millis(20),
            ..Limits::default()
        };
        Health::new(&limits)
    }

    #[tokio::test]
    async fn during_an_outage_one_probes_and_the_others_wait() {
        let health = health();
        assert!(health.admit().await.failed(None));
        assert!(health.is_lost());
        let probe = health.admit().await;
        assert!(probe.is_probe);
        let mut other = Box::pin(health.admit());
        assert!((&mut other).now_or_never().is_none());
        assert!(!probe.failed(None), "the outage goes on");
        let probe = other.await;
        assert!(probe.is_probe);
        assert!(probe.answered().is_some());
        assert!(!health.is_lost());
        assert!(!health.admit().await.is_probe);
    }

    #[tokio::test]
    async fn a_probe_that_is_given_up_lets_the_next_one_try() {
        let health = health();
        health.admit().await.failed(None);
        drop(health.admit().await);
        assert!(health.admit().await.answered().is_some());
    }

    #[test]
    fn pauses_grow_to_their_limit_and_no_further() {
        for _ in 0..100 {
            let pause = jittered(Duration::from_secs(4));
            assert!(
                pause >= Duration::from_secs(3) && pause <= Duration::from_secs(4),
                "{pause:?}"
            );
        }
        let health = health();
        for _ in 0..40 {
            Admission { health: &health, is_probe: true }.failed(Some(Duration::from_secs(3600)));
        }
        let next = health.lock().as_ref().unwrap().next_try;
        assert!(next <= Instant::now() + Duration::from_millis(20));
    }
}
