//! The planner's clock: monotonic milliseconds, and wall-clock times of records put on it.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::reconcile::Millis;

/// A clock that began a day before its process, so that recent events before the start have times of their own.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    origin: Instant,
}

const HEAD_START: Millis = 86_400_000;

impl Clock {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now() }
    }

    pub(super) fn now(&self) -> Millis {
        HEAD_START.saturating_add(millis(self.origin.elapsed()))
    }

    /// The moment of a wall-clock time; one in the future, after the clock was set back, is now.
    pub(super) fn at(&self, time: Timestamp) -> Millis {
        self.now().saturating_sub(self.between(time, Timestamp::now()))
    }

    /// Milliseconds between two wall-clock times; zero if the clock was set back between them.
    #[expect(clippy::unused_self, reason = "times are only compared through the clock")]
    pub(super) fn between(&self, from: Timestamp, to: Timestamp) -> Millis {
        Duration::try_from(to.duration_since(from)).map_or(0, millis)
    }

    /// How long from now until `at`.
    pub(super) fn until(&self, at: Millis) -> Duration {
        Duration::from_millis(at.saturating_sub(self.now()))
    }
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}
