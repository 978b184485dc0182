//! Begins actions: notes that one is under way and lets it run beside the loop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::driver::Driver;
use super::events::Subject;
use super::execute::{Start, Synced};
use super::held::{ContainerRecord, Held, ImpliedNetwork};
use super::images::Extent;
use super::report::EventLevel;
use crate::container::ContainerId;
use crate::reconcile::{
    Action, ContainerKey, ImageState, Operation, ServiceKey, Stamp, StartTarget,
};
use crate::spec::{Prefetch, RestartPolicy, ServiceName};

impl Driver {
    pub(super) fn begin(&mut self, action: Action) {
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
                // What a service names, or does without, is known when it starts.
                let wants_marked = services.iter().any(|key| {
                    let project = self.projects.get(&key.project);
                    let service = project.and_then(|p| p.desired.services.get(&key.service));
                    service.is_none_or(|service| {
                        let lazy = &service.extensions.lazy;
                        lazy.prefetch() != Prefetch::Off && lazy.prefetch_paths().is_empty()
                    })
                });
                let extent = if wants_marked { Extent::Lazy } else { Extent::Index };
                tokio::spawn(async move { host.pull(image, extent, attempt, outcomes).await });
            }
            Action::Create { service, settings, fingerprint, manifest, mounted, request } => {
                let record = ContainerRecord {
                    instance: host.instance.to_string(),
                    project: service.project.clone(),
                    service: service.service.clone(),
                    serial: self.next_serial(),
                    fingerprint,
                    image: settings.image.clone(),
                    manifest,
                    mounted,
                    command: Vec::new(),
                    created_at: jiff::Timestamp::now(),
                    request,
                    restarts: 0,
                    streak: 0,
                    with: BTreeMap::new(),
                    implied_network: ImpliedNetwork::Project,
                    started_in_boot: None,
                    connection: None,
                    marked_connection: None,
                    exit: None,
                    one_off: None,
                    exits: Vec::new(),
                };
                let id = self.new_id(service.project.as_str(), service.service.as_str());
                let mut held = Held::new(id.clone(), record.clone());
                held.busy = Some(Operation::Create);
                self.containers.insert(ContainerKey::new(id.as_str()), held);
                tokio::spawn(async move { host.create(id, record, settings, outcomes).await });
            }
            Action::Start { service, container: StartTarget::Existing(container), run, with } => {
                self.begin_start(&service, &container, run, with);
            }
            // Its creation comes first, and then it exists.
            Action::Start { container: StartTarget::Created(_), .. } => {}
            Action::Stop { container, grace, .. } => {
                let grace = grace.map(Duration::from_millis);
                if let Some(held) = self.begin_operation(&container, Operation::Stop) {
                    let monitor = held.monitor.clone();
                    tokio::spawn(
                        async move { host.stop(monitor, container, grace, outcomes).await },
                    );
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
                    let process = held.process.as_ref().and_then(|(_, fd)| fd.try_clone().ok());
                    tokio::spawn(async move { host.adopt(id, process, outcomes).await });
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
        with: BTreeMap<ServiceName, Stamp>,
    ) {
        let Some(project) = self.projects.get(&service.project) else { return };
        let Some(settings) = project.desired.services.get(&service.service).cloned() else {
            return;
        };
        let request = project.request_of_this_boot(&service.service);
        let (host, outcomes) = (Arc::clone(&self.host), self.outcomes.clone());
        host.expect_start();
        let owner = self.network_owner(service, &settings);
        let Some(held) = self.begin_operation(container, Operation::Start) else { return };
        // What its policy starts again may start again after a power cut. Another one must not, and does not if the
        // next boot finds either this start or no request for it.
        let is_found = settings.restart_policy() != RestartPolicy::No
            || (request == Some(run.request) && held.record.request < run.request);
        let synced = if is_found { Synced::After } else { Synced::Before };
        held.record.set_run(run);
        held.record.with = with;
        held.record.started_in_boot = crate::sys::process::boot_id().ok();
        held.record.exit = None;
        held.status = None;
        let (id, record) = (held.id.clone(), held.record.clone());
        let start = Start { service: settings, network_owner: owner, synced };
        tokio::spawn(async move { host.start(id, record, start, outcomes).await });
    }

    pub(super) fn next_serial(&self) -> u64 {
        self.containers.values().map(|held| held.record.serial + 1).max().unwrap_or(1)
    }

    /// A name that no container had before: what is left of an old one is never taken for the new one's.
    pub(super) fn new_id(&self, project: &str, service: &str) -> ContainerId {
        let mut salt = 0_u32;
        loop {
            let seed = format!(
                "{project}/{service} {} {salt} {}",
                jiff::Timestamp::now(),
                self.host.instance
            );
            let unique = crate::image::Digest::of(seed.as_bytes()).hex()[..6].to_owned();
            let id = ContainerId::compose(project, service, 1, &unique)
                .expect("hex digits are allowed in an id");
            if !self.containers.contains_key(&ContainerKey::new(id.as_str())) {
                return id;
            }
            salt += 1;
        }
    }
}
