//! The loop: take in what happened, observe, plan, begin what can begin, wait.
//!
//! One task owns all state. A pass begins only those steps of a plan that wait for no other step: what follows them
//! is planned again after their outcome, from what is observed then. Nothing is remembered between passes but
//! records, what monitors say, and which operations are under way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::events::{EventLog, Subject};
use super::execute::{Host, Outcome, Outcomes};
use super::handle::{Reply, Request};
use super::heartbeat::ServiceManager;
use super::held::Held;
use super::project::{Project, Wish};
use super::report::EventLevel;
use super::runs::Runs;
use super::wishes::HostShutdown;
use crate::image::ImageRef;
use crate::reconcile::{
    Action, Cause, ContainerKey, Goal, ImageState, Moment, Observed, Operation, Plan, ServiceKey,
    plan,
};
use crate::spec::ProjectName;
use crate::store::record;
use crate::telemetry::Chain;

/// Outcomes that wait for the driver; each is small and the driver is quick, so senders hardly ever wait.
const OUTCOME_QUEUE: usize = 256;

/// The owner of everything that changes.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) host: Arc<Host>,
    pub(super) events: EventLog,
    pub(super) clock: Clock,
    pub(super) jitter_seed: u64,
    pub(super) projects: BTreeMap<ProjectName, Project>,
    pub(super) containers: BTreeMap<ContainerKey, Held>,
    pub(super) images: BTreeMap<ImageRef, ImageState>,
    pub(super) plan: Plan,
    pub(super) outcomes: Outcomes,
    pub(super) inbox: mpsc::Receiver<Outcome>,
    pub(super) shutdown: CancellationToken,
    /// Set when control should end by itself once nothing is left to supervise.
    pub(super) on_demand: Option<std::time::Duration>,
    /// Set while the host goes down: who waits until nothing runs, and the containers that ran.
    pub(super) host_shutdown: Option<HostShutdown>,
    pub(super) service_manager: ServiceManager,
    /// Whether a plan was made; what the first one finds may have been told by an earlier control.
    pub(super) has_planned: bool,
    pub(super) runs: Runs,
}

impl Driver {
    pub(super) fn new(host: Arc<Host>, events: EventLog, shutdown: CancellationToken) -> Self {
        let (outcomes, inbox) = mpsc::channel(OUTCOME_QUEUE);
        Self {
            host,
            events,
            clock: Clock::new(),
            jitter_seed: u64::from(std::process::id()),
            projects: BTreeMap::new(),
            containers: BTreeMap::new(),
            images: BTreeMap::new(),
            plan: Plan { steps: Vec::new(), services: BTreeMap::new(), wake_at: None },
            outcomes,
            inbox,
            shutdown,
            on_demand: None,
            host_shutdown: None,
            service_manager: ServiceManager::new(None, None, Instant::now()),
            has_planned: false,
            runs: Runs::default(),
        }
    }

    /// Runs until it is told to end. What runs then goes on.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut connection = self.host.images.lazy.connections();
        self.find_what_is_there().await;
        loop {
            super::findings::tell(&self.host.store, &self.events);
            self.pass();
            self.answer_waiters();
            self.release_due_slots();
            self.service_manager.turned(&self.plan.services, Instant::now());
            let beat = self.service_manager.patience(Instant::now());
            let wake = self.plan.wake_at.map(|at| self.clock.until(at));
            let idle = self.on_demand.filter(|_| self.is_idle());
            let shutdown = self.shutdown.clone();
            tokio::select! {
                // Each arm is cancel-safe: receiving takes a message or none, and the timers hold nothing.
                () = shutdown.cancelled() => break,
                Some(outcome) = self.inbox.recv() => self.take_in_all(outcome),
                request = requests.recv() => match request {
                    Some(request) => self.answer(request),
                    None => break,
                },
                // Another connection: containers of the one before have lost their content.
                Ok(()) = connection.changed() => self.connection_changed(),
                () = sleep(wake) => {}
                () = sleep(beat) => {}
                // What came without passing here, such as a pull, may have changed it.
                () = sleep(idle) => if self.is_idle() {
                    tracing::info!("nothing is left to supervise");
                    break;
                }
            }
        }
        self.shutdown.cancel();
        self.host.bridges.flush().await;
        self.host.exits.flush().await;
        if !self.any_runs() {
            self.host.leave_nothing().await;
        }
    }

    pub(super) fn any_runs(&self) -> bool {
        self.containers.values().any(|held| held.may_run() || held.busy.is_some())
    }

    /// Nothing runs and nothing should.
    fn is_idle(&self) -> bool {
        let wanted = self.projects.values().any(|project| project.record.wish != Wish::Stop);
        let may_ask = !self.runs.unanswered.is_empty();
        !wanted && !may_ask && !self.any_runs() && !self.host.images.is_working()
    }

    /// Several outcomes often come together; one pass is enough for them.
    fn take_in_all(&mut self, first: Outcome) {
        self.take_in(first);
        while let Ok(outcome) = self.inbox.try_recv() {
            self.take_in(outcome);
        }
    }

    pub(super) fn observed(&self) -> Observed {
        let records = self.projects.iter().flat_map(|(name, project)| {
            project.records.iter().map(move |(service, record)| {
                (ServiceKey { project: name.clone(), service: service.clone() }, record.clone())
            })
        });
        let connections = self.host.images.lazy.generations();
        Observed {
            instance: self.host.instance.to_string(),
            images: self.images.clone(),
            containers: self
                .containers
                .iter()
                .filter(|(_, held)| self.is_planned(held))
                .map(|(key, held)| (key.clone(), held.observed(&self.clock, connections)))
                .collect(),
            records: records.collect(),
        }
    }

    pub(super) fn pass(&mut self) {
        let goal = |project: &Project| match project.goal() {
            Goal::Up(desired) if self.host_shutdown.is_some() => Goal::Shutdown(desired),
            goal => goal,
        };
        let goals: BTreeMap<ProjectName, Goal> =
            self.projects.iter().map(|(name, project)| (name.clone(), goal(project))).collect();
        let moment = Moment { now: self.clock.now(), jitter_seed: self.jitter_seed };
        let next = plan(&goals, &self.observed(), moment);
        let before = std::mem::replace(&mut self.plan, next);
        self.tell_changes(&before);
        self.has_planned = true;
        let mut begun = BTreeSet::new();
        for number in 0..self.plan.steps.len() {
            let step = self.plan.steps[number].clone();
            if step.requires.is_empty() && step.after.is_empty() {
                tracing::debug!(action = %step.action, cause = %step.cause, "step");
                begun.insert(number);
                if step.cause == Cause::ContentLost
                    && let Action::Start { service, .. } = &step.action
                {
                    let message = format!("{service} is started again: {}", Cause::ContentLost);
                    let subject =
                        Subject::Service(service.project.as_str(), service.service.as_str());
                    let level = EventLevel::Warning;
                    self.events.emit(subject, level, "content-lost", message, []);
                }
                self.begin(step.action);
            }
        }
        self.look_after_runs();
    }

    /// Keeps the record of a project. A failure is told and changes nothing else: the project runs all the same.
    pub(super) fn save_project(&self, name: &ProjectName) {
        let Some(project) = self.projects.get(name) else { return };
        let path = super::project::record_path(self.host.store.root(), name.as_str());
        let saved = super::project::make_folder(&path).and_then(|()| {
            record::save_with_copy(&path, &project.record)
                .map_err(|error| Chain(&error).to_string())
        });
        if let Err(message) = saved {
            not_saved(&self.events, name, message);
        }
    }

    /// The same, but the disk is waited for between the answer to `reply` and its arrival: what is asked for begins
    /// before that, and its own files are not held up by a sync. Whoever hears the answer can rely on the record.
    pub(super) fn save_project_for<T: Send + 'static>(
        &mut self,
        name: &ProjectName,
        mut reply: Reply<T>,
    ) -> Reply<T> {
        let kept = self.projects.get(name).and_then(|project| project.kept.as_ref());
        if kept.is_some_and(|kept| !*kept.borrow()) {
            // One at a time: of two that are not on the disk, the copy from before is none either.
            self.save_project(name);
            return reply;
        }
        let Some(project) = self.projects.get_mut(name) else { return reply };
        let path = super::project::record_path(self.host.store.root(), name.as_str());
        let saved = super::project::make_folder(&path).and_then(|()| {
            record::save_with_copy_unsynced(&path, &project.record)
                .map_err(|error| Chain(&error).to_string())
        });
        let unsynced = match saved {
            Ok(Some(unsynced)) => unsynced,
            Ok(None) => return reply,
            Err(message) => {
                not_saved(&self.events, name, message);
                return reply;
            }
        };
        let (kept, receiver) = watch::channel(false);
        project.kept = Some(receiver);
        let (events, name) = (self.events.clone(), name.clone());
        let (inner, answered) = oneshot::channel();
        tokio::spawn(async move {
            let answer = tokio::select! {
                // Cancel-safe: the answer is taken in the poll that returns it.
                answer = answered => answer.ok(),
                // Who waited has gone; the wish holds all the same.
                () = reply.closed() => None,
            };
            match tokio::task::spawn_blocking(move || unsynced.sync()).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) => not_saved(&events, &name, Chain(&error).to_string()),
            }
            kept.send_replace(true);
            if let Some(answer) = answer {
                let _ = reply.send(answer);
            }
        });
        inner
    }

    /// Keeps the record of a container, likewise.
    pub(super) fn save_container(&self, key: &ContainerKey) {
        let Some(held) = self.containers.get(key) else { return };
        // Its folder is being removed, and could not be with a record that is new in it.
        if held.busy == Some(Operation::Remove) {
            return;
        }
        if let Err(error) = record::save(&self.host.container_record(&held.id), &held.record) {
            let subject =
                Subject::Service(held.record.project.as_str(), held.record.service.as_str());
            self.events.emit(
                subject,
                EventLevel::Error,
                "record-not-saved",
                Chain(&error).to_string(),
                [],
            );
        }
    }

    pub(super) fn containers_of<'a>(
        &'a self,
        project: &'a ProjectName,
    ) -> impl Iterator<Item = (&'a ContainerKey, &'a Held)> {
        self.containers.iter().filter(move |(_, held)| {
            held.record.project == *project
                && held.record.instance == *self.host.instance
                && self.is_planned(held)
        })
    }
}

fn not_saved(events: &EventLog, name: &ProjectName, message: String) {
    let subject = Subject::Project(name.as_str());
    events.emit(subject, EventLevel::Error, "record-not-saved", message, []);
}

async fn sleep(duration: Option<std::time::Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}
