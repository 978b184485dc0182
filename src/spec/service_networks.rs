//! Networks of a service: which of them it is in, and how it is called there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value as Json, json};

use super::field::Checker;
use super::keys;
use super::networks::{DEFAULT, Network, NetworkOwner, NetworkSubnet};
use super::raw::{Entry, Node, Value};
use super::{Position, hosts};

/// A service in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceNetwork {
    /// Its key in the file.
    pub key: String,
    /// The network.
    pub network: Network,
    /// Whether the service names it, or the file says what it is. One that nobody asked for is in no fingerprint:
    /// what is given when nothing is written may change with a version, and recreates nothing.
    pub is_asked: bool,
    /// Names there besides its own.
    pub aliases: Vec<String>,
    /// The address that it must have.
    pub v4: Option<Ipv4Addr>,
    /// As `v4`.
    pub v6: Option<Ipv6Addr>,
    /// Networks with a higher one come first.
    pub priority: i64,
    /// The way out is through the network with the highest one.
    pub gateway_priority: i64,
}

impl ServiceNetwork {
    /// What a fingerprint is made of.
    pub(super) fn written(&self) -> Json {
        let Self { key: _, network, is_asked: _, aliases, v4, v6, priority, gateway_priority } =
            self;
        let Network { name, owner, internal, ipv6, subnets } = network;
        let subnet = |subnet: &NetworkSubnet| {
            let NetworkSubnet { net, gateway, range, reserved } = subnet;
            json!([
                net.to_string(),
                gateway.map(|ip| ip.to_string()),
                range.map(|net| net.to_string()),
                reserved.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ])
        };
        let subnets: Vec<Json> = subnets.iter().map(subnet).collect();
        json!([
            [name, *owner == NetworkOwner::Nobody, internal, ipv6, subnets],
            aliases,
            [v4.map(|ip| ip.to_string()), v6.map(|ip| ip.to_string())],
            [priority, gateway_priority],
        ])
    }

    fn of(key: &str, network: Network, is_asked: bool) -> Self {
        Self {
            key: key.to_owned(),
            network,
            is_asked,
            aliases: Vec::new(),
            v4: None,
            v6: None,
            priority: 0,
            gateway_priority: 0,
        }
    }
}

impl Checker<'_> {
    /// Reads `networks` of a service; `default` is what holds where it names none.
    pub(super) fn service_networks(&mut self, path: &str, node: &Node) -> Vec<ServiceNetwork> {
        let mut networks: Vec<ServiceNetwork> = Vec::new();
        match &node.value {
            Value::Map(entries) => {
                for Entry { key, at, value } in entries {
                    let path = format!("{path}.{key}");
                    let Some(mut network) = self.declared_network(&path, *at, key) else {
                        continue;
                    };
                    self.membership(&path, value, &mut network);
                    networks.push(network);
                }
            }
            Value::Null => {}
            Value::List(_) => {
                for (path, key, item) in self.texts(path, node) {
                    if !networks.iter().any(|network| network.key == key) {
                        networks.extend(self.declared_network(&path, item.at, &key));
                    }
                }
            }
            _ => self.mismatch(path, node, "a list or a mapping of networks"),
        }
        let rank = |network: &ServiceNetwork| (-network.gateway_priority, -network.priority);
        networks.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.key.cmp(&b.key)));
        networks
    }

    fn declared_network(&mut self, path: &str, at: Position, key: &str) -> Option<ServiceNetwork> {
        let network = match self.networks.get(key) {
            Some(network) => network.clone()?,
            None if key == DEFAULT => Network::implied(&self.project, key),
            None => {
                let message = format!(
                    "the network `{key}` is not declared; add `{key}:` below `networks:` at the top of the file"
                );
                self.problem(Some(at), path, message);
                return None;
            }
        };
        Some(ServiceNetwork::of(key, network, true))
    }

    /// The network of a service that names none; nothing if the file says what it is, and says it wrongly.
    pub(super) fn default_network(&self) -> Option<ServiceNetwork> {
        let implied = Network::implied(&self.project, DEFAULT);
        let network = match self.networks.get(DEFAULT) {
            Some(network) => network.clone()?,
            None => implied.clone(),
        };
        let is_asked = network != implied;
        Some(ServiceNetwork::of(DEFAULT, network, is_asked))
    }

    fn membership(&mut self, path: &str, node: &Node, network: &mut ServiceNetwork) {
        for found in self.entries(path, node, keys::SERVICE_NETWORK) {
            let (path, value) = (found.path.as_str(), found.value);
            match found.key.name {
                "aliases" => {
                    for (path, text, item) in self.texts(path, value) {
                        if hosts::is_host_name(&text) {
                            network.aliases.push(text);
                        } else {
                            self.problem(Some(item.at), &path, format!("`{text}` is no host name"));
                        }
                    }
                    network.aliases.sort();
                    network.aliases.dedup();
                }
                "ipv4_address" => {
                    network.v4 = self.parsed(path, value, "an address of version 4");
                }
                "ipv6_address" => {
                    network.v6 = self.parsed(path, value, "an address of version 6");
                }
                "priority" => network.priority = self.rank(path, value),
                "gw_priority" => network.gateway_priority = self.rank(path, value),
                "driver_opts" if value.entries().is_some_and(<[_]>::is_empty) => {}
                _ => self.leave(&found),
            }
        }
        let in_subnet = |ip: IpAddr| {
            let mut nets = network.network.subnets.iter().map(|subnet| subnet.net);
            nets.all(|net| net.addr().is_ipv6() != ip.is_ipv6() || net.contains(&ip))
        };
        let fixed = [network.v4.map(IpAddr::V4), network.v6.map(IpAddr::V6)];
        for ip in fixed.into_iter().flatten().filter(|ip| !in_subnet(*ip)) {
            let message = format!("`{ip}` is not in the subnet of the network `{}`", network.key);
            self.problem(Some(node.at), path, message);
        }
    }

    fn rank(&mut self, path: &str, node: &Node) -> i64 {
        self.integer(path, node, i64::from(i32::MIN), i64::from(i32::MAX)).unwrap_or(0)
    }
}
