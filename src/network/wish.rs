//! What a container wants of networks, and why it may not have it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::port::HostPort;
use super::{AddressError, HostAccess, NetworkKey, NetworkSpec, SubnetError, Transport};

/// A container that should be in networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberWish {
    /// The container.
    pub container: String,
    /// What it is called across recreation, such as `shop/web-1`.
    pub endpoint: String,
    /// Its networks, in the order of its interfaces; the first that leads outside is its way out.
    pub networks: Vec<MembershipWish>,
    /// What is published of it.
    pub ports: Vec<PortWish>,
    /// Whether it may reach the host.
    pub host_access: HostAccess,
    /// Its own resolvers (`dns`).
    pub dns: Vec<IpAddr>,
}

/// One network that a container should be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipWish {
    /// The network.
    pub network: NetworkSpec,
    /// The address that its file gives it.
    pub v4: Option<Ipv4Addr>,
    /// As `v4`.
    pub v6: Option<Ipv6Addr>,
    /// What its address is called, such as `shop-web-1.shop_default`.
    pub canonical: String,
    /// What it answers to there.
    pub names: Vec<String>,
}

/// A port that should be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortWish {
    /// At this address of the host; at all where `None`.
    pub host_ip: Option<IpAddr>,
    /// At one of these ports, at any where `None`.
    pub published: Option<RangeInclusive<u16>>,
    /// Port of the container.
    pub target: u16,
    /// What is spoken.
    pub transport: Transport,
}

/// A container cannot join its networks.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A network has no subnet.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    /// A container has no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A network of this name is another project's.
    #[error(
        "network `{network}` belongs to project `{owner}`; give this one another `name`, or say `external: true` to be \
         in that one"
    )]
    Foreign {
        /// The network.
        network: NetworkKey,
        /// Whose it is.
        owner: String,
    },
    /// Another container has its port.
    #[error("port `{port}` is published by `{owner}` already")]
    Published {
        /// The port.
        port: HostPort,
        /// Who has it.
        owner: String,
    },
    /// No port of the range is free.
    #[error("no port from {first} to {last} is free for `{endpoint}`", first = range.start(), last = range.end())]
    NoPort {
        /// For whom.
        endpoint: String,
        /// Where one was looked for.
        range: RangeInclusive<u16>,
    },
    /// Ports of a container that nobody can get to.
    #[error("ports of `{0}` cannot be published: all of its networks are internal")]
    NoWayIn(String),
}
