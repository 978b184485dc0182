//! What services have come to, in the sense of somebody who asks for something.

use std::collections::BTreeSet;
use std::time::Duration;

use super::driver::Driver;
use super::project::Wish;
use crate::reconcile::{Phase, ServiceKey};
use crate::spec::{ProjectName, RestartPolicy, Service, ServiceName};

impl Driver {
    /// Services that run or are just being started.
    pub(super) fn running(&self, name: &ProjectName) -> BTreeSet<ServiceName> {
        let statuses = self.plan.services.iter().filter(|(key, status)| {
            key.project == *name
                && matches!(
                    status.phase,
                    Phase::Running { .. } | Phase::Unhealthy { .. } | Phase::Starting
                )
        });
        statuses.map(|(key, _)| key.service.clone()).collect()
    }

    /// Services that have what an `up` asks for: they run, or are jobs that have ended well. A job runs once for what
    /// the file says of it; when that or its image changes it gets another container, which runs.
    pub(super) fn settled(&self, name: &ProjectName) -> BTreeSet<ServiceName> {
        let mut settled = self.running(name);
        let Some(project) = self.projects.get(name) else { return settled };
        let is_done = |key: &&ServiceKey| {
            let wanted = project.desired.services.get(&key.service);
            let container = self.plan.services.get(*key).and_then(|s| s.container.as_ref());
            let exit = container.and_then(|container| {
                let held = self.containers.get(container)?;
                held.record.exit.as_ref().filter(|_| !held.may_run() && held.busy.is_none())
            });
            let policy = wanted.map(Service::restart_policy);
            matches!(policy, Some(RestartPolicy::No | RestartPolicy::OnFailure { .. }))
                && exit.is_some_and(|exit| exit.outcome.code() == Some(0) && !exit.stop_requested)
        };
        let of_project = self.plan.services.keys().filter(|key| key.project == *name);
        settled.extend(of_project.filter(is_done).map(|key| key.service.clone()));
        settled
    }

    /// Whether a service should run.
    pub(super) fn is_wanted(&self, key: &ServiceKey) -> bool {
        let Some(project) = self.projects.get(&key.project) else { return false };
        let record = project.records.get(&key.service);
        self.host_shutdown.is_none()
            && project.record.wish == Wish::Up
            && project.desired.services.contains_key(&key.service)
            && record.is_none_or(|record| record.stopped.is_none())
    }

    /// The grace period that the user gave for the end of a service.
    pub(super) fn grace(&self, key: &ServiceKey) -> Option<Duration> {
        let record = self.projects.get(&key.project)?.records.get(&key.service)?;
        record.grace.filter(|_| self.host_shutdown.is_none()).map(Duration::from_millis)
    }
}
