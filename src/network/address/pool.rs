//! Free addresses of one subnet, of either family: arithmetic on numbers.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The addresses of a subnet that may be given away.
#[derive(Debug)]
pub(super) struct Pool<'a> {
    pub(super) net: IpNet,
    /// The part that addresses nobody asked for come from.
    pub(super) range: IpNet,
    /// Addresses of the bridge and of others.
    pub(super) reserved: &'a BTreeSet<IpAddr>,
}

impl Pool<'_> {
    /// Whether a container can have `address` at all.
    pub(super) fn is_host(&self, address: IpAddr) -> bool {
        self.net.contains(&address)
            && address != self.net.network()
            && (self.net.addr().is_ipv6() || address != self.net.broadcast())
            && !self.reserved.contains(&address)
    }

    /// The first free address after `last`, around the end of the range: an address that was given back rests as
    /// long as there are others.
    pub(super) fn next(&self, last: Option<IpAddr>, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let (first, end) = (number(self.range.network()), number(self.range.broadcast()));
        let is_v6 = self.net.addr().is_ipv6();
        let begin = match last.map(number) {
            Some(last) if (first..end).contains(&last) => last + 1,
            _ => first,
        };
        // Each address that is passed over is a used or reserved one, or one of two ends: the walk is short however
        // large the subnet is.
        (begin..=end)
            .chain(first..begin)
            .map(|number| address(number, is_v6))
            .find(|address| self.is_host(*address) && !used.contains(address))
    }
}

pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address(number: u128, is_v6: bool) -> IpAddr {
    if is_v6 {
        IpAddr::V6(Ipv6Addr::from(number))
    } else {
        let number = u32::try_from(number).expect("numbers of a v4 subnet have 32 bits");
        IpAddr::V4(Ipv4Addr::from(number))
    }
}
