//! Names between services: a resolver that every container finds at `127.0.0.11`, as under Docker.
//!
//! ```text
//!  control ── writes names.json, "reload" ──┐
//!                                           ▼
//!  container's namespace                 names (a role of its own, in the host's namespace)
//!    127.0.0.11:53 ─ nft ─► 127.0.0.11:P ──► knows which container asks: ours? ── yes ─► answer
//!                       sockets handed over                                   └─ no ──► host's resolvers
//! ```
//!
//! **Where it listens.** In the namespace of each container, on sockets that whoever starts the container opens there
//! ([`open_entry`]) and hands over. A resolver at the bridge's address would be simpler, and was rejected: port 53 of
//! the host may be taken (dnsmasq, a DNS server with the host's network), a host firewall drops what comes from bridges,
//! a container in two networks would have two resolvers that each know half, and `resolver 127.0.0.11` is written in
//! many an nginx.conf. The port behind it is any, and a rule in the container's namespace leads there, so that a
//! container can be a DNS server itself.
//!
//! **Who serves.** A role of its own that parses what containers and networks send, holds no right and no file but its
//! table, and is started by control like the other roles. It goes on when control is killed or replaced. When it is
//! killed itself, control starts another and hands it sockets again; the table it finds in its file.
//!
//! **What it answers.** Names of the networks that the asking container is in, addresses of ready containers first,
//! reverse look-ups. The rest goes to the `dns` of the service, or to the host's resolvers, as it came and in the host's
//! namespace: a resolver at a loopback address of the host, such as systemd-resolved's, is reached. A container whose
//! networks are all internal gets no answer from outside: names are a way out too.

mod answer;
mod client;
mod entry;
mod forward;
mod role;
mod serve;
mod upstream;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{NetworkKey, Reach};
pub use client::{NamesClient, NamesError};
pub use entry::{Entry, EntryError, open_entry};
pub(crate) use role::names_main;
pub use role::{NAMES_ROLE, NAMES_SOCKET, NAMES_TABLE};

/// Where containers find the resolver.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Everything that the resolver knows; a file, written whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameTable {
    /// The networks and who is in them.
    pub networks: BTreeMap<NetworkKey, NamedNetwork>,
    /// Who may ask, by the name that sockets are handed over under.
    pub clients: BTreeMap<String, NameClient>,
}

/// The names of one network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedNetwork {
    /// Its subnets: addresses in them are nobody else's to name.
    pub subnets: Vec<IpNet>,
    /// Its containers.
    pub hosts: Vec<NamedHost>,
}

/// One container in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedHost {
    /// What its address is called, such as `shop-web-1.shop_default`.
    pub canonical: String,
    /// What it answers to: service, container name, host name, aliases. Without regard to case.
    pub names: Vec<String>,
    /// Its address.
    pub v4: Option<Ipv4Addr>,
    /// Its address.
    #[serde(default)]
    pub v6: Option<Ipv6Addr>,
    /// Whether it can be used.
    pub ready: Ready,
}

/// Whether a container can be used, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// It runs, and its health check, if any, succeeds.
    Yes,
    /// Named only while no other container of the name is ready.
    No,
}

/// A container that asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameClient {
    /// The networks that it is in, the one whose names come first at the beginning.
    pub networks: Vec<NetworkKey>,
    /// Resolvers for what is not ours (`dns`); the host's where empty.
    #[serde(default)]
    pub servers: Vec<IpAddr>,
    /// Whether what is not ours is asked for at all.
    pub outside: Outside,
}

/// Whether a container gets answers from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outside {
    /// It does.
    Asked,
    /// All of its networks are internal.
    Closed,
}

impl From<Reach> for Outside {
    fn from(reach: Reach) -> Self {
        match reach {
            Reach::Outside => Self::Asked,
            Reach::Internal => Self::Closed,
        }
    }
}

/// The `resolv.conf` of a container that is served: the resolver, domains to search, options. `ndots:0`, as under
/// Docker, lets a name without a dot be asked for as it is first.
#[must_use]
pub fn resolv_conf(search: &[String], options: &[String]) -> String {
    let mut text = format!("nameserver {RESOLVER}\n");
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    let has_ndots = options.iter().any(|option| option.starts_with("ndots:"));
    let ndots = (!has_ndots).then_some("ndots:0");
    let options: Vec<&str> = options.iter().map(String::as_str).chain(ndots).collect();
    text.push_str(&format!("options {}\n", options.join(" ")));
    text
}
