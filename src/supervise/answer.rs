//! How the driver answers requests.

use super::draft::Draft;
use super::driver::Driver;
use super::events::Subject;
use super::handle::{Reply, Request, RequestError, RequestErrorKind};
use super::project::{Project, ProjectRecord, Wish};
use super::report::{EventLevel, ExecTarget, LogSource, ServiceReport, UpRequest};
use crate::container::Phase as RunPhase;
use crate::reconcile::{ContainerKey, ManualStop};
use crate::spec::{ProjectName, ServiceName};

impl Driver {
    pub(super) fn answer(&mut self, request: Request) {
        match request {
            Request::Up(request, reply) => drop(reply.send(self.up(*request))),
            Request::Services { project, reply } => self.services(project, reply),
            Request::Projects { reply } => {
                drop(reply.send(Ok(self.projects.keys().map(ToString::to_string).collect())));
            }
            Request::Stop { project, options, reply } => {
                self.stop(&project, &options, ManualStop::Keep, reply);
            }
            Request::Down { project, options, reply } if options.services.is_empty() => {
                self.down(&project, options.grace, reply);
            }
            Request::Down { project, options, reply } => {
                self.stop(&project, &options, ManualStop::Remove, reply);
            }
            Request::Start { project, services, reply } => self.start(&project, &services, reply),
            Request::Restart { project, options, reply } => self.restart(&project, &options, reply),
            Request::Wait { project, services, reply } => {
                drop(reply.send(self.wait(&project, &services)));
            }
            Request::Plan(request, reply) => drop(reply.send(self.preview(*request))),
            Request::Inspect { project, names, reply } => {
                self.inspect(project.as_deref(), &names, reply);
            }
            Request::Running { project, services, reply } => {
                drop(reply.send(self.running_containers(project.as_deref(), &services)));
            }
            Request::Kill { project, services, signal, reply } => {
                self.kill(&project, services, signal, reply);
            }
            Request::Run { request, service, options, reply } => {
                self.run_once(&request, &service, *options, reply);
            }
            Request::RunEnd { project, container, reply } => {
                self.wait_run(&project, container, reply);
            }
            Request::StopRun { project, container, reply } => {
                drop(reply.send(self.stop_run(&project, &container)));
            }
            Request::Volumes { project, reply } => drop(reply.send(self.volumes_of(&project))),
            Request::UnusedVolumes { volumes, reply } => {
                drop(reply.send(self.unused_volumes(volumes)));
            }
            Request::HostShutdown { reply } => self.host_shutdown(reply),
            Request::HostResume { reply } => self.host_resume(reply),
            Request::Logs { project, services, reply } => {
                drop(reply.send(self.logs(&project, &services)))
            }
            Request::Exec { project, service, reply } => {
                drop(reply.send(self.exec(&project, &service)))
            }
            Request::Wanted { reply } => {
                let wanted = self.projects.values().any(|project| project.record.wish == Wish::Up);
                // What is being stopped needs somebody who sees to the end of it.
                drop(reply.send(Ok(wanted || self.any_runs())));
            }
            Request::OthersRun { project, reply } => {
                let runs = |held: &super::held::Held| held.may_run() || held.busy.is_some();
                let mut others =
                    self.containers.values().filter(|held| held.record.project.as_str() != project);
                drop(reply.send(Ok(others.any(runs))));
            }
            Request::ImagesWanted { reply } => drop(reply.send(Ok(self.images_wanted()))),
            Request::Reload(reply) => self.reread_files(reply),
            // Its arrival has begun the time of idleness anew.
            Request::Visit => {}
            Request::ImagesChanged => {
                for name in self.projects.keys().cloned().collect::<Vec<_>>() {
                    self.look_up_images(&name);
                }
            }
            Request::Shutdown { reply } => {
                self.shutdown.cancel();
                drop(reply.send(Ok(())));
            }
        }
    }

    pub(super) fn known(&self, name: &str) -> Result<ProjectName, RequestError> {
        let missing =
            || RequestError::new(RequestErrorKind::NotFound, format!("no such project: `{name}`"));
        let name: ProjectName = name.parse().map_err(|_| missing())?;
        if self.projects.contains_key(&name) { Ok(name) } else { Err(missing()) }
    }

    /// As [`Self::known`]; a project of which only containers are left, because its record is lost, is known again.
    pub(super) fn known_or_left(&mut self, name: &str) -> Result<ProjectName, RequestError> {
        let left = name.parse().ok().filter(|name| {
            !self.projects.contains_key(name) && self.containers_of(name).next().is_some()
        });
        if let Some(project) = left {
            let request = UpRequest {
                project: name.to_owned(),
                file: std::path::PathBuf::new(),
                text: String::new(),
                base_dir: std::path::PathBuf::new(),
                environment: std::collections::BTreeMap::new(),
                services: Vec::new(),
                independent: Vec::new(),
                recreate: Vec::new(),
                sources: None,
            };
            let requests = std::collections::BTreeMap::new();
            let wishes = std::collections::BTreeMap::new();
            let record = ProjectRecord {
                request,
                wish: Wish::Down,
                requests,
                wishes,
                in_boot: std::collections::BTreeMap::new(),
            };
            let services = std::collections::BTreeMap::new();
            let desired = crate::spec::Desired { project: project.clone(), services };
            self.projects.insert(project, Project::new(record, desired));
        }
        self.known(name)
    }

    fn up(&mut self, request: UpRequest) -> Result<(), RequestError> {
        let desired = super::project::parse(&request)?;
        let name = desired.project.clone();
        self.check_host()?;
        self.check_ports(&desired)?;
        let settled = self.settled(&name);
        match self.projects.get_mut(&name) {
            Some(project) => project.join(request, desired, &settled)?,
            None => {
                let project = Project::asked(request, desired, &settled);
                self.projects.insert(name.clone(), project);
            }
        }
        self.save_project(&name);
        self.look_up_images(&name);
        self.watch_file(&name);
        self.events.emit(
            Subject::Project(name.as_str()),
            EventLevel::Info,
            "project-up",
            format!("{name} is wanted"),
            [],
        );
        Ok(())
    }

    fn services(&self, project: Option<String>, reply: Reply<Vec<ServiceReport>>) {
        let project = match project.map(|name| self.known(&name)).transpose() {
            Ok(project) => project,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let keys = self
            .plan
            .services
            .keys()
            .filter(|key| project.as_ref().is_none_or(|name| key.project == *name));
        let drafts: Vec<Draft> = keys.map(|key| self.draft(key)).collect();
        let host = std::sync::Arc::clone(&self.host);
        let images = std::sync::Arc::clone(&self.host.images);
        tokio::spawn(async move {
            let finish = move || drafts.into_iter().map(|draft| draft.finish(&host)).collect();
            let drafts: Vec<_> = match tokio::task::spawn_blocking(finish).await {
                Ok(drafts) => drafts,
                Err(error) => {
                    let error = RequestError::new(RequestErrorKind::Failed, error.to_string());
                    return drop(reply.send(Err(error)));
                }
            };
            let mut reports = Vec::with_capacity(drafts.len());
            for (mut report, its) in drafts {
                report.content = its.content(&images).await;
                reports.push(report);
            }
            let is_lazy = |report: &ServiceReport| {
                report.content.as_ref().is_some_and(|content| content.lazy_layers > 0)
            };
            // Who uses nothing of them neither waits for the answer nor is held up by its absence.
            if reports.iter().any(is_lazy)
                && let Some(trouble) = images.lazy.trouble().await
            {
                for report in reports.iter_mut().filter(|report| is_lazy(report)) {
                    report.status = format!("{}, {trouble}", report.status);
                }
            }
            let _ = reply.send(Ok(reports));
        });
    }

    /// Checks a service's name against what the project has and what still runs of it.
    pub(super) fn service(
        &self,
        project: &ProjectName,
        name: &str,
    ) -> Result<ServiceName, RequestError> {
        let known = self.plan.services.keys().filter(|key| key.project == *project);
        let desired = self
            .projects
            .get(project)
            .into_iter()
            .flat_map(|project| project.desired.services.keys());
        known
            .map(|key| &key.service)
            .chain(desired)
            .find(|service| service.as_str() == name)
            .cloned()
            .ok_or_else(|| {
                RequestError::new(
                    RequestErrorKind::NotFound,
                    format!("no such service: `{name}` in project `{project}`"),
                )
            })
    }

    fn logs(&self, project: &str, services: &[String]) -> Result<Vec<LogSource>, RequestError> {
        let project = self.known(project)?;
        let mut chosen = Vec::new();
        for name in services {
            chosen.push(self.service(&project, name)?);
        }
        if services.is_empty() {
            let wanted = &self.projects[&project].desired.services;
            chosen.extend(wanted.keys().cloned());
        }
        let source = |service: ServiceName| LogSource {
            container: format!("{service}-1"),
            path: self.host.log_path(project.as_str(), service.as_str()),
            service: service.to_string(),
        };
        Ok(chosen.into_iter().map(source).collect())
    }

    fn exec(&self, project: &str, service: &str) -> Result<ExecTarget, RequestError> {
        let project = self.known(project)?;
        let service = self.service(&project, service)?;
        let status = self.plan.services.get(&Self::service_key(&project, &service));
        let container: Option<&ContainerKey> = status.and_then(|status| status.container.as_ref());
        let held = container.and_then(|container| self.containers.get(container));
        let runs = held.and_then(|held| held.status.as_ref()).is_some_and(|status| {
            matches!(
                status.phase,
                RunPhase::Running { .. } | RunPhase::Stopping { process: Some(_), .. }
            )
        });
        match held {
            Some(held) if runs => Ok(ExecTarget { container: held.id.to_string() }),
            _ => {
                let now = status.map_or_else(
                    || "not created".to_owned(),
                    |status| status.phase.render(self.clock.now()),
                );
                Err(RequestError::new(
                    RequestErrorKind::Conflict,
                    format!("service `{service}` does not run: {now}"),
                ))
            }
        }
    }
}
