//! The bridge of a network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};

use super::super::netlink::Netlink;
use super::super::{Attachment, LinkKind, NetworkKey, Owner};
use super::{LinkError, failed, name_for, request};

/// A bridge that should be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Of which network.
    pub network: NetworkKey,
    /// Its address, and length of the prefix.
    pub v4: (Ipv4Addr, u8),
    /// Its address, and length of the prefix.
    pub v6: Option<(Ipv6Addr, u8)>,
}

/// Makes a bridge, or what is missing of it: address, alias, being up. Addresses that it should not have go. Returns
/// its name.
///
/// # Errors
/// When the kernel refuses a step.
pub fn ensure_bridge(owner: &Owner, bridge: &Bridge) -> Result<String, LinkError> {
    let mut netlink = Netlink::open().map_err(LinkError::Netlink)?;
    let netlink = &mut netlink;
    let what = bridge.network.as_str();
    let (name, _) = name_for(netlink, owner, LinkKind::Bridge, what)?;
    let link = match request::link(netlink, &name) {
        Ok(link) => link,
        Err(error) if request::is_gone(&error) => {
            let mac = Attachment::mac_for(&owner.alias(what));
            let attributes = vec![
                LinkAttribute::IfName(name.clone()),
                // Its own, or it would take that of a port and change it whenever a container comes or goes.
                LinkAttribute::Address(mac.to_vec()),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
            ];
            request::create(netlink, attributes).map_err(failed("make", &name))?;
            request::link(netlink, &name).map_err(failed("find", &name))?
        }
        Err(error) => return Err(LinkError::Netlink(error)),
    };
    let mut wanted = vec![(IpAddr::V4(bridge.v4.0), bridge.v4.1)];
    wanted.extend(bridge.v6.map(|(address, prefix)| (IpAddr::V6(address), prefix)));
    let have = request::addresses(netlink).map_err(LinkError::Netlink)?;
    let have: Vec<(IpAddr, u8)> = have
        .into_iter()
        .filter(|(index, _, _)| *index == link.index)
        .map(|(_, address, prefix)| (address, prefix))
        .collect();
    if link.alias.is_none() || !link.is_up {
        let alias = vec![LinkAttribute::IfAlias(owner.alias(what))];
        request::raise(netlink, link.index, alias).map_err(failed("bring up", &name))?;
    }
    for (address, prefix) in have.iter().filter(|have| !wanted.contains(have)) {
        request::remove_address(netlink, link.index, *address, *prefix)
            .map_err(failed("take an address from", &name))?;
    }
    for (address, prefix) in wanted.iter().filter(|wanted| !have.contains(wanted)) {
        request::add_address(netlink, link.index, *address, *prefix)
            .map_err(failed("give an address to", &name))?;
    }
    Ok(name)
}
