//! What is said of a service: what the driver knows, and then what the disk and those who serve content know.

use super::driver::Driver;
use super::execute::Host;
use super::images::{Images, LocalImage};
use super::report::{ContentReport, ServiceReport, Standing};
use crate::image::{Digest, ImageRef};
use crate::reconcile::{CRASH_LOOP, ExitStatus, HEALTHY_RUN, Health, Phase, ServiceKey};
use crate::spec::{Service, ServiceName};

/// A report for which the disk is still to be read, and the worker to be asked for the content's share.
pub(super) struct Draft {
    key: ServiceKey,
    report: ServiceReport,
    /// The images, its own first, and the manifests of the container if there is one.
    images: Vec<(ImageRef, Option<Digest>)>,
    /// A service whose last lines belong to the status.
    words_of: Option<ServiceName>,
}

impl Draft {
    /// Adds what is on the disk, which may be slow. Gives its images, as far as they are here.
    pub(super) fn finish(self, host: &Host) -> (ServiceReport, ItsImages) {
        let Self { key, mut report, images, words_of } = self;
        let local = |(reference, manifest): (ImageRef, Option<Digest>)| {
            let local = match manifest {
                Some(manifest) => host.images.local_manifest(&reference, manifest),
                None => host.images.local(&reference),
            };
            (reference, local.ok().flatten())
        };
        let images = ItsImages(images.into_iter().map(local).collect());
        if let Some(other) = words_of {
            for line in host.last_lines(&key.project, &other) {
                report.status.push_str(&format!("\n  {other}  | {line}"));
            }
        }
        report.last_exit = host.exits.last(&key);
        let container = report.container.as_ref();
        report.ports = container.map(|id| host.bridges.published.of(id)).unwrap_or_default();
        (report, images)
    }
}

/// The images of a service, its own first, as far as they are here.
pub(super) struct ItsImages(pub(super) Vec<(ImageRef, Option<LocalImage>)>);

impl ItsImages {
    /// How much of them is here, if its own is.
    pub(super) async fn content(&self, images: &Images) -> Option<ContentReport> {
        self.0.first()?.1.as_ref()?;
        let manifests = self.0.iter().map(|(_, image)| image.as_ref().map(|one| &one.manifest));
        Some(images.content(&manifests.collect::<Vec<_>>()).await)
    }
}

/// A failure that is tried again is still coming: whoever waits has a limit of its own.
fn standing(phase: &Phase) -> Standing {
    match phase {
        Phase::Running { health: Health::Unchecked | Health::Healthy, .. } => Standing::Up,
        Phase::Exited { status: ExitStatus::Code(0), .. } => Standing::Done,
        Phase::Exited { .. }
        | Phase::Running { health: Health::Unhealthy(_), .. }
        | Phase::DependencyFailed { .. }
        | Phase::Failed { retry_at: None, .. } => Standing::Failed,
        Phase::Stopped { .. } => Standing::Stopped,
        Phase::Pulling { .. }
        | Phase::WaitingForRegistry { .. }
        | Phase::WaitingForSpace { .. }
        | Phase::Running { health: Health::Starting, .. }
        | Phase::Blocked { .. }
        | Phase::Unhealthy { .. }
        | Phase::Starting
        | Phase::Restarting { .. }
        | Phase::Stopping
        | Phase::Removing
        | Phase::Failed { retry_at: Some(_), .. } => Standing::Coming,
    }
}

impl Driver {
    pub(super) fn draft(&self, key: &ServiceKey) -> Draft {
        let ServiceKey { project, service } = key;
        let status = &self.plan.services[key];
        let wanted =
            self.projects.get(project).and_then(|project| project.desired.services.get(service));
        let held = status.container.as_ref().and_then(|container| self.containers.get(container));
        let reference =
            wanted.map(|wanted| &wanted.image).or_else(|| held.map(|held| &held.record.image));
        let own = reference.map(|one| (one.clone(), held.map(|held| held.record.manifest)));
        let mut images: Vec<_> = own.into_iter().collect();
        let beside = wanted.into_iter().flat_map(Service::images).skip(1);
        images.extend(beside.map(|image| {
            let mounted = held.and_then(|held| held.record.mounted.get(image).copied());
            (image.clone(), mounted)
        }));
        let mut state = status.phase.word().to_owned();
        let mut text = match (&status.phase, wanted) {
            (Phase::Pulling { .. }, Some(wanted)) => {
                let percents = wanted.images().filter_map(|i| self.host.images.pulled_percent(i));
                let percent = percents.min();
                Phase::Pulling { percent }.render(self.clock.now())
            }
            (phase, _) => phase.render(self.clock.now()),
        };
        let words_of = match &status.phase {
            Phase::DependencyFailed { on, .. } => Some(on.clone()),
            _ => None,
        };
        if let (Phase::Running { since, health }, Some(held)) = (&status.phase, held)
            && held.record.streak >= CRASH_LOOP
            && matches!(health, Health::Unchecked | Health::Starting)
            && let ran = self.clock.now().saturating_sub(*since)
            && ran < HEALTHY_RUN
        {
            // A state that changes with every attempt tells nobody anything.
            let (row, seconds) = (held.record.streak, ran / 1000);
            text = format!("crash-looping ({row} ends in a row, runs again for {seconds} s)");
        }
        if let (Phase::Running { .. }, Some(pending)) = (&status.phase, &status.pending) {
            text = format!("{text}, to be recreated: {pending}");
        }
        if let (Phase::Starting, Some(held)) = (&status.phase, held)
            && held.record.started_in_boot.is_none()
        {
            "created".clone_into(&mut state);
        }
        // Compose has no word for who ended it; the status says that.
        if matches!(status.phase, Phase::Stopped { .. }) && held.is_some() {
            "exited".clone_into(&mut state);
        }
        let report = ServiceReport {
            project: project.to_string(),
            service: service.to_string(),
            container: held.map(|held| held.id.to_string()),
            image: reference.map(ToString::to_string).unwrap_or_default(),
            command: held.map(|held| held.record.command.join(" ")).unwrap_or_default(),
            state,
            status: text,
            health: super::health::word(held.and_then(super::held::Held::health)).to_owned(),
            exit_code: held.and_then(|held| held.record.exit.as_ref()?.outcome.code()),
            pid: held.and_then(super::held::Held::pid),
            created_at: held.map(|held| held.record.created_at),
            started_at: held.and_then(super::held::Held::started_at),
            restarts: held.map_or(0, |held| held.record.restarts),
            content: None,
            last_exit: None,
            ports: Vec::new(),
            standing: standing(&status.phase),
        };
        Draft { key: key.clone(), report, images, words_of }
    }
}
