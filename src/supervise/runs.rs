//! Containers that run once, beside the service that they are made like: `run`. The planner does not see them, so they
//! never count as the service; only where a whole project ends they end with it.

use std::collections::BTreeMap;

use super::driver::Driver;
use super::execute::{Host, Outcome, Start, Synced};
use super::handle::{Reply, RequestError, RequestErrorKind};
use super::held::{ContainerRecord, Held, ImpliedNetwork, OneOff};
use super::images::{Extent, LocalImage};
use super::membership;
use super::project::Wish;
use super::report::RunEnd;
use super::run_ends::Ended;
use super::run_settings::{RunOptions, settings};
use crate::container::{ContainerId, Phase as RunPhase};
use crate::image::ImageRef;
use crate::network::MemberWish;
use crate::reconcile::{Action, ContainerKey, Operation, ServiceKey};
use crate::spec::Service;
use crate::telemetry::Chain;

/// Before what failed is tried again, in milliseconds; twice as long after each failure in a row.
const FIRST_PAUSE: u64 = 1000;

/// A run that was asked for and has not begun.
#[derive(Debug)]
pub(super) struct Asked {
    settings: Box<Service>,
    reply: Reply<String>,
    has_begun: bool,
}

/// All runs of this control.
#[derive(Debug, Default)]
pub(super) struct Runs {
    asked: BTreeMap<ContainerKey, Asked>,
    pub(super) ended: Vec<Ended>,
    pub(super) waiters: Vec<(ContainerKey, Reply<RunEnd>)>,
    /// Asked for while what is in their way is removed: a run of the same name that has ended, or what an earlier
    /// control left of the same run, which never began.
    postponed: Vec<(ContainerKey, ReadyRun)>,
    /// Of an earlier control, which may have died before it answered, and until when who asked for them may ask again.
    pub(super) unanswered: BTreeMap<ContainerKey, crate::reconcile::Millis>,
}

impl Runs {
    /// What runs are made of that were asked for, as far as these have not begun.
    pub(super) fn settings(&self) -> impl Iterator<Item = &Service> {
        let asked = self.asked.values().map(|asked| &*asked.settings);
        asked.chain(self.postponed.iter().map(|(_, run)| &*run.settings))
    }
}

/// A run whose image is here.
#[derive(Debug)]
pub(super) struct ReadyRun {
    service: ServiceKey,
    settings: Box<Service>,
    options: RunOptions,
    /// Its image, and those that are mounted in it. They stay here until its record says that it has them.
    images: Result<(LocalImage, Vec<(ImageRef, LocalImage)>), String>,
    reply: Reply<String>,
}

impl Driver {
    /// Makes a container like `service` of what the request describes, and runs it once.
    pub(super) fn run_once(
        &mut self,
        request: &super::report::UpRequest,
        service: &str,
        options: RunOptions,
        reply: Reply<String>,
    ) {
        let settings = self.check_host().and_then(|()| settings(request, service, &options));
        let (service, settings) = match settings {
            Ok(settings) => settings,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let (host, outcomes) = (std::sync::Arc::clone(&self.host), self.outcomes.clone());
        host.expect_start();
        let working = host.images.work();
        tokio::spawn(async move {
            let image = host.images.ensure(&settings.image, Extent::Lazy).await;
            let images = match image {
                Ok(image) => host.ensure_beside(&settings).await.map(|beside| (image, beside)),
                Err(error) => Err(Chain(&error).to_string()),
            };
            let run = ReadyRun { service, settings, options, images, reply };
            let _ = outcomes.send(Outcome::RunReady(Box::new(run))).await;
            drop(working);
        });
    }

    /// Its image is here, or cannot be had.
    pub(super) fn run_ready(&mut self, run: ReadyRun) {
        if run.reply.is_closed() {
            // Whoever asked has gone before anything ran.
            return;
        }
        let Some(run) = self.is_new(run) else { return };
        let named = run.options.name.as_deref().map(ContainerKey::new);
        if let Some(key) = named.filter(|key| self.is_leaving(key)) {
            // Who asks for the name has seen the end of the one before.
            self.runs.unanswered.remove(&key);
            return self.runs.postponed.push((key, run));
        }
        let ReadyRun { service, settings, options, images, reply } = run;
        let failed = |message: String| RequestError::new(RequestErrorKind::Failed, message);
        let images = match images {
            Ok(images) => images,
            Err(message) => return drop(reply.send(Err(failed(message)))),
        };
        let id = match options.name.as_deref().map(str::parse::<ContainerId>) {
            Some(Ok(id)) => id,
            Some(Err(error)) => {
                let error = RequestError::new(RequestErrorKind::Invalid, error.to_string());
                return drop(reply.send(Err(error)));
            }
            None => self.new_run_id(&service),
        };
        let key = ContainerKey::new(id.as_str());
        if self.containers.contains_key(&key) {
            let message = format!("there is a container `{id}` already");
            let error = RequestError::new(RequestErrorKind::Conflict, message);
            let hint =
                "choose another name; a run without `--rm` stays until its project is taken down";
            return drop(reply.send(Err(error.with_hint(Some(hint.to_owned())))));
        }
        let mut record = ContainerRecord::unknown(
            self.host.instance.to_string(),
            service.project.clone(),
            service.service.clone(),
            settings.image.clone(),
            None,
        );
        record.serial = self.next_serial();
        record.fingerprint = settings.fingerprint();
        record.manifest = images.0.manifest_digest;
        let beside = images.1.iter();
        record.mounted = beside.map(|(of, image)| (of.clone(), image.manifest_digest)).collect();
        record.implied_network = ImpliedNetwork::Project;
        record.one_off = Some(OneOff {
            remove: options.remove,
            streams: options.streams,
            idempotency_key: options.idempotency_key,
        });
        let mut held = Held::new(id.clone(), record.clone());
        held.busy = Some(Operation::Create);
        // An earlier run of this name has ended, and this one has not.
        self.runs.ended.retain(|ended| ended.container != key);
        self.containers.insert(key.clone(), held);
        let asked = Asked { settings: settings.clone(), reply, has_begun: false };
        self.runs.asked.insert(key, asked);
        let (host, outcomes) = (std::sync::Arc::clone(&self.host), self.outcomes.clone());
        tokio::spawn(async move {
            host.create(id, record, settings, outcomes).await;
            drop(images);
        });
    }

    /// Gives a run back that was not asked for before. Of another one the caller is told how far that is.
    fn is_new(&mut self, run: ReadyRun) -> Option<ReadyRun> {
        let Some(asked) = &run.options.idempotency_key else { return Some(run) };
        // Another one may have chosen the same key for what it runs.
        let same = |its: Option<&String>| its == Some(asked);
        let ServiceKey { project, service } = &run.service;
        let is_same = |ended: &&Ended| {
            let is_of = ended.project == *project && ended.service == *service;
            is_of && same(ended.idempotency_key.as_ref())
        };
        if let Some(ended) = self.runs.ended.iter().find(is_same) {
            self.runs.unanswered.remove(&ended.container);
            let _ = run.reply.send(Ok(ended.container.to_string()));
            return None;
        }
        let is_it = |held: &Held| {
            let one_off = held.record.one_off.as_ref();
            let is_of = held.record.project == *project && held.record.service == *service;
            is_of && one_off.is_some_and(|one_off| same(one_off.idempotency_key.as_ref()))
        };
        let Some((key, held)) = self.containers.iter().find(|(_, held)| is_it(held)) else {
            return Some(run);
        };
        let key = key.clone();
        self.runs.unanswered.remove(&key);
        if let Some((_, failure)) = held.failed.as_ref().filter(|_| held.failed_to_go()) {
            let message = failure.reason.clone();
            let _ = run.reply.send(Err(RequestError::new(RequestErrorKind::Failed, message)));
        } else if let Some(asked) = self.runs.asked.get_mut(&key) {
            asked.reply = run.reply;
        } else if held.may_run() || held.has_begun() {
            let asked = Asked { settings: run.settings, reply: run.reply, has_begun: true };
            self.runs.asked.insert(key, asked);
        } else {
            self.runs.postponed.push((key, run));
        }
        None
    }

    /// What was left of a run is not in the way of the same one any more, or stays there.
    pub(super) fn begin_postponed(&mut self, key: &ContainerKey) {
        let (ready, others) = std::mem::take(&mut self.runs.postponed)
            .into_iter()
            .partition(|(container, _)| container == key);
        self.runs.postponed = others;
        for (_, run) in ready {
            self.run_ready(run);
        }
    }

    /// Takes every run one step on: to be called after each plan.
    pub(super) fn look_after_runs(&mut self) {
        // What ends with its project is the planner's.
        let ends =
            |held: &Held| self.projects.contains_key(&held.record.project) && self.is_planned(held);
        let ours = |held: &Held| {
            let is_run = held.record.one_off.is_some();
            is_run && held.record.instance == *self.host.instance && !ends(held)
        };
        let idle = self.containers.iter().filter(|(_, held)| ours(held) && held.busy.is_none());
        let idle: Vec<ContainerKey> = idle.map(|(key, _)| key.clone()).collect();
        for key in idle {
            self.look_after_run(&key);
        }
    }

    fn look_after_run(&mut self, key: &ContainerKey) {
        let Some(held) = self.containers.get(key) else { return };
        let remove = held.record.one_off.as_ref().is_some_and(|one_off| one_off.remove);
        let has_ended = held.record.exit.is_some() && !held.may_run();
        let was_started = held.has_begun();
        if held.monitor_lost {
            let (service, container) = (held.record.key(), key.clone());
            if self.is_due(key, Operation::Adopt) {
                self.begin(Action::AdoptMonitor { service, container });
            }
            return;
        }
        if held.may_run() {
            let phase = held.status.as_ref().map(|status| &status.phase);
            if !matches!(phase, None | Some(RunPhase::Starting)) {
                self.tell_begun(key, None);
            }
            return;
        }
        if has_ended {
            self.run_ended(key);
        } else if let Some((_, failure)) = &held.failed {
            let reason = failure.reason.clone();
            self.tell_begun(key, Some(reason));
        } else if let Some(asked) = self.runs.asked.get_mut(key)
            && !asked.has_begun
        {
            asked.has_begun = true;
            let settings = asked.settings.clone();
            return self.begin_run(key, *settings);
        } else if was_started {
            // In another boot, and nobody saw how it ended.
            self.tell_begun(key, None);
            self.note_run_end(key, RunEnd::default());
        }
        let failed_before = self.containers.get(key).is_some_and(|held| held.failed.is_some());
        if has_ended && self.may_be_asked_for(key) {
            return;
        }
        // What never ran is of no use to anybody.
        if (remove || !has_ended && !was_started || failed_before && !has_ended)
            && self.is_due(key, Operation::Remove)
        {
            let service = self.containers.get(key).map(|held| held.record.key());
            if let Some(service) = service {
                self.begin(Action::Remove { service, container: key.clone() });
            }
        }
    }

    /// Whether it is a run that has ended and is removed for that.
    fn is_leaving(&self, key: &ContainerKey) -> bool {
        let Some(held) = self.containers.get(key) else { return false };
        let is_removed = held.record.one_off.as_ref().is_some_and(|one_off| one_off.remove);
        is_removed && held.record.exit.is_some() && !held.may_run() && !held.failed_to_go()
    }

    /// Whether an operation has not failed only a moment ago. If it has, its time is noted.
    fn is_due(&mut self, key: &ContainerKey, operation: Operation) -> bool {
        let failed = self.containers.get(key).and_then(|held| held.failed.as_ref());
        let Some((_, failure)) = failed.filter(|(before, _)| *before == operation) else {
            return true;
        };
        let pause = FIRST_PAUSE << failure.attempts.saturating_sub(1).min(6);
        let again = failure.at.saturating_add(pause);
        if self.clock.now() >= again {
            return true;
        }
        self.plan.wake_at = Some(self.plan.wake_at.map_or(again, |at| at.min(again)));
        false
    }

    fn begin_run(&mut self, key: &ContainerKey, settings: Service) {
        let (host, outcomes) = (std::sync::Arc::clone(&self.host), self.outcomes.clone());
        let Some(service) = self.containers.get(key).map(|held| held.record.key()) else { return };
        let owner = self.network_owner(&service, &settings);
        let Some(held) = self.containers.get_mut(key) else { return };
        held.busy = Some(Operation::Start);
        held.record.started_in_boot = crate::sys::process::boot_id().ok();
        let start = Start { service: settings, network_owner: owner, synced: Synced::After };
        let (id, record) = (held.id.clone(), held.record.clone());
        tokio::spawn(async move {
            host.start(id, record, start, outcomes).await;
        });
    }

    /// Answers who asked for the run.
    pub(super) fn tell_begun(&mut self, key: &ContainerKey, failure: Option<String>) {
        let Some(Asked { reply, .. }) = self.runs.asked.remove(key) else { return };
        let _ = reply.send(match failure {
            None => Ok(key.to_string()),
            Some(reason) => Err(RequestError::new(RequestErrorKind::Failed, reason)),
        });
    }

    /// Whether a container is one for the planner: of a service, or a run whose project or host ends.
    pub(super) fn is_planned(&self, held: &Held) -> bool {
        held.record.one_off.is_none() || self.host_shutdown.is_some() || {
            let project = self.projects.get(&held.record.project);
            project.is_none_or(|project| project.record.wish == Wish::Down)
        }
    }

    fn new_run_id(&self, service: &ServiceKey) -> ContainerId {
        let name = format!("{}-run", service.service);
        self.new_id(service.project.as_str(), &name)
    }
}

impl Host {
    /// Where the output of a container goes: a run's own goes with it.
    pub(super) fn log_of(&self, id: &ContainerId, record: &ContainerRecord) -> std::path::PathBuf {
        match &record.one_off {
            Some(_) => self.container_record(id).with_file_name("log.json"),
            None => self.log_path(record.project.as_str(), record.service.as_str()),
        }
    }

    /// What a container wants of networks. A run has an address of its own, and no name of the service.
    pub(super) fn member(
        id: &ContainerId,
        record: &ContainerRecord,
        service: &Service,
    ) -> MemberWish {
        let mut wish = membership::member(id, record.project.as_str(), service);
        if record.one_off.is_some() {
            wish.endpoint = id.to_string();
            for network in &mut wish.networks {
                (network.v4, network.v6) = (None, None);
                network.canonical = id.to_string();
                network.names.clear();
            }
        }
        wish
    }
}
