//! What one existing container needs, by its state, the restart policy, its health, and what the user asked for.

use super::action::Cause;
use super::depend::{Readiness, Surroundings};
use super::gate::Gate;
use super::observed::{
    Container, ContainerKey, ContainerState, Content, Exit, Health, Monitor, Operation, Run,
    ServiceRecord, Unhealthy,
};
use super::phase::StoppedBy;
use super::plan::Moment;
use super::restart::{Verdict, after_unhealthy, backoff, jitter, verdict};
use super::{Millis, Phase};
use crate::spec::{Service, UnhealthyAction};

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
    /// It runs, and is to be stopped.
    Stop { cause: Cause },
}

/// What a want follows from, besides the container.
pub(super) struct Wishes<'a> {
    pub(super) wanted: &'a Service,
    pub(super) record: &'a ServiceRecord,
    pub(super) around: &'a Surroundings,
    pub(super) moment: Moment,
}

impl Want {
    /// What `container` needs while it stays as it was created.
    pub(super) fn of(key: &ContainerKey, container: &Container, wishes: &Wishes<'_>) -> Self {
        let Wishes { record, moment, .. } = *wishes;
        let requested = container.run.request < record.request;
        let afresh = Run { request: record.request, ..Run::default() };
        match &container.state {
            ContainerState::Busy(operation) => Self::Nothing(Phase::of(*operation)),
            ContainerState::Running { since } => Self::of_running(key, container, *since, wishes),
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
                    Gate::Open => Self::of_exited(key, container, exit, wishes),
                }
            }
        }
    }

    fn of_running(
        key: &ContainerKey,
        container: &Container,
        since: Millis,
        wishes: &Wishes<'_>,
    ) -> Self {
        let Wishes { wanted, record, around, moment } = *wishes;
        let health = container.health.clone();
        let phase = || Phase::Running { since, health: health.clone() };
        match container.monitor {
            // A monitor that is on its way is waited for: it is the one who can stop the program.
            Monitor::Adopting => return Self::Nothing(phase()),
            Monitor::Alive | Monitor::Lost => {}
        }
        if container.run.request < record.restart {
            let run = Run { request: record.request, ..Run::default() };
            return Self::Restart { cause: Cause::Restart, run };
        }
        // The run did not fail, so it does not count.
        if container.content == Content::Lost {
            return Self::Restart { cause: Cause::ContentLost, run: container.run };
        }
        if container.monitor == Monitor::Lost {
            return match Gate::of(moment, key, container, &[Operation::Adopt]) {
                Gate::Open => Self::Adopt { since, cause: Cause::MonitorLost },
                Gate::Retry(cause) => Self::Adopt { since, cause },
                // It runs; that nobody can reach it for a moment is an event, not its state.
                Gate::Shut(_, at) => Self::Wait(phase(), at),
            };
        }
        if let Health::Unhealthy(unhealthy) = &container.health
            && let Some(healthy_since) = unhealthy.was_healthy_since
        {
            match wanted.on_unhealthy() {
                UnhealthyAction::None => {}
                UnhealthyAction::Stop => return Self::Stop { cause: Cause::Unhealthy },
                UnhealthyAction::Restart => {
                    let (run, streak) = after_unhealthy(unhealthy, healthy_since, container.run);
                    let jitter = jitter(moment.jitter_seed, key.as_str(), run.restarts);
                    let due = unhealthy.since.saturating_add(backoff(streak, jitter));
                    let at = moment.bounded(due);
                    if moment.now >= at {
                        return Self::Restart { cause: Cause::Unhealthy, run };
                    }
                    let reason = unhealthy.reason.clone();
                    return Self::Wait(Phase::Unhealthy { at, reason }, at);
                }
            }
        }
        // What could not be started again stays.
        match restarted(container, around).filter(|_| around.readiness == Readiness::Met) {
            Some(cause) => Self::Restart { cause, run: container.run },
            None => Self::Nothing(phase()),
        }
    }

    fn of_exited(
        key: &ContainerKey,
        container: &Container,
        exit: &Exit,
        wishes: &Wishes<'_>,
    ) -> Self {
        let Wishes { wanted, around, moment, .. } = *wishes;
        if container.content == Content::Lost {
            return Self::Start { cause: Cause::ContentLost, run: container.run };
        }
        // Nobody but control has told it to end: the user's own wishes were looked at before, so this is the first half
        // of a restart.
        if exit.asked {
            if let Health::Unhealthy(unhealthy @ Unhealthy { was_healthy_since: Some(since), .. }) =
                &exit.health
            {
                match wanted.on_unhealthy() {
                    UnhealthyAction::None => {}
                    UnhealthyAction::Stop => {
                        return Self::Nothing(Phase::Stopped { by: StoppedBy::Unhealthy });
                    }
                    UnhealthyAction::Restart => {
                        let (run, _) = after_unhealthy(unhealthy, *since, container.run);
                        return Self::Start { cause: Cause::Unhealthy, run };
                    }
                }
            }
            if let Some(cause) = restarted(container, around) {
                return Self::Start { cause, run: container.run };
            }
        }
        match verdict(wanted.restart_policy(), exit, container.run) {
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
                    Self::Wait(Phase::Restarting { at, status, row: run.streak }, at)
                }
            }
        }
    }
}

/// Whether one that `container` is restarted with runs in another run than that of the container's start.
fn restarted(container: &Container, around: &Surroundings) -> Option<Cause> {
    let other = around
        .with
        .iter()
        .find(|(name, stamp)| container.with.get(*name).is_some_and(|with| with != *stamp));
    other.map(|(name, _)| Cause::DependencyRestarted(name.clone()))
}
