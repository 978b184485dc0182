//! What the user asks of single services: stop, start, restart, take down. Kept with the project, so that it holds
//! across restarts of control and of the host, and so that the next control completes what this one began.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::handle::Reply;
use super::project::{Project, RequestInBoot};
use super::report::ExitReport;
use crate::reconcile::{ManualStop, ServiceRecord};
use crate::spec::{RestartPolicy, Service, ServiceName};
use crate::sys::process::boot_id;

/// What is kept of a service's wishes, besides how often it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct ServiceWish {
    /// The request that was for a restart.
    #[serde(default)]
    restart: u64,
    /// The request that was for a new container.
    #[serde(default)]
    recreate: u64,
    #[serde(default)]
    stopped: Option<KeptStop>,
    /// Grace period of the last stop, in milliseconds.
    #[serde(default)]
    grace_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeptStop {
    Keep,
    Remove,
}

impl ServiceWish {
    fn of(record: &ServiceRecord) -> Self {
        let stopped = record.stopped.map(|stopped| match stopped {
            ManualStop::Keep => KeptStop::Keep,
            ManualStop::Remove => KeptStop::Remove,
        });
        let ServiceRecord { restart, recreate, .. } = *record;
        Self { restart, recreate, stopped, grace_ms: record.grace }
    }

    pub(super) fn into_record(self, request: u64) -> ServiceRecord {
        let stopped = self.stopped.map(|stopped| match stopped {
            KeptStop::Keep => ManualStop::Keep,
            KeptStop::Remove => ManualStop::Remove,
        });
        let Self { restart, recreate, grace_ms: grace, .. } = self;
        ServiceRecord { request, restart, recreate, stopped, grace, create_failure: None }
    }
}

/// What a service was last asked to run by, for those who still wait for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    Up,
    Start,
    Restart,
}

impl std::fmt::Display for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Up => "`up`",
            Self::Start => "`start`",
            Self::Restart => "`restart`",
        })
    }
}

/// What is awaited of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Each has been started for the last request.
    Started,
    /// Nothing of them runs.
    Stopped,
    /// They have no containers.
    Gone,
}

/// Someone who waits for that.
#[derive(Debug)]
pub(super) struct ServiceWaiter {
    pub(super) services: BTreeSet<ServiceName>,
    pub(super) until: Until,
    pub(super) reply: Reply<Vec<String>>,
    /// Their containers when it was asked for, which is what they are called in the answer.
    pub(super) containers: Vec<String>,
}

/// Someone who wants to know how runs of services end; those that are still to come.
#[derive(Debug, Clone)]
pub(super) struct ExitWaiter {
    pub(super) services: BTreeSet<ServiceName>,
    pub(super) sender: mpsc::Sender<ExitReport>,
}

impl Project {
    /// Copies what is to be kept of the services into the record.
    pub(super) fn note(&mut self) {
        for (name, record) in &self.records {
            self.record.requests.insert(name.clone(), record.request);
            let wish = ServiceWish::of(record);
            if wish == ServiceWish::default() {
                self.record.wishes.remove(name);
            } else {
                self.record.wishes.insert(name.clone(), wish);
            }
        }
    }

    /// The user asks for a service to run. One of `settled` is not asked for again: a job would run twice.
    pub(super) fn want(
        &mut self,
        name: &ServiceName,
        settled: &BTreeSet<ServiceName>,
        asker: Asker,
    ) {
        self.askers.insert(name.clone(), asker);
        let record = self.records.entry(name.clone()).or_default();
        if record.request == 0 || !settled.contains(name) {
            record.request += 1;
        }
        record.stopped = None;
        record.grace = None;
        self.note();
    }

    /// As [`Project::want`], of `start`. A service that runs once for each request is asked for in this boot.
    pub(super) fn want_now(&mut self, name: &ServiceName, running: &BTreeSet<ServiceName>) {
        let before = self.records.get(name).map_or(0, |record| record.request);
        self.want(name, running, Asker::Start);
        let request = self.records.get(name).map_or(0, |record| record.request);
        let policy = self.desired.services.get(name).map(Service::restart_policy);
        if let (Some(RestartPolicy::No), Ok(boot)) = (policy, boot_id())
            && request != before
        {
            let earlier = self.record.in_boot.get(name);
            let earlier = earlier.filter(|in_boot| in_boot.request == before);
            let before = earlier.map_or(before, |in_boot| in_boot.before);
            self.record.in_boot.insert(name.clone(), RequestInBoot { request, before, boot });
        }
    }

    /// The last request for the service, if it is for this boot only.
    pub(super) fn request_of_this_boot(&self, name: &ServiceName) -> Option<u64> {
        let in_boot = self.record.in_boot.get(name)?;
        (boot_id().ok()? == in_boot.boot).then_some(in_boot.request)
    }

    /// Takes in what a container that was found says of the requests for its service.
    pub(super) fn settle_request(&mut self, name: &ServiceName, served: u64) {
        let Some(record) = self.records.get_mut(name) else { return };
        if let Some(in_boot) = self.record.in_boot.get(name)
            && boot_id().is_ok_and(|boot| boot != in_boot.boot)
        {
            if in_boot.request == record.request {
                record.request = in_boot.before;
            }
            self.record.in_boot.remove(name);
        }
        // A power cut may also keep a start and lose the request: the next one has to be a new one all the same.
        record.request = record.request.max(served);
        self.note();
    }

    /// The user asks for a service to run in a new container.
    pub(super) fn want_anew(&mut self, name: &ServiceName) {
        self.want(name, &BTreeSet::new(), Asker::Up);
        if let Some(record) = self.records.get_mut(name) {
            record.recreate = record.request;
        }
        self.note();
    }

    /// The user asks for a service to be stopped and started.
    pub(super) fn want_again(&mut self, name: &ServiceName, grace: Option<Duration>) {
        self.askers.insert(name.clone(), Asker::Restart);
        let record = self.records.entry(name.clone()).or_default();
        record.request += 1;
        record.restart = record.request;
        record.stopped = None;
        record.grace = grace.map(millis);
        self.note();
    }

    /// The user asks for a service to end.
    pub(super) fn want_no_more(
        &mut self,
        name: &ServiceName,
        stop: ManualStop,
        grace: Option<Duration>,
    ) {
        let record = self.records.entry(name.clone()).or_default();
        // What was taken down stays down when everything is stopped.
        if record.stopped != Some(ManualStop::Remove) {
            record.stopped = Some(stop);
        }
        record.grace = grace.map(millis);
        self.note();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
