//! Where containers are published, for those who are asked: the task that looks after networks may be busy.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use super::report::PortReport;
use crate::network::port::HostPort;
use crate::network::{NetworkState, Publication};

/// As of the last change; clones show the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Published(Arc<Mutex<BTreeMap<String, Vec<Publication>>>>);

impl Published {
    /// The ports that lead to a container.
    pub(super) fn of(&self, container: &str) -> Vec<PortReport> {
        let published = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let report = |publication: &Publication| PortReport {
            host_ip: publication.host_ip.unwrap_or(match publication.to {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            }),
            host_port: publication.host_port,
            container_port: publication.to_port,
            protocol: publication.transport.to_string(),
        };
        published.get(container).into_iter().flatten().map(report).collect()
    }

    /// The same as ports of the host.
    pub(super) fn at(&self, container: &str) -> Vec<HostPort> {
        let published = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        published.get(container).into_iter().flatten().map(HostPort::of).collect()
    }

    /// What holds from now on.
    pub(super) fn set(&self, state: &NetworkState) {
        let of = |id: &str| (id.to_owned(), state.publications(id).to_vec());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            state.containers().map(of).collect();
    }
}
