//! Wishes: how one is taken in, and who is told when it has come true or cannot.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::driver::Driver;
use super::events::Subject;
use super::handle::{Reply, RequestError, RequestErrorKind, StopOptions};
use super::monitors;
use super::project::{GoneWaiter, Wish};
use super::report::{EventLevel, ExitReport};
use super::service_wish::{ExitWaiter, ServiceWaiter, Until};
use crate::reconcile::{ContainerKey, ManualStop};
use crate::spec::{ProjectName, ServiceName};

/// Who waits until nothing runs, and the containers that ran.
#[derive(Debug, Default)]
pub(super) struct HostShutdown {
    pub(super) waiters: Vec<Reply<Vec<String>>>,
    pub(super) containers: Vec<String>,
}

impl Driver {
    /// Stops services by hand, and takes their containers down if that is asked for.
    pub(super) fn stop(
        &mut self,
        project: &str,
        options: &StopOptions,
        stop: ManualStop,
        reply: Reply<Vec<String>>,
    ) {
        let (name, services) = match self.chosen(project, &options.services) {
            Ok(chosen) => chosen,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let Some(project) = self.projects.get_mut(&name) else { return };
        for service in &services {
            project.want_no_more(service, stop, options.grace);
        }
        // A project that is taken down ends no less for being stopped too.
        if options.services.is_empty() && project.record.wish == Wish::Up {
            project.record.wish = Wish::Stop;
            project.watch = None;
        }
        let until = if stop == ManualStop::Keep { Until::Stopped } else { Until::Gone };
        self.asked(&name, "services-stop", "is to be stopped", &services);
        self.hasten(&name, &services);
        self.wait_for(&name, services, until, reply);
    }

    /// Takes a whole project down.
    pub(super) fn down(
        &mut self,
        project: &str,
        grace: Option<Duration>,
        reply: Reply<Vec<String>>,
    ) {
        let name = match self.known_or_left(project) {
            Ok(name) => name,
            Err(error) => return drop(reply.send(Err(error))),
        };
        // Runs beside services end with the project too.
        let of_project = self.containers.iter().filter(|(_, held)| {
            held.record.project == name && held.record.instance == *self.host.instance
        });
        let containers = of_project.map(|(key, _)| key.to_string()).collect();
        let Some(project) = self.projects.get_mut(&name) else { return };
        project.record.wish = Wish::Down;
        project.watch = None;
        // From here on also those of runs.
        let services = self.services_of(&name);
        let Some(project) = self.projects.get_mut(&name) else { return };
        for service in &services {
            project.want_no_more(service, ManualStop::Keep, grace);
        }
        project.waiters.push(GoneWaiter { reply, containers });
        self.save_project(&name);
        self.hasten(&name, &services);
    }

    /// Starts services that do not run.
    pub(super) fn start(&mut self, project: &str, services: &[String], reply: Reply<Vec<String>>) {
        let (name, services) = match self.startable(project, services) {
            Ok(chosen) => chosen,
            Err(error) => return drop(reply.send(Err(error))),
        };
        self.host.expect_start();
        let services = self.with_stopped_dependencies(&name, services);
        let running = self.running(&name);
        if let Some(project) = self.projects.get_mut(&name) {
            for service in &services {
                project.want_now(service, &running);
            }
        }
        self.set_up(&name, &services);
        let reply = self.save_project_for(&name, reply);
        self.tell_asked(&name, "services-start", "is to be started", &services);
        self.wait_for(&name, services, Until::Started, reply);
    }

    /// `services` and those that they depend on and that were stopped by hand: nothing could start without them.
    fn with_stopped_dependencies(
        &self,
        name: &ProjectName,
        mut services: BTreeSet<ServiceName>,
    ) -> BTreeSet<ServiceName> {
        let Some(project) = self.projects.get(name) else { return services };
        let mut needed = project.desired.with_dependencies(&services);
        needed.retain(|other| {
            let stopped = project.records.get(other).is_some_and(|r| r.stopped.is_some());
            stopped || project.record.wish == Wish::Stop
        });
        services.append(&mut needed);
        services
    }

    /// Stops services and starts them again, in the same containers.
    pub(super) fn restart(
        &mut self,
        project: &str,
        options: &StopOptions,
        reply: Reply<Vec<String>>,
    ) {
        let (name, services) = match self.startable(project, &options.services) {
            Ok(chosen) => chosen,
            Err(error) => return drop(reply.send(Err(error))),
        };
        if let Some(project) = self.projects.get_mut(&name) {
            for service in &services {
                project.want_again(service, options.grace);
            }
        }
        self.set_up(&name, &services);
        self.asked(&name, "services-restart", "is to be restarted", &services);
        self.wait_for(&name, services, Until::Started, reply);
    }

    /// Stops everything for as long as this control lives.
    pub(super) fn host_shutdown(&mut self, reply: Reply<Vec<String>>) {
        let running: Vec<String> = self
            .containers
            .iter()
            .filter(|(_, held)| held.may_run() && held.record.instance == *self.host.instance)
            .map(|(key, _)| key.to_string())
            .collect();
        let shutdown = self.host_shutdown.get_or_insert_default();
        shutdown.containers.extend(running);
        shutdown.waiters.push(reply);
        let message = "the host is shutting down; all services are stopped";
        self.events.emit(Subject::Host, EventLevel::Info, "host-shutdown", message, []);
        for name in self.projects.keys().cloned().collect::<Vec<_>>() {
            let services = self.services_of(&name);
            self.hasten(&name, &services);
        }
    }

    /// The host does not go down after all.
    pub(super) fn host_resume(&mut self, reply: Reply<()>) {
        for waiter in self.host_shutdown.take().into_iter().flat_map(|shutdown| shutdown.waiters) {
            let message = "services were started again meanwhile by `resume-services`";
            let _ = waiter.send(Err(RequestError::new(RequestErrorKind::Conflict, message)));
        }
        let _ = reply.send(Ok(()));
    }

    /// Nothing is started while the host goes down.
    pub(super) fn check_host(&self) -> Result<(), RequestError> {
        if self.host_shutdown.is_none() {
            return Ok(());
        }
        let message = "the host is shutting down, and nothing is started";
        let hint = "if it is not, `supervisor resume-services` starts what was stopped";
        Err(RequestError::new(RequestErrorKind::Conflict, message).with_hint(Some(hint.into())))
    }

    /// How runs of the services end. One that does not run has ended.
    pub(super) fn wait(
        &mut self,
        project: &str,
        services: &[String],
    ) -> Result<mpsc::Receiver<ExitReport>, RequestError> {
        let (name, services) = self.chosen(project, services)?;
        // One report for each, so that sending never waits.
        let (sender, receiver) = mpsc::channel(services.len().max(1));
        let waiter = ExitWaiter { services: services.clone(), sender };
        self.projects.get_mut(&name).into_iter().for_each(|p| p.exit_waiters.push(waiter.clone()));
        for service in services {
            let status = self.plan.services.get(&Self::service_key(&name, &service));
            let Some(key) = status.and_then(|status| status.container.clone()) else { continue };
            let ended = |held: &super::held::Held| {
                held.busy.is_none() && !held.may_run() && held.record.exit.is_some()
            };
            if self.containers.get(&key).is_some_and(ended) {
                self.tell_exit(&key);
            }
        }
        Ok(receiver)
    }

    /// Tells those who wait for it that a run of a container has ended.
    pub(super) fn tell_exit(&mut self, container: &ContainerKey) {
        let Some(held) = self.containers.get(container) else { return };
        let report = ExitReport {
            service: held.record.service.to_string(),
            container: container.to_string(),
            code: held.record.exit.as_ref().and_then(|exit| exit.outcome.code()),
        };
        let service = held.record.service.clone();
        let Some(project) = self.projects.get_mut(&held.record.project) else { return };
        for waiter in &mut project.exit_waiters {
            if waiter.services.remove(&service) {
                // There is room for one of each service, and who has gone need not know.
                let _ = waiter.sender.try_send(report.clone());
            }
        }
        project.exit_waiters.retain(|w| !w.services.is_empty() && !w.sender.is_closed());
    }

    /// The project and the services of it that were named; all that it has when none was.
    pub(super) fn chosen(
        &self,
        project: &str,
        named: &[String],
    ) -> Result<(ProjectName, BTreeSet<ServiceName>), RequestError> {
        let name = self.known(project)?;
        if named.is_empty() {
            let services = self.services_of(&name);
            return Ok((name, services));
        }
        let services: Result<_, _> = named.iter().map(|one| self.service(&name, one)).collect();
        Ok((name, services?))
    }

    /// The same where they are to run: only what the services file has can.
    fn startable(
        &self,
        project: &str,
        named: &[String],
    ) -> Result<(ProjectName, BTreeSet<ServiceName>), RequestError> {
        self.check_host()?;
        let (name, mut services) = self.chosen(project, named)?;
        let project = &self.projects[&name];
        if project.record.wish == Wish::Down {
            let message = format!("project `{name}` is being taken down");
            return Err(RequestError::new(RequestErrorKind::Conflict, message));
        }
        let wanted = &project.desired.services;
        if let Some(gone) = services.iter().find(|service| !wanted.contains_key(*service))
            && !named.is_empty()
        {
            let message =
                format!("service `{gone}` is not in the services file of `{name}` any more");
            return Err(RequestError::new(RequestErrorKind::Conflict, message));
        }
        services.retain(|service| wanted.contains_key(service));
        Ok((name, services))
    }

    /// All services that a project has or of which containers are left.
    fn services_of(&self, name: &ProjectName) -> BTreeSet<ServiceName> {
        let desired =
            self.projects.get(name).into_iter().flat_map(|p| p.desired.services.keys().cloned());
        let left = self.containers_of(name).map(|(_, held)| held.record.service.clone());
        desired.chain(left).collect()
    }

    /// A project that was stopped goes on with some services; the others stay as they are.
    fn set_up(&mut self, name: &ProjectName, services: &BTreeSet<ServiceName>) {
        let Some(project) = self.projects.get_mut(name) else { return };
        if project.record.wish == Wish::Stop {
            project.record.wish = Wish::Up;
            let others: Vec<ServiceName> = project
                .desired
                .services
                .keys()
                .filter(|other| !services.contains(*other))
                .cloned()
                .collect();
            for other in others {
                project.want_no_more(&other, ManualStop::Keep, None);
            }
            self.watch_file(name);
        }
        self.look_up_images(name);
    }

    /// Keeps what was asked for, and tells it.
    fn asked(&self, name: &ProjectName, kind: &str, what: &str, services: &BTreeSet<ServiceName>) {
        self.save_project(name);
        self.tell_asked(name, kind, what, services);
    }

    fn tell_asked(
        &self,
        name: &ProjectName,
        kind: &str,
        what: &str,
        services: &BTreeSet<ServiceName>,
    ) {
        for service in services {
            let subject = Subject::Service(name.as_str(), service.as_str());
            self.events.emit(subject, EventLevel::Info, kind, format!("{service} {what}"), []);
        }
    }

    /// Brings to an end what a stop step does not reach: what is still starting, and what was asked to stop before and
    /// now gets less time.
    fn hasten(&self, name: &ProjectName, services: &BTreeSet<ServiceName>) {
        for (_, held) in self.containers_of(name) {
            let phase = held.status.as_ref().map(|status| &status.phase);
            let grace = self.grace(&held.record.key());
            let due = match phase {
                Some(crate::container::Phase::Starting) => true,
                Some(crate::container::Phase::Stopping { .. }) => grace.is_some(),
                _ => false,
            };
            if let Some(monitor) = held.monitor.clone()
                && due
                && services.contains(&held.record.service)
            {
                tokio::spawn(monitors::hasten(monitor, grace));
            }
        }
    }

    fn wait_for(
        &mut self,
        name: &ProjectName,
        services: BTreeSet<ServiceName>,
        until: Until,
        reply: Reply<Vec<String>>,
    ) {
        let containers = self
            .containers_of(name)
            .filter(|(_, held)| services.contains(&held.record.service))
            .map(|(key, _)| key.to_string())
            .collect();
        let Some(project) = self.projects.get_mut(name) else { return };
        project.service_waiters.push(ServiceWaiter { services, until, reply, containers });
    }
}

impl Driver {
    /// Whether the host may go down.
    pub(super) fn answer_shutdown(&mut self) {
        if self.any_runs() {
            return;
        }
        let Some(shutdown) = &mut self.host_shutdown else { return };
        let mut containers = std::mem::take(&mut shutdown.containers);
        containers.sort();
        containers.dedup();
        for waiter in shutdown.waiters.drain(..) {
            let _ = waiter.send(Ok(containers.clone()));
        }
    }

    /// Lets control groups and lazy mounts go before those who waited for a project's end are told.
    pub(super) fn tell_gone(&self, waiter: GoneWaiter, runs: bool) {
        let host = Arc::clone(&self.host);
        tokio::spawn(async move {
            if !runs {
                host.leave_nothing().await;
            }
            let _ = waiter.reply.send(Ok(waiter.containers));
        });
    }
}
