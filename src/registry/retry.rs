//! When a failed exchange is tried again, and after how long. Short waits only: long ones are the caller's.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::FetchError;

/// How often one call tries, and how long it waits in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Exchanges in all, the first one included.
    pub attempts: u32,
    /// Before the second exchange; doubles from there, with jitter.
    pub first_delay: Duration,
    /// No wait is longer. A server that asks for more (`Retry-After`) gets the error handed to the caller.
    pub longest_delay: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 3,
            first_delay: Duration::from_millis(250),
            longest_delay: Duration::from_secs(8),
        }
    }
}

/// Counts the failures of one call.
#[derive(Debug)]
pub(super) struct Attempts {
    policy: RetryPolicy,
    failed: u32,
}

impl Attempts {
    pub(super) fn new(policy: &RetryPolicy) -> Self {
        Self { policy: policy.clone(), failed: 0 }
    }

    /// Forgets earlier failures, because bytes have arrived since.
    pub(super) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// Gives `error` back when it is final: not transient, too often, or the server wants a longer pause.
    pub(super) async fn wait(&mut self, error: FetchError) -> Result<(), FetchError> {
        self.failed += 1;
        if !error.is_transient() || self.failed >= self.policy.attempts {
            return Err(error);
        }
        let Some(delay) = delay(&self.policy, self.failed, error.retry_after(), random()) else {
            return Err(error);
        };
        tracing::debug!(%error, attempt = self.failed, ?delay, "fetch failed, trying again");
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

/// `None` when the server asks for more than the policy allows.
fn delay(
    policy: &RetryPolicy,
    failed: u32,
    asked: Option<Duration>,
    random: u64,
) -> Option<Duration> {
    if let Some(asked) = asked {
        return (asked <= policy.longest_delay).then_some(asked);
    }
    let doubled = policy.first_delay.saturating_mul(1 << (failed - 1).min(16));
    let full = doubled.min(policy.longest_delay);
    // Half fixed, half random: many clients that lost one registry must not come back in step.
    let half = full / 2;
    let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
    Some(half + Duration::from_nanos(random % nanos))
}

/// Good enough to spread retries; each hasher of the standard library has its own keys.
fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_and_follow_the_server() {
        let policy = RetryPolicy {
            attempts: 9,
            first_delay: Duration::from_millis(100),
            longest_delay: Duration::from_millis(300),
        };
        let ms = Duration::from_millis;
        assert_eq!(delay(&policy, 1, None, 0), Some(ms(50)));
        assert!(delay(&policy, 1, None, u64::MAX).is_some_and(|delay| delay < ms(100)));
        assert_eq!(delay(&policy, 2, None, 0), Some(ms(100)));
        assert_eq!(delay(&policy, 8, None, 0), Some(ms(150)));
        assert_eq!(delay(&policy, 1, Some(ms(300)), 7), Some(ms(300)));
        assert_eq!(delay(&policy, 1, Some(ms(301)), 7), None);
        let none = RetryPolicy { first_delay: Duration::ZERO, ..policy };
        assert_eq!(delay(&none, 1, None, 9), Some(Duration::ZERO));
    }
}
