//! Our table of packet filter rules: written as a whole from what is wanted, replaced in one transaction.
//!
//! The text is what `nft list table` shows, so that an administrator reads what was applied. It is nft's own language
//! and not its JSON: `nft` is often built without JSON (OpenWrt's default package), and nothing in the text comes
//! from a user but numbers and addresses.
//!
//! What the rules give, for bridges of ours only:
//!
//! * Out of a bridge: to the outside behind the host's address, if the network leads there; to published ports; to
//!   the host itself only where that was granted. Everything else is rejected, so that it fails at once.
//! * Into a bridge: through published ports only, with the source's address preserved. A neighbour that knows a
//!   container's address and routes to it through this host is dropped.
//! * A port published at a loopback address is reached from this host alone: such packets from the wire never see
//!   the translation.
//!
//! Forwarding is a setting of the whole host. Where we turn it on, what came in at one of its other interfaces and would
//! now go out at another is dropped, as it was before; between interfaces that come later it is somebody else's wish.
//!
//! What they cannot give: a rule of someone else that drops is final. Where a firewall of the host drops what is
//! forwarded, it drops what goes to and from our bridges too.

mod apply;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Closed, HostAccess, Neighbours, Owner, Publication, Reach, Transport};
pub use apply::{Change, NftError, Rules, apply_text, program_version};
pub use watch::RulesWatch;

/// Everything that the rules depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The networks that exist.
    pub networks: Vec<NetworkRules>,
    /// The ports that are published.
    pub publications: Vec<Publication>,
    /// Interfaces of the host between which nothing is forwarded: see [`Closed`].
    pub closed: Closed,
}

/// One network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRules {
    /// Name of its bridge.
    pub bridge: String,
    /// Its subnets.
    pub subnets: Vec<IpNet>,
    /// Whether it leads outside.
    pub reach: Reach,
    /// Whether its containers reach each other there.
    pub neighbours: Neighbours,
    /// Addresses of its containers, and whether each may reach the host.
    pub containers: Vec<(IpAddr, HostAccess)>,
}

/// A set or map of the table: its name, the type of its elements, what they are.
struct Elements {
    kind: &'static str,
    name: &'static str,
    of: &'static str,
    flags: &'static str,
    all: BTreeSet<String>,
}

impl Ruleset {
    /// The whole table as text for `nft -f`: it replaces the one that is there, if any.
    #[must_use]
    pub fn text(&self, owner: &Owner) -> String {
        let table = owner.table();
        let mut text = format!(
            // Declaring it first makes it exist, so that it can be deleted: all in one transaction.
            "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n"
        );
        let maps = self.maps();
        for elements in self.sets().iter().chain(maps.values()) {
            elements.write(&mut text);
        }
        let mut translate: Vec<String> = Vec::new();
        for ((transport, is_v6, is_bound), map) in &maps {
            let (family, name) = (if *is_v6 { "ip6" } else { "ip" }, map.name);
            translate.push(if *is_bound {
                format!("dnat {family} to {family} daddr . {transport} dport map @{name}")
            } else {
                format!("fib daddr type local dnat {family} to {transport} dport map @{name}")
            });
        }
        // What names one address comes before what names all.
        translate.sort_by_key(|rule| rule.starts_with("fib"));
        chain(&mut text, "publish", None, &translate);
        chain(&mut text, "refuse", None, &REJECT.map(str::to_owned));
        let from_wire = [
            "ip daddr 127.0.0.0/8 return".to_owned(),
            "ip6 daddr ::1 return".to_owned(),
            "iifname @bridges iifname != @open return".to_owned(),
            "jump publish".to_owned(),
        ];
        for (name, hook, rules) in [
            ("guard", "filter hook prerouting priority raw", GUARD.map(str::to_owned).as_slice()),
            ("prerouting", "nat hook prerouting priority dstnat", &from_wire),
            ("output", "nat hook output priority -100", &["jump publish".to_owned()]),
            (
                "postrouting",
                "nat hook postrouting priority srcnat",
                &POSTROUTING.map(str::to_owned),
            ),
            ("forward", "filter hook forward priority filter", &self.forward()),
            ("input", "filter hook input priority filter", &INPUT.map(str::to_owned)),
        ] {
            chain(&mut text, name, Some(hook), rules);
        }
        text.push_str("}\n");
        text
    }

    /// What the host forwards: as before between others, and for our bridges.
    fn forward(&self) -> Vec<String> {
        let families = [("ipv4", "closed4", &self.closed.v4), ("ipv6", "closed6", &self.closed.v6)];
        let closed = families.into_iter().filter(|(_, _, all)| !all.is_empty());
        let closed = closed.map(|(family, set, _)| {
            format!("meta nfproto {family} iifname @{set} oifname @{set} drop")
        });
        closed.chain(FORWARD.map(str::to_owned)).collect()
    }

    fn sets(&self) -> Vec<Elements> {
        let quoted = |network: &NetworkRules| format!("\"{}\"", network.bridge);
        let open = || self.networks.iter().filter(|network| network.reach == Reach::Outside);
        let subnets = |is_v6: bool| {
            let nets = open().flat_map(|network| &network.subnets);
            nets.filter(|net| net.addr().is_ipv6() == is_v6).map(ToString::to_string).collect()
        };
        let granted = |is_v6: bool| {
            let all = self.networks.iter().flat_map(|network| {
                let granted = network.containers.iter();
                let granted = granted.filter(|(_, access)| *access == HostAccess::Granted);
                granted.map(move |(address, _)| (network, address))
            });
            all.filter(|(_, address)| address.is_ipv6() == is_v6)
                .map(|(network, address)| format!("{} . {address}", quoted(network)))
                .collect()
        };
        let set = |name, of, flags, all| Elements { kind: "set", name, of, flags, all };
        let pair = |network| format!("{0} . {0}", quoted(network));
        let names = |all: &BTreeSet<String>| all.iter().map(|name| format!("\"{name}\"")).collect();
        let is_familiar = |network: &&NetworkRules| network.neighbours == Neighbours::Seen;
        let familiar = self.networks.iter().filter(is_familiar);
        let closed = [("closed4", &self.closed.v4), ("closed6", &self.closed.v6)];
        let closed = closed.into_iter().filter(|(_, all)| !all.is_empty());
        let closed = closed.map(|(name, all)| set(name, "ifname", "", names(all)));
        let ours = vec![
            set("bridges", "ifname", "", self.networks.iter().map(quoted).collect()),
            set("open", "ifname", "", open().map(quoted).collect()),
            set("within", "ifname . ifname", "", familiar.map(pair).collect()),
            set("open4", "ipv4_addr", "interval", subnets(false)),
            set("open6", "ipv6_addr", "interval", subnets(true)),
            set("host4", "ifname . ipv4_addr", "", granted(false)),
            set("host6", "ifname . ipv6_addr", "", granted(true)),
        ];
        ours.into_iter().chain(closed).collect()
    }

    /// What is translated, by transport, family, and whether it is bound to one address.
    fn maps(&self) -> BTreeMap<(Transport, bool, bool), Elements> {
        let mut maps = BTreeMap::new();
        for publication in &self.publications {
            let is_v6 = publication.to.is_ipv6();
            let bound = publication.host_ip.filter(|address| !address.is_unspecified());
            if bound.is_some_and(|address| address.is_ipv6() != is_v6) {
                continue;
            }
            let key = (publication.transport, is_v6, bound.is_some());
            let (name, of) = map_name(key);
            let map = maps.entry(key).or_insert_with(|| Elements {
                kind: "map",
                name,
                of,
                flags: "",
                all: BTreeSet::new(),
            });
            let (port, to, to_port) = (publication.host_port, publication.to, publication.to_port);
            map.all.insert(match bound {
                Some(address) => format!("{address} . {port} : {to} . {to_port}"),
                None => format!("{port} : {to} . {to_port}"),
            });
        }
        maps
    }
}

fn map_name((transport, is_v6, is_bound): (Transport, bool, bool)) -> (&'static str, &'static str) {
    const V4: &str = "inet_service : ipv4_addr . inet_service";
    const V6: &str = "inet_service : ipv6_addr . inet_service";
    const V4_AT: &str = "ipv4_addr . inet_service : ipv4_addr . inet_service";
    const V6_AT: &str = "ipv6_addr . inet_service : ipv6_addr . inet_service";
    match (transport, is_v6, is_bound) {
        (Transport::Tcp, false, false) => ("tcp4", V4),
        (Transport::Tcp, false, true) => ("tcp4_at", V4_AT),
        (Transport::Tcp, true, false) => ("tcp6", V6),
        (Transport::Tcp, true, true) => ("tcp6_at", V6_AT),
        (Transport::Udp, false, false) => ("udp4", V4),
        (Transport::Udp, false, true) => ("udp4_at", V4_AT),
        (Transport::Udp, true, false) => ("udp6", V6),
        (Transport::Udp, true, true) => ("udp6_at", V6_AT),
        (Transport::Sctp, false, false) => ("sctp4", V4),
        (Transport::Sctp, false, true) => ("sctp4_at", V4_AT),
        (Transport::Sctp, true, false) => ("sctp6", V6),
        (Transport::Sctp, true, true) => ("sctp6_at", V6_AT),
    }
}

/// Bridges have `route_localnet`, for what is published at loopback addresses; nobody on them may use it.
const GUARD: [&str; 2] =
    ["iifname @bridges ip daddr 127.0.0.0/8 drop", "iifname @bridges ip saddr 127.0.0.0/8 drop"];

const POSTROUTING: [&str; 6] = [
    "ip saddr @open4 oifname != @bridges masquerade",
    "ip6 saddr @open6 oifname != @bridges masquerade",
    // A container that uses a published port, perhaps its own: the answer must come back through the host.
    "oifname @open ct status dnat ip saddr @open4 masquerade",
    "oifname @open ct status dnat ip6 saddr @open6 masquerade",
    // This host, through a loopback address.
    "oifname @open ct status dnat ip saddr 127.0.0.0/8 masquerade",
    "oifname @open ct status dnat ip6 saddr ::1 masquerade",
];

/// At once, and as what programs expect: an unreachable port. Only so many ICMP messages are sent in a second, and a
/// reset is none.
const REJECT: [&str; 2] =
    ["meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited"];

const FORWARD: [&str; 8] = [
    "iifname != @bridges oifname != @bridges accept",
    "ct state established,related accept",
    // Seen here only where bridged packets are given to the packet filter (br_netfilter).
    "iifname . oifname @within accept",
    "iifname @bridges iifname != @open goto refuse",
    "oifname @open ct status dnat accept",
    "iifname @open oifname != @bridges accept",
    "iifname @bridges goto refuse",
    "drop",
];

const INPUT: [&str; 6] = [
    "iifname != @bridges accept",
    "ct state established,related accept",
    // Neighbours are found this way, and a gateway that can be pinged is one question less.
    "meta l4proto { icmp, ipv6-icmp } accept",
    "iifname . ip saddr @host4 accept",
    "iifname . ip6 saddr @host6 accept",
    "goto refuse",
];

impl Elements {
    fn write(&self, text: &mut String) {
        let Self { kind, name, of, flags, all } = self;
        let _ = write!(text, "\t{kind} {name} {{\n\t\ttype {of}\n");
        if !flags.is_empty() {
            let _ = writeln!(text, "\t\tflags {flags}");
        }
        if !all.is_empty() {
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            let _ = writeln!(text, "\t\telements = {{ {} }}", all.join(", "));
        }
        text.push_str("\t}\n");
    }
}

fn chain(text: &mut String, name: &str, hook: Option<&str>, rules: &[String]) {
    let _ = writeln!(text, "\tchain {name} {{");
    if let Some(hook) = hook {
        let _ = writeln!(text, "\t\ttype {hook}; policy accept;");
    }
    for rule in rules {
        let _ = writeln!(text, "\t\t{rule}");
    }
    text.push_str("\t}\n");
}
