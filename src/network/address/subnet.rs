//! Which subnet a network gets: one that neither the host nor another network of ours uses.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sha2::{Digest as _, Sha256};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::{NetworkKey, Subnet};

/// Where subnets come from when nobody chose one. In the middle of what RFC 1918 leaves to everyone: away from the
/// low ends, which routers and other container engines give out first.
pub(super) const POOLS: [Ipv4Net; 3] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 213, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 29, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 192, 0), 18),
];
/// 253 containers; a bridge has 1024 ports.
const V4_PREFIX: u8 = 24;
const V6_PREFIX: u8 = 64;
/// How many prefixes of version 6 are tried; a second one is needed once in many universes.
const V6_ATTEMPTS: u32 = 8;

/// Why a network has no subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// The user's choice is used by someone else.
    #[error(
        "subnet `{subnet}` of network `{network}` overlaps with `{other}`, which this host uses"
    )]
    Taken {
        /// The network.
        network: NetworkKey,
        /// What was chosen.
        subnet: IpNet,
        /// What is in the way.
        other: IpNet,
    },
    /// The user's choice is used by another of our networks.
    #[error("subnet `{subnet}` of network `{network}` overlaps with network `{other}`")]
    Doubled {
        /// The network.
        network: NetworkKey,
        /// What was chosen.
        subnet: IpNet,
        /// The network that has it.
        other: NetworkKey,
    },
    /// Everything that we give out is used.
    #[error("no subnet is left for network `{0}`; choose one with `ipam`")]
    Exhausted(NetworkKey),
    /// The user's choice makes no sense.
    #[error("subnet `{subnet}` of network `{network}`: {problem}")]
    Unusable {
        /// The network.
        network: NetworkKey,
        /// What was chosen.
        subnet: IpNet,
        /// What is wrong.
        problem: &'static str,
    },
}

/// What there is on the host besides our networks.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Destinations of routes other than the default ones, addresses of interfaces and of name servers; none that is
    /// there for our own bridges.
    pub taken: Vec<IpNet>,
    /// Whether the host has addresses of version 6 that lead outside.
    pub has_ipv6: bool,
    /// What the prefixes of version 6 are made of, such as the instance.
    pub seed: String,
    /// Where subnets come from when nobody chose one; the built-in ones where empty.
    pub pools: Vec<Ipv4Net>,
}

pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// A subnet of version 4 that overlaps with nothing in `taken`.
pub(super) fn free_v4(surroundings: &Surroundings, taken: &[IpNet]) -> Option<IpNet> {
    let own: &[Ipv4Net] = if surroundings.pools.is_empty() { &POOLS } else { &surroundings.pools };
    let all = own.iter().flat_map(|pool| pool.subnets(pool.prefix_len().max(V4_PREFIX)));
    let mut nets = all.flatten().map(IpNet::V4);
    nets.find(|net| !taken.iter().any(|taken| overlap(net, taken)))
}

/// A subnet of version 6 with a prefix that nobody else has (RFC 4193).
pub(super) fn free_v6(
    surroundings: &Surroundings,
    key: &NetworkKey,
    taken: &[IpNet],
) -> Option<IpNet> {
    (0..V6_ATTEMPTS)
        .map(|attempt| {
            let mut hash = Sha256::new();
            hash.update(surroundings.seed.as_bytes());
            hash.update(attempt.to_le_bytes());
            let of_host = hash.clone().finalize();
            hash.update(key.as_str().as_bytes());
            let of_network = hash.finalize();
            let mut octets = [0; 16];
            octets[0] = 0xfd;
            octets[1..6].copy_from_slice(&of_host[..5]);
            octets[6..8].copy_from_slice(&of_network[..2]);
            IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from(octets), V6_PREFIX))
        })
        .find(|net| !taken.iter().any(|taken| overlap(net, taken)))
}

/// What is wrong with a subnet that the user chose.
pub(super) fn problem(chosen: &Subnet) -> Option<&'static str> {
    let room = chosen.net.max_prefix_len() - chosen.net.prefix_len();
    let inside = |address: &IpAddr| chosen.net.contains(address);
    if chosen.net.trunc() != chosen.net {
        Some("it has bits set behind its prefix")
    } else if chosen.net.prefix_len() < 8 || room < 2 {
        Some("the prefix must leave room for two addresses at least, and be of 8 bits at least")
    } else if chosen.net.addr().is_loopback() || chosen.net.addr().is_multicast() {
        Some("containers cannot have such addresses")
    } else if chosen.gateway.is_some_and(|gateway| !inside(&gateway)) {
        Some("the gateway is not in it")
    } else if chosen.gateway.is_some_and(|gateway| {
        gateway == chosen.net.network() || (gateway.is_ipv4() && gateway == chosen.net.broadcast())
    }) {
        Some("the gateway is the address of the subnet itself")
    } else if chosen.range.is_some_and(|range| !chosen.net.contains(&range)) {
        Some("the range is not in it")
    } else if chosen.reserved.iter().any(|address| !inside(address)) {
        Some("an auxiliary address is not in it")
    } else {
        None
    }
}
