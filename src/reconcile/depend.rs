//! Dependencies: in which order services are decided, and whether those that one waits for are where it needs them.
//!
//! A condition is looked at whenever something of the dependent is to start, whatever the reason: `up`, boot, a crash,
//! a change. What runs is not stopped because a dependency of it fails.

use std::collections::{BTreeMap, BTreeSet};

use super::Phase;
use super::action::Action;
use super::observed::{
    Container, ContainerState, ExitStatus, Health, Monitor, Observed, Operation, Stamp,
};
use super::plan::Goal;
use super::service::Decision;
use crate::spec::{Condition, Dependency, Desired, ProjectName, ServiceName};

/// Whether a service may start, as far as those are concerned that it depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Every condition holds.
    Met,
    /// One does not hold yet.
    Waiting {
        on: ServiceName,
        why: String,
        /// What runs of it is being ended, so what depends on it ends first if it has to end anyway.
        ends: bool,
    },
    /// One will not hold as long as nobody does something about `on`, which is perhaps one further down.
    Hopeless { on: ServiceName, reason: String },
}

/// Those that a service depends on, at one moment.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    pub(super) readiness: Readiness,
    /// Runs of those that it is restarted with.
    pub(super) with: BTreeMap<ServiceName, Stamp>,
    /// A service that depends on this one is being stopped, and comes first.
    pub(super) dependent_ends: bool,
}

impl Surroundings {
    /// Of a service that depends on nothing.
    pub(super) fn none() -> Self {
        Self { readiness: Readiness::Met, with: BTreeMap::new(), dependent_ends: false }
    }
}

/// `services` with those that others depend on before these, else by name.
pub(super) fn ordered(services: &BTreeSet<ServiceName>, desired: &Desired) -> Vec<ServiceName> {
    let mut order = Vec::with_capacity(services.len());
    let mut seen: BTreeSet<&ServiceName> = BTreeSet::new();
    // With a list of its own instead of a recursion, whose depth a file would decide. A service is taken once all that
    // it depends on have been looked at; one of a cycle, which no file can have, is taken where it is met again.
    let mut open: Vec<(&ServiceName, bool)> =
        services.iter().rev().map(|name| (name, false)).collect();
    while let Some((name, looked_at)) = open.pop() {
        if looked_at {
            order.push(name.clone());
        } else if seen.insert(name) {
            open.push((name, true));
            let depends_on = desired.services.get(name).map(|service| service.depends_on.keys());
            let before = depends_on.into_iter().flatten().rev();
            let before = before.filter_map(|other| services.get(other));
            open.extend(before.filter(|other| !seen.contains(other)).map(|other| (other, false)));
        }
    }
    order
}

/// Who depends on each service.
pub(super) fn dependents(desired: &Desired) -> BTreeMap<&ServiceName, BTreeSet<&ServiceName>> {
    let mut dependents: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (name, service) in &desired.services {
        for other in service.depends_on.keys() {
            dependents.entry(other).or_default().insert(name);
        }
    }
    dependents
}

/// Services of `project` that do not end now, because one that depends on them, or on one that does, is being stopped,
/// or is to be and cannot yet.
pub(super) fn held_by_ends(
    project: &ProjectName,
    goal: &Goal,
    observed: &Observed,
) -> BTreeSet<ServiceName> {
    let desired = goal.desired();
    let all_end = !matches!(goal, Goal::Up(_));
    let ours = observed.containers.values().filter(|container| {
        container.instance == observed.instance && container.service.project == *project
    });
    let stopping = ours.filter(|container| {
        let is_under_way = container.state == ContainerState::Busy(Operation::Start)
            || container.monitor == Monitor::Adopting;
        container.state == ContainerState::Busy(Operation::Stop) || all_end && is_under_way
    });
    let stopping: BTreeSet<&ServiceName> =
        stopping.map(|container| &container.service.service).collect();
    let needs = |name: &&ServiceName| Some(desired.services.get(*name)?.depends_on.keys());
    desired.with_dependencies(stopping.iter().filter_map(needs).flatten())
}

/// How far those are that `depends_on` names, by their decisions of the plan that is being made. One that the project
/// does not have was left out by the user, and is not waited for.
pub(super) fn surroundings(
    depends_on: &BTreeMap<ServiceName, Dependency>,
    decided: &BTreeMap<ServiceName, Decision>,
    observed: &Observed,
) -> Surroundings {
    let mut found = Surroundings::none();
    for (name, dependency) in depends_on {
        let Some(decision) = decided.get(name) else { continue };
        let container = decision.status.container.as_ref();
        let container = container.and_then(|key| observed.containers.get(key));
        let readiness = readiness(name, dependency.condition, decision, container);
        if readiness == Readiness::Met
            && dependency.restart
            && let Some(stamp) = container.and_then(|container| container.stamp)
        {
            found.with.insert(name.clone(), stamp);
        }
        match (&readiness, &found.readiness) {
            // Who can do without it does.
            (Readiness::Hopeless { .. }, _) if !dependency.required => {}
            (Readiness::Hopeless { .. }, Readiness::Met | Readiness::Waiting { .. })
            | (Readiness::Waiting { .. }, Readiness::Met)
            | (Readiness::Waiting { ends: true, .. }, Readiness::Waiting { ends: false, .. }) => {
                found.readiness = readiness;
            }
            _ => {}
        }
    }
    found
}

fn readiness(
    name: &ServiceName,
    condition: Condition,
    decision: &Decision,
    container: Option<&Container>,
) -> Readiness {
    let waiting = |why: String, ends| Readiness::Waiting { on: name.clone(), why, ends };
    let hopeless = |reason: String| Readiness::Hopeless { on: name.clone(), reason };
    let phase = &decision.status.phase;
    let stops = decision.steps.iter().any(|step| matches!(step.action, Action::Stop { .. }));
    let is_ending = matches!(
        container.map(|container| &container.state),
        Some(ContainerState::Busy(Operation::Stop | Operation::Remove))
    );
    if stops || is_ending || matches!(phase, Phase::Stopping | Phase::Removing) {
        return waiting("stopping".to_owned(), true);
    }
    // A monitor that is replaced changes nothing of what runs.
    let adopts = |action: &Action| matches!(action, Action::AdoptMonitor { .. });
    if decision.steps.iter().any(|step| !adopts(&step.action)) {
        return waiting(phase.word().to_owned(), false);
    }
    let runs = container.filter(|c| matches!(c.state, ContainerState::Running { .. }));
    match (condition, phase, runs) {
        (_, Phase::Failed { reason, retry_at: None }, None) => {
            hopeless(format!("`{name}` failed: {reason}"))
        }
        (_, Phase::Stopped { .. }, None) => hopeless(format!("`{name}` is {}", phase.render(0))),
        (_, Phase::DependencyFailed { on, reason }, None) => {
            Readiness::Hopeless { on: on.clone(), reason: reason.clone() }
        }
        (_, Phase::Exited { status: ExitStatus::NotStarted { reason, .. }, .. }, None) => {
            hopeless(format!("`{name}` could not be started: {reason}"))
        }
        (Condition::Started, _, Some(_)) | (Condition::Started, Phase::Exited { .. }, None) => {
            Readiness::Met
        }
        (Condition::Healthy, _, Some(container)) => match &container.health {
            Health::Healthy => Readiness::Met,
            Health::Starting => waiting("not healthy yet".to_owned(), false),
            Health::Unchecked if container.monitor != Monitor::Alive => {
                waiting("its monitor is being replaced".to_owned(), false)
            }
            Health::Unchecked => {
                hopeless(format!("`{name}` has no health check, so it never becomes healthy"))
            }
            Health::Unhealthy(unhealthy) if unhealthy.was_healthy_since.is_some() => {
                waiting("unhealthy".to_owned(), false)
            }
            Health::Unhealthy(unhealthy) => {
                hopeless(format!("`{name}` is unhealthy: {}", unhealthy.reason))
            }
        },
        (Condition::Completed, Phase::Exited { .. }, None) if was_cut_short(container) => {
            hopeless(format!("`{name}` was stopped before its end"))
        }
        (Condition::Completed, Phase::Exited { status: ExitStatus::Code(0), .. }, None) => {
            Readiness::Met
        }
        (_, Phase::Exited { .. }, None) => hopeless(format!("`{name}` {}", phase.render(0))),
        _ => waiting(phase.word().to_owned(), false),
    }
}

/// Whether a job ended because it was told to, whatever it made of that.
fn was_cut_short(container: Option<&Container>) -> bool {
    let state = container.map(|container| &container.state);
    matches!(state, Some(ContainerState::Exited(exit)) if exit.asked)
}
