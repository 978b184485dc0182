//! Wishes that somebody waits for: how one is taken in, and who is told when it has come true or cannot.

use std::sync::Arc;

use super::driver::Driver;
use super::events::Subject;
use super::execute;
use super::handle::StopManner;
use super::project::{Waiter, Wish};
use super::report::EventLevel;
use crate::reconcile::Operation;
use crate::spec::ProjectName;
use crate::store::record;
use crate::telemetry::Chain;

impl Driver {
    /// Ends what still runs of a project at once.
    pub(super) fn kill_all(&self, project: &ProjectName) {
        for (_, held) in self.containers_of(project) {
            if let Some(monitor) = held.monitor.clone().filter(|_| held.may_run()) {
                tokio::spawn(execute::kill(monitor));
            }
        }
    }

    /// Tells those who wait for a project to stop or go that it has, or that it cannot.
    pub(super) fn answer_waiters(&mut self) {
        let any_runs = self.any_runs();
        let names: Vec<ProjectName> = self.projects.keys().cloned().collect();
        for name in names {
            let busy =
                self.containers_of(&name).any(|(_, held)| held.busy.is_some() || held.may_run());
            let empty = self.containers_of(&name).next().is_none();
            let failure = self.containers_of(&name).find_map(|(key, held)| {
                let (operation, failure) = held.failed.as_ref()?;
                let ends = matches!(operation, Operation::Stop | Operation::Remove);
                ends.then(|| format!("could not {operation} container `{key}`: {}", failure.reason))
            });
            let project = self.projects.get_mut(&name).expect("the name was listed just now");
            for waiter in std::mem::take(&mut project.waiters) {
                let failed = failure.clone().map(|message| {
                    super::handle::RequestError::new(
                        super::handle::RequestErrorKind::Failed,
                        message,
                    )
                });
                match (waiter, failed) {
                    // Whoever asked may have gone; then nobody needs the answer.
                    (Waiter::Stopped(reply), Some(error)) => drop(reply.send(Err(error))),
                    (Waiter::Gone(reply, _), Some(error)) => drop(reply.send(Err(error))),
                    (Waiter::Stopped(reply), None) if !busy => drop(reply.send(Ok(()))),
                    (Waiter::Gone(reply, names), None) if empty => {
                        let (host, runs) = (Arc::clone(&self.host), any_runs);
                        tokio::spawn(async move {
                            if !runs {
                                host.leave_nothing().await;
                            }
                            let _ = reply.send(Ok(names));
                        });
                    }
                    (waiter, None) => project.waiters.push(waiter),
                }
            }
            if empty && project.record.wish == Wish::Down && project.waiters.is_empty() {
                self.projects.remove(&name);
                let message = format!("project {name} is down");
                let subject = Subject::Project(name.as_str());
                self.events.emit(subject, EventLevel::Info, "project-down", message, []);
                let path = super::project::record_path(self.host.store.root(), name.as_str());
                if let Err(error) = record::remove(&path) {
                    tracing::warn!(project = %name, error = %Chain(&error), "could not remove the project's record");
                }
            }
        }
    }

    /// Brings a project to an end in the given manner.
    pub(super) fn wind_down(
        &mut self,
        name: &ProjectName,
        wish: Wish,
        manner: StopManner,
        waiter: Waiter,
    ) {
        let Some(project) = self.projects.get_mut(name) else { return };
        project.record.wish = wish;
        project.watch = None;
        project.manner = manner;
        project.waiters.push(waiter);
        self.save_project(name);
        if manner == StopManner::Kill {
            self.kill_all(name);
        }
    }
}
