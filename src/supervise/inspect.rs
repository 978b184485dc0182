//! Everything that is known of a service and its container, for people and scripts that look closely.

use std::sync::{Arc, PoisonError};

use serde_json::{Value, json};

use super::draft::Draft;
use super::driver::Driver;
use super::handle::{Reply, RequestError, RequestErrorKind};
use super::images::{Images, LocalImage};
use super::report::{Event, ServiceReport};
use crate::container::{self, Launch, MountKind};
use crate::reconcile::{ManualStop, ServiceKey};
use crate::spec::{ImageVolume, Service};

/// Events of a service that are shown.
const EVENTS: usize = 20;

impl Driver {
    /// Services and containers by name; all of the project, or of all projects, when none is named.
    pub(super) fn inspect(
        &self,
        project: Option<&str>,
        names: &[String],
        reply: Reply<Vec<Value>>,
    ) {
        let keys = match self.inspected(project, names) {
            Ok(keys) => keys,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let drafts: Vec<(ServiceKey, Draft, Value)> = keys
            .into_iter()
            .map(|key| {
                let (draft, facts) = (self.draft(&key), self.facts(&key));
                (key, draft, facts)
            })
            .collect();
        let host = Arc::clone(&self.host);
        let images = Arc::clone(&self.host.images);
        let mut history = self.events.history();
        tokio::spawn(async move {
            host.exits.flush().await;
            // It is on the disk, which may be slow.
            let reading = tokio::task::spawn_blocking(move || {
                let finish = |(key, draft, facts): (ServiceKey, Draft, Value)| {
                    let exits = host.exits.history(&key);
                    (draft.finish(&host), facts, exits)
                };
                (history.read_past(), drafts.into_iter().map(finish).collect::<Vec<_>>())
            });
            let (past, drafts) = reading.await.unwrap_or_default();
            let mut found = Vec::with_capacity(drafts.len());
            for ((mut report, its), mut facts, exits) in drafts {
                let events = last_of(&past, &report);
                report.content = its.content(&images).await;
                let mut contents = Vec::with_capacity(its.0.len());
                for (image, local) in &its.0 {
                    let content = match local {
                        Some(local) => images.describe(local).await,
                        None => Value::Null,
                    };
                    contents.push((image.to_string(), content));
                }
                let mut contents = contents.into_iter();
                let own = contents.next().map(|(_, content)| content);
                let mounted: serde_json::Map<_, _> = contents.collect();
                if let (Value::Object(facts), Ok(Value::Object(report))) =
                    (&mut facts, serde_json::to_value(&report))
                {
                    facts.extend(report);
                    facts.insert("image_content".to_owned(), json!(own));
                    facts.insert("mounted_images".to_owned(), Value::Object(mounted));
                    facts.insert("events".to_owned(), json!(events));
                    facts.insert("exits".to_owned(), json!(exits));
                }
                found.push(facts);
            }
            let _ = reply.send(Ok(found));
        });
    }

    fn inspected(
        &self,
        project: Option<&str>,
        names: &[String],
    ) -> Result<Vec<ServiceKey>, RequestError> {
        let project = project.map(|name| self.known(name)).transpose()?;
        let of_project = |key: &&ServiceKey| project.as_ref().is_none_or(|p| key.project == *p);
        if names.is_empty() {
            return Ok(self.plan.services.keys().filter(of_project).cloned().collect());
        }
        let find = |name: &String| {
            let container =
                self.containers.get(&crate::reconcile::ContainerKey::new(name.as_str()));
            let by_container =
                container.map(|held| held.record.key()).filter(|key| of_project(&key));
            let mut services = self.plan.services.keys().filter(of_project);
            let by_service = services.find(|key| key.service.as_str() == name).cloned();
            by_service.or(by_container.filter(|key| self.plan.services.contains_key(key)))
        };
        let missing = |name: &String| {
            let message = format!("no such service or container: `{name}`");
            RequestError::new(RequestErrorKind::NotFound, message)
        };
        names.iter().map(|name| find(name).ok_or_else(|| missing(name))).collect()
    }

    /// What is known without asking anybody.
    fn facts(&self, key: &ServiceKey) -> Value {
        let project = self.projects.get(&key.project);
        let wanted = project.and_then(|project| project.desired.services.get(&key.service));
        let record = project.and_then(|project| project.records.get(&key.service));
        let status = self.plan.services.get(key);
        let held = status
            .and_then(|status| status.container.as_ref())
            .and_then(|container| self.containers.get(container));
        let run_dir = &self.host.run_dir;
        let launch = held.and_then(|held| container::launch_record(run_dir, &held.id).ok()?);
        let launch = launch.map(without_contents);
        let cgroup = launch.as_ref().map(|launch| launch.cgroup.clone());
        let pids = cgroup.as_ref().and_then(|group| crate::sys::cgroup::processes(group).ok());
        json!({
            "services_file": project.map(|project| project.record.request.file.clone()),
            "settings": wanted.map(settings),
            "pending": status.and_then(|status| status.pending.as_ref()).map(ToString::to_string),
            "stopped_by_hand": record.and_then(|record| record.stopped).map(|stopped| match stopped {
                ManualStop::Keep => "container kept",
                ManualStop::Remove => "container removed",
            }),
            "requests": record.map_or(0, |record| record.request),
            "failure": held.and_then(|held| held.failed.as_ref()).map(|(operation, failure)| json!({
                "operation": operation.to_string(),
                "reason": failure.reason,
                "attempts": failure.attempts,
            })),
            "manifest": held.map(|held| held.record.manifest),
            "monitor_pid": held.and_then(|held| held.status.as_ref()).map(|status| status.monitor.pid),
            "writable": held.and_then(|held| held.status.as_ref()).map(|status| status.writable.clone()),
            "mounts": launch.as_ref().map(|launch| launch.mounts.clone()),
            "cgroup": cgroup,
            "pids": pids,
            "log_path": self.host.log_path(key.project.as_str(), key.service.as_str()),
            "launch": launch,
        })
    }
}

/// A launch without what is in configs and secrets: that is for the container alone. Which of the two a file is the
/// launch does not say.
fn without_contents(mut launch: Launch) -> Launch {
    for mount in &mut launch.mounts {
        if let MountKind::Content(content) = &mut mount.kind {
            content.text = content.text.take().map(|text| format!("({} bytes)", text.len()));
        }
    }
    launch
}

/// The last events about a service.
fn last_of<'a>(past: &'a [Event], report: &ServiceReport) -> Vec<&'a Event> {
    let of_service = past
        .iter()
        .filter(|event| event.project == report.project && event.service == report.service);
    let all: Vec<&Event> = of_service.collect();
    all[all.len().saturating_sub(EVENTS)..].to_vec()
}

/// The service as its file has it, with what then holds.
fn settings(service: &Service) -> Value {
    json!({
        "image": service.image.to_string(),
        "command": service.command,
        "entrypoint": service.entrypoint,
        "environment": service.environment,
        "working_dir": service.working_dir,
        "user": service.user,
        "volumes": service.volumes,
        "image_volumes": service.image_volumes.iter().map(image_volume).collect::<Vec<_>>(),
        "read_only": service.is_read_only(),
        "restart": service.restart_policy().to_string(),
        "stop_signal": service.stop_signal,
        "stop_grace_period_seconds": service.grace().as_secs_f64(),
        "network_mode": service.network_mode.as_ref().map(ToString::to_string),
        "networks": service.networks.iter().map(|n| n.network.name.as_str()).collect::<Vec<_>>(),
        "fingerprint": service.fingerprint(),
    })
}

fn image_volume(volume: &ImageVolume) -> Value {
    let ImageVolume { image, target, subpath } = volume;
    json!({ "image": image.to_string(), "target": target, "subpath": subpath })
}

impl Images {
    /// The image's layers, lowest first: how each is here, and why it is not lazy.
    async fn describe(&self, image: &LocalImage) -> Value {
        let mut layers = Vec::with_capacity(image.manifest.layers.len());
        for descriptor in &image.manifest.layers {
            let layer = self.store().layer(descriptor.digest);
            let full = layer.is_full();
            let lazy = !full && layer.is_indexed_by(descriptor.toc_digest());
            let told = {
                let reasons = self.why_full.lock().unwrap_or_else(PoisonError::into_inner);
                reasons.get(&descriptor.digest).cloned()
            };
            let by_nature = || {
                descriptor
                    .toc_digest()
                    .is_none()
                    .then(|| crate::layer::NotLazy::NoTocDigest.to_string())
            };
            let why = if lazy { None } else { told.or_else(by_nature) };
            let local = match (full, lazy) {
                (true, _) => 1.0,
                (false, true) => self.lazy.share(&layer).await,
                (false, false) => 0.0,
            };
            layers.push(json!({
                "digest": descriptor.digest,
                "size": descriptor.size,
                "lazy": lazy,
                "not_lazy_because": why,
                "local": local,
                "path": if full { layer.full_path() } else { layer.index_path() },
            }));
        }
        json!({
            "manifest": image.manifest_digest,
            "config": image.manifest.config.digest,
            "layers": layers,
        })
    }
}
