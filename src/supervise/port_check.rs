//! Ports that services are to have: whether somebody has them already. Looked at before anything is stopped for them.

use super::driver::Driver;
use super::handle::{RequestError, RequestErrorKind};
use super::held::Held;
use super::membership;
use crate::network::port::{self, HostPort, PortOwner};
use crate::spec::{Desired, Service};

impl Driver {
    /// Whether the services of `desired` can have their ports. One that runs as it is described has them.
    pub(super) fn check_ports(&self, desired: &Desired) -> Result<(), RequestError> {
        let conflict = |message: String| {
            let hint = "nothing was changed; free the port, or publish another one";
            Err(RequestError::new(RequestErrorKind::Conflict, message)
                .with_hint(Some(hint.to_owned())))
        };
        let all = desired.services.values().flat_map(|service| {
            fixed(service).into_iter().map(|port| (service.name.as_str(), port))
        });
        if let Some((one, other, port)) = port::doubled(all) {
            return conflict(if one == other {
                format!("`{one}` publishes port `{port}` twice")
            } else {
                format!("`{one}` and `{other}` both publish port `{port}`")
            });
        }
        let new = desired.services.values().filter(|service| !self.has_its_ports(desired, service));
        let wanted: Vec<HostPort> = new.flat_map(fixed).collect();
        let runs = |held: &&Held| held.may_run() && held.record.project != desired.project;
        for held in self.containers.values().filter(runs) {
            let theirs = self.ports_of(held);
            let is_wanted = |port: &&HostPort| wanted.iter().any(|other| other.collides(port));
            if let Some(port) = theirs.iter().find(is_wanted) {
                let owner = held.record.key();
                return conflict(format!("port `{port}` is published by `{owner}` already"));
            }
        }
        // Where it cannot be told, whoever starts the service finds out.
        for taken in port::taken(&wanted).unwrap_or_default() {
            match self.container_of(&taken.owner) {
                // It is this project's own, which knows what it does.
                Some(held) if held.record.project == desired.project => {}
                Some(held) => {
                    let (port, owner) = (taken.port, held.record.key());
                    return conflict(format!("port `{port}` is in use by `{owner}`"));
                }
                None => return conflict(taken.to_string()),
            }
        }
        Ok(())
    }

    /// The ports of the host that a container has, or is about to have.
    fn ports_of(&self, held: &Held) -> Vec<HostPort> {
        let published = self.host.bridges.published.at(held.id.as_str());
        // One that runs beside its service has those that it was started with.
        if !published.is_empty() || held.record.one_off.is_some() {
            return published;
        }
        let project = self.projects.get(&held.record.project);
        let service = project.and_then(|p| p.desired.services.get(&held.record.service));
        service.map(fixed).unwrap_or_default()
    }

    /// Whether a service runs as it is described.
    fn has_its_ports(&self, desired: &Desired, service: &Service) -> bool {
        let print = service.fingerprint();
        self.containers.values().any(|held| {
            let record = &held.record;
            held.may_run()
                && record.project == desired.project
                && record.service == service.name
                && record.fingerprint.changed_fields(&print).is_empty()
        })
    }

    /// The container that a process is in.
    fn container_of(&self, owner: &PortOwner) -> Option<&Held> {
        let PortOwner::Process { pid, .. } = owner else { return None };
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        self.containers.values().find(|held| {
            let group = format!("/supervisor-{}/c/{}", self.host.instance, held.id);
            let is_in = |line: &str| line.ends_with(&group) || line.contains(&format!("{group}/"));
            held.pid() == Some(*pid) || groups.lines().any(is_in)
        })
    }
}

/// The ports of the host that a service wants and no others, each once.
fn fixed(service: &Service) -> Vec<HostPort> {
    let mut ports: Vec<HostPort> =
        membership::ports(service).filter_map(|port| port.fixed()).collect();
    ports.sort();
    ports.dedup();
    ports
}
