//! How containers that run once end: who asked for one and who waits for it are told, also those who ask later.

use super::driver::Driver;
use super::handle::{ControlHandle, Reply, Request, RequestError, RequestErrorKind};
use super::held::{ContainerRecord, Held};
use super::monitors::hasten;
use super::report::RunEnd;
use super::run_settings::RunOptions;
use crate::container::Outcome;
use crate::reconcile::ContainerKey;
use crate::spec::{ProjectName, ServiceName};

/// Ends that are remembered for those who still ask; each is small.
const ENDS_KEPT: usize = 256;

/// So long a run of an earlier control that has ended is there for who asked for it, in milliseconds.
const KEPT_FOR_CALLER: u64 = 60_000;

/// A run that has ended, for those who ask later.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) container: ContainerKey,
    pub(super) project: ProjectName,
    pub(super) service: ServiceName,
    pub(super) idempotency_key: Option<String>,
    pub(super) end: RunEnd,
}

impl Driver {
    /// Notes a run that was found when this control began, if who asked for it may ask again.
    pub(super) fn note_found_run(&mut self, key: &ContainerKey, record: &ContainerRecord) {
        if record.one_off.as_ref().is_some_and(|one_off| one_off.idempotency_key.is_some()) {
            let until = self.clock.now().saturating_add(KEPT_FOR_CALLER);
            self.runs.unanswered.insert(key.clone(), until);
        }
    }

    /// Whether somebody may still ask for a run of an earlier control: removed before, it would run twice.
    pub(super) fn may_be_asked_for(&mut self, key: &ContainerKey) -> bool {
        let Some(&until) = self.runs.unanswered.get(key) else { return false };
        if self.clock.now() >= until {
            self.runs.unanswered.remove(key);
            return false;
        }
        self.plan.wake_at = Some(self.plan.wake_at.map_or(until, |at| at.min(until)));
        true
    }

    /// A run's container is gone, and still held: nobody waits for it any more.
    pub(super) fn run_removed(&mut self, key: &ContainerKey) {
        // One that is taken down with its project may have run all the same.
        let has_begun = self.containers.get(key).is_some_and(Held::has_begun);
        self.tell_begun(key, (!has_begun).then(|| "it was removed before it began".to_owned()));
        self.note_run_end(key, RunEnd::default());
    }

    /// A run has ended: who asked for it and who waits for it are told.
    pub(super) fn run_ended(&mut self, key: &ContainerKey) {
        self.tell_begun(key, None);
        let Some(held) = self.containers.get(key) else { return };
        let Some(exit) = &held.record.exit else { return };
        let reason = match &exit.outcome {
            Outcome::NotStarted { reason, .. } => Some(reason.clone()),
            Outcome::Exited { .. } | Outcome::Signaled { .. } | Outcome::Unknown => None,
        };
        let end = RunEnd { code: exit.outcome.code(), reason };
        self.note_run_end(key, end);
    }

    pub(super) fn note_run_end(&mut self, key: &ContainerKey, end: RunEnd) {
        let waiters = std::mem::take(&mut self.runs.waiters);
        for (container, reply) in waiters {
            if container == *key {
                let _ = reply.send(Ok(end.clone()));
            } else if !reply.is_closed() {
                self.runs.waiters.push((container, reply));
            }
        }
        let Some(held) = self.containers.get(key) else { return };
        let is_known = self.runs.ended.iter().any(|ended| ended.container == *key);
        // One that never began may be asked for again.
        if is_known || !held.has_begun() {
            return;
        }
        let one_off = held.record.one_off.as_ref();
        self.runs.ended.push(Ended {
            container: key.clone(),
            project: held.record.project.clone(),
            service: held.record.service.clone(),
            idempotency_key: one_off.and_then(|one_off| one_off.idempotency_key.clone()),
            end,
        });
        let surplus = self.runs.ended.len().saturating_sub(ENDS_KEPT);
        self.runs.ended.drain(..surplus);
    }

    /// Answers when a run has ended.
    pub(super) fn wait_run(&mut self, project: &str, container: String, reply: Reply<RunEnd>) {
        let container = ContainerKey::new(&container);
        let is_it =
            |ended: &&Ended| ended.container == container && ended.project.as_str() == project;
        self.runs.unanswered.remove(&container);
        if let Some(ended) = self.runs.ended.iter().find(is_it) {
            return drop(reply.send(Ok(ended.end.clone())));
        }
        match self.run_of(project, container.as_str()) {
            Ok(_) => self.runs.waiters.push((container, reply)),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Asks a run to stop, with the grace period of its service.
    pub(super) fn stop_run(&self, project: &str, container: &str) -> Result<(), RequestError> {
        let held = self.run_of(project, container)?;
        if let Some(monitor) = held.monitor.clone() {
            tokio::spawn(hasten(monitor, None));
        }
        Ok(())
    }

    fn run_of(&self, project: &str, container: &str) -> Result<&Held, RequestError> {
        let held = self.containers.get(&ContainerKey::new(container));
        held.filter(|held| held.record.one_off.is_some() && held.record.project.as_str() == project)
            .ok_or_else(|| {
                let message = format!("no such run: `{container}`");
                RequestError::new(RequestErrorKind::NotFound, message)
            })
    }
}

impl ControlHandle {
    /// Runs a container like a service of `request`, once and beside it. Returns its name when it has begun.
    ///
    /// # Errors
    /// When the request is not valid, the image cannot be had, or the container cannot be made.
    pub async fn run(
        &self,
        request: super::report::UpRequest,
        service: String,
        options: RunOptions,
    ) -> Result<String, RequestError> {
        let (request, options) = (Box::new(request), Box::new(options));
        self.ask(|reply| Request::Run { request, service, options, reply }).await
    }

    /// Waits until a run has ended.
    ///
    /// # Errors
    /// When there is none of that name, or none any more.
    pub async fn run_end(
        &self,
        project: String,
        container: String,
    ) -> Result<RunEnd, RequestError> {
        self.ask(|reply| Request::RunEnd { project, container, reply }).await
    }

    /// Asks a run to stop.
    ///
    /// # Errors
    /// As [`Self::run_end`].
    pub async fn stop_run(&self, project: String, container: String) -> Result<(), RequestError> {
        self.ask(|reply| Request::StopRun { project, container, reply }).await
    }
}
