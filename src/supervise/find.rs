//! What control finds when it starts: projects that are wanted, containers that run, and those that ended meanwhile.

use super::bridges::FoundMembers;
use super::driver::Driver;
use super::events::Subject;
use super::held::{ContainerRecord, Held};
use super::lazy_link::Generations;
use super::monitors;
use super::project::{Project, ProjectRecord, Wish};
use super::report::EventLevel;
use crate::container::{self, ContainerId, MonitorHandle, Phase};
use crate::reconcile::ContainerKey;
use crate::sys::process::boot_id;
use crate::telemetry::Chain;

/// Before a connection that could not be watched over is tried again.
const RESUME_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

impl Driver {
    /// Reads the records and connects to the monitors that live. What needs an action is left to the first plan.
    pub(super) async fn find_what_is_there(&mut self) {
        self.host.images.settle();
        self.find_projects();
        let ids = match self.host.store.containers() {
            Ok(ids) => ids,
            Err(error) => {
                tracing::error!(error = %Chain(&error), "could not list the containers");
                return;
            }
        };
        let mut running = Vec::new();
        for id in ids {
            let Ok(id) = id.parse::<ContainerId>() else { continue };
            if super::bridges::runs(&self.host.run_dir, &id) {
                running.push(id.to_string());
            }
            let loaded = self.host.store.load::<ContainerRecord>(&self.host.container_record(&id));
            match loaded.unwrap_or_default() {
                Some(record) => self.find_container(id, record).await,
                None => self.find_unrecorded(id).await,
            }
        }
        // Who is being started has no process yet, and is in its networks all the same.
        let starting = self.containers.values().filter(|held| held.may_run());
        running.extend(starting.map(|held| held.id.to_string()));
        let members = if self.host.bridges.is_lost {
            self.members_by_launch(&running)
        } else {
            FoundMembers::default()
        };
        self.host.bridges.settle(running, members);
        self.connection_changed();
        // Also of runs that ended meanwhile it must be known whether they lost their content.
        let served = self
            .containers
            .values()
            .any(|held| held.record.connections() != Generations::default());
        if served || self.any_runs() {
            let images = std::sync::Arc::downgrade(&self.host.images);
            tokio::spawn(async move {
                // What cannot be had now, may be had later, and until then nobody replaces a keeper that dies.
                while let Some(images) = images.upgrade() {
                    if images.resume_lazy().await {
                        return;
                    }
                    drop(images);
                    tokio::time::sleep(RESUME_PAUSE).await;
                }
            });
        }
    }

    /// A folder without a record that can be used. It is empty if control died after it had made the folder. Else the
    /// container may run: if its name tells whose it is, it is held with a record that fits no settings, so the first
    /// plan replaces it, and never is there a second one beside it.
    async fn find_unrecorded(&mut self, id: ContainerId) {
        let folder = self.host.store.root().join("containers").join(id.as_str());
        if std::fs::remove_dir(folder).is_ok() {
            return;
        }
        if let Some(record) = self.guess(&id) {
            self.find_container(id, record).await;
            return;
        }
        let message = format!(
            "the record of container `{id}` is lost, and it belongs to no project that is known; it is left alone"
        );
        let attributes = [("container", id.to_string())];
        self.events.emit(
            Subject::Host,
            EventLevel::Error,
            "container-unknown",
            message,
            attributes,
        );
    }

    /// A record for a container of which only the name is known.
    fn guess(&self, id: &ContainerId) -> Option<ContainerRecord> {
        let unique = id.as_str().rsplit_once('-')?.1;
        let (project, service) = self.projects.iter().find_map(|(project, held)| {
            let service = held.desired.services.iter().find(|(name, _)| {
                ContainerId::compose(project.as_str(), name.as_str(), 1, unique).as_ref() == Ok(id)
            });
            Some((project, service?))
        })?;
        Some(ContainerRecord::unknown(
            self.host.instance.to_string(),
            project.clone(),
            service.0.clone(),
            service.1.image.clone(),
            boot_id().ok().filter(|_| {
                matches!(container::launch_record(&self.host.run_dir, id), Ok(Some(_)))
            }),
        ))
    }

    fn find_projects(&mut self) {
        let folder = self.host.store.root().join("services");
        let Ok(entries) = std::fs::read_dir(&folder) else { return };
        for entry in entries.flatten() {
            let path = entry.path().join("project");
            // One that cannot be read is told as a finding.
            let loaded = self.host.store.load::<ProjectRecord>(&path);
            let Some(record) = loaded.unwrap_or_default() else { continue };
            match super::project::parse(&record.request) {
                Ok(desired) => {
                    let name = desired.project.clone();
                    let watched = record.wish == Wish::Up;
                    self.projects.insert(name.clone(), Project::new(record, desired));
                    self.look_up_images(&name);
                    if watched {
                        self.watch_file(&name);
                    }
                }
                Err(error) => {
                    let message = format!("the kept services file is not valid any more: {error}");
                    let subject = Subject::Project(&record.request.project);
                    self.events.emit(
                        subject,
                        EventLevel::Error,
                        "services-file-invalid",
                        message,
                        [],
                    );
                }
            }
        }
    }

    async fn find_container(&mut self, id: ContainerId, record: ContainerRecord) {
        let key = ContainerKey::new(id.as_str());
        let ours = record.instance == *self.host.instance;
        if let Some(project) = self.projects.get_mut(&record.project).filter(|_| ours) {
            project.settle_request(&record.service, record.request);
        }
        let mut held = Held::new(id.clone(), record);
        if ours {
            self.find_run(&id, &key, &mut held).await;
        }
        if ours && !held.record.exits.is_empty() && held.record.one_off.is_none() {
            // Control may have died before these were kept.
            self.host.exits.keep(held.record.key(), held.record.exits.clone());
        }
        if ours {
            self.note_found_run(&key, &held.record);
        }
        self.containers.insert(key.clone(), held);
        // How it ended while nobody was there is worth keeping.
        if ours {
            self.save_container(&key);
        }
    }

    async fn find_run(&mut self, id: &ContainerId, key: &ContainerKey, held: &mut Held) {
        let run_dir = &self.host.run_dir;
        if let Ok(monitor) = MonitorHandle::connect(run_dir, id).await {
            let status = monitor.seen().status;
            if let Phase::Ended(exit) = &status.phase {
                held.note_exit(exit.clone());
            }
            held.keep_process(&status.phase);
            held.status = Some(status);
            held.monitor = Some(monitor.clone());
            tokio::spawn(monitors::watch(monitor, key.clone(), self.outcomes.clone()));
            return;
        }
        if held.record.started_in_boot.is_none() || held.record.exit.is_some() {
            return;
        }
        if let Ok(Some(exit)) = container::exit_record(run_dir, id) {
            if held.record.exits.last() == Some(&exit) {
                // Of the run before, which the next monitor removes: control died while it started this one, which
                // never began. Taken for its end, it would lose the start that was asked for.
                held.record.started_in_boot = None;
            } else {
                held.note_exit(exit);
            }
            return;
        }
        // It was started, and nobody knows how it ended: it may still run below a dead monitor, unless this is
        // another boot, in which nothing of it can run and its writable layer was not unmounted.
        let this_boot =
            boot_id().ok().is_some_and(|boot| held.record.started_in_boot == Some(boot));
        let known = matches!(container::launch_record(run_dir, id), Ok(Some(_)));
        if this_boot && !known && held.record.one_off.is_some() {
            // Nobody was ever told to run it.
            held.record.started_in_boot = None;
        }
        held.monitor_lost = this_boot && known;
        if held.monitor_lost {
            let process = container::running_process(run_dir, id).ok().flatten();
            held.process = process.and_then(|process| Some((process.clone(), process.open()?)));
        }
        held.writable_lost = !this_boot;
        if this_boot && !known {
            // Control died between recording the start and launching the monitor: it never began.
            held.record.started_in_boot = None;
        }
    }
}
