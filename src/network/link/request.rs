//! Single requests about links, addresses and routes.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::super::netlink::Netlink;

/// What is known of an interface.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) alias: Option<String>,
    pub(super) is_up: bool,
    /// The bridge whose port it is.
    pub(super) controller: Option<u32>,
}

impl Link {
    fn of(message: &LinkMessage) -> Option<Self> {
        let (mut name, mut alias, mut controller) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text.clone()),
                LinkAttribute::IfAlias(text) if !text.is_empty() => alias = Some(text.clone()),
                LinkAttribute::Controller(index) => controller = Some(*index),
                _ => {}
            }
        }
        let header = &message.header;
        Some(Self {
            index: header.index,
            name: name?,
            alias,
            is_up: header.flags.contains(LinkFlags::Up),
            controller,
        })
    }
}

/// Whether a request failed because what it is about does not exist.
pub(super) fn is_gone(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::NODEV)
}

fn is_there(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::EXIST)
}

pub(super) fn links(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let all = netlink.list(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(all
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(message) => Link::of(message),
            _ => None,
        })
        .collect())
}

pub(super) fn link(netlink: &mut Netlink, name: &str) -> io::Result<Link> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match netlink.get(RouteNetlinkMessage::GetLink(message))? {
        RouteNetlinkMessage::NewLink(message) => {
            Link::of(&message).ok_or_else(|| Errno::NODEV.into())
        }
        _ => Err(Errno::BADMSG.into()),
    }
}

/// Makes an interface; it must not exist.
pub(super) fn create(netlink: &mut Netlink, attributes: Vec<LinkAttribute>) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.attributes = attributes;
    netlink.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Changes attributes of an interface, and brings it up.
pub(super) fn raise(
    netlink: &mut Netlink,
    index: u32,
    attributes: Vec<LinkAttribute>,
) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = attributes;
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Lets a port of a bridge send back what it received: where bridged packets are given to the packet filter
/// (br_netfilter), a container's packet to a published port of its own is turned around in the bridge.
pub(super) fn let_port_send_back(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    set_port(netlink, index, InfoBridgePort::HairpinMode(true))
}

/// The bridge passes nothing between ports that are isolated: no packet of any kind, nor the question who has an address.
/// Kernels before 4.18 do not know it.
pub(super) fn isolate_port(netlink: &mut Netlink, index: u32, isolated: bool) -> io::Result<()> {
    set_port(netlink, index, InfoBridgePort::Isolated(isolated))
}

fn set_port(netlink: &mut Netlink, index: u32, setting: InfoBridgePort) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![setting])),
    ]));
    netlink.change(RouteNetlinkMessage::NewLink(message), 0)
}

/// Gives all that a bridge passes on to the packet filter, of both versions, whatever the host's setting; or as that says.
pub(super) fn filter_bridge(netlink: &mut Netlink, index: u32, all: bool) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(vec![
            InfoBridge::NfCallIpTables(all),
            InfoBridge::NfCallIp6Tables(all),
        ])),
    ]));
    netlink.change(RouteNetlinkMessage::NewLink(message), 0)
}

pub(super) fn delete(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    netlink.change(RouteNetlinkMessage::DelLink(message), 0)
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn address_message(index: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    message
}

/// Gives an interface an address; it may have it already.
pub(super) fn add_address(
    netlink: &mut Netlink,
    index: u32,
    address: IpAddr,
    prefix: u8,
) -> io::Result<()> {
    let mut message = address_message(index, address, prefix);
    match address {
        IpAddr::V4(v4) => {
            let broadcast = ipnet::Ipv4Net::new(v4, prefix).map(|net| net.broadcast());
            message.attributes.extend(broadcast.ok().map(AddressAttribute::Broadcast));
        }
        // Nobody else has it, because we give them out; and nothing should wait for the seconds that looking takes.
        IpAddr::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    let made = netlink.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL);
    match made {
        Err(error) if is_there(&error) => Ok(()),
        other => other,
    }
}

pub(super) fn remove_address(
    netlink: &mut Netlink,
    index: u32,
    address: IpAddr,
    prefix: u8,
) -> io::Result<()> {
    let message = address_message(index, address, prefix);
    netlink.change(RouteNetlinkMessage::DelAddress(message), 0)
}

/// Addresses of all interfaces, but for those of version 6 that every interface has by itself.
pub(super) fn addresses(netlink: &mut Netlink) -> io::Result<Vec<(u32, IpAddr, u8)>> {
    let all = netlink.list(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    Ok(all
        .iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewAddress(message) = message else { return None };
            let mut found = None;
            for attribute in &message.attributes {
                match attribute {
                    // At a point-to-point interface the other one is the peer's.
                    AddressAttribute::Local(address) => found = Some(*address),
                    AddressAttribute::Address(address) if found.is_none() => found = Some(*address),
                    _ => {}
                }
            }
            let is_own = message.header.scope == AddressScope::Link;
            let address = found.filter(|_| !is_own)?;
            Some((message.header.index, address, message.header.prefix_len))
        })
        .collect())
}

/// The way to everywhere.
pub(super) fn add_default_route(
    netlink: &mut Netlink,
    index: u32,
    gateway: IpAddr,
) -> io::Result<()> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
    message.attributes.push(RouteAttribute::Oif(index));
    netlink.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// A way somewhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    /// `None`: everywhere.
    pub(super) to: Option<IpNet>,
    pub(super) is_v6: bool,
    pub(super) through: Option<u32>,
}

/// Routes to other machines, in all tables.
pub(super) fn routes(netlink: &mut Netlink) -> io::Result<Vec<Route>> {
    let all = netlink.list(&RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    Ok(all
        .iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewRoute(message) = message else { return None };
            if message.header.kind != RouteType::Unicast {
                return None;
            }
            let (mut to, mut through) = (None, None);
            for attribute in &message.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(a)) => to = Some(IpAddr::V4(*a)),
                    RouteAttribute::Destination(RouteAddress::Inet6(a)) => {
                        to = Some(IpAddr::V6(*a));
                    }
                    RouteAttribute::Oif(index) => through = Some(*index),
                    _ => {}
                }
            }
            let prefix = message.header.destination_prefix_length;
            let to = to.filter(|_| prefix > 0).and_then(|to| IpNet::new(to, prefix).ok());
            let is_v6 = message.header.address_family == AddressFamily::Inet6;
            Some(Route { to: to.map(|net| net.trunc()), is_v6, through })
        })
        .collect())
}
