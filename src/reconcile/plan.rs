//! [`plan`]: decides every service, those that others depend on first, then puts the steps of all in one order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::action::{Action, Cause, Plan, StartTarget, Step, StepNo};
use super::depend::{self, Surroundings};
use super::observed::{Container, ContainerKey, ImageState, Observed, PullFault, ServiceKey};
use super::phase::StoppedBy;
use super::restart::{LONGEST_DELAY, backoff, jitter};
use super::service::{Decider, Decision};
use super::{Millis, Phase};
use crate::image::ImageRef;
use crate::spec::{Desired, ProjectName, ServiceName};

/// What the user wants of a project. A project without a goal is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// Its services run as described; containers of services that are not described are stopped and removed.
    Up(Arc<Desired>),
    /// Nothing of it runs; containers stay, with their writable layers.
    Stop(Arc<Desired>),
    /// It has no containers.
    Down(Arc<Desired>),
    /// Nothing of it runs while the host goes down; containers stay, and what the user wants is not changed.
    Shutdown(Arc<Desired>),
}

impl Goal {
    /// What is described of the project: what runs, or in which order it ends.
    #[must_use]
    pub fn desired(&self) -> &Desired {
        match self {
            Self::Up(desired)
            | Self::Stop(desired)
            | Self::Down(desired)
            | Self::Shutdown(desired) => desired,
        }
    }
}

/// When a plan is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The present.
    pub now: Millis,
    /// Any number; the same for the life of a process, so that a delay once announced stays as it is.
    pub jitter_seed: u64,
}

impl Moment {
    /// When the attempt after `attempts` failed ones, the last at `at`, is due. `name` tells attempts apart.
    pub(super) fn retry_at(self, name: &str, attempts: u32, at: Millis) -> Millis {
        let streak = attempts.saturating_sub(1);
        let delay = backoff(streak, jitter(self.jitter_seed, name, attempts));
        self.bounded(at.saturating_add(delay))
    }

    /// `due`, but no longer away than any delay is: a time from another boot must not block a service for ever.
    pub(super) fn bounded(self, due: Millis) -> Millis {
        due.min(self.now.saturating_add(LONGEST_DELAY))
    }
}

/// A pull that services wait for.
pub(super) struct PullStatus {
    pub(super) phase: Phase,
    /// Set when the pull is to be started now: attempt and cause.
    pub(super) start: Option<(u32, Cause)>,
    pub(super) wake_at: Option<Millis>,
}

/// What becomes of an image that is not ready.
pub(super) fn pull_status(
    image: &ImageRef,
    state: Option<&ImageState>,
    moment: Moment,
) -> PullStatus {
    let pulling =
        |percent, start| PullStatus { phase: Phase::Pulling { percent }, start, wake_at: None };
    match state {
        None | Some(ImageState::Missing | ImageState::Ready { .. }) => {
            pulling(None, Some((1, Cause::ImageMissing)))
        }
        Some(ImageState::Pulling { percent }) => pulling(*percent, None),
        Some(ImageState::Failed { failure, fault }) => {
            let retry_at = match fault {
                PullFault::Unreachable | PullFault::NoSpace => {
                    moment.retry_at(&image.to_string(), failure.attempts, failure.at)
                }
                PullFault::Refused => moment.bounded(failure.at.saturating_add(LONGEST_DELAY)),
            };
            if moment.now >= retry_at {
                let attempt = failure.attempts.saturating_add(1);
                return pulling(None, Some((attempt, Cause::PullRetry(failure.attempts))));
            }
            let reason = failure.reason.clone();
            let phase = match fault {
                PullFault::Unreachable => Phase::WaitingForRegistry { reason, retry_at },
                PullFault::NoSpace => Phase::WaitingForSpace { reason, retry_at },
                PullFault::Refused => Phase::Failed { reason, retry_at: Some(retry_at) },
            };
            PullStatus { phase, start: None, wake_at: Some(retry_at) }
        }
    }
}

/// What to do now, so that the projects with a goal come to it.
#[must_use]
pub fn plan(goals: &BTreeMap<ProjectName, Goal>, observed: &Observed, moment: Moment) -> Plan {
    let mut decisions: Vec<(ServiceKey, Decision)> = Vec::new();
    let mut dependents = BTreeMap::new();
    let mut ours: BTreeMap<&ServiceKey, Vec<(&ContainerKey, &Container)>> = BTreeMap::new();
    for (key, container) in &observed.containers {
        if container.instance == observed.instance {
            ours.entry(&container.service).or_default().push((key, container));
        }
    }
    for (project, goal) in goals {
        let dependents_here = depend::dependents(goal.desired());
        let held = depend::held_by_ends(project, goal, observed);
        let mut decided: BTreeMap<ServiceName, Decision> = BTreeMap::new();
        let order = depend::ordered(&services(project, goal, observed), goal.desired());
        for service in &order {
            let key = ServiceKey { project: project.clone(), service: service.clone() };
            let wanted = goal.desired().services.get(service);
            let mut around = match (goal, wanted) {
                (Goal::Up(_), Some(wanted)) => {
                    depend::surroundings(&wanted.depends_on, &decided, observed)
                }
                _ => Surroundings::none(),
            };
            around.dependent_ends = held.contains(service);
            let containers = ours.remove(&key).unwrap_or_default();
            let decider = Decider::new(&key, observed, moment, around);
            let decision = match (goal, wanted) {
                (Goal::Up(_), Some(wanted)) => decider.up(wanted, containers),
                (Goal::Up(_), None) => decider.down(&containers, &Cause::ServiceRemoved),
                (Goal::Stop(_), _) => {
                    decider.stop(&containers, &Cause::ProjectStop, StoppedBy::Hand)
                }
                (Goal::Shutdown(_), _) => {
                    decider.stop(&containers, &Cause::HostShutdown, StoppedBy::HostShutdown)
                }
                (Goal::Down(_), _) => decider.down(&containers, &Cause::ProjectDown),
            };
            decided.insert(service.clone(), decision);
        }
        dependents.insert(project, dependents_here);
        decisions.extend(order.into_iter().filter_map(|service| {
            let decision = decided.remove(&service)?;
            Some((ServiceKey { project: project.clone(), service }, decision))
        }));
    }
    assemble(decisions, &dependents)
}

/// Who depends on each service, by project.
type Dependents<'a> =
    BTreeMap<&'a ProjectName, BTreeMap<&'a ServiceName, BTreeSet<&'a ServiceName>>>;

/// Services that are wanted or have a container of ours.
fn services(project: &ProjectName, goal: &Goal, observed: &Observed) -> BTreeSet<ServiceName> {
    let mut services: BTreeSet<ServiceName> = match goal {
        Goal::Up(desired) => desired.services.keys().cloned().collect(),
        Goal::Stop(_) | Goal::Down(_) | Goal::Shutdown(_) => BTreeSet::new(),
    };
    let ours = observed
        .containers
        .values()
        .filter(|c| c.instance == observed.instance && c.service.project == *project);
    services.extend(ours.map(|c| c.service.service.clone()));
    services
}

/// One order for the steps of all services.
fn assemble(decisions: Vec<(ServiceKey, Decision)>, dependents: &Dependents<'_>) -> Plan {
    let mut plan = Plan { steps: Vec::new(), services: BTreeMap::new(), wake_at: None };
    let mut pulls: BTreeMap<ImageRef, (u32, Cause, Vec<ServiceKey>)> = BTreeMap::new();
    // Steps with the decision and the place in it that they come from.
    let mut steps: Vec<((usize, usize), Step)> = Vec::new();
    for (n, (key, decision)) in decisions.into_iter().enumerate() {
        plan.wake_at = [plan.wake_at, decision.wake_at].into_iter().flatten().min();
        for (image, attempt, cause) in decision.pulls {
            let pull = pulls.entry(image).or_insert_with(|| (attempt, cause, Vec::new()));
            pull.2.push(key.clone());
        }
        steps
            .extend(decision.steps.into_iter().enumerate().map(|(place, step)| ((n, place), step)));
        plan.services.insert(key, decision.status);
    }
    for (image, (attempt, cause, services)) in pulls {
        let action = Action::Pull { image, attempt, services };
        let step = Step { action, cause, requires: Vec::new(), after: Vec::new() };
        steps.push(((usize::MAX, steps.len()), step));
    }
    // Within a rank in the order of services, and in the opposite order where something ends; the steps of one
    // service stay as they are.
    steps.sort_by_key(|((decision, place), step)| {
        let ends = matches!(step.action, Action::Stop { .. } | Action::Remove { .. });
        let order = if ends { usize::MAX - decision } else { *decision };
        (step.action.rank(), order, *place)
    });
    let places: BTreeMap<(usize, usize), StepNo> =
        steps.iter().enumerate().map(|(number, (place, _))| (*place, number)).collect();
    let mut stops: BTreeMap<ServiceKey, Vec<StepNo>> = BTreeMap::new();
    let mut removals: BTreeMap<ProjectName, Vec<StepNo>> = BTreeMap::new();
    for (number, (_, step)) in steps.iter().enumerate() {
        let Action::Stop { service, .. } = &step.action else { continue };
        stops.entry(service.clone()).or_default().push(number);
        if step.cause == Cause::ServiceRemoved {
            removals.entry(service.project.clone()).or_default().push(number);
        }
    }
    for ((n, _), mut step) in steps {
        let global = |local: &StepNo| places[&(n, *local)];
        step.requires = step.requires.iter().map(global).collect();
        if let Action::Start { container: StartTarget::Created(local), .. } = &mut step.action {
            *local = global(local);
        }
        match &step.action {
            // A renamed service is one removed and one created: the new one needs what the old one holds, its port
            // above all.
            Action::Create { service, .. } | Action::Start { service, .. } => {
                step.after = removals.get(&service.project).cloned().unwrap_or_default();
            }
            Action::Stop { service, .. } => {
                let those = dependents.get(&service.project);
                let (mut open, mut seen) = (vec![&service.service], BTreeSet::new());
                while let Some(name) = open.pop() {
                    let dependents = those.and_then(|those| those.get(name));
                    for &dependent in dependents.into_iter().flatten() {
                        if !seen.insert(dependent) {
                            continue;
                        }
                        let project = service.project.clone();
                        let key = ServiceKey { project, service: dependent.clone() };
                        match stops.get(&key) {
                            // Later ones only where services depend on each other, which no file can have.
                            Some(stops) => {
                                let before = |number: &StepNo| *number < plan.steps.len();
                                step.after.extend(stops.iter().copied().filter(before));
                            }
                            // Nothing of it ends, but what depends on it may.
                            None => open.push(dependent),
                        }
                    }
                }
            }
            _ => {}
        }
        plan.steps.push(step);
    }
    plan
}
