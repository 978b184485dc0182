//! Whether a container's program is well: what is checked, and what follows from the outcomes. The monitor makes the
//! checks ([`super::monitor`]); nothing here runs anything or looks at a clock.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How it is found out whether a program is well. Times are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is tried.
    pub probe: Probe,
    /// From the end of one check to the next.
    pub interval_ms: u64,
    /// The same while no check has succeeded yet.
    pub start_interval_ms: u64,
    /// How long one check may take.
    pub timeout_ms: u64,
    /// How long failures do not count after the start.
    pub start_period_ms: u64,
    /// Failures in a row that make it unhealthy; at least 1.
    pub retries: u32,
}

/// What a check tries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// A program in the container, which has to end with code 0.
    Exec(Vec<String>),
    /// A port on the container's loopback that takes connections.
    Tcp(u16),
    /// A path that is answered with a code from 200 to 399.
    Http {
        /// On the container's loopback.
        port: u16,
        /// Begins with `/`.
        path: String,
    },
}

/// What the checks of a run say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthStatus {
    /// In one word.
    pub state: HealthState,
    /// Since when.
    pub since: Timestamp,
    /// When it last became healthy in this run; `None`: it never was.
    #[serde(default)]
    pub healthy_since: Option<Timestamp>,
    /// What the check said that made it unhealthy; empty else.
    #[serde(default)]
    pub reason: String,
}

/// Health in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// No check has succeeded, and not enough have failed.
    Starting,
    /// The last checks succeeded.
    Healthy,
    /// Too many failed in a row.
    Unhealthy,
}

/// The health of one run, check by check.
#[derive(Debug)]
pub(super) struct Pulse {
    check: HealthCheck,
    pub(super) status: HealthStatus,
    failures: u32,
    /// When the last failure that counts was, in milliseconds of the run.
    counted_at: u64,
}

/// Whether an outcome has changed what is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    State,
}

impl Pulse {
    /// Of a run that begins at `at`, or that another monitor has watched and left as `known`.
    pub(super) fn new(check: HealthCheck, at: Timestamp, known: Option<HealthStatus>) -> Self {
        let starting = HealthStatus {
            state: HealthState::Starting,
            since: at,
            healthy_since: None,
            reason: String::new(),
        };
        let counted_at = check.start_period_ms;
        Self { status: known.unwrap_or(starting), check, failures: 0, counted_at }
    }

    pub(super) fn check(&self) -> &HealthCheck {
        &self.check
    }

    /// Milliseconds until the next check.
    pub(super) fn pause_ms(&self) -> u64 {
        match self.status.state {
            HealthState::Starting => self.check.start_interval_ms.min(self.check.interval_ms),
            HealthState::Healthy | HealthState::Unhealthy => self.check.interval_ms,
        }
    }

    /// Takes in the outcome of a check, or why it failed. The run is `elapsed_ms` old.
    pub(super) fn take_in(
        &mut self,
        outcome: Result<(), String>,
        elapsed_ms: u64,
        at: Timestamp,
    ) -> Change {
        let Err(reason) = outcome else {
            self.failures = 0;
            if self.status.state == HealthState::Healthy {
                return Change::None;
            }
            self.status = HealthStatus {
                state: HealthState::Healthy,
                since: at,
                healthy_since: Some(at),
                reason: String::new(),
            };
            return Change::State;
        };
        // While it starts it is checked more often than failures count: a service is healthy as soon as it can be,
        // and unhealthy no sooner than with the interval that the user gave.
        let interval = self.check.interval_ms;
        let counts = self.status.state != HealthState::Starting
            || elapsed_ms.saturating_sub(self.counted_at) >= interval
                && elapsed_ms >= self.counted_at;
        if !counts {
            return Change::None;
        }
        self.counted_at = elapsed_ms;
        self.failures = self.failures.saturating_add(1);
        if self.status.state == HealthState::Unhealthy || self.failures < self.check.retries {
            return Change::None;
        }
        self.status.state = HealthState::Unhealthy;
        self.status.since = at;
        self.status.reason = reason;
        Change::State
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse(start_period_ms: u64) -> Pulse {
        let check = HealthCheck {
            probe: Probe::Tcp(1),
            interval_ms: 1000,
            start_interval_ms: 100,
            timeout_ms: 1000,
            start_period_ms,
            retries: 3,
        };
        Pulse::new(check, Timestamp::UNIX_EPOCH, None)
    }

    fn fail(pulse: &mut Pulse, elapsed_ms: u64) -> HealthState {
        pulse.take_in(Err("exit 1".to_owned()), elapsed_ms, Timestamp::UNIX_EPOCH);
        pulse.status.state
    }

    #[test]
    fn a_start_is_looked_at_often_and_given_up_at_the_pace_of_the_interval() {
        let mut pulse = pulse(0);
        assert_eq!(pulse.pause_ms(), 100);
        let gave_up =
            (1..60).map(|n| n * 100).find(|at| fail(&mut pulse, *at) == HealthState::Unhealthy);
        assert_eq!(gave_up, Some(3000));
        assert_eq!((pulse.pause_ms(), pulse.status.healthy_since), (1000, None));
        assert_eq!(pulse.status.reason, "exit 1");
        assert_eq!(pulse.take_in(Ok(()), 4000, Timestamp::UNIX_EPOCH), Change::State);
        assert!(pulse.status.healthy_since.is_some() && pulse.status.reason.is_empty());
    }

    #[test]
    fn failures_in_the_start_period_do_not_count() {
        let mut pulse = pulse(10_000);
        let gave_up =
            (1..200).map(|n| n * 100).find(|at| fail(&mut pulse, *at) == HealthState::Unhealthy);
        assert_eq!(gave_up, Some(13_000));
    }

    #[test]
    fn only_failures_in_a_row_make_what_was_healthy_unhealthy() {
        let mut pulse = pulse(0);
        let ok = |pulse: &mut Pulse| pulse.take_in(Ok(()), 1, Timestamp::UNIX_EPOCH);
        assert_eq!((ok(&mut pulse), ok(&mut pulse)), (Change::State, Change::None));
        for _ in 0..5 {
            assert_eq!(
                (fail(&mut pulse, 2), fail(&mut pulse, 3)),
                (HealthState::Healthy, HealthState::Healthy)
            );
            ok(&mut pulse);
        }
        let states = [4, 5, 6].map(|at| fail(&mut pulse, at));
        assert_eq!(states[1..], [HealthState::Healthy, HealthState::Unhealthy]);
        assert!(pulse.status.healthy_since.is_some());
    }
}
