//! What is wanted: networks, the containers on them, and the ports that are published.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Names a network on this host, as users do: `shop_default`, or what the file calls it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetworkKey(String);

impl NetworkKey {
    /// The network of this name.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The bridge that all services with `network_mode: bridge` share. No file can give another one this name.
    #[must_use]
    pub fn shared() -> Self {
        Self("bridge".to_owned())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NetworkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A network that should exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Its name.
    pub key: NetworkKey,
    /// The project that says what it is. `None`: it is taken as it is found, and is as this says when it is new.
    pub owner: Option<String>,
    /// Whether one gets out of it.
    pub reach: Reach,
    /// Whether it has addresses of version 6.
    pub ipv6: Ipv6,
    /// Subnets that the user chose; a family without one gets one of ours.
    pub subnets: Vec<Subnet>,
}

/// Whether a network leads anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// To wherever the host leads, behind the host's address; ports can be published.
    #[default]
    Outside,
    /// Only to its own containers (`internal: true`).
    Internal,
}

/// Whether a network has addresses of version 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ipv6 {
    /// When the host has.
    #[default]
    AsHost,
    /// Always (`enable_ipv6: true`, or a subnet was given).
    Always,
    /// Never (`enable_ipv6: false`).
    Never,
}

/// A subnet that the user chose (`ipam`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// All of it.
    pub net: IpNet,
    /// Address of the bridge; the first of the subnet where `None`.
    pub gateway: Option<IpAddr>,
    /// Where addresses that nobody asked for come from; all of the subnet where `None`.
    pub range: Option<IpNet>,
    /// Addresses that are in use by others (`aux_addresses`).
    pub reserved: Vec<IpAddr>,
}

/// One interface of a container: everything that making it takes. Plain data, part of what a container is launched
/// with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// What it is attached for, `container@network`; names the host's end.
    pub what: String,
    /// Name of the bridge.
    pub bridge: String,
    /// Name in the container, such as `eth0`.
    pub interface: String,
    /// Hardware address; the same after a recreation, so that nobody's neighbour table is out of date.
    pub mac: [u8; 6],
    /// Address, and length of its prefix.
    pub v4: Option<(Ipv4Addr, u8)>,
    /// Address, and length of its prefix.
    pub v6: Option<(Ipv6Addr, u8)>,
    /// The way out; `None` where another interface of the container has it, or where there is none.
    #[serde(default)]
    pub gateway4: Option<Ipv4Addr>,
    /// As `gateway4`.
    #[serde(default)]
    pub gateway6: Option<Ipv6Addr>,
    /// Whether it sees the others there.
    #[serde(default)]
    pub neighbours: Neighbours,
}

/// Whether containers on one bridge see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Neighbours {
    /// All do.
    #[default]
    Seen,
    /// It sees the host and whatever is behind it, and others with this word not even as neighbours.
    Unseen,
}

impl Attachment {
    /// A hardware address that follows from what it is for: locally administered, unicast.
    #[must_use]
    pub fn mac_for(what: &str) -> [u8; 6] {
        use sha2::{Digest as _, Sha256};
        let hash = Sha256::digest(what.as_bytes());
        [0x02, hash[0], hash[1], hash[2], hash[3], hash[4]]
    }
}

/// A port of a container that is reached at a port of the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Publication {
    /// Where. `None`: at every address of the host, of the family of `to`.
    pub host_ip: Option<IpAddr>,
    /// Port of the host.
    pub host_port: u16,
    /// What is spoken.
    pub transport: Transport,
    /// Address of the container.
    pub to: IpAddr,
    /// Port of the container.
    pub to_port: u16,
}

/// A published port, and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// What it is called across recreation, such as `shop/web-1`.
    pub service: String,
    /// The port.
    #[serde(flatten)]
    pub publication: Publication,
}

/// What is spoken at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// In words, as in rules and in services files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a container may reach the host's own services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostAccess {
    /// No.
    #[default]
    Denied,
    /// Its file names the host (`extra_hosts` with `host-gateway`), so it may.
    Granted,
}
