//! Tells those who wait that what they asked for has come true, or that it cannot.

use super::driver::Driver;
use super::events::Subject;
use super::handle::{RequestError, RequestErrorKind};
use super::held::Held;
use super::project::Wish;
use super::report::EventLevel;
use super::service_wish::{Asker, ServiceWaiter, Until};
use crate::reconcile::{ContainerKey, ExitStatus, Operation, Phase};
use crate::spec::{ProjectName, ServiceName};
use crate::store::{forget_aside, record};
use crate::telemetry::Chain;

/// How far one service of a waiter is.
enum Progress {
    Under,
    /// With this container, if it is named in the answer.
    Done(Option<String>),
    Failed(String),
    /// Somebody wants the opposite meanwhile.
    Crossed(String),
}

impl Driver {
    /// To be called after each plan.
    pub(super) fn answer_waiters(&mut self) {
        let names: Vec<ProjectName> = self.projects.keys().cloned().collect();
        for name in names {
            self.answer_services(&name);
            self.answer_gone(&name);
        }
        self.answer_shutdown();
    }

    fn answer_services(&mut self, name: &ProjectName) {
        let Some(project) = self.projects.get_mut(name) else { return };
        let waiters = std::mem::take(&mut project.service_waiters);
        let mut waiting = Vec::new();
        // Who has gone waits no more.
        for waiter in waiters.into_iter().filter(|waiter| !waiter.reply.is_closed()) {
            match self.outcome_of(name, &waiter) {
                Some(answer) => drop(waiter.reply.send(answer)),
                None => waiting.push(waiter),
            }
        }
        if let Some(project) = self.projects.get_mut(name) {
            project.service_waiters = waiting;
        }
    }

    fn outcome_of(
        &self,
        name: &ProjectName,
        waiter: &ServiceWaiter,
    ) -> Option<Result<Vec<String>, RequestError>> {
        let mut containers = waiter.containers.clone();
        let mut failures = Vec::new();
        let mut kind = RequestErrorKind::Conflict;
        let mut under_way = false;
        for service in &waiter.services {
            let progress = match waiter.until {
                Until::Started => self.started(name, service),
                Until::Stopped | Until::Gone => self.ended_all(name, service, waiter.until),
            };
            match progress {
                Progress::Under => under_way = true,
                Progress::Done(container) => containers.extend(container),
                Progress::Crossed(message) => failures.push(message),
                Progress::Failed(message) => {
                    kind = RequestErrorKind::Failed;
                    failures.push(message);
                }
            }
        }
        if under_way {
            return None;
        }
        if failures.is_empty() {
            containers.sort();
            containers.dedup();
            return Some(Ok(containers));
        }
        Some(Err(RequestError::new(kind, failures.join("; "))))
    }

    fn ended_all(&self, name: &ProjectName, service: &ServiceName, until: Until) -> Progress {
        // It may never end now.
        if self.is_wanted(&Self::service_key(name, service)) {
            let asker = self.projects.get(name).and_then(|project| project.askers.get(service));
            let by = asker.map(|asker| format!(" by {asker}")).unwrap_or_default();
            return Progress::Crossed(format!("service `{service}` was started meanwhile{by}"));
        }
        let containers: Vec<(&ContainerKey, &Held)> =
            self.containers_of(name).filter(|(_, held)| held.record.service == *service).collect();
        if let Some(message) = containers.iter().find_map(|(key, held)| failure(key, held)) {
            return Progress::Failed(message);
        }
        let busy = containers.iter().any(|(_, held)| held.busy.is_some() || held.may_run());
        if busy || (until == Until::Gone && !containers.is_empty()) {
            return Progress::Under;
        }
        Progress::Done(None)
    }

    fn started(&self, name: &ProjectName, service: &ServiceName) -> Progress {
        let key = Self::service_key(name, service);
        if !self.is_wanted(&key) {
            return Progress::Crossed(format!("service `{service}` was stopped meanwhile"));
        }
        let Some(status) = self.plan.services.get(&key) else { return Progress::Under };
        let held = status.container.as_ref().and_then(|container| self.containers.get(container));
        let record = self.projects.get(name).and_then(|project| project.records.get(service));
        let (request, restart) = record.map_or((0, 0), |record| (record.request, record.restart));
        match (&status.phase, held) {
            (Phase::Failed { reason, .. } | Phase::DependencyFailed { reason, .. }, _) => {
                Progress::Failed(format!("service `{service}` could not be started: {reason}"))
            }
            (Phase::Running { .. }, Some(held))
                if held.busy.is_none() && held.record.request >= restart =>
            {
                Progress::Done(Some(held.id.to_string()))
            }
            (
                Phase::Exited { status: ExitStatus::NotStarted { reason, .. }, .. }
                | Phase::Restarting { status: ExitStatus::NotStarted { reason, .. }, .. },
                Some(held),
            ) if held.record.request >= request => {
                Progress::Failed(format!("service `{service}` could not be started: {reason}"))
            }
            // It was started, and has ended since.
            (Phase::Exited { .. } | Phase::Restarting { .. }, Some(held))
                if held.record.request >= request =>
            {
                Progress::Done(Some(held.id.to_string()))
            }
            _ => Progress::Under,
        }
    }

    fn answer_gone(&mut self, name: &ProjectName) {
        let any_runs = self.any_runs();
        let empty = self.containers_of(name).next().is_none();
        let failed = self.containers_of(name).find_map(|(key, held)| failure(key, held));
        let Some(project) = self.projects.get_mut(name) else { return };
        if project.record.wish != Wish::Down {
            for waiter in std::mem::take(&mut project.waiters) {
                let message = format!("project `{name}` was brought up meanwhile by {}", Asker::Up);
                let error = RequestError::new(RequestErrorKind::Conflict, message);
                let _ = waiter.reply.send(Err(error));
            }
        } else if empty {
            let waiters = std::mem::take(&mut project.waiters);
            for waiter in waiters {
                self.tell_gone(waiter, any_runs);
            }
            self.forget(name);
        } else if let Some(message) = failed {
            for waiter in std::mem::take(&mut project.waiters) {
                let error = RequestError::new(RequestErrorKind::Failed, message.clone());
                let _ = waiter.reply.send(Err(error));
            }
        }
    }

    fn forget(&mut self, name: &ProjectName) {
        self.projects.remove(name);
        let message = format!("project {name} is down");
        let subject = Subject::Project(name.as_str());
        self.events.emit(subject, EventLevel::Info, "project-down", message, []);
        let path = super::project::record_path(self.host.store.root(), name.as_str());
        if let Err(error) = record::remove(&path) {
            tracing::warn!(project = %name, error = %Chain(&error), "could not remove the project's record");
        }
        // Whoever takes it down gives up what was unreadable of it.
        forget_aside(&path);
    }
}

/// Why a container cannot come to its end for now.
fn failure(key: &ContainerKey, held: &Held) -> Option<String> {
    let (operation, failure) = held.failed.as_ref()?;
    let ends = matches!(operation, Operation::Stop | Operation::Remove | Operation::Adopt);
    ends.then(|| format!("could not {operation} container `{key}`: {}", failure.reason))
}
