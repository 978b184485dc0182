//! What the driver learns from finished actions and from monitors.

use crate::spec::Service;
use std::collections::BTreeSet;

use super::driver::Driver;
use super::events::Subject;
use super::execute::Outcome;
use super::files::{Reread, RereadError};
use super::monitors;
use super::pull_error::PullError;
use super::report::EventLevel;
use crate::container::{
    HealthState, HealthStatus, Link, MonitorHandle, Phase, Seen, WritableState,
};
use crate::image::{Digest, ImageRef};
use crate::network::names::Ready;
use crate::reconcile::{
    ContainerKey, CreateFailure, Failure, ImageState, Operation, PullFault, ServiceKey,
};
use crate::telemetry::Chain;

impl Driver {
    pub(super) fn take_in(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Pulled { image, attempt, result } => self.pulled(image, attempt, result),
            Outcome::RunReady(run) => self.run_ready(*run),
            Outcome::Created { container, result } => self.created(&container, result),
            Outcome::Launched { container, result, connections } => {
                if let Some(held) = self.containers.get_mut(&container)
                    && result.is_ok()
                {
                    held.record.set_connections(connections);
                }
                self.launched(&container, Operation::Start, result)
            }
            Outcome::Adopted { container, result } => {
                self.launched(&container, Operation::Adopt, result)
            }
            Outcome::Stopped { container, result } => {
                self.finish(&container, Operation::Stop, result.err());
            }
            Outcome::Removed { container, result } => self.removed(&container, result),
            Outcome::Reported { container, seen } => self.reported(&container, seen),
            Outcome::FileChanged { project, result } => self.file_changed(&project, result),
        }
    }

    fn pulled(&mut self, image: ImageRef, attempt: u32, result: Result<Digest, PullError>) {
        let state = match result {
            Ok(manifest) => ImageState::Ready { manifest },
            Err(error) => {
                let reason = Chain(&error).to_string();
                let attributes =
                    [("image", image.to_string()), ("hint", error.hint().unwrap_or_default())];
                let message = format!("could not pull {image}: {reason}");
                self.events.emit(
                    Subject::Host,
                    EventLevel::Error,
                    "image-pull-failed",
                    message,
                    attributes,
                );
                let fault = match (error.is_no_space(), error.is_transient()) {
                    (true, _) => PullFault::NoSpace,
                    (false, true) => PullFault::Unreachable,
                    (false, false) => PullFault::Refused,
                };
                let failure = Failure { reason, at: self.clock.now(), attempts: attempt };
                ImageState::Failed { failure, fault }
            }
        };
        self.images.insert(image, state);
    }

    /// An operation on a container has ended: well, or with this reason.
    fn finish(&mut self, container: &ContainerKey, operation: Operation, failed: Option<String>) {
        let at = self.clock.now();
        let Some(held) = self.containers.get_mut(container) else { return };
        held.busy = None;
        let attempts = match &held.failed {
            Some((before, failure)) if *before == operation => failure.attempts + 1,
            _ => 1,
        };
        held.failed = failed.map(|reason| (operation, Failure { reason, at, attempts }));
        let Some((_, failure)) = held.failed.clone() else { return };
        let message = format!("could not {operation} container {container}: {}", failure.reason);
        let kind = format!("container-{operation}-failed");
        self.emit_for(container, EventLevel::Error, &kind, message);
    }

    pub(super) fn emit_for(
        &self,
        container: &ContainerKey,
        level: EventLevel,
        kind: &str,
        message: String,
    ) {
        self.emit_with(container, level, kind, message, [("container", container.to_string())]);
    }

    pub(super) fn emit_with<'a>(
        &self,
        container: &ContainerKey,
        level: EventLevel,
        kind: &str,
        message: String,
        attributes: impl IntoIterator<Item = (&'a str, String)>,
    ) {
        let Some(held) = self.containers.get(container) else { return };
        let subject = Subject::Service(held.record.project.as_str(), held.record.service.as_str());
        self.events.emit(subject, level, kind, message, attributes);
    }

    fn created(&mut self, container: &ContainerKey, result: Result<Vec<String>, String>) {
        match result {
            Ok(command) => {
                self.finish(container, Operation::Create, None);
                if let Some(held) = self.containers.get_mut(container) {
                    held.record.command = command;
                }
                self.emit_for(
                    container,
                    EventLevel::Info,
                    "container-created",
                    format!("{container} created"),
                );
            }
            Err(reason) => {
                let message = format!("could not create a container: {reason}");
                self.emit_for(container, EventLevel::Error, "container-create-failed", message);
                let Some(held) = self.containers.remove(container) else { return };
                if held.record.one_off.is_some() {
                    return self.tell_begun(container, Some(reason));
                }
                let (at, service) = (self.clock.now(), &held.record.service);
                let Some(project) = self.projects.get_mut(&held.record.project) else { return };
                let record = project.records.entry(service.clone()).or_default();
                let attempts =
                    record.create_failure.as_ref().map_or(0, |failed| failed.failure.attempts) + 1;
                record.create_failure = Some(CreateFailure {
                    failure: Failure { reason, at, attempts },
                    config: held.record.fingerprint.hash(),
                    manifest: held.record.manifest,
                    mounted: held.record.mounted.clone(),
                    request: held.record.request,
                });
            }
        }
    }

    /// A monitor has taken a container over. Its first report tells how far it is.
    fn launched(
        &mut self,
        container: &ContainerKey,
        operation: Operation,
        result: Result<MonitorHandle, String>,
    ) {
        match result {
            Ok(monitor) => {
                self.finish(container, operation, None);
                let Some(held) = self.containers.get_mut(container) else { return };
                held.monitor_lost = false;
                let status = monitor.seen().status;
                held.keep_process(&status.phase);
                held.status = Some(status);
                held.monitor = Some(monitor.clone());
                tokio::spawn(monitors::watch(
                    monitor.clone(),
                    container.clone(),
                    self.outcomes.clone(),
                ));
                // What was asked for while it was being launched need not wait until it has started.
                let key = held.record.key();
                let is_run = held.record.one_off.is_some();
                if operation == Operation::Start && !is_run && !self.is_wanted(&key) {
                    tokio::spawn(monitors::hasten(monitor, self.grace(&key)));
                }
            }
            Err(reason) => {
                self.finish(container, operation, Some(reason));
                let Some(held) = self.containers.get_mut(container) else { return };
                if operation == Operation::Start {
                    // It did not begin, so what the last run left holds.
                    held.record.started_in_boot = None;
                    // It may have joined its networks, and its ports are free again.
                    self.host.bridges.left(container.as_str());
                }
            }
        }
    }

    fn removed(&mut self, container: &ContainerKey, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.host.bridges.left(container.as_str());
                self.emit_for(
                    container,
                    EventLevel::Info,
                    "container-removed",
                    format!("{container} removed"),
                );
                self.run_removed(container);
                self.runs.unanswered.remove(container);
                self.containers.remove(container);
                self.release_slots();
                self.begin_postponed(container);
            }
            Err(reason) => {
                self.finish(container, Operation::Remove, Some(reason));
                self.begin_postponed(container);
            }
        }
    }

    fn reported(&mut self, container: &ContainerKey, seen: Seen) {
        let Some(held) = self.containers.get_mut(container) else { return };
        // The monitor of the run before closes its connection when the next start may have begun: what it says last
        // was taken in before that, and is not about this run.
        let other = |status: &crate::container::Status| status.monitor != seen.status.monitor;
        if held.busy == Some(Operation::Start) || held.status.as_ref().is_some_and(other) {
            return;
        }
        let before = held.status.as_ref().map(|status| status.phase.clone());
        let writable_before = held.status.as_ref().and_then(|status| status.writable.clone());
        let discarded = match &seen.status.writable {
            Some(WritableState::Discarded { reason })
                if seen.status.writable != writable_before =>
            {
                Some(reason.clone())
            }
            _ => None,
        };
        let phase = seen.status.phase.clone();
        let health_before = held.status.as_ref().and_then(|status| status.health.clone());
        let health = seen.status.health.clone();
        match phase {
            Phase::Running { .. } => {
                let is_well = |health: &HealthStatus| health.state == HealthState::Healthy;
                let ready =
                    if health.as_ref().is_none_or(is_well) { Ready::Yes } else { Ready::No };
                self.host.bridges.ready(container.as_str(), ready);
            }
            Phase::Ended(_) => self.host.bridges.left(container.as_str()),
            _ => {}
        }
        let exit = held.observe(seen.status);
        if seen.link == Link::Closed {
            held.monitor = None;
            held.monitor_lost = !matches!(phase, Phase::Ended(_));
        }
        if let Some(reason) = discarded {
            let message = format!("{container} began with an empty writable layer: {reason}");
            self.emit_for(container, EventLevel::Warning, "writable-layer-discarded", message);
        }
        if matches!(phase, Phase::Running { .. })
            && before.as_ref().is_none_or(|before| *before == Phase::Starting)
        {
            self.emit_for(
                container,
                EventLevel::Info,
                "container-started",
                format!("{container} started"),
            );
        }
        if health != health_before {
            self.tell_health(container, health.as_ref());
        }
        if let Some(exit) = exit {
            self.ended(container, exit);
        } else if seen.link == Link::Closed && !matches!(phase, Phase::Ended(_)) {
            let message = format!("the monitor of {container} died; it is being replaced");
            self.emit_for(container, EventLevel::Warning, "monitor-lost", message);
        }
    }

    fn file_changed(&mut self, name: &str, result: Result<Reread, RereadError>) {
        let Ok(name) = name.parse::<crate::spec::ProjectName>() else { return };
        let Some(project) = self.projects.get_mut(&name) else { return };
        let subject = Subject::Project(name.as_str());
        let reread = match result {
            Ok(reread) if reread.text == project.record.request.text => return,
            Ok(reread) => reread,
            Err(RereadError::Invalid(problems)) => {
                let message = format!(
                    "the services file is not valid, its last good state is kept:\n{problems}"
                );
                self.events.emit(subject, EventLevel::Error, "services-file-invalid", message, []);
                return;
            }
            Err(RereadError::Unreadable(reason)) => {
                let message = format!(
                    "the services file cannot be read, its last good state is kept: {reason}"
                );
                self.events.emit(
                    subject,
                    EventLevel::Error,
                    "services-file-unreadable",
                    message,
                    [],
                );
                return;
            }
        };
        let mut request = project.record.request.clone();
        request.text.clone_from(&reread.text);
        request.sources.clone_from(&reread.sources);
        // Services that were chosen by name may have gone from the file.
        match super::project::parse(&request) {
            Ok(desired) => {
                if let Err(error) = self.check_ports(&desired) {
                    let message = format!(
                        "the services file is not followed, its last good state is kept: {error}"
                    );
                    self.events.emit(subject, EventLevel::Error, "port-conflict", message, []);
                    return;
                }
                let Some(project) = self.projects.get_mut(&name) else { return };
                project.reread(request, desired);
                for warning in reread.warnings {
                    self.events.emit(
                        subject,
                        EventLevel::Warning,
                        "services-file-warning",
                        warning,
                        [],
                    );
                }
                self.events.emit(
                    subject,
                    EventLevel::Info,
                    "services-file-changed",
                    "the services file changed",
                    [],
                );
                self.save_project(&name);
                self.look_up_images(&name);
            }
            Err(error) => {
                let message = format!(
                    "the services file is not valid, its last good state is kept:\n{error}"
                );
                self.events.emit(subject, EventLevel::Error, "services-file-invalid", message, []);
            }
        }
    }

    /// Learns which of a project's images are here. Asked only when a file or an image changed, because it reads
    /// the disk. An image whose last pull failed is tried again.
    pub(super) fn look_up_images(&mut self, name: &crate::spec::ProjectName) {
        let Some(project) = self.projects.get(name) else { return };
        // Services often share one.
        let wanted: BTreeSet<ImageRef> =
            project.desired.services.values().flat_map(Service::images).cloned().collect();
        for image in wanted {
            if matches!(self.images.get(&image), Some(ImageState::Pulling { .. })) {
                continue;
            }
            let state = match self.host.images.local(&image) {
                Ok(Some(local)) => ImageState::Ready { manifest: local.manifest_digest },
                Ok(None) => ImageState::Missing,
                Err(error) => {
                    tracing::warn!(%image, error = %Chain(&error), "could not look the image up");
                    ImageState::Missing
                }
            };
            self.images.insert(image, state);
        }
    }

    pub(super) fn service_key(
        project: &crate::spec::ProjectName,
        service: &crate::spec::ServiceName,
    ) -> ServiceKey {
        ServiceKey { project: project.clone(), service: service.clone() }
    }
}
