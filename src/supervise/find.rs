//! What control finds when it starts: projects that are wanted, containers that run, and those that ended meanwhile.

use super::driver::Driver;
use super::events::Subject;
use super::execute;
use super::held::{ContainerRecord, Held};
use super::project::{Project, ProjectRecord, Wish};
use super::report::EventLevel;
use crate::container::{self, ContainerId, MonitorHandle, Phase};
use crate::reconcile::ContainerKey;
use crate::store::record;
use crate::sys::process::boot_id;
use crate::telemetry::Chain;

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
        for id in ids {
            let Ok(id) = id.parse::<ContainerId>() else { continue };
            match record::load::<ContainerRecord>(&self.host.container_record(&id))
                .map(record::Loaded::into_value)
            {
                Ok(Some(record)) => self.find_container(id, record).await,
                Ok(None) => self.find_remains(&id),
                Err(error) => {
                    tracing::warn!(container = %id, error = %Chain(&error), "its record cannot be read")
                }
            }
        }
        if self.any_runs() {
            let images = std::sync::Arc::clone(&self.host.images);
            tokio::spawn(async move { images.resume_lazy().await });
        }
    }

    /// A folder without a record: control died after it had made the folder, which is empty then.
    fn find_remains(&self, id: &ContainerId) {
        let folder = self.host.store.root().join("containers").join(id.as_str());
        if std::fs::remove_dir(folder).is_err() {
            tracing::warn!(container = %id, "its record is missing; it is left alone");
        }
    }

    fn find_projects(&mut self) {
        let folder = self.host.store.root().join("services");
        let Ok(entries) = std::fs::read_dir(&folder) else { return };
        for entry in entries.flatten() {
            let path = entry.path().join("project");
            let record = match record::load::<ProjectRecord>(&path).map(record::Loaded::into_value)
            {
                Ok(Some(record)) => record,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(path = %path.display(), error = %Chain(&error), "a project's record cannot be read");
                    continue;
                }
            };
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
        let mut held = Held::new(id.clone(), record);
        if ours {
            self.find_run(&id, &key, &mut held).await;
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
                held.record.exit = Some(exit.clone());
            }
            held.status = Some(status);
            held.monitor = Some(monitor.clone());
            tokio::spawn(execute::watch(monitor, key.clone(), self.outcomes.clone()));
            return;
        }
        if held.record.started_in_boot.is_none() || held.record.exit.is_some() {
            return;
        }
        if let Ok(Some(exit)) = container::exit_record(run_dir, id) {
            held.record.exit = Some(exit);
            return;
        }
        // It was started, and nobody knows how it ended: it may still run below a dead monitor, unless this is
        // another boot, in which nothing of it can run and its writable layer was not unmounted.
        let this_boot =
            boot_id().ok().is_some_and(|boot| held.record.started_in_boot == Some(boot));
        let known = matches!(container::launch_record(run_dir, id), Ok(Some(_)));
        held.monitor_lost = this_boot && known;
        held.writable_lost = !this_boot;
        if this_boot && !known {
            // Control died between recording the start and launching the monitor: it never began.
            held.record.started_in_boot = None;
        }
    }
}
