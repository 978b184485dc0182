//! The loop: take in what happened, observe, plan, begin what can begin, wait.
//!
//! One task owns all state. A pass begins only those steps of a plan that wait for no other step: what follows them
//! is planned again after their outcome, from what is observed then. Nothing is remembered between passes but
//! records, what monitors say, and which operations are under way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::events::{EventLog, Subject};
use super::execute::{self, Host, Outcome, Outcomes};
use super::handle::{Request, StopManner};
use super::held::{ContainerRecord, Held};
use super::project::{Project, Waiter, Wish};
use super::report::EventLevel;
use crate::container::ContainerId;
use crate::image::ImageRef;
use crate::reconcile::{
    Action, ContainerKey, Goal, ImageState, Moment, Observed, Operation, Plan, ServiceKey,
    StartTarget, plan,
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
    jitter_seed: u64,
    pub(super) projects: BTreeMap<ProjectName, Project>,
    pub(super) containers: BTreeMap<ContainerKey, Held>,
    pub(super) images: BTreeMap<ImageRef, ImageState>,
    pub(super) plan: Plan,
    pub(super) outcomes: Outcomes,
    pub(super) inbox: mpsc::Receiver<Outcome>,
    pub(super) shutdown: CancellationToken,
    /// Set when control should end by itself once nothing is left to supervise.
    pub(super) on_demand: Option<std::time::Duration>,
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
        }
    }

    /// Runs until it is told to end. What runs then goes on.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        self.find_what_is_there().await;
        loop {
            self.pass();
            self.answer_waiters();
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
                () = sleep(wake) => {}
                // What came without passing here, such as a pull, may have changed it.
                () = sleep(idle) => if self.is_idle() {
                    tracing::info!("nothing is left to supervise");
                    break;
                }
            }
        }
        self.shutdown.cancel();
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
        !wanted && !self.any_runs() && !self.host.images.is_working()
    }

    /// Several outcomes often come together; one pass is enough for them.
    fn take_in_all(&mut self, first: Outcome) {
        self.take_in(first);
        while let Ok(outcome) = self.inbox.try_recv() {
            self.take_in(outcome);
        }
    }

    fn observed(&self) -> Observed {
        let records = self.projects.iter().flat_map(|(name, project)| {
            project.records.iter().map(move |(service, record)| {
                (ServiceKey { project: name.clone(), service: service.clone() }, record.clone())
            })
        });
        Observed {
            instance: self.host.instance.to_string(),
            images: self.images.clone(),
            containers: self
                .containers
                .iter()
                .map(|(key, held)| (key.clone(), held.observed(&self.clock)))
                .collect(),
            records: records.collect(),
        }
    }

    fn pass(&mut self) {
        let goals: BTreeMap<ProjectName, Goal> =
            self.projects.iter().map(|(name, project)| (name.clone(), project.goal())).collect();
        let moment = Moment { now: self.clock.now(), jitter_seed: self.jitter_seed };
        self.plan = plan(&goals, &self.observed(), moment);
        let mut begun = BTreeSet::new();
        for number in 0..self.plan.steps.len() {
            let step = self.plan.steps[number].clone();
            if step.requires.is_empty() && step.after.is_empty() {
                tracing::debug!(action = %step.action, cause = %step.cause, "step");
                begun.insert(number);
                self.begin(step.action);
            }
        }
    }

    fn begin(&mut self, action: Action) {
        let (host, outcomes) = (Arc::clone(&self.host), self.outcomes.clone());
        match action {
            Action::Pull { image, attempt, services } => {
                let message = format!("pulling {image}");
                let service = services.first();
                let subject = service.map_or(Subject::Host, |key| {
                    Subject::Service(key.project.as_str(), key.service.as_str())
                });
                self.events.emit(subject, EventLevel::Info, "image-pulling", message, []);
                self.images.insert(image.clone(), ImageState::Pulling { percent: None });
                tokio::spawn(async move { host.pull(image, attempt, outcomes).await });
            }
            Action::Create { service, settings, fingerprint, manifest, request } => {
                let record = ContainerRecord {
                    instance: host.instance.to_string(),
                    project: service.project.clone(),
                    service: service.service.clone(),
                    serial: self.next_serial(),
                    fingerprint,
                    image: settings.image.clone(),
                    manifest,
                    command: Vec::new(),
                    created_at: jiff::Timestamp::now(),
                    request,
                    restarts: 0,
                    streak: 0,
                    started_in_boot: None,
                    exit: None,
                };
                let id = self.new_id(&service);
                let mut held = Held::new(id.clone(), record.clone());
                held.busy = Some(Operation::Create);
                self.containers.insert(ContainerKey::new(id.as_str()), held);
                tokio::spawn(async move { host.create(id, record, settings, outcomes).await });
            }
            Action::Start { service, container: StartTarget::Existing(container), run } => {
                self.begin_start(&service, &container, run);
            }
            // Its creation comes first, and then it exists.
            Action::Start { container: StartTarget::Created(_), .. } => {}
            Action::Stop { container, .. } => {
                if let Some(held) = self.begin_operation(&container, Operation::Stop) {
                    let monitor = held.monitor.clone();
                    tokio::spawn(async move { host.stop(monitor, container, outcomes).await });
                }
            }
            Action::Remove { container, .. } => {
                if let Some(held) = self.begin_operation(&container, Operation::Remove) {
                    let id = held.id.clone();
                    tokio::spawn(async move { host.remove(id, outcomes).await });
                }
            }
            Action::AdoptMonitor { container, .. } => {
                if let Some(held) = self.begin_operation(&container, Operation::Adopt) {
                    let id = held.id.clone();
                    tokio::spawn(async move { host.adopt(id, outcomes).await });
                }
            }
        }
    }

    fn begin_operation(
        &mut self,
        container: &ContainerKey,
        operation: Operation,
    ) -> Option<&mut Held> {
        let held = self.containers.get_mut(container)?;
        held.busy = Some(operation);
        Some(held)
    }

    fn begin_start(
        &mut self,
        service: &ServiceKey,
        container: &ContainerKey,
        run: crate::reconcile::Run,
    ) {
        let settings = self
            .projects
            .get(&service.project)
            .and_then(|project| project.desired.services.get(&service.service));
        let Some(settings) = settings.cloned() else { return };
        let (host, outcomes) = (Arc::clone(&self.host), self.outcomes.clone());
        let Some(held) = self.begin_operation(container, Operation::Start) else { return };
        held.record.set_run(run);
        held.record.started_in_boot = crate::sys::process::boot_id().ok();
        held.record.exit = None;
        held.status = None;
        let (id, record) = (held.id.clone(), held.record.clone());
        tokio::spawn(async move { host.start(id, record, settings, outcomes).await });
    }

    fn next_serial(&self) -> u64 {
        self.containers.values().map(|held| held.record.serial + 1).max().unwrap_or(1)
    }

    /// A name that no container had before: what is left of an old one is never taken for the new one's.
    fn new_id(&self, service: &ServiceKey) -> ContainerId {
        let mut salt = 0_u32;
        loop {
            let seed =
                format!("{service} {} {salt} {}", jiff::Timestamp::now(), self.host.instance);
            let unique = crate::image::Digest::of(seed.as_bytes()).hex()[..6].to_owned();
            let id = ContainerId::compose(
                service.project.as_str(),
                service.service.as_str(),
                1,
                &unique,
            )
            .expect("hex digits are allowed in an id");
            if !self.containers.contains_key(&ContainerKey::new(id.as_str())) {
                return id;
            }
            salt += 1;
        }
    }

    /// Keeps the record of a project. A failure is told and changes nothing else: the project runs all the same.
    pub(super) fn save_project(&self, name: &ProjectName) {
        let Some(project) = self.projects.get(name) else { return };
        let path = super::project::record_path(self.host.store.root(), name.as_str());
        let saved = super::project::make_folder(&path).and_then(|()| {
            record::save(&path, &project.record).map_err(|error| Chain(&error).to_string())
        });
        if let Err(message) = saved {
            self.events.emit(
                Subject::Project(name.as_str()),
                EventLevel::Error,
                "record-not-saved",
                message,
                [],
            );
        }
    }

    /// Keeps the record of a container, likewise.
    pub(super) fn save_container(&self, key: &ContainerKey) {
        let Some(held) = self.containers.get(key) else { return };
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
            held.record.project == *project && held.record.instance == *self.host.instance
        })
    }

    /// Ends what still runs of a project at once.
    pub(super) fn kill_all(&self, project: &ProjectName) {
        for (_, held) in self.containers_of(project) {
            if let Some(monitor) = held.monitor.clone().filter(|_| held.may_run()) {
                tokio::spawn(execute::kill(monitor));
            }
        }
    }

    /// Tells those who wait for a project to stop or go that it has, or that it cannot.
    fn answer_waiters(&mut self) {
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

async fn sleep(duration: Option<std::time::Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}
