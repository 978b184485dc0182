//! What a service is doing, in words that a person understands.

use super::Millis;
use super::observed::{ExitStatus, Health, Operation};
use super::restart::CRASH_LOOP;
use crate::spec::ServiceName;

/// The state of one service after a plan was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Its image is being fetched; the service starts when that is done.
    Pulling {
        /// 0 to 100, when it is known.
        percent: Option<u8>,
    },
    /// The registry does not answer; the pull is tried again at `retry_at`.
    WaitingForRegistry {
        /// What the last attempt said.
        reason: String,
        /// When the next attempt is due.
        retry_at: Millis,
    },
    /// There is no room on the disk; the pull is tried again at `retry_at`.
    WaitingForSpace {
        /// What the last attempt said.
        reason: String,
        /// When the next attempt is due.
        retry_at: Millis,
    },
    /// It starts as soon as another one is where it has to be.
    Blocked {
        /// The other one.
        on: ServiceName,
        /// How that one is, in a few words.
        why: String,
    },
    /// It does not start, because another one will not come to where it has to be by itself.
    DependencyFailed {
        /// The other one; where several wait for each other, the last of them.
        on: ServiceName,
        /// What became of it.
        reason: String,
    },
    /// A container is being created or started.
    Starting,
    /// Its program runs.
    Running {
        /// When it was started.
        since: Millis,
        /// What its checks say.
        health: Health,
    },
    /// Its program runs, but is not healthy any more, and is started again at `at`.
    Unhealthy {
        /// When.
        at: Millis,
        /// What the last check said.
        reason: String,
    },
    /// Its program ended and is started again at `at`.
    Restarting {
        /// When.
        at: Millis,
        /// How it ended.
        status: ExitStatus,
        /// How many ends in a row this was, without a healthy run between them.
        row: u32,
    },
    /// Its program ended and the policy leaves it so.
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// Restarts before that; the policy's limit may have been reached.
        restarts: u32,
    },
    /// It was told to stop.
    Stopping,
    /// It was stopped and stays so.
    Stopped {
        /// On whose behalf.
        by: StoppedBy,
    },
    /// Its container is being removed.
    Removing,
    /// An operation of ours failed, or the image is refused.
    Failed {
        /// What failed and why.
        reason: String,
        /// When it is tried again.
        retry_at: Option<Millis>,
    },
}

/// Who stopped a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoppedBy {
    /// The user, alone or with its project. It holds until the user asks for a start.
    Hand,
    /// The host's shutdown. It holds as long as this control lives.
    HostShutdown,
    /// Its failing checks, as the file wants it. It holds until the user asks for a start.
    Unhealthy,
}

impl Phase {
    /// The state as one word, for machines: `running`, `waiting`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pulling { .. } => "pulling",
            Self::WaitingForRegistry { .. } | Self::WaitingForSpace { .. } => "waiting",
            Self::Blocked { .. } => "blocked",
            Self::Starting => "starting",
            Self::Running { .. } | Self::Unhealthy { .. } => "running",
            Self::Restarting { .. } => "restarting",
            Self::Exited { .. } => "exited",
            Self::Stopping => "stopping",
            Self::Stopped { .. } => "stopped",
            Self::Removing => "removing",
            Self::Failed { .. } | Self::DependencyFailed { .. } => "failed",
        }
    }

    /// The state for people at the time `now`: `backing off (4 s): exit 1`.
    #[must_use]
    pub fn render(&self, now: Millis) -> String {
        // Rounded up, so that no wait is shown as over before it is.
        let seconds = |until: Millis| until.saturating_sub(now).div_ceil(1000);
        match self {
            Self::Pulling { percent: Some(percent) } => format!("pulling {percent}%"),
            Self::WaitingForRegistry { reason, retry_at } => {
                format!("waiting for registry, retry in {} s: {reason}", seconds(*retry_at))
            }
            Self::WaitingForSpace { reason, retry_at } => {
                format!("waiting for disk space, retry in {} s: {reason}", seconds(*retry_at))
            }
            Self::Restarting { at, status, row } => {
                let why = match status {
                    ExitStatus::NotStarted { reason, .. } => reason.clone(),
                    ended => format!("exit {ended}"),
                };
                let seconds = seconds(*at);
                if *row < CRASH_LOOP {
                    format!("backing off ({seconds} s): {why}")
                } else {
                    format!("crash-looping ({row} ends in a row, next start in {seconds} s): {why}")
                }
            }
            Self::Exited { status: ExitStatus::NotStarted { code, reason }, .. } => {
                format!("failed ({code}): {reason}")
            }
            Self::Exited { status, restarts: 0 } => format!("exited ({status})"),
            Self::Exited { status, restarts } => {
                format!("exited ({status}) after {restarts} restarts")
            }
            Self::Failed { reason, retry_at: Some(at) } => {
                format!("failed, retry in {} s: {reason}", seconds(*at))
            }
            Self::Failed { reason, retry_at: None } => format!("failed: {reason}"),
            Self::Blocked { on, why } => format!("blocked on {on} ({why})"),
            Self::DependencyFailed { reason, .. } => format!("failed: {reason}"),
            Self::Running { health: Health::Starting, .. } => "starting".to_owned(),
            Self::Running { health: Health::Healthy, .. } => "healthy".to_owned(),
            Self::Running { health: Health::Unhealthy(unhealthy), .. } => {
                format!("degraded: {}", unhealthy.reason)
            }
            Self::Unhealthy { at, reason } => {
                format!("unhealthy, restarting in {} s: {reason}", seconds(*at))
            }
            Self::Stopped { by: StoppedBy::Unhealthy } => "stopped (unhealthy)".to_owned(),
            Self::Stopped { by: StoppedBy::Hand } => "stopped (manual)".to_owned(),
            Self::Stopped { by: StoppedBy::HostShutdown } => "stopped (host shutdown)".to_owned(),
            Self::Pulling { percent: None }
            | Self::Starting
            | Self::Running { health: Health::Unchecked, .. }
            | Self::Stopping
            | Self::Removing => self.word().to_owned(),
        }
    }

    /// The phase of a service while `operation` is under way on its container.
    pub(super) fn of(operation: Operation) -> Self {
        match operation {
            Operation::Create | Operation::Start | Operation::Adopt => Self::Starting,
            Operation::Stop => Self::Stopping,
            Operation::Remove => Self::Removing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_read_as_sentences_of_people() {
        let not_started =
            || ExitStatus::NotStarted { code: 127, reason: "`x` not found in PATH".into() };
        for (phase, expected) in [
            (Phase::Pulling { percent: Some(43) }, "pulling 43%"),
            (Phase::Pulling { percent: None }, "pulling"),
            (
                Phase::WaitingForRegistry { reason: "refused".into(), retry_at: 3_001 },
                "waiting for registry, retry in 2 s: refused",
            ),
            (
                Phase::WaitingForSpace { reason: "full".into(), retry_at: 3_001 },
                "waiting for disk space, retry in 2 s: full",
            ),
            (
                Phase::Restarting { at: 5_000, status: ExitStatus::Signal(9), row: 1 },
                "backing off (4 s): exit 137",
            ),
            (
                Phase::Restarting { at: 0, status: not_started(), row: 2 },
                "backing off (0 s): `x` not found in PATH",
            ),
            (
                Phase::Restarting { at: 9_000, status: ExitStatus::Code(1), row: CRASH_LOOP },
                "crash-looping (3 ends in a row, next start in 8 s): exit 1",
            ),
            (Phase::Exited { status: ExitStatus::Code(0), restarts: 0 }, "exited (0)"),
            (
                Phase::Exited { status: ExitStatus::Code(3), restarts: 2 },
                "exited (3) after 2 restarts",
            ),
            (Phase::Exited { status: ExitStatus::Unknown, restarts: 0 }, "exited (unknown)"),
            (
                Phase::Exited { status: not_started(), restarts: 0 },
                "failed (127): `x` not found in PATH",
            ),
            (Phase::Failed { reason: "disk full".into(), retry_at: None }, "failed: disk full"),
            (Phase::Stopped { by: StoppedBy::Hand }, "stopped (manual)"),
            (Phase::Stopped { by: StoppedBy::HostShutdown }, "stopped (host shutdown)"),
        ] {
            assert_eq!(phase.render(1_001), expected);
        }
    }
}
