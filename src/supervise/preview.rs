//! What `up` would do: the request is taken in by a copy of its project, and the planner asked what follows. Nothing is
//! changed by it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::driver::Driver;
use super::handle::RequestError;
use super::project::Project;
use super::report::{Downtime, PlanReport, PlannedLater, PlannedStep, UpRequest};
use crate::reconcile::{Action, Cause, ImageState, Moment, Phase, Plan, ServiceKey, Step, plan};
use crate::spec::Service;

impl Driver {
    pub(super) fn preview(&self, request: UpRequest) -> Result<PlanReport, RequestError> {
        let desired = super::project::parse(&request)?;
        let name = desired.project.clone();
        self.check_host()?;
        self.check_ports(&desired)?;
        let settled = self.settled(&name);
        let project = match self.projects.get(&name) {
            Some(project) => {
                let mut copy = Project::new(project.record.clone(), Arc::clone(&project.desired));
                copy.join(request, desired, &settled)?;
                copy
            }
            None => Project::asked(request, desired, &settled),
        };
        let mut observed = self.observed();
        for (service, record) in &project.records {
            let key = Self::service_key(&name, service);
            observed.records.insert(key, record.clone());
        }
        for image in project.desired.services.values().flat_map(Service::images) {
            let state = match self.host.images.local(image) {
                _ if matches!(observed.images.get(image), Some(ImageState::Pulling { .. })) => {
                    continue;
                }
                Ok(Some(local)) => ImageState::Ready { manifest: local.manifest_digest },
                Ok(None) | Err(_) => ImageState::Missing,
            };
            observed.images.insert(image.clone(), state);
        }
        let goals = BTreeMap::from([(name, project.goal())]);
        let moment = Moment { now: self.clock.now(), jitter_seed: self.jitter_seed };
        Ok(report(&plan(&goals, &observed, moment), &project))
    }
}

fn report(plan: &Plan, project: &Project) -> PlanReport {
    let steps = plan.steps.iter().map(|step| planned(step, plan, project)).collect();
    let later = plan.services.iter().filter_map(|(key, status)| {
        let cause = status.pending.as_ref()?;
        let when = match &status.phase {
            Phase::Blocked { on, why } => format!("{on} is ready ({why})"),
            Phase::DependencyFailed { on, .. } => format!("{on} is put right"),
            Phase::Stopping => "what it depends on is ready".to_owned(),
            _ => "its image is here".to_owned(),
        };
        let service = key.service.to_string();
        Some(PlannedLater { service, cause: cause.to_string(), fields: fields(cause), when })
    });
    PlanReport { project: project.desired.project.to_string(), steps, later: later.collect() }
}

fn planned(step: &Step, plan: &Plan, project: &Project) -> PlannedStep {
    let (action, image) = match &step.action {
        Action::AdoptMonitor { .. } => ("adopt", None),
        Action::Stop { .. } => ("stop", None),
        Action::Remove { .. } => ("remove", None),
        Action::Pull { image, .. } => ("pull", Some(image)),
        Action::Create { settings, .. } => ("create", Some(&settings.image)),
        Action::Start { .. } => ("start", None),
    };
    let services = match &step.action {
        Action::Pull { services, .. } => services.iter().collect(),
        other => other.service().into_iter().collect::<Vec<&ServiceKey>>(),
    };
    let downtime = match &step.action {
        Action::Stop { service, .. } => {
            let starts = |other: &Step| {
                matches!(other.action, Action::Start { .. })
                    && other.action.service() == Some(service)
            };
            let wanted = project.desired.services.get(&service.service);
            let grace = wanted.map_or(Service::DEFAULT_GRACE, Service::grace);
            Some(Downtime {
                stop_at_most_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
                starts_again: plan.steps.iter().any(starts),
            })
        }
        _ => None,
    };
    PlannedStep {
        action: action.to_owned(),
        services: services.iter().map(|key| key.service.to_string()).collect(),
        container: step.action.container().map(ToString::to_string),
        image: image.map(ToString::to_string),
        cause: step.cause.to_string(),
        fields: fields(&step.cause),
        downtime,
    }
}

fn fields(cause: &Cause) -> Vec<String> {
    match cause {
        Cause::FieldsChanged(fields) => fields.clone(),
        _ => Vec::new(),
    }
}
