//! Published ports. A service that uses the host's network publishes a port by opening it, as the port that it is.

use std::net::IpAddr;

use super::field::{Checker, Refusal};
use super::raw::{Entry, Node, Value};
use super::{NetworkMode, ports};

/// A port of the container that can be reached from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Where it can be reached. `None`: on all addresses of the host.
    pub host_ip: Option<IpAddr>,
    /// First and last port of the host, any of which serves. `None`: any port of the host.
    pub published: Option<(u16, u16)>,
    /// In the container.
    pub target: u16,
    /// What is spoken.
    pub protocol: Protocol,
}

/// What is spoken at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// As compose writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl Checker<'_> {
    pub(super) fn ports(
        &mut self,
        path: &str,
        node: &Node,
        network: Option<&NetworkMode>,
    ) -> Vec<Port> {
        let Value::List(items) = &node.value else {
            self.mismatch(path, node, "a list of `[HOST:]CONTAINER[/PROTOCOL]`");
            return Vec::new();
        };
        let mut ports = Vec::with_capacity(items.len());
        for (n, item) in items.iter().enumerate() {
            let path = &format!("{path}[{n}]");
            for long in ports::long(item) {
                if let Value::Map(entries) = &long.value {
                    let Some(port) = self.port(path, &long, entries) else { continue };
                    let reached = reached(&port, network);
                    if self.refused(path, item, reached).is_some() && !ports.contains(&port) {
                        ports.push(port);
                    }
                } else if let Some(text) = self.text(path, item) {
                    let message = format!(
                        "`{text}` is not of the form `[[ADDRESS:]HOST:]CONTAINER[/PROTOCOL]` with ports from 1 to 65535 \
                         or ranges of the same length"
                    );
                    self.problem(Some(item.at), path, message);
                }
            }
        }
        ports
    }

    fn port(&mut self, path: &str, node: &Node, entries: &[Entry]) -> Option<Port> {
        let mut port = Port { host_ip: None, published: None, target: 0, protocol: Protocol::Tcp };
        let before = self.problems.len();
        for Entry { key, at, value } in entries {
            let path = &format!("{path}.{key}");
            if value.value == Value::Null || key.starts_with("x-") {
                continue;
            }
            match key.as_str() {
                "target" => {
                    let number = self.integer(path, value, 1, 65_535);
                    port.target = number.and_then(|n| u16::try_from(n).ok()).unwrap_or(0);
                }
                "published"
                    if value.scalar().is_some_and(|text| text.is_empty() || text == "0") => {}
                "published" => {
                    let text = self.text(path, value)?;
                    let range = ports::range(&text)
                        .ok_or_else(|| format!("`{text}` is no port, and no range of ports"));
                    port.published = self.checked(path, value, range);
                }
                "host_ip" if value.scalar().is_some_and(|text| text.is_empty()) => {}
                "host_ip" => {
                    let text = self.text(path, value)?;
                    let address = text.parse().map_err(|_| format!("`{text}` is no address"));
                    port.host_ip = self.checked(path, value, address);
                }
                "protocol" => {
                    let text = self.text(path, value)?;
                    let protocol = match text.as_str() {
                        "tcp" => Ok(Protocol::Tcp),
                        "udp" => Ok(Protocol::Udp),
                        "sctp" => Ok(Protocol::Sctp),
                        _ => Err(format!("unknown protocol `{text}`; use `tcp`, `udp` or `sctp`")),
                    };
                    port.protocol = self.checked(path, value, protocol)?;
                }
                // Both ways of a cluster are the same on one host; the others only document.
                "mode" | "name" | "app_protocol" => drop(self.text(path, value)),
                _ => self.problem(Some(*at), path, format!("unknown key `{key}` of a port")),
            }
        }
        if port.target == 0 && node.get("target").is_none() {
            self.problem(Some(node.at), path, "the port has no `target:`");
        }
        (self.problems.len() == before).then_some(port)
    }
}

/// Whether the host's network gives what is asked for.
fn reached(port: &Port, network: Option<&NetworkMode>) -> Result<(), Refusal> {
    let target = port.target;
    match network {
        Some(NetworkMode::None) => {
            return Err("the service has no network (`network_mode: none`)".to_owned().into());
        }
        Some(mode @ (NetworkMode::Service(_) | NetworkMode::Container(_))) => {
            let message =
                format!("ports are published by the service that the network is of (`{mode}`)");
            return Err(message.into());
        }
        None | Some(NetworkMode::Bridge) => return Ok(()),
        Some(NetworkMode::Host) => {}
    }
    if let Some(address) = port.host_ip.filter(|address| !address.is_unspecified()) {
        return Err(Refusal::unsupported(format!(
            "publishing at `{address}` alone is not supported with `network_mode: host`: the service itself says where \
             it listens"
        )));
    }
    match port.published {
        Some((first, last)) if (first..=last).contains(&target) => Ok(()),
        Some((first, _)) => Err(Refusal::unsupported(format!(
            "publishing `{target}` as `{first}` is not supported with `network_mode: host`: port `{target}` is reached \
             as `{target}`"
        ))),
        None => Err(Refusal::unsupported(format!(
            "publishing `{target}` as any free port is not supported with `network_mode: host`; write \
             `{target}:{target}`"
        ))),
    }
}
