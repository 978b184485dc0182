//! Networks that the file declares at its top.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use super::ProjectName;
use super::field::Checker;
use super::keys;
use super::raw::{Entry, Node, Value};
use ipnet::IpNet;

/// The network of services that name none.
pub(super) const DEFAULT: &str = "default";
/// Longest name of a network: it stands in names of hosts and in labels of interfaces.
const MAX_NAME: usize = 128;
/// What the engine has besides networks of files.
const MODES: [&str; 3] = ["bridge", "host", "none"];

/// A network, as the file declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name on this host.
    pub name: String,
    /// Whose it is.
    pub owner: NetworkOwner,
    /// Whether it leads nowhere but to its own containers.
    pub internal: bool,
    /// Whether it has addresses of version 6. `None`: if the host has.
    pub ipv6: Option<bool>,
    /// What the user chose; at most one of each family.
    pub subnets: Vec<NetworkSubnet>,
}

/// Whose a network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkOwner {
    /// Of the project, which says what it is.
    Project,
    /// Of another project or of none (`external`): it is taken as it is found, or made when nobody has.
    Nobody,
}

/// Addresses of a network (`ipam`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSubnet {
    /// All of them.
    pub net: IpNet,
    /// That of the bridge.
    pub gateway: Option<IpAddr>,
    /// Where those come from that nobody asked for.
    pub range: Option<IpNet>,
    /// Those of others.
    pub reserved: Vec<IpAddr>,
}

impl Network {
    /// What a project has when its file says nothing.
    pub(super) fn implied(project: &ProjectName, key: &str) -> Self {
        Self {
            name: format!("{project}_{key}"),
            owner: NetworkOwner::Project,
            internal: false,
            ipv6: None,
            subnets: Vec::new(),
        }
    }
}

/// The networks at the top of a file by their keys; `None` for those with problems.
pub(super) type DeclaredNetworks = BTreeMap<String, Option<Network>>;

impl Checker<'_> {
    /// Reads `networks` at the top of the file.
    pub(super) fn declare_networks(
        &mut self,
        node: &Node,
        project: &ProjectName,
    ) -> DeclaredNetworks {
        let mut networks = DeclaredNetworks::new();
        let entries = match &node.value {
            Value::Null => return networks,
            Value::Map(entries) => entries,
            _ => {
                self.mismatch("networks", node, "a mapping from names of networks");
                return networks;
            }
        };
        for Entry { key, at, value } in entries {
            if key.starts_with("x-") {
                continue;
            }
            let (path, before) = (format!("networks.{key}"), self.problems.len());
            if !is_name(key) {
                self.problem(Some(*at), &path, format!("`{key}` cannot be the name of a network"));
            }
            let network = self.network(&path, value, project, key);
            // What is not for this version may be left out.
            let is_right =
                |problem: &super::Problem| problem.kind == super::ProblemKind::Unsupported;
            let is_read = self.problems.iter().skip(before).all(is_right);
            networks.insert(key.clone(), Some(network).filter(|_| is_read));
        }
        networks
    }

    fn network(&mut self, path: &str, node: &Node, project: &ProjectName, key: &str) -> Network {
        let mut network = Network::implied(project, key);
        let mut given = None;
        for found in self.entries(path, node, keys::NETWORK) {
            let (path, value) = (found.path.as_str(), found.value);
            match found.key.name {
                "name" => given = self.network_name(path, value),
                "external" => {
                    // Compose's older form: a mapping with the name.
                    if let Some(name) = value.get("name") {
                        given = self.network_name(&format!("{path}.name"), name);
                        network.owner = NetworkOwner::Nobody;
                    } else if self.boolean(path, value) == Some(true) {
                        network.owner = NetworkOwner::Nobody;
                    }
                }
                "internal" => network.internal = self.boolean(path, value) == Some(true),
                "enable_ipv4" => self.only(&found, &["true"]),
                "enable_ipv6" => network.ipv6 = self.boolean(path, value),
                "driver" => self.only(&found, &["bridge", "default"]),
                "ipam" => network.subnets = self.ipam(path, value),
                // Often there and empty.
                "driver_opts" if value.entries().is_some_and(<[_]>::is_empty) => {}
                _ => self.leave(&found),
            }
        }
        if network.owner == NetworkOwner::Nobody {
            // The key itself, without the project's name in front.
            network.name = key.to_owned();
            (network.internal, network.ipv6, network.subnets) = (false, None, Vec::new());
            if given.is_none() && MODES.contains(&key) {
                self.problem(Some(node.at), path, no_network(key));
            }
        }
        network.name = given.unwrap_or(network.name);
        network
    }

    fn network_name(&mut self, path: &str, node: &Node) -> Option<String> {
        let text = self.text(path, node)?;
        let name = if MODES.contains(&text.as_str()) {
            Err(no_network(&text))
        } else if is_name(&text) {
            Ok(text)
        } else {
            Err(format!("`{text}` cannot be the name of a network"))
        };
        self.checked(path, node, name)
    }

    fn ipam(&mut self, path: &str, node: &Node) -> Vec<NetworkSubnet> {
        let mut subnets: Vec<NetworkSubnet> = Vec::new();
        for found in self.entries(path, node, keys::IPAM) {
            let (path, value) = (found.path.as_str(), found.value);
            match found.key.name {
                "config" => {
                    let Value::List(items) = &value.value else {
                        self.mismatch(path, value, "a list of mappings with `subnet:`");
                        continue;
                    };
                    for (n, item) in items.iter().enumerate() {
                        let path = format!("{path}[{n}]");
                        let Some(subnet) = self.subnet(&path, item) else { continue };
                        let is_v6 = |subnet: &NetworkSubnet| subnet.net.addr().is_ipv6();
                        if subnets.iter().any(|other| is_v6(other) == is_v6(&subnet)) {
                            let message =
                                "a network has one subnet of each family, and this is another";
                            self.unsupported(item.at, &path, message);
                        } else {
                            subnets.push(subnet);
                        }
                    }
                }
                "driver" => self.only(&found, &["default"]),
                "options" if value.entries().is_some_and(<[_]>::is_empty) => {}
                _ => self.leave(&found),
            }
        }
        subnets
    }

    fn subnet(&mut self, path: &str, node: &Node) -> Option<NetworkSubnet> {
        let (mut net, mut gateway, mut range, mut reserved) = (None, None, None, Vec::new());
        for found in self.entries(path, node, keys::IPAM_CONFIG) {
            let (path, value) = (found.path.as_str(), found.value);
            match found.key.name {
                "subnet" => {
                    net = self.parsed::<IpNet>(path, value, "a subnet such as `172.30.0.0/24`")
                }
                "gateway" => gateway = self.parsed::<IpAddr>(path, value, "an address"),
                "ip_range" => {
                    range = self.parsed::<IpNet>(path, value, "a range such as `172.30.0.128/25`");
                }
                "aux_addresses" => {
                    for Entry { key, value, .. } in value.entries().unwrap_or_default() {
                        let path = format!("{path}.{key}");
                        reserved.extend(self.parsed::<IpAddr>(&path, value, "an address"));
                    }
                }
                _ => self.leave(&found),
            }
        }
        let Some(net) = net else {
            if node.get("subnet").is_none() && !(gateway.is_none() && range.is_none()) {
                self.problem(Some(node.at), path, "`gateway` and `ip_range` need a `subnet:`");
            }
            return None;
        };
        let inside = |ip: &IpAddr| net.contains(ip);
        let problem = if net.trunc() != net {
            Some(format!("`{net}` has bits set behind its prefix; write `{}`", net.trunc()))
        } else if gateway.is_some_and(|gateway| !inside(&gateway)) {
            Some(format!("the gateway is not in the subnet `{net}`"))
        } else if range.is_some_and(|range| !net.contains(&range)) {
            Some(format!("the range is not in the subnet `{net}`"))
        } else {
            reserved.iter().find(|ip| !inside(ip)).map(|ip| format!("`{ip}` is not in `{net}`"))
        };
        match problem {
            Some(problem) => {
                self.problem(Some(node.at), path, problem);
                None
            }
            None => Some(NetworkSubnet { net, gateway, range, reserved }),
        }
    }

    pub(super) fn parsed<T: FromStr>(
        &mut self,
        path: &str,
        node: &Node,
        expected: &str,
    ) -> Option<T> {
        let text = self.text(path, node)?;
        let value = text.parse::<T>().map_err(|_| format!("`{text}` is not {expected}"));
        self.checked(path, node, value)
    }
}

/// What is said of a name that is one of [`MODES`].
fn no_network(name: &str) -> String {
    format!("`{name}` is no network of its own; write `network_mode: {name}` in services")
}

fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(allowed)
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}
