//! Whether and when something is tried again: the restart policy and the law of delays.
//!
//! The delay is 1 s, doubles with each restart in a row, and ends at 60 s. A run of 10 s counts as healthy and ends
//! the row. A part of up to a fifth is taken off, different for each container, so that many that failed for one
//! reason do not come back at one moment; the limits hold with it.

use super::Millis;
use super::observed::{Exit, ExitStatus, Run, Unhealthy};
use crate::spec::RestartPolicy;

/// The first delay.
const FIRST_DELAY: Millis = 1_000;
/// The longest delay between two attempts.
pub const LONGEST_DELAY: Millis = 60_000;
/// A run of this length ends a row of restarts, as under Docker.
pub const HEALTHY_RUN: Millis = 10_000;
/// So many ends in a row, without a healthy run between them, are a crash loop.
pub const CRASH_LOOP: u32 = 3;
/// A program that was healthy for so long ends a row of restarts for its health.
const HEALTHY_SPAN: Millis = 60_000;
/// Largest part of a delay that is taken off, in thousandths.
const JITTER: u64 = 200;

/// The delay before the next attempt after `streak` attempts in a row; `jitter` is any number, the same for each
/// call about the same attempt.
#[must_use]
pub fn backoff(streak: u32, jitter: u64) -> Millis {
    let full = FIRST_DELAY.saturating_mul(1 << streak.min(16)).min(LONGEST_DELAY);
    full - full * (mixed(jitter) % (JITTER + 1)) / 1000
}

/// The number that `seed` gives for attempt `attempt` of the thing named `name`.
pub(super) fn jitter(seed: u64, name: &str, attempt: u32) -> u64 {
    let start = mixed(seed ^ u64::from(attempt));
    name.bytes().fold(start, |number, byte| mixed(number ^ u64::from(byte)))
}

/// The finalizer of splitmix64: spreads a number over all bits.
fn mixed(number: u64) -> u64 {
    let mut n = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// What the policy says after an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is started again after a delay, with these counters; `streak` is what the delay follows from.
    Restart { run: Run, streak: u32 },
    /// It stays as it is.
    Stay,
}

/// What `policy` says after `exit` of a container with the counters `run`.
pub(super) fn verdict(policy: RestartPolicy, exit: &Exit, run: Run) -> Verdict {
    let wanted = match policy {
        RestartPolicy::No => false,
        RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
        RestartPolicy::OnFailure { max } => {
            exit.status != ExitStatus::Code(0) && max.is_none_or(|max| run.restarts < max)
        }
    };
    if !wanted {
        return Verdict::Stay;
    }
    let streak = if exit.ran_for >= HEALTHY_RUN { 0 } else { run.streak };
    let next = Run {
        request: run.request,
        restarts: run.restarts.saturating_add(1),
        streak: streak.saturating_add(1),
    };
    Verdict::Restart { run: next, streak }
}

/// The counters after a restart of a container with the counters `run` because it was healthy since `since` and is not
/// any more, and what the delay before it follows from.
pub(super) fn after_unhealthy(unhealthy: &Unhealthy, since: Millis, run: Run) -> (Run, u32) {
    let span = unhealthy.since.saturating_sub(since);
    let streak = if span >= HEALTHY_SPAN { 0 } else { run.streak };
    let next = Run {
        request: run.request,
        restarts: run.restarts.saturating_add(1),
        streak: streak.saturating_add(1),
    };
    (next, streak)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: u8, ran_for: Millis) -> Exit {
        let health = super::super::Health::Unchecked;
        Exit { status: ExitStatus::Code(code), at: 0, ran_for, asked: false, health }
    }

    #[test]
    fn delays_double_from_a_second_to_a_minute_and_lose_a_fifth_at_most() {
        for (streak, full) in
            [(0, 1_000), (1, 2_000), (2, 4_000), (5, 32_000), (6, 60_000), (u32::MAX, 60_000)]
        {
            for seed in 0..500 {
                let delay = backoff(streak, seed);
                assert!((full * 4 / 5..=full).contains(&delay), "{streak} {seed}: {delay}");
            }
        }
        let spread: std::collections::BTreeSet<_> = (0..100).map(|seed| backoff(6, seed)).collect();
        assert!(spread.len() > 50, "{spread:?}");
    }

    #[test]
    fn the_policy_decides_by_code_and_count() {
        use RestartPolicy::{Always, No, OnFailure, UnlessStopped};
        let on_failure = |max| OnFailure { max };
        for (policy, code, restarts, again) in [
            (No, 1, 0, false),
            (Always, 0, 9, true),
            (UnlessStopped, 0, 0, true),
            (on_failure(None), 0, 0, false),
            (on_failure(None), 1, 1000, true),
            (on_failure(Some(2)), 1, 1, true),
            (on_failure(Some(2)), 1, 2, false),
        ] {
            let run = Run { restarts, ..Run::default() };
            let restarted = verdict(policy, &exit(code, 0), run) != Verdict::Stay;
            assert_eq!(restarted, again, "{policy} {code} {restarts}");
        }
    }

    #[test]
    fn a_healthy_run_ends_the_row_and_keeps_the_count() {
        let run = Run { request: 1, restarts: 7, streak: 5 };
        let after = |ran_for| verdict(RestartPolicy::Always, &exit(1, ran_for), run);
        let counted = |streak| Run { request: 1, restarts: 8, streak };
        assert_eq!(after(HEALTHY_RUN), Verdict::Restart { run: counted(1), streak: 0 });
        assert_eq!(after(HEALTHY_RUN - 1), Verdict::Restart { run: counted(6), streak: 5 });
    }
}
