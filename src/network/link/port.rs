//! The pair of interfaces between a container and a bridge.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};

use super::super::netlink::Netlink;
use super::super::{Attachment, LinkKind, Owner};
use super::{LinkError, apart, failed, name_for, request};

/// Connects the network namespace `container` to bridges: an interface for each attachment, with addresses and routes,
/// and the loopback interface up. A pair that an earlier run of the same container left is replaced: its other end is
/// in a namespace that nobody uses any more, and still has the address.
///
/// # Errors
/// When a bridge is missing or the kernel refuses a step. Pairs that were made by then are removed again.
pub fn attach(
    owner: &Owner,
    container: BorrowedFd<'_>,
    attachments: &[Attachment],
) -> Result<(), LinkError> {
    let mut host = Netlink::open().map_err(LinkError::Netlink)?;
    let mut inside = Netlink::open_in(container).map_err(LinkError::Netlink)?;
    let loopback = request::link(&mut inside, "lo").map_err(failed("find", "lo"))?;
    request::raise(&mut inside, loopback.index, Vec::new()).map_err(failed("bring up", "lo"))?;
    let mut made = Vec::with_capacity(attachments.len());
    for attachment in attachments {
        let pair = connect(owner, container, attachment, &mut host);
        let done = pair.and_then(|index| {
            made.push(index);
            configure(attachment, &mut inside)
        });
        if let Err(error) = done {
            for index in made {
                // The failure that is told is the one that led here.
                let _ = request::delete(&mut host, index);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Makes the pair, one end in the container under its name there; returns the number of the host's end.
fn connect(
    owner: &Owner,
    container: BorrowedFd<'_>,
    attachment: &Attachment,
    host: &mut Netlink,
) -> Result<u32, LinkError> {
    let bridge = match request::link(host, &attachment.bridge) {
        Ok(link) => link,
        Err(error) if request::is_gone(&error) => {
            return Err(LinkError::NoBridge(attachment.bridge.clone()));
        }
        Err(error) => return Err(LinkError::Netlink(error)),
    };
    let what = attachment.what.as_str();
    let (name, stale) = name_for(host, owner, LinkKind::Port, what)?;
    if let Some(index) = stale {
        request::delete(host, index).map_err(failed("remove the old", &name))?;
    }
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(attachment.interface.clone()),
        LinkAttribute::NetNsFd(container.as_raw_fd()),
        LinkAttribute::Address(attachment.mac.to_vec()),
    ];
    let attributes = vec![
        LinkAttribute::IfName(name.clone()),
        LinkAttribute::Controller(bridge.index),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    request::create(host, attributes).map_err(failed("make", &name))?;
    let link = request::link(host, &name).map_err(failed("find", &name))?;
    let alias = vec![LinkAttribute::IfAlias(owner.alias(what))];
    let raised =
        request::raise(host, link.index, alias).map_err(failed("bring up", &name)).and_then(|()| {
            request::let_port_send_back(host, link.index)
                .and_then(|()| match apart::is_by_bridge(attachment.neighbours) {
                    true => request::isolate_port(host, link.index, true),
                    false => Ok(()),
                })
                .map_err(failed("set up", &name))
        });
    if let Err(error) = raised {
        let _ = request::delete(host, link.index);
        return Err(error);
    }
    Ok(link.index)
}

fn configure(attachment: &Attachment, inside: &mut Netlink) -> Result<(), LinkError> {
    let name = attachment.interface.as_str();
    let link = request::link(inside, name).map_err(failed("find", name))?;
    let v4 = attachment.v4.map(|(address, prefix)| (IpAddr::V4(address), prefix));
    let v6 = attachment.v6.map(|(address, prefix)| (IpAddr::V6(address), prefix));
    for (address, prefix) in [v4, v6].into_iter().flatten() {
        request::add_address(inside, link.index, address, prefix)
            .map_err(failed("give an address to", name))?;
    }
    request::raise(inside, link.index, Vec::new()).map_err(failed("bring up", name))?;
    let gateways = [attachment.gateway4.map(IpAddr::V4), attachment.gateway6.map(IpAddr::V6)];
    for gateway in gateways.into_iter().flatten() {
        request::add_default_route(inside, link.index, gateway)
            .map_err(failed("route through", name))?;
    }
    Ok(())
}
