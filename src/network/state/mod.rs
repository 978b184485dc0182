//! Who is in which network, and what follows from it: attachments, rules, names. Computes only.
//!
//! [`NetworkState`] is a durable record, kept by whoever runs containers: a container that goes on while control is
//! replaced keeps its ports and names, because they follow from the record and from nothing else.

mod follow;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::names::Ready;
use super::port::{self, HostPort};
use super::wish::{JoinError, MemberWish, MembershipWish};
use super::{
    AddressBook, AddressError, Addresses, EndpointWish, HostAccess, Ipv6, NetworkKey, NetworkSpec,
    Publication, Published, Reach, SubnetError, Surroundings,
};

/// Where ports come from that nobody chose; the same as the kernel's own.
const ANY_PORT: RangeInclusive<u16> = 32768..=60999;

/// All networks and their containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// Subnets and addresses.
    pub book: AddressBook,
    networks: BTreeMap<NetworkKey, Known>,
    members: BTreeMap<String, Member>,
    /// Ports that were chosen, by who has them and what they lead to: kept across recreation.
    chosen: BTreeMap<String, u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    reach: Reach,
    /// The project that says what it is.
    #[serde(default)]
    owner: Option<String>,
}

/// A container in networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    endpoint: String,
    memberships: Vec<Membership>,
    publications: Vec<Publication>,
    host_access: HostAccess,
    dns: Vec<IpAddr>,
    ready: Ready,
}

/// One network of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Membership {
    network: NetworkKey,
    addresses: Addresses,
    canonical: String,
    names: Vec<String>,
}

impl NetworkState {
    /// Puts a container into its networks; one that is in some already is taken out of them first. `is_free` says
    /// whether no process of the host has a port.
    ///
    /// # Errors
    /// When it cannot have what it wants. Nothing is changed then.
    pub fn join(
        &mut self,
        wish: &MemberWish,
        surroundings: &Surroundings,
        is_free: impl Fn(HostPort) -> bool,
    ) -> Result<(), JoinError> {
        let mut next = self.clone();
        next.members.remove(&wish.container);
        let mut memberships = Vec::with_capacity(wish.networks.len());
        for wanted in &wish.networks {
            let key = &wanted.network.key;
            if !next.is_as_found(&wanted.network) {
                next.ensure_subnet(&wanted.network, surroundings)?;
            }
            next.claim(&wanted.network)?;
            let addresses = next.address(&wish.endpoint, wanted)?;
            memberships.push(Membership {
                network: key.clone(),
                addresses,
                canonical: wanted.canonical.clone(),
                names: wanted.names.clone(),
            });
        }
        let way_in = memberships.iter().position(|m| next.leads_outside(&m.network));
        let publications = match way_in.and_then(|at| memberships.get(at)) {
            Some(way_in) => next.publish(wish, way_in.addresses, &is_free)?,
            None if wish.ports.is_empty() => Vec::new(),
            None => return Err(JoinError::NoWayIn(wish.endpoint.clone())),
        };
        let member = Member {
            endpoint: wish.endpoint.clone(),
            memberships,
            publications,
            host_access: wish.host_access,
            dns: wish.dns.clone(),
            ready: Ready::No,
        };
        next.members.insert(wish.container.clone(), member);
        *self = next;
        Ok(())
    }

    /// Whether it is somebody's who only uses the network and says nothing of it, and the network has its subnets: these
    /// are its owner's choice, and those who are in it run with them. What is nobody's may get another family while
    /// nobody is in it.
    fn is_as_found(&self, wanted: &NetworkSpec) -> bool {
        let says_nothing =
            wanted.owner.is_none() && wanted.ipv6 == Ipv6::AsHost && wanted.subnets.is_empty();
        let is_in_use =
            self.networks.contains_key(&wanted.key) || wanted.key != NetworkKey::shared();
        says_nothing && is_in_use && self.book.network(&wanted.key).is_some()
    }

    /// Notes that a network exists, and what it is if its project says so.
    fn claim(&mut self, wanted: &NetworkSpec) -> Result<(), JoinError> {
        let NetworkSpec { key, owner, reach, .. } = wanted;
        match self.networks.get_mut(key) {
            None => {
                let known = Known { reach: *reach, owner: owner.clone() };
                self.networks.insert(key.clone(), known);
            }
            Some(known) if owner.is_some() => {
                if let Some(other) =
                    known.owner.as_ref().filter(|other| Some(*other) != owner.as_ref())
                {
                    let (network, owner) = (key.clone(), other.clone());
                    return Err(JoinError::Foreign { network, owner });
                }
                *known = Known { reach: *reach, owner: owner.clone() };
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Gives a network its subnets. When none are left, those of networks that are not there any more are.
    fn ensure_subnet(
        &mut self,
        wanted: &NetworkSpec,
        surroundings: &Surroundings,
    ) -> Result<(), SubnetError> {
        match self.book.ensure_network(wanted, surroundings).map(drop) {
            Err(SubnetError::Exhausted(_)) => {}
            // A network that is not there any more is in nobody's way.
            Err(SubnetError::Doubled { other, .. }) if !self.networks.contains_key(&other) => {
                self.book.forget(&other);
                return self.ensure_subnet(wanted, surroundings);
            }
            other => return other,
        }
        let gone: Vec<NetworkKey> = self
            .book
            .networks()
            .map(|(key, _)| key.clone())
            .filter(|key| !self.networks.contains_key(key))
            .collect();
        gone.iter().for_each(|key| self.book.forget(key));
        self.book.ensure_network(wanted, surroundings).map(drop)
    }

    fn leads_outside(&self, network: &NetworkKey) -> bool {
        self.networks.get(network).is_some_and(|known| known.reach == Reach::Outside)
    }

    /// One more address in a network, with those that its containers have.
    fn address(
        &mut self,
        endpoint: &str,
        wanted: &MembershipWish,
    ) -> Result<Addresses, AddressError> {
        let key = &wanted.network.key;
        let here = self.members.values().filter(|member| member.endpoint != endpoint);
        let here = here.flat_map(|member| {
            let of_it = member.memberships.iter().filter(|m| m.network == *key);
            of_it.map(|membership| EndpointWish {
                name: member.endpoint.clone(),
                // They run with these, so that nobody else can have them.
                v4: Some(membership.addresses.v4),
                v6: membership.addresses.v6,
            })
        });
        let mut all: Vec<EndpointWish> = here.collect();
        all.push(EndpointWish { name: endpoint.to_owned(), v4: wanted.v4, v6: wanted.v6 });
        let given = self.book.assign(key, &all)?;
        given.get(endpoint).copied().ok_or_else(|| AddressError::NoNetwork(key.clone()))
    }

    fn publish(
        &mut self,
        wish: &MemberWish,
        to: Addresses,
        is_free: &impl Fn(HostPort) -> bool,
    ) -> Result<Vec<Publication>, JoinError> {
        let mut publications = Vec::new();
        for wanted in &wish.ports {
            let (target, transport) = (wanted.target, wanted.transport);
            let address = wanted.host_ip.filter(|address| !address.is_unspecified());
            let owner = |port: HostPort, taken: &[Publication]| {
                let own = taken.iter().map(|p| (wish.endpoint.as_str(), HostPort::of(p)));
                let all = self.members.values().flat_map(|member| {
                    member.publications.iter().map(|p| (member.endpoint.as_str(), HostPort::of(p)))
                });
                let mut others = all.chain(own);
                others.find(|(_, other)| other.collides(&port)).map(|(name, _)| name.to_owned())
            };
            let chosen = if let Some(port) = wanted.fixed() {
                // What the user wrote; a process of the host that has it is told by whoever asks for it.
                if let Some(owner) = owner(port, &publications) {
                    return Err(JoinError::Published { port, owner });
                }
                port.port
            } else {
                let range = wanted.published.clone().unwrap_or(ANY_PORT);
                let name = format!("{} {target}/{transport}", wish.endpoint);
                let had = self.chosen.get(&name).copied();
                let usable = |port| {
                    let port = wanted.at(port);
                    owner(port, &publications).is_none() && is_free(port)
                };
                let chosen = port::choose(had, range.clone(), usable);
                let endpoint = wish.endpoint.clone();
                let chosen = chosen.ok_or(JoinError::NoPort { endpoint, range })?;
                self.chosen.insert(name, chosen);
                chosen
            };
            let addresses = [Some(IpAddr::V4(to.v4)), to.v6.map(IpAddr::V6)];
            for to in addresses.into_iter().flatten() {
                if address.is_none_or(|address| address.is_ipv6() == to.is_ipv6()) {
                    let host_ip = address;
                    let (host_port, to_port) = (chosen, target);
                    publications.push(Publication { host_ip, host_port, transport, to, to_port });
                }
            }
        }
        Ok(publications)
    }

    /// Takes a container out of its networks; what it had is kept for the next one of its name.
    pub fn leave(&mut self, container: &str) {
        self.members.remove(container);
    }

    /// Takes out every container for which `runs` is false, and forgets networks without any.
    pub fn keep(&mut self, runs: impl Fn(&str) -> bool) {
        self.members.retain(|container, _| runs(container));
        let Self { networks, members, .. } = self;
        networks.retain(|key, _| {
            members.values().any(|member| member.memberships.iter().any(|m| m.network == *key))
        });
    }

    /// Notes whether a container can be used. True if that is new.
    pub fn set_ready(&mut self, container: &str, ready: Ready) -> bool {
        let member = self.members.get_mut(container);
        member.is_some_and(|member| std::mem::replace(&mut member.ready, ready) != ready)
    }

    /// Containers that are in networks.
    pub fn containers(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// Where a container is published.
    #[must_use]
    pub fn publications(&self, container: &str) -> &[Publication] {
        self.members.get(container).map_or(&[], |member| &member.publications)
    }

    /// Everything that is published, and what of.
    #[must_use]
    pub fn published(&self) -> Vec<Published> {
        let all = self.members.values().flat_map(|m| m.publications.iter().map(move |p| (m, p)));
        all.map(|(member, publication)| Published {
            service: member.endpoint.clone(),
            publication: publication.clone(),
        })
        .collect()
    }
}
