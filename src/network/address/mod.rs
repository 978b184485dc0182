//! Which subnet a network has and which address a container has in it. Computes only.
//!
//! The [`AddressBook`] is a durable record; its owner keeps it. What was given out once is kept: a service that is
//! recreated, or that is away for a while, finds its address again, unless another one was given it in the file or
//! there are no others left.

mod pool;
mod subnet;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Ipv6, NetworkKey, NetworkSpec, Subnet};
use pool::Pool;
pub use subnet::{SubnetError, Surroundings};

/// Every network of this host that we gave a subnet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressBook {
    networks: BTreeMap<NetworkKey, NetworkEntry>,
}

/// A network in the book.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkEntry {
    /// Addresses of version 4.
    pub v4: FamilyEntry,
    /// Addresses of version 6, if it has them.
    #[serde(default)]
    pub v6: Option<FamilyEntry>,
    /// What each container has, by the name that it keeps when it is recreated.
    #[serde(default)]
    endpoints: BTreeMap<String, Addresses>,
}

/// One family of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyEntry {
    /// The subnet.
    pub net: IpNet,
    /// Address of the bridge.
    pub gateway: IpAddr,
    /// Where addresses that nobody asked for come from.
    range: IpNet,
    #[serde(default)]
    reserved: BTreeSet<IpAddr>,
    /// The address that was given out last.
    #[serde(default)]
    last: Option<IpAddr>,
}

/// The addresses of one container in one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Of version 4.
    pub v4: Ipv4Addr,
    /// Of version 6, if the network has it.
    #[serde(default)]
    pub v6: Option<Ipv6Addr>,
}

/// One container that wants to be in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointWish {
    /// A name that it keeps when it is recreated.
    pub name: String,
    /// The address that its file gives it (`ipv4_address`).
    pub v4: Option<Ipv4Addr>,
    /// As `v4` (`ipv6_address`).
    pub v6: Option<Ipv6Addr>,
}

/// Why a container has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The network was not given a subnet before.
    #[error("network `{0}` has no subnet")]
    NoNetwork(NetworkKey),
    /// A fixed address that the network cannot give.
    #[error(
        "`{endpoint}` cannot have the address `{address}` in network `{network}`: its subnet is `{subnet}`"
    )]
    Outside {
        /// Who wants it.
        endpoint: String,
        /// The address.
        address: IpAddr,
        /// The network.
        network: NetworkKey,
        /// Its subnet.
        subnet: IpNet,
    },
    /// A fixed address of version 6 in a network of version 4.
    #[error("`{endpoint}` cannot have the address `{address}`: network `{network}` has no IPv6")]
    NoIpv6 {
        /// Who wants it.
        endpoint: String,
        /// The address.
        address: IpAddr,
        /// The network.
        network: NetworkKey,
    },
    /// Two containers with one fixed address.
    #[error("`{endpoint}` and `{other}` both have the address `{address}` in network `{network}`")]
    Doubled {
        /// Who wants it.
        endpoint: String,
        /// Who wants it too.
        other: String,
        /// The address.
        address: IpAddr,
        /// The network.
        network: NetworkKey,
    },
    /// All addresses are in use.
    #[error("no address is left for `{endpoint}` in network `{network}` (`{subnet}`)")]
    Exhausted {
        /// Who wants one.
        endpoint: String,
        /// The network.
        network: NetworkKey,
        /// Its subnet.
        subnet: IpNet,
    },
}

impl AddressBook {
    /// The networks in it.
    pub fn networks(&self) -> impl Iterator<Item = (&NetworkKey, &NetworkEntry)> {
        self.networks.iter()
    }

    /// One network.
    #[must_use]
    pub fn network(&self, key: &NetworkKey) -> Option<&NetworkEntry> {
        self.networks.get(key)
    }

    /// Forgets a network that is gone, with all addresses in it.
    pub fn forget(&mut self, key: &NetworkKey) {
        self.networks.remove(key);
    }

    /// Gives a network its subnets, or finds that it has them. What it has is kept, unless the file asks for another.
    ///
    /// # Errors
    /// When the user's choice cannot be, or nothing is left. The book is unchanged then.
    pub fn ensure_network(
        &mut self,
        spec: &NetworkSpec,
        surroundings: &Surroundings,
    ) -> Result<&NetworkEntry, SubnetError> {
        let before = self.networks.get(&spec.key);
        let chosen = |v6: bool| spec.subnets.iter().find(move |s| s.net.addr().is_ipv6() == v6);
        let wants_v6 = match spec.ipv6 {
            Ipv6::Always => true,
            Ipv6::Never => false,
            // A family that was there stays: a host whose uplink is away for a moment must not change a network.
            Ipv6::AsHost => {
                surroundings.has_ipv6
                    || chosen(true).is_some()
                    || before.is_some_and(|entry| entry.v6.is_some())
            }
        };
        let v4 = self.family(spec, surroundings, chosen(false), before.map(|e| &e.v4), false)?;
        let v6 = if wants_v6 {
            let had = before.and_then(|entry| entry.v6.as_ref());
            Some(self.family(spec, surroundings, chosen(true), had, true)?)
        } else {
            None
        };
        let mut entry = NetworkEntry {
            v4,
            v6,
            endpoints: before.map(|entry| entry.endpoints.clone()).unwrap_or_default(),
        };
        entry.endpoints.retain(|_, addresses| entry.v4.net.contains(&IpAddr::V4(addresses.v4)));
        Ok(self.networks.entry(spec.key.clone()).insert_entry(entry).into_mut())
    }

    fn family(
        &self,
        spec: &NetworkSpec,
        surroundings: &Surroundings,
        chosen: Option<&Subnet>,
        before: Option<&FamilyEntry>,
        v6: bool,
    ) -> Result<FamilyEntry, SubnetError> {
        let Some(chosen) = chosen else {
            if let Some(before) = before {
                return Ok(before.clone());
            }
            let others = self.others(&spec.key).map(|(_, net)| net);
            let taken: Vec<IpNet> = surroundings.taken.iter().copied().chain(others).collect();
            let net = if v6 {
                subnet::free_v6(surroundings, &spec.key, &taken)
            } else {
                subnet::free_v4(surroundings, &taken)
            };
            let net = net.ok_or_else(|| SubnetError::Exhausted(spec.key.clone()))?;
            return Ok(FamilyEntry::new(&Subnet {
                net,
                gateway: None,
                range: None,
                reserved: Vec::new(),
            }));
        };
        let (network, subnet) = (spec.key.clone(), chosen.net);
        if let Some(problem) = subnet::problem(chosen) {
            return Err(SubnetError::Unusable { network, subnet, problem });
        }
        let mut others = self.others(&spec.key);
        if let Some((other, _)) = others.find(|(_, net)| subnet::overlap(net, &subnet)) {
            return Err(SubnetError::Doubled { network, subnet, other: other.clone() });
        }
        let mut taken = surroundings.taken.iter();
        if let Some(other) = taken.find(|taken| subnet::overlap(taken, &subnet)) {
            return Err(SubnetError::Taken { network, subnet, other: *other });
        }
        let mut entry = FamilyEntry::new(chosen);
        entry.last = before.filter(|before| before.net == subnet).and_then(|before| before.last);
        Ok(entry)
    }

    /// Subnets of the other networks.
    fn others(&self, key: &NetworkKey) -> impl Iterator<Item = (&NetworkKey, IpNet)> {
        let others = self.networks.iter().filter(move |(other, _)| *other != key);
        others.flat_map(|(key, entry)| {
            [Some(&entry.v4), entry.v6.as_ref()].into_iter().flatten().map(move |f| (key, f.net))
        })
    }

    /// Gives every container of a network its address. Those that the file fixes come first, then those that were
    /// given before, then the others. Containers that are not in `wanted` keep theirs as long as it is not needed.
    ///
    /// # Errors
    /// When one of them cannot have an address. The book is unchanged then.
    pub fn assign(
        &mut self,
        key: &NetworkKey,
        wanted: &[EndpointWish],
    ) -> Result<BTreeMap<String, Addresses>, AddressError> {
        let Some(entry) = self.networks.get_mut(key) else {
            return Err(AddressError::NoNetwork(key.clone()));
        };
        let had = |name: &str| entry.endpoints.get(name);
        let v4 = wanted.iter().map(|wish| Claim {
            name: &wish.name,
            fixed: wish.v4.map(IpAddr::V4),
            had: had(&wish.name).map(|addresses| IpAddr::V4(addresses.v4)),
        });
        let is_wanted = |name: &str| wanted.iter().any(|wish| wish.name == name);
        let away = || entry.endpoints.iter().filter(|(name, _)| !is_wanted(name)).map(|(_, a)| a);
        let resting = away().map(|addresses| IpAddr::V4(addresses.v4)).collect();
        let (v4, last4) = entry.v4.assign(key, &v4.collect::<Vec<_>>(), &resting)?;
        let (v6, last6) = match &entry.v6 {
            Some(family) => {
                let claims = wanted.iter().map(|wish| Claim {
                    name: &wish.name,
                    fixed: wish.v6.map(IpAddr::V6),
                    had: had(&wish.name).and_then(|addresses| addresses.v6).map(IpAddr::V6),
                });
                let resting = away().filter_map(|a| a.v6).map(IpAddr::V6).collect();
                family.assign(key, &claims.collect::<Vec<_>>(), &resting)?
            }
            None => match wanted.iter().find_map(|wish| Some((wish, wish.v6?))) {
                Some((wish, address)) => {
                    let (endpoint, network) = (wish.name.clone(), key.clone());
                    let address = IpAddr::V6(address);
                    return Err(AddressError::NoIpv6 { endpoint, address, network });
                }
                None => (BTreeMap::new(), None),
            },
        };
        let given: BTreeMap<String, Addresses> = v4
            .into_iter()
            .filter_map(|(name, address)| {
                let IpAddr::V4(v4_address) = address else { return None };
                let v6_address = v6.get(&name).and_then(|address| match address {
                    IpAddr::V6(address) => Some(*address),
                    IpAddr::V4(_) => None,
                });
                Some((name, Addresses { v4: v4_address, v6: v6_address }))
            })
            .collect();
        let lost = |a: &Addresses| {
            given.values().any(|g| g.v4 == a.v4 || (g.v6.is_some() && g.v6 == a.v6))
        };
        entry.endpoints.retain(|_, addresses| !lost(addresses));
        entry.endpoints.extend(given.clone());
        entry.v4.last = last4;
        if let Some(family) = &mut entry.v6 {
            family.last = last6;
        }
        Ok(given)
    }

    /// Forgets the containers of a network for which `is_known` is false: their services are gone for good.
    pub fn keep(&mut self, key: &NetworkKey, is_known: impl Fn(&str) -> bool) {
        if let Some(entry) = self.networks.get_mut(key) {
            entry.endpoints.retain(|name, _| is_known(name));
        }
    }
}

impl NetworkEntry {
    /// What a container was given.
    #[must_use]
    pub fn endpoint(&self, name: &str) -> Option<Addresses> {
        self.endpoints.get(name).copied()
    }
}

/// What one container wants of one family, and what it had.
struct Claim<'a> {
    name: &'a str,
    fixed: Option<IpAddr>,
    had: Option<IpAddr>,
}

/// What each got, and the last address that was newly given.
type Given = (BTreeMap<String, IpAddr>, Option<IpAddr>);

impl FamilyEntry {
    fn new(chosen: &Subnet) -> Self {
        let net = chosen.net;
        let first = || net.hosts().find(|address| *address != net.network());
        let gateway = chosen.gateway.or_else(first).unwrap_or_else(|| net.addr());
        let mut reserved: BTreeSet<IpAddr> = chosen.reserved.iter().copied().collect();
        reserved.insert(gateway);
        Self { net, gateway, range: chosen.range.unwrap_or(net), reserved, last: None }
    }

    fn assign(
        &self,
        key: &NetworkKey,
        claims: &[Claim<'_>],
        resting: &BTreeSet<IpAddr>,
    ) -> Result<Given, AddressError> {
        let pool = Pool { net: self.net, range: self.range, reserved: &self.reserved };
        let (network, subnet) = (|| key.clone(), self.net);
        let mut given: BTreeMap<String, IpAddr> = BTreeMap::new();
        let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for claim in claims {
            let Some(address) = claim.fixed else { continue };
            let endpoint = claim.name.to_owned();
            if !pool.is_host(address) {
                return Err(AddressError::Outside {
                    endpoint,
                    address,
                    network: network(),
                    subnet,
                });
            }
            if let Some(other) = owners.insert(address, claim.name).filter(|o| *o != claim.name) {
                let other = other.to_owned();
                return Err(AddressError::Doubled { endpoint, other, address, network: network() });
            }
            given.insert(endpoint, address);
        }
        let mut used: BTreeSet<IpAddr> = owners.into_keys().collect();
        for claim in claims.iter().filter(|claim| claim.fixed.is_none()) {
            if let Some(had) = claim.had.filter(|had| pool.is_host(*had) && !used.contains(had)) {
                used.insert(had);
                given.insert(claim.name.to_owned(), had);
            }
        }
        let mut last = self.last;
        for claim in claims {
            if given.contains_key(claim.name) {
                continue;
            }
            let untouched: BTreeSet<IpAddr> = used.union(resting).copied().collect();
            let address = pool.next(last, &untouched).or_else(|| pool.next(last, &used));
            let Some(address) = address else {
                let endpoint = claim.name.to_owned();
                return Err(AddressError::Exhausted { endpoint, network: network(), subnet });
            };
            used.insert(address);
            given.insert(claim.name.to_owned(), address);
            last = Some(address);
        }
        Ok((given, last))
    }
}
