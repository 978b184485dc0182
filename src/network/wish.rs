//! What a container wants of networks, and why it may not have it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::port::HostPort;
use ipnet::IpNet;

use super::{
    AddressError, Attachment, HostAccess, Ipv6, NetworkKey, NetworkSpec, Reach, Subnet,
    SubnetError, Transport,
};

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

impl MemberWish {
    /// The same where the container runs already, connected as `attachments` say: in these networks, with these
    /// addresses.
    #[must_use]
    pub fn as_it_runs(mut self, attachments: &[Attachment]) -> Self {
        let known = std::mem::take(&mut self.networks);
        let of = |attachment: &Attachment| {
            let (_, network) = attachment.what.rsplit_once('@')?;
            let wanted = known.iter().find(|wanted| wanted.network.key.as_str() == network);
            let mut wish = wanted.cloned().unwrap_or_else(|| MembershipWish {
                network: NetworkSpec {
                    key: NetworkKey::named(network),
                    owner: None,
                    // One that is not the way out may be another's way out; what is closed by mistake is put right
                    // by the next start.
                    reach: match attachment.gateway4 {
                        Some(_) => Reach::Outside,
                        None => Reach::Internal,
                    },
                    ipv6: Ipv6::AsHost,
                    subnets: Vec::new(),
                },
                v4: None,
                v6: None,
                canonical: self.endpoint.replace('/', "-"),
                names: Vec::new(),
            });
            wish.v4 = attachment.v4.map(|(address, _)| address);
            wish.v6 = attachment.v6.map(|(address, _)| address);
            wish.network.ipv6 = if wish.v6.is_some() { Ipv6::Always } else { Ipv6::Never };
            let v4 = attachment.v4.map(|(ip, prefix)| (IpAddr::V4(ip), prefix));
            let v6 = attachment.v6.map(|(ip, prefix)| (IpAddr::V6(ip), prefix));
            let gateways =
                [attachment.gateway4.map(IpAddr::V4), attachment.gateway6.map(IpAddr::V6)];
            for ((address, prefix), gateway) in
                [v4, v6].into_iter().zip(gateways).filter_map(|(at, gateway)| Some((at?, gateway)))
            {
                let subnets = &mut wish.network.subnets;
                if !subnets.iter().any(|subnet| subnet.net.contains(&address)) {
                    let net = IpNet::new(address, prefix).ok()?.trunc();
                    subnets.push(Subnet { net, gateway, range: None, reserved: Vec::new() });
                }
            }
            Some(wish)
        };
        self.networks = attachments.iter().filter_map(of).collect();
        self
    }
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

impl PortWish {
    /// The port of the host that it must be, where no other will do.
    #[must_use]
    pub fn fixed(&self) -> Option<HostPort> {
        let range = self.published.as_ref().filter(|range| range.start() == range.end())?;
        Some(self.at(*range.start()))
    }

    /// This port of the host, for it.
    #[must_use]
    pub fn at(&self, port: u16) -> HostPort {
        HostPort::new(self.host_ip, port, self.transport)
    }
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
