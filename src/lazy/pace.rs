//! How fast the source of a layer answers, and what the engine has asked for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Limits;

/// How long the source of a layer takes for its first byte: what is much longer is a stall.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Microseconds; 0: not known.
    usual: AtomicU64,
    /// The same of the fastest answer.
    least: AtomicU64,
}

impl Pace {
    /// A request had its first byte after `wait`.
    pub(super) fn answered_after(&self, wait: Duration) {
        let wait = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX / 8);
        let least = self.least.load(Ordering::Relaxed);
        if least == 0 || wait < least {
            self.least.store(wait.max(1), Ordering::Relaxed);
        }
        let known = self.usual.load(Ordering::Relaxed);
        // Of two that come at once one may be lost; it is an average.
        let average = if known == 0 { wait } else { known - known / 8 + wait / 8 };
        self.usual.store(average.max(1), Ordering::Relaxed);
    }

    /// What the fastest answer took: the way there and back, when it is known.
    pub(super) fn least(&self) -> Duration {
        Duration::from_micros(self.least.load(Ordering::Relaxed))
    }

    /// How long a transfer may bring nothing before it is raced by another one.
    pub(super) fn patience(&self, limits: &Limits) -> Duration {
        let usual = Duration::from_micros(self.usual.load(Ordering::Relaxed));
        (usual * 4).clamp(limits.stall_min, limits.stall_max.max(limits.stall_min))
    }
}

/// What was asked of all sources.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) requests: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) races: AtomicU64,
    pub(super) races_won: AtomicU64,
}

/// What an engine has asked of all its sources since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Ranges that were asked for.
    pub requests: u64,
    /// Compressed bytes that came.
    pub bytes: u64,
    /// Transfers that stalled and were raced by a second one.
    pub races: u64,
    /// Races that the second one won.
    pub races_won: u64,
}

impl Traffic {
    pub(super) fn counters(&self) -> Counters {
        Counters {
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            races: self.races.load(Ordering::Relaxed),
            races_won: self.races_won.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_the_source_within_its_bounds() {
        let limits = Limits {
            stall_min: Duration::from_millis(500),
            stall_max: Duration::from_secs(2),
            ..Limits::default()
        };
        let pace = Pace::default();
        assert_eq!(pace.patience(&limits), limits.stall_min);
        pace.answered_after(Duration::from_millis(300));
        assert_eq!(pace.patience(&limits), Duration::from_millis(1200));
        pace.answered_after(Duration::from_millis(301));
        assert_eq!(pace.least(), Duration::from_millis(300));
        for _ in 0..100 {
            pace.answered_after(Duration::from_secs(20));
        }
        assert_eq!(pace.patience(&limits), limits.stall_max);
        for _ in 0..100 {
            pace.answered_after(Duration::from_millis(1));
        }
        assert_eq!(pace.patience(&limits), limits.stall_min);
    }
}
