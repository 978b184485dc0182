//! What else there is on the host: addresses and routes that ours must not collide with.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::Owner;
use super::super::netlink::Netlink;
use super::{LinkError, request};

/// What the host uses besides our bridges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostLinks {
    /// Destinations of routes other than the default ones, and subnets of interfaces.
    pub taken: Vec<IpNet>,
    /// Whether there is a way out for version 6.
    pub has_ipv6: bool,
}

/// Looks at the host's interfaces and routes.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn look_around(owner: &Owner) -> Result<HostLinks, LinkError> {
    let mut netlink = Netlink::open().map_err(LinkError::Netlink)?;
    let ours = super::list_with(&mut netlink, owner)?;
    let ours: BTreeSet<u32> = ours.into_iter().map(|link| link.index).collect();
    let routes = request::routes(&mut netlink).map_err(LinkError::Netlink)?;
    let addresses = request::addresses(&mut netlink).map_err(LinkError::Netlink)?;
    let is_ours = |index: Option<u32>| index.is_some_and(|index| ours.contains(&index));
    let mut taken = BTreeSet::new();
    for route in routes.iter().filter(|route| !is_ours(route.through)) {
        let local = |net: &IpNet| match net.addr() {
            IpAddr::V4(address) => address.is_link_local(),
            // Every interface has these.
            IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
        };
        taken.extend(route.to.filter(|net| !local(net)));
    }
    for (index, address, prefix) in addresses {
        if !ours.contains(&index) && !address.is_loopback() {
            taken.extend(IpNet::new(address, prefix).map(|net| net.trunc()));
        }
    }
    let has_ipv6 = routes.iter().any(|route| {
        route.is_v6 && route.to.is_none() && route.through.is_some() && !is_ours(route.through)
    });
    Ok(HostLinks { taken: taken.into_iter().collect(), has_ipv6 })
}
