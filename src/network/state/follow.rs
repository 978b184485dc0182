//! What follows from who is in which network: bridges, interfaces, rules, names.

use std::net::IpAddr;

use super::{Known, Membership, NetworkState};
use crate::network::link::Bridge;
use crate::network::names::{NameClient, NameTable, NamedHost, NamedNetwork, Outside};
use crate::network::rules::{NetworkRules, Ruleset};
use crate::network::{Addresses, Attachment, Closed, Neighbours, NetworkKey};

/// Those of any project are on the shared one, and no file asks for the others.
fn neighbours(network: &NetworkKey) -> Neighbours {
    match *network == NetworkKey::shared() {
        true => Neighbours::Unseen,
        false => Neighbours::Seen,
    }
}

impl NetworkState {
    /// The bridges of all networks.
    #[must_use]
    pub fn bridges(&self) -> Vec<Bridge> {
        let bridge = |key: &NetworkKey| {
            let entry = self.book.network(key)?;
            let v4 = match entry.v4.gateway {
                IpAddr::V4(address) => (address, entry.v4.net.prefix_len()),
                IpAddr::V6(_) => return None,
            };
            let v6 = entry.v6.as_ref().and_then(|family| match family.gateway {
                IpAddr::V6(address) => Some((address, family.net.prefix_len())),
                IpAddr::V4(_) => None,
            });
            Some(Bridge { network: key.clone(), v4, v6 })
        };
        self.networks.keys().filter_map(bridge).collect()
    }

    /// Whether a network has addresses of version 6.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        let mut entries = self.networks.keys().filter_map(|key| self.book.network(key));
        entries.any(|entry| entry.v6.is_some())
    }

    /// The interfaces of a container. `bridge` is the name of a network's bridge.
    #[must_use]
    pub fn attachments(
        &self,
        container: &str,
        bridge: impl Fn(&NetworkKey) -> String,
    ) -> Vec<Attachment> {
        let Some(member) = self.members.get(container) else { return Vec::new() };
        let way_out = member.memberships.iter().position(|m| self.leads_outside(&m.network));
        let attachment = |(n, membership): (usize, &Membership)| {
            let entry = self.book.network(&membership.network)?;
            let addresses = membership.addresses;
            let is_way_out = way_out == Some(n);
            let gateway4 = match entry.v4.gateway {
                IpAddr::V4(address) if is_way_out => Some(address),
                _ => None,
            };
            let gateway6 = match entry.v6.as_ref().map(|family| family.gateway) {
                Some(IpAddr::V6(address)) if is_way_out => Some(address),
                _ => None,
            };
            let v6 = entry.v6.as_ref().map(|family| family.net.prefix_len());
            Some(Attachment {
                what: format!("{}@{}", member.endpoint, membership.network),
                bridge: bridge(&membership.network),
                interface: format!("eth{n}"),
                mac: Attachment::mac_for(&format!("{}@{}", member.endpoint, membership.network)),
                v4: Some((addresses.v4, entry.v4.net.prefix_len())),
                v6: addresses.v6.zip(v6),
                gateway4,
                gateway6,
                neighbours: neighbours(&membership.network),
            })
        };
        member.memberships.iter().enumerate().filter_map(attachment).collect()
    }

    /// The rules that all of this needs.
    #[must_use]
    pub fn ruleset(&self, bridge: impl Fn(&NetworkKey) -> String) -> Ruleset {
        let network = |(key, known): (&NetworkKey, &Known)| {
            let entry = self.book.network(key)?;
            let families = [Some(&entry.v4), entry.v6.as_ref()];
            let containers = self.members.values().flat_map(|member| {
                let of_it = member.memberships.iter().filter(|m| m.network == *key);
                of_it.flat_map(|membership| {
                    let Addresses { v4, v6 } = membership.addresses;
                    let all = [Some(IpAddr::V4(v4)), v6.map(IpAddr::V6)];
                    all.into_iter().flatten().map(|address| (address, member.host_access))
                })
            });
            Some(NetworkRules {
                bridge: bridge(key),
                subnets: families.into_iter().flatten().map(|family| family.net).collect(),
                reach: known.reach,
                neighbours: neighbours(key),
                containers: containers.collect(),
            })
        };
        Ruleset {
            networks: self.networks.iter().filter_map(network).collect(),
            publications: self
                .members
                .values()
                .flat_map(|member| member.publications.iter().cloned())
                .collect(),
            closed: Closed::default(),
        }
    }

    /// What the resolver knows.
    #[must_use]
    pub fn name_table(&self) -> NameTable {
        let mut table = NameTable::default();
        for key in self.networks.keys() {
            let Some(entry) = self.book.network(key) else { continue };
            let families = [Some(&entry.v4), entry.v6.as_ref()];
            let subnets = families.into_iter().flatten().map(|family| family.net).collect();
            table.networks.insert(key.clone(), NamedNetwork { subnets, hosts: Vec::new() });
        }
        for (container, member) in &self.members {
            for membership in &member.memberships {
                let Some(network) = table.networks.get_mut(&membership.network) else { continue };
                network.hosts.push(NamedHost {
                    canonical: membership.canonical.clone(),
                    names: membership.names.clone(),
                    v4: Some(membership.addresses.v4),
                    v6: membership.addresses.v6,
                    ready: member.ready,
                });
            }
            let networks: Vec<NetworkKey> =
                member.memberships.iter().map(|m| m.network.clone()).collect();
            let is_open = networks.iter().any(|key| self.leads_outside(key));
            let outside = if is_open { Outside::Asked } else { Outside::Closed };
            let client = NameClient { networks, servers: member.dns.clone(), outside };
            table.clients.insert(container.clone(), client);
        }
        table
    }
}
