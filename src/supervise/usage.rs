//! What containers use, and the processes that run in them: counters as the kernel has them at one moment.

use super::driver::Driver;
use super::handle::{ControlHandle, Request, RequestError, RequestErrorKind};
use super::report::{ContainerProcesses, ContainerUsage, ProcessReport};
use crate::container::{ContainerId, cgroup_of};
use crate::reconcile::ServiceKey;
use crate::sys::process_info::ProcessInfo;
use crate::sys::{cgroup, usage};

/// A container that runs.
#[derive(Debug, Clone)]
pub(super) struct Running {
    service: ServiceKey,
    container: ContainerId,
    pid: Option<i32>,
}

impl Driver {
    /// Containers of services that run: those of the named services, or of the project, or all.
    pub(super) fn running_containers(
        &self,
        project: Option<&str>,
        named: &[String],
    ) -> Result<Vec<Running>, RequestError> {
        let project = project.map(|name| self.known(name)).transpose()?;
        let mut services = Vec::new();
        for name in named {
            let project = project.as_ref().ok_or_else(|| {
                let message = "services are named, and no project";
                RequestError::new(RequestErrorKind::Invalid, message)
            })?;
            services.push(self.service(project, name)?);
        }
        let statuses = self.plan.services.iter().filter(|(key, _)| {
            project.as_ref().is_none_or(|project| key.project == *project)
                && (services.is_empty() || services.contains(&key.service))
        });
        let running = statuses.filter_map(|(key, status)| {
            let held = self.containers.get(status.container.as_ref()?)?;
            let (service, container) = (key.clone(), held.id.clone());
            Some(Running { service, container, pid: Some(held.pid()?) })
        });
        Ok(running.collect())
    }
}

impl ControlHandle {
    /// What the running containers of a project, of some of its services, or of all projects use. Counters only ever
    /// grow: who wants a rate asks twice.
    ///
    /// # Errors
    /// When the project or a service does not exist.
    pub async fn usage(
        &self,
        project: Option<String>,
        services: Vec<String>,
    ) -> Result<Vec<ContainerUsage>, RequestError> {
        let running = self.ask(|reply| Request::Running { project, services, reply }).await?;
        let instance = std::sync::Arc::clone(&self.instance);
        self.read(move || running.iter().map(|one| usage_of(&instance, one)).collect()).await
    }

    /// The processes that run in containers, chosen likewise.
    ///
    /// # Errors
    /// As [`Self::usage`].
    pub async fn processes(
        &self,
        project: Option<String>,
        services: Vec<String>,
    ) -> Result<Vec<ContainerProcesses>, RequestError> {
        let running = self.ask(|reply| Request::Running { project, services, reply }).await?;
        let instance = std::sync::Arc::clone(&self.instance);
        self.read(move || running.iter().map(|one| processes_of(&instance, one)).collect()).await
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RequestError> {
        let failed = |error: tokio::task::JoinError| {
            RequestError::new(RequestErrorKind::Failed, error.to_string())
        };
        tokio::task::spawn_blocking(read).await.map_err(failed)
    }
}

fn usage_of(instance: &str, running: &Running) -> ContainerUsage {
    let counted = usage::usage(&cgroup_of(instance, &running.container)).unwrap_or_default();
    let traffic = running.pid.and_then(|pid| usage::traffic(pid).ok()?);
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let nanoseconds = |part: i64| u64::try_from(part).unwrap_or(0);
    ContainerUsage {
        project: running.service.project.to_string(),
        service: running.service.service.to_string(),
        container: running.container.to_string(),
        at_ns: nanoseconds(now.tv_sec) * 1_000_000_000 + nanoseconds(now.tv_nsec),
        cpu_ns: counted.cpu_ns,
        memory: counted.memory,
        memory_limit: counted.memory_limit,
        host_memory: usage::host_memory().unwrap_or(0),
        received: traffic.map(|(received, _)| received),
        sent: traffic.map(|(_, sent)| sent),
        read: counted.read,
        written: counted.written,
        pids: counted.pids,
    }
}

fn processes_of(instance: &str, running: &Running) -> ContainerProcesses {
    let mut pids = cgroup::processes(&cgroup_of(instance, &running.container)).unwrap_or_default();
    if pids.is_empty() {
        // A host without control groups: the first process is all that is known for certain.
        pids.extend(running.pid);
    }
    let report = |info: ProcessInfo| ProcessReport {
        pid: info.pid,
        ppid: info.ppid,
        uid: info.uid,
        cpu_ms: info.cpu_ms,
        age_ms: info.age_ms,
        has_terminal: info.terminal != 0,
        command: info.command,
    };
    ContainerProcesses {
        project: running.service.project.to_string(),
        service: running.service.service.to_string(),
        container: running.container.to_string(),
        processes: pids.iter().filter_map(|pid| ProcessInfo::of(*pid).ok()).map(report).collect(),
    }
}
