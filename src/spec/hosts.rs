//! How a service finds others: `extra_hosts`, `dns`, `dns_search`, `dns_opt`, `hostname`.

use std::net::IpAddr;

use super::field::Checker;
use super::raw::{Entry, Node, Value};

/// A line for `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraHost {
    /// What it is called.
    pub name: String,
    /// Where it is.
    pub address: HostAddress,
}

/// Where a host of [`ExtraHost`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostAddress {
    /// There.
    Ip(IpAddr),
    /// It is the host that the container runs on, as the container reaches it.
    Gateway,
}

/// What the user wrote of name resolution.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers. Empty: those of the host.
    pub servers: Vec<IpAddr>,
    /// Domains to search; only with servers.
    pub search: Vec<String>,
    /// Options of the resolver; only with servers.
    pub options: Vec<String>,
}

impl Checker<'_> {
    pub(super) fn extra_hosts(&mut self, path: &str, node: &Node) -> Vec<ExtraHost> {
        let mut pairs = Vec::new();
        match &node.value {
            Value::Map(entries) => {
                for Entry { key, value, .. } in entries {
                    let path = format!("{path}.{key}");
                    for (path, address, item) in self.texts(&path, value) {
                        pairs.push((path, key.clone(), address, item));
                    }
                }
            }
            _ => {
                for (path, text, item) in self.texts(path, node) {
                    // An address of version 6 has colons of its own.
                    match text.split_once('=').or_else(|| text.split_once(':')) {
                        Some((name, address)) => {
                            pairs.push((path, name.to_owned(), address.to_owned(), item));
                        }
                        None => {
                            let message = format!("`{text}` is not of the form `NAME=ADDRESS`");
                            self.problem(Some(item.at), &path, message);
                        }
                    }
                }
            }
        }
        let mut hosts = Vec::with_capacity(pairs.len());
        for (path, name, address, item) in pairs {
            if !is_host_name(&name) {
                self.problem(Some(item.at), &path, format!("`{name}` is no host name"));
                continue;
            }
            let bare = address.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
            let address = match address.as_str() {
                "host-gateway" => Ok(HostAddress::Gateway),
                other => bare.unwrap_or(other).parse().map(HostAddress::Ip),
            };
            let address = address.map_err(|_| format!("the address of `{name}` is none"));
            if let Some(address) = self.checked(&path, item, address) {
                hosts.push(ExtraHost { name, address });
            }
        }
        hosts
    }

    pub(super) fn dns_servers(&mut self, path: &str, node: &Node) -> Vec<IpAddr> {
        let mut servers = Vec::new();
        for (path, text, item) in self.texts(path, node) {
            let address = text.parse::<IpAddr>().map_err(|_| format!("`{text}` is no address"));
            servers.extend(self.checked(&path, item, address));
        }
        servers
    }

    /// Words of a line of `resolv.conf`.
    pub(super) fn dns_words(&mut self, path: &str, node: &Node) -> Vec<String> {
        let mut words = Vec::new();
        for (path, text, item) in self.texts(path, node) {
            if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
                self.problem(Some(item.at), &path, format!("`{text}` is not one word"));
            } else {
                words.push(text);
            }
        }
        words
    }

    pub(super) fn hostname(&mut self, path: &str, node: &Node) -> Option<String> {
        let text = self.text(path, node)?;
        if !is_host_name(&text) {
            let message =
                format!("`{text}` is no host name: letters, digits, `-`, `_`, `.`, at most 63");
            self.problem(Some(node.at), path, message);
            return None;
        }
        Some(text)
    }
}

/// What is safe in `/etc/hosts`, and short enough for sethostname(2).
pub(super) fn is_host_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=63).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with(['-', '.'])
}
