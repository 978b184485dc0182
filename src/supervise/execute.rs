//! Carries actions out, one function each. No decision is made here: what an action needs is in it, and its outcome
//! goes back to the driver.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::bridges::Bridges;
use super::exits::Exits;
use super::files::{Reread, RereadError};
use super::first_reads;
use super::held::ContainerRecord;
use super::images::{Extent, Images};
use super::launch::{self, Place};
use super::lazy_link::Generations;
use super::monitors::{signal_for, sync_after_start, wait_ended};
use super::pull_error::PullError;
use crate::boundary::Boundary;
use crate::container::{self, ContainerId, Link, MonitorHandle, Phase, Seen, WaitingMonitor};
use crate::host::Features;
use crate::image::{Digest, ImageRef};
use crate::reconcile::ContainerKey;
use crate::spec::{ImageVolume, Prefetch, Service};
use crate::store::{CONTAINER_RECORD, Store, record};
use crate::sys::cgroup;
use crate::sys::process::SealedExe;
use crate::telemetry::Chain;

/// What actions work on.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) store: Store,
    pub(super) images: Arc<Images>,
    pub(super) exe: Arc<SealedExe>,
    pub(super) run_dir: PathBuf,
    pub(super) instance: Arc<str>,
    pub(super) features: Features,
    pub(super) bridges: Bridges,
    pub(super) exits: Exits,
    /// Somebody is in [`Host::expect_start`] already.
    pub(super) expecting: Arc<AtomicBool>,
}

/// What became of an action, or what a monitor reported.
#[derive(Debug)]
pub(super) enum Outcome {
    Pulled {
        image: ImageRef,
        attempt: u32,
        result: Result<Digest, PullError>,
    },
    Created {
        container: ContainerKey,
        result: Result<Vec<String>, String>,
    },
    /// The monitor has the container; its phase follows from what it reports.
    Launched {
        container: ContainerKey,
        /// The connections that serve its lazy layers.
        connections: Generations,
        result: Result<MonitorHandle, String>,
    },
    Stopped {
        container: ContainerKey,
        result: Result<(), String>,
    },
    Removed {
        container: ContainerKey,
        result: Result<(), String>,
    },
    Adopted {
        container: ContainerKey,
        result: Result<MonitorHandle, String>,
    },
    Reported {
        container: ContainerKey,
        seen: Seen,
    },
    /// The image of a run is here, or cannot be had.
    RunReady(Box<super::runs::ReadyRun>),
    /// The files of a project have another content, or cannot be read.
    FileChanged {
        project: String,
        result: Result<Reread, RereadError>,
    },
}

/// What a container is started by.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) service: Service,
    /// Whose network it has, where that is another's.
    pub(super) network_owner: Option<ContainerId>,
    pub(super) synced: Synced,
}

/// When the record of a start is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Synced {
    /// Before anything runs.
    Before,
    /// When the program runs, for as long as the disk takes; a power cut before that loses it.
    After,
}

pub(super) type Outcomes = mpsc::Sender<Outcome>;

impl Host {
    /// Where a container's own files are.
    pub(super) fn container_record(&self, id: &ContainerId) -> PathBuf {
        self.store.root().join("containers").join(id.as_str()).join(CONTAINER_RECORD)
    }

    /// The log of a service; it outlives its containers.
    pub(super) fn log_path(&self, project: &str, service: &str) -> PathBuf {
        self.store.root().join("logs").join(project).join(service).join("log.json")
    }

    /// Prepares the kernel for a container that is about to start, beside everything else that comes before it.
    pub(super) fn expect_start(&self) {
        if self.features.cgroup.is_present() && !self.expecting.swap(true, Ordering::Relaxed) {
            let expecting = Arc::clone(&self.expecting);
            tokio::task::spawn_blocking(move || {
                if let Err(error) = cgroup::expect_moves() {
                    tracing::debug!(%error, "the first change of a control group will wait");
                }
                expecting.store(false, Ordering::Relaxed);
            });
        }
    }

    /// Takes down what is only there for containers: the lazy mount and our control groups. What is in use stays.
    pub(super) async fn leave_nothing(&self) {
        self.images.stop_lazy_if_unused().await;
        if let Err(error) = crate::sys::cgroup::remove(&format!("/supervisor-{}", self.instance)) {
            tracing::debug!(%error, "control groups could not be listed");
        }
    }

    pub(super) async fn pull(
        &self,
        image: ImageRef,
        extent: Extent,
        attempt: u32,
        outcomes: Outcomes,
    ) {
        Boundary::PULL_BEGINS.reach(&self.run_dir);
        let result =
            self.images.pull(&image, extent, None).await.map(|local| local.manifest_digest);
        Boundary::PULLED.reach(&self.run_dir);
        let _ = outcomes.send(Outcome::Pulled { image, attempt, result }).await;
    }

    /// Gives up the slots of lazy layers that no container has and none of `images` needs.
    pub(super) async fn release_unneeded(&self, images: Vec<(ImageRef, Digest)>) {
        let store = self.store.clone();
        let manifests = || {
            let mut manifests = images;
            for id in store.containers().ok()? {
                let path = self.container_record(&id.parse().ok()?);
                // A container whose record cannot be read may need anything.
                let record = store.load::<ContainerRecord>(&path).ok()??;
                manifests.push((record.image, record.manifest));
                manifests.extend(record.mounted);
            }
            Some(manifests)
        };
        self.images.release_unneeded(manifests).await;
    }

    /// Makes the folder and the record of a container. Returns its command line.
    pub(super) async fn create(
        &self,
        id: ContainerId,
        mut record: ContainerRecord,
        service: Box<Service>,
        outcomes: Outcomes,
    ) {
        let result = self.try_create(&id, &mut record, &service);
        let _ = outcomes
            .send(Outcome::Created { container: ContainerKey::new(id.as_str()), result })
            .await;
    }

    fn try_create(
        &self,
        id: &ContainerId,
        record: &mut ContainerRecord,
        service: &Service,
    ) -> Result<Vec<String>, String> {
        let image = self.image_here(&record.image, record.manifest)?;
        record.command = launch::command_line(service, &image.config);
        if record.command.is_empty() {
            return Err("no command is given, neither by the image nor by the service".to_owned());
        }
        self.store.container_dir(id.as_str()).map_err(|error| Chain(&error).to_string())?;
        Boundary::FOLDER_MADE.reach(&self.run_dir);
        record::save(&self.container_record(id), record)
            .map_err(|error| Chain(&error).to_string())?;
        Boundary::CREATED.reach(&self.run_dir);
        Ok(record.command.clone())
    }

    pub(super) async fn start(
        &self,
        id: ContainerId,
        mut record: ContainerRecord,
        start: Start,
        outcomes: Outcomes,
    ) {
        let result = self.try_start(&id, &mut record, &start).await;
        Boundary::LAUNCHED.reach(&self.run_dir);
        let container = ContainerKey::new(id.as_str());
        let _ = outcomes
            .send(Outcome::Launched { container, result, connections: record.connections() })
            .await;
    }

    async fn try_start(
        &self,
        id: &ContainerId,
        record: &mut ContainerRecord,
        start: &Start,
    ) -> Result<MonitorHandle, String> {
        let Start { service, network_owner, synced } = start;
        let image = self.image_here(&record.image, record.manifest)?;
        // A container of an earlier file: what the file names now, it has not, and an empty folder would be no volume.
        let is_missing = |volume: &&ImageVolume| !record.mounted.contains_key(&volume.image);
        if let Some(volume) = service.image_volumes.iter().find(is_missing) {
            return Err(format!("image `{}`, a volume of it, is not here yet", volume.image));
        }
        let volumes = self.images_here(&record.mounted)?;
        // One that is only missing is tried: the kernel may have got it meanwhile.
        let overlay = &self.features.overlay;
        if overlay.is_forced_off() {
            return Err(format!("no {}: {}", overlay.name, overlay.text()));
        }
        // A process takes as long to begin as the rest of this function, so it begins now and is told later.
        let waiting = WaitingMonitor::start(&self.exe, &self.run_dir, id)
            .map_err(|error| Chain(&error).to_string())?;
        // From before the mounts: a connection that is lost between them is not taken for the container's.
        let mut before = self.images.lazy.generations();
        let mount = async || self.mount_all(&image, &volumes).await;
        let mut mounted = mount().await?;
        // One that was just being taken down, because nothing used it, has served nothing of this. Mounted once more it
        // is known which one does.
        if before.was_replaced(self.images.lazy.generations()) {
            (before, mounted) = (self.images.lazy.generations(), mount().await?);
        }
        let (mounted, beside) = mounted;
        let lazy = [mounted.lazy.as_slice(), &beside.lazy].concat();
        record.set_connections(self.images.lazy.generations_of(&lazy, before));
        Boundary::LAYERS_MOUNTED.reach(&self.run_dir);
        self.exits.flush().await;
        // Nothing of a start outlives a power cut: no process, mount or group, and a writable layer of another boot is
        // not used. So who finds the record from before finds what is true then, and has the service started if it is
        // wanted; what must not be started twice says so by `synced`. That this one is written before anything runs
        // matters to the next control, which the page cache serves as well as the disk.
        let saved = record::save_unsynced(&self.container_record(id), record)
            .map_err(|error| Chain(&error).to_string())?;
        Boundary::START_RECORDED.reach(&self.run_dir);
        let unsynced = match synced {
            Synced::After => Some(saved),
            Synced::Before => {
                let syncing = tokio::task::spawn_blocking(move || saved.sync());
                let done = syncing.await.map_err(|error| error.to_string())?;
                done.map_err(|error| Chain(&error).to_string())?;
                None
            }
        };
        let place = Place {
            id: id.clone(),
            instance: self.instance.to_string(),
            run_dir: self.run_dir.clone(),
            state_dir: self
                .store
                .container_dir(id.as_str())
                .map_err(|error| Chain(&error).to_string())?,
            log: self.log_of(id, record),
            volumes: self.store.root().join("volumes"),
        };
        let mut launch = launch::launch(
            service,
            &image.config,
            mounted.layers,
            &beside.layers,
            place,
            &self.features,
        );
        launch.caller = record.one_off.as_ref().and_then(|one_off| one_off.streams.clone());
        self.give_network(&mut launch, record, service, network_owner.as_ref()).await?;
        let wish = &service.extensions.lazy;
        let reads = first_reads::of(&launch.process, &image.config.platform);
        let ahead = self.prefetch_all(&mounted.lazy, &beside, wish, reads);
        let launching = waiting.launch(&self.exe, &launch);
        let launched = if wish.prefetch() == Prefetch::Before {
            ahead.await;
            launching.await
        } else {
            tokio::join!(ahead, launching).1
        };
        if let (Ok(monitor), Some(unsynced)) = (&launched, unsynced) {
            tokio::spawn(sync_after_start(monitor.clone(), unsynced));
        }
        match launched {
            Ok(monitor) => Ok(monitor),
            // An earlier control may have launched it and died before it could know.
            Err(error) => MonitorHandle::connect(&self.run_dir, id)
                .await
                .map_err(|_| Chain(&error).to_string()),
        }
    }

    pub(super) async fn stop(
        &self,
        monitor: Option<MonitorHandle>,
        container: ContainerKey,
        grace: Option<Duration>,
        outcomes: Outcomes,
    ) {
        Boundary::STOP_BEGINS.reach(&self.run_dir);
        let result = match monitor {
            None => Err("its monitor is gone".to_owned()),
            Some(monitor) => match monitor.stop(signal_for(grace), grace).await {
                Ok(()) => wait_ended(&monitor).await,
                // It ended between the plan and now, or its monitor did: the next plan sees which.
                Err(_)
                    if matches!(monitor.seen().status.phase, Phase::Ended(_))
                        || monitor.seen().link == Link::Closed =>
                {
                    Ok(())
                }
                Err(error) => Err(Chain(&error).to_string()),
            },
        };
        Boundary::STOPPED.reach(&self.run_dir);
        let _ = outcomes.send(Outcome::Stopped { container, result }).await;
    }

    pub(super) async fn remove(&self, id: ContainerId, outcomes: Outcomes) {
        let container = ContainerKey::new(id.as_str());
        let result = self.try_remove(&id).await;
        let _ = outcomes.send(Outcome::Removed { container, result }).await;
    }

    async fn try_remove(&self, id: &ContainerId) -> Result<(), String> {
        // How it ended is in its record until then.
        self.exits.flush().await;
        let (store, run_dir, id) = (self.store.clone(), self.run_dir.clone(), id.clone());
        // A writable layer may hold many files.
        let removing = tokio::task::spawn_blocking(move || {
            Boundary::REMOVAL_BEGINS.reach(&run_dir);
            container::remove(&run_dir, &id).map_err(|error| Chain(&error).to_string())?;
            Boundary::RUN_FOLDER_REMOVED.reach(&run_dir);
            store.remove_container(id.as_str()).map_err(|error| Chain(&error).to_string())?;
            Boundary::REMOVED.reach(&run_dir);
            Ok(())
        });
        removing.await.map_err(|error| error.to_string())?
    }

    /// `process` is a pidfd of its first process.
    pub(super) async fn adopt(
        &self,
        id: ContainerId,
        process: Option<OwnedFd>,
        outcomes: Outcomes,
    ) {
        let container = ContainerKey::new(id.as_str());
        Boundary::ADOPTION_BEGINS.reach(&self.run_dir);
        let result = MonitorHandle::attach_with(&self.exe, &self.run_dir, &id, process)
            .await
            .map_err(|error| Chain(&error).to_string());
        let _ = outcomes.send(Outcome::Adopted { container, result }).await;
    }
}
