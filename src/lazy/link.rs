//! The link to the sources: how fast it is, and who gives way to whom on a narrow one.
//!
//! One for all layers: what they share mostly is the narrowest part of the way, the uplink of the host. On a narrow
//! link a range that nobody waits for yet is a short one (`extent`), and it pauses while a reader's range is under way:
//! parallel transfers get equal parts of a link, so that a read among four would take four times as long.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The rate is reckoned anew after so long, from so many bytes at least: what lay in buffers comes at once.
const SAMPLE_TIME: Duration = Duration::from_millis(200);
const SAMPLE_MIN: u64 = 32 << 10;
/// Or after so many bytes.
const SAMPLE: u64 = 4 << 20;
/// A first guess is made sooner than that.
const GUESS_TIME: Duration = Duration::from_millis(50);
const GUESS: u64 = 256 << 10;

#[derive(Debug)]
pub(super) struct Link {
    narrow: u64,
    /// Bytes a second; 0: not known.
    rate: AtomicU64,
    /// Transfers that somebody waits for.
    urgent: AtomicUsize,
    sample: Mutex<Sample>,
}

#[derive(Debug)]
struct Sample {
    /// Transfers between their first piece and their last.
    receiving: usize,
    since: Instant,
    busy: Duration,
    bytes: u64,
}

/// A transfer whose first piece has come.
#[derive(Debug)]
pub(super) struct Receiving(Arc<Link>);

/// A transfer that somebody waits for.
#[derive(Debug)]
pub(super) struct Urgent(Arc<Link>);

impl Link {
    /// One that counts as narrow below `narrow` bytes a second.
    pub(super) fn new(narrow: u64) -> Arc<Self> {
        let sample = Sample { receiving: 0, since: Instant::now(), busy: Duration::ZERO, bytes: 0 };
        Arc::new(Self {
            narrow,
            rate: AtomicU64::new(0),
            urgent: AtomicUsize::new(0),
            sample: Mutex::new(sample),
        })
    }

    /// Bytes a second that all transfers together bring while there is any.
    pub(super) fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    pub(super) fn is_narrow(&self) -> bool {
        self.rate().is_some_and(|rate| rate < self.narrow)
    }

    /// What the link carries in `time`, as far as is known.
    pub(super) fn bytes_in(&self, time: Duration) -> Option<u64> {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Some(self.rate()?.saturating_mul(millis) / 1000)
    }

    /// Whether a transfer that nobody waits for should pause.
    pub(super) fn is_needed_by_others(&self) -> bool {
        self.urgent.load(Ordering::Acquire) > 0 && self.is_narrow()
    }

    /// Counts a transfer that somebody waits for, until the answer is dropped.
    pub(super) fn urgent(self: &Arc<Self>) -> Urgent {
        self.urgent.fetch_add(1, Ordering::AcqRel);
        Urgent(Arc::clone(self))
    }

    /// A transfer has its first piece; how long that took says nothing of the rate, nor do its bytes.
    pub(super) fn receiving(self: &Arc<Self>) -> Receiving {
        let mut sample = self.lock();
        if sample.receiving == 0 {
            sample.since = Instant::now();
        }
        sample.receiving += 1;
        Receiving(Arc::clone(self))
    }

    fn lock(&self) -> MutexGuard<'_, Sample> {
        // A sample that is a little off does no harm.
        self.sample.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes took so long.
    pub(super) fn reckon(&self, bytes: u64, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let rate = (bytes.saturating_mul(1_000_000) / micros).max(1);
        let known = self.rate.load(Ordering::Relaxed);
        let next = if known == 0 { rate } else { (known / 4).saturating_mul(3) + rate / 4 };
        self.rate.store(next.max(1), Ordering::Relaxed);
    }
}

impl Receiving {
    /// A further piece of so many bytes.
    pub(super) fn came(&self, bytes: usize) {
        let mut sample = self.0.lock();
        sample.bytes += bytes as u64;
        let busy = sample.busy + sample.since.elapsed();
        let (most, time) = match self.0.rate() {
            None => (GUESS, GUESS_TIME),
            Some(_) => (SAMPLE, SAMPLE_TIME),
        };
        let is_enough = sample.bytes >= most || (busy >= time && sample.bytes >= SAMPLE_MIN);
        if is_enough {
            self.0.reckon(sample.bytes, busy);
            (sample.bytes, sample.busy, sample.since) = (0, Duration::ZERO, Instant::now());
        }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let mut sample = self.0.lock();
        sample.receiving -= 1;
        if sample.receiving == 0 {
            let span = sample.since.elapsed();
            sample.busy += span;
        }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        self.0.urgent.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_what_came() {
        let link = Link::new(8_000_000);
        assert_eq!((link.rate(), link.bytes_in(Duration::from_secs(1))), (None, None));
        assert!(!link.is_narrow(), "one that is not known is not");
        link.reckon(600_000, Duration::from_millis(200));
        assert_eq!(link.rate(), Some(3_000_000));
        assert_eq!(link.bytes_in(Duration::from_millis(200)), Some(600_000));
        assert!(link.is_narrow());
        for _ in 0..20 {
            link.reckon(1 << 20, Duration::from_millis(10));
        }
        assert!(!link.is_narrow());
        for _ in 0..100 {
            link.reckon(0, Duration::from_secs(1));
        }
        assert!(link.rate().is_some_and(|rate| rate < 8));
    }

    #[test]
    fn a_rate_is_reckoned_from_enough_bytes_of_transfers_under_way() {
        let link = Link::new(u64::MAX);
        let (first, second) = (link.receiving(), link.receiving());
        first.came(20_000);
        drop(first);
        assert_eq!(link.rate(), None);
        second.came(300_000);
        assert!(link.rate().is_some());
        second.came(20_000);
        assert_eq!(link.lock().bytes, 20_000);
        second.came(5 << 20);
        assert_eq!(link.lock().bytes, 0);
    }

    #[test]
    fn others_give_way_on_a_narrow_link_only() {
        let link = Link::new(1_000_000);
        let urgent = link.urgent();
        assert!(!link.is_needed_by_others());
        link.reckon(500_000, Duration::from_secs(1));
        assert!(link.is_needed_by_others());
        drop(urgent);
        assert!(!link.is_needed_by_others());
    }
}
