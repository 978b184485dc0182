//! What one existing container needs, by its state, the restart policy, and what the user asked for.

use super::action::Cause;
use super::gate::Gate;
use super::observed::{
    Container, ContainerKey, ContainerState, Content, Monitor, Operation, Run, ServiceRecord,
};
use super::plan::Moment;
use super::restart::{Verdict, backoff, jitter, verdict};
use super::{Millis, Phase};
use crate::spec::RestartPolicy;

/// What an existing container needs to be as it should.
pub(super) enum Want {
    /// Nothing now.
    Nothing(Phase),
    /// An attempt at this time.
    Wait(Phase, Millis),
    /// A monitor.
    Adopt { since: Millis, cause: Cause },
    /// A start.
    Start { cause: Cause, run: Run },
    /// It runs, and is to be stopped and started.
    Restart { cause: Cause, run: Run },
}

impl Want {
    /// What `container` needs while it stays as it was created.
    pub(super) fn of(
        key: &ContainerKey,
        container: &Container,
        record: &ServiceRecord,
        policy: RestartPolicy,
        moment: Moment,
    ) -> Self {
        let requested = container.run.request < record.request;
        let afresh = Run { request: record.request, ..Run::default() };
        match &container.state {
            ContainerState::Busy(operation) => Self::Nothing(Phase::of(*operation)),
            // A monitor that is on its way is waited for: it is the one who can stop the program.
            ContainerState::Running { .. }
                if container.run.request < record.restart
                    && container.monitor != Monitor::Adopting =>
            {
                Self::Restart { cause: Cause::Restart, run: afresh }
            }
            ContainerState::Running { .. }
                if container.content == Content::Lost && container.monitor != Monitor::Adopting =>
            {
                // The run did not fail, so it does not count.
                Self::Restart { cause: Cause::ContentLost, run: container.run }
            }
            ContainerState::Running { since } => match container.monitor {
                Monitor::Alive | Monitor::Adopting => {
                    Self::Nothing(Phase::Running { since: *since })
                }
                Monitor::Lost => match Gate::of(moment, key, container, &[Operation::Adopt]) {
                    Gate::Open => Self::Adopt { since: *since, cause: Cause::MonitorLost },
                    Gate::Retry(cause) => Self::Adopt { since: *since, cause },
                    // It runs; that nobody can reach it for a moment is an event, not its state.
                    Gate::Shut(_, at) => Self::Wait(Phase::Running { since: *since }, at),
                },
            },
            ContainerState::Created if requested => {
                Self::Start { cause: Cause::NeverStarted, run: afresh }
            }
            ContainerState::Exited(_) if requested => {
                let restart = container.run.request < record.restart;
                let cause = if restart { Cause::Restart } else { Cause::Requested };
                Self::Start { cause, run: afresh }
            }
            ContainerState::Created => {
                match Gate::of(moment, key, container, &[Operation::Start]) {
                    Gate::Open => Self::Start { cause: Cause::NeverStarted, run: container.run },
                    Gate::Retry(cause) => Self::Start { cause, run: container.run },
                    Gate::Shut(phase, at) => Self::Wait(phase, at),
                }
            }
            ContainerState::Exited(exit) => {
                match Gate::of(moment, key, container, &[Operation::Start]) {
                    // A start that failed was counted when it was tried, and is wanted whatever the policy says.
                    Gate::Retry(cause) => Self::Start { cause, run: container.run },
                    Gate::Shut(phase, at) => Self::Wait(phase, at),
                    Gate::Open if container.content == Content::Lost => {
                        Self::Start { cause: Cause::ContentLost, run: container.run }
                    }
                    Gate::Open => match verdict(policy, exit, container.run) {
                        Verdict::Stay => Self::Nothing(Phase::Exited {
                            status: exit.status.clone(),
                            restarts: container.run.restarts,
                        }),
                        Verdict::Restart { run, streak } => {
                            let jitter = jitter(moment.jitter_seed, key.as_str(), run.restarts);
                            let due = exit.at.saturating_add(backoff(streak, jitter));
                            let at = moment.bounded(due);
                            let status = exit.status.clone();
                            if moment.now >= at {
                                Self::Start { cause: Cause::Exited(status), run }
                            } else {
                                Self::Wait(Phase::Restarting { at, status }, at)
                            }
                        }
                    },
                }
            }
        }
    }
}
