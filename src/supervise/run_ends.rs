//! How containers that run once end: who asked for one and who waits for it are told, also those who ask later.

use super::driver::Driver;
use super::handle::{Reply, RequestError, RequestErrorKind};
use super::held::Held;
use super::monitors::hasten;
use super::report::RunEnd;
use crate::container::Outcome;
use crate::reconcile::ContainerKey;
use crate::spec::ProjectName;

/// Ends that are remembered for those who still ask; each is small.
const ENDS_KEPT: usize = 256;

/// A run that has ended, for those who ask later.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) container: ContainerKey,
    pub(super) project: ProjectName,
    pub(super) idempotency_key: Option<String>,
    pub(super) end: RunEnd,
}

impl Driver {
    /// A run's container is gone, and still held: nobody waits for it any more.
    pub(super) fn run_removed(&mut self, key: &ContainerKey) {
        self.tell_begun(key, Some("it was removed before it began".to_owned()));
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
