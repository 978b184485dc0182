//! Ports of the host: which are asked for twice, which are taken, and by whom.
//!
//! A published port is translated before any socket is looked for, so a program of the host that listens there would
//! silently be cut off; and with `network_mode: host` the service itself would fail. Both are told before anything is
//! stopped for them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::{Publication, Transport};

/// A port of the host that a service wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// At which address; `None`: all.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// What is spoken.
    pub transport: Transport,
}

impl HostPort {
    /// This one; at all addresses where `address` is none in particular.
    #[must_use]
    pub fn new(address: Option<IpAddr>, port: u16, transport: Transport) -> Self {
        Self { address: address.filter(|address| !address.is_unspecified()), port, transport }
    }

    /// That of a publication.
    #[must_use]
    pub fn of(publication: &Publication) -> Self {
        Self::new(publication.host_ip, publication.host_port, publication.transport)
    }

    /// Whether only one of the two can be had.
    #[must_use]
    pub fn collides(&self, other: &Self) -> bool {
        self.port == other.port
            && self.transport == other.transport
            && match (self.address, other.address) {
                (Some(a), Some(b)) => a == b,
                _ => true,
            }
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(address) => write!(f, "{address}:")?,
            None => {}
        }
        write!(f, "{}/{}", self.port, self.transport)
    }
}

/// A port that is in use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("port `{port}` is in use by {owner}")]
pub struct PortTaken {
    /// The port.
    pub port: HostPort,
    /// Who has it.
    pub owner: PortOwner,
}

/// Who has a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortOwner {
    /// A process.
    Process {
        /// Its number.
        pid: i32,
        /// Its name.
        name: String,
    },
    /// The kernel, or a process that cannot be seen from here.
    Unknown,
}

impl std::fmt::Display for PortOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process { pid, name } => write!(f, "`{name}` (process {pid})"),
            Self::Unknown => f.write_str("a process that cannot be seen from here"),
        }
    }
}

/// A socket of the host that others can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound {
    address: IpAddr,
    port: u16,
    transport: Transport,
    inode: u64,
}

/// Those of `wanted` that a process of the host has, in the network namespace of the calling thread. SCTP is not
/// looked for.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn taken(wanted: &[HostPort]) -> io::Result<Vec<PortTaken>> {
    let mut found: Vec<(HostPort, u64)> = Vec::new();
    for (file, transport) in [
        ("tcp", Transport::Tcp),
        ("tcp6", Transport::Tcp),
        ("udp", Transport::Udp),
        ("udp6", Transport::Udp),
    ] {
        if !wanted.iter().any(|wanted| wanted.transport == transport) {
            continue;
        }
        // A host without version 6 has no such file.
        let text = match fs::read_to_string(Path::new("/proc/thread-self/net").join(file)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for bound in text.lines().skip(1).filter_map(|line| parse(line, transport)) {
            for wanted in wanted.iter().filter(|wanted| is_in_way(&bound, wanted)) {
                if !found.iter().any(|(port, _)| port == wanted) {
                    found.push((*wanted, bound.inode));
                }
            }
        }
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let owners = owners(&found.iter().map(|(_, inode)| *inode).collect::<Vec<_>>());
    let owner = |inode| owners.get(&inode).cloned().unwrap_or(PortOwner::Unknown);
    Ok(found.into_iter().map(|(port, inode)| PortTaken { port, owner: owner(inode) }).collect())
}

fn is_in_way(bound: &Bound, wanted: &HostPort) -> bool {
    bound.port == wanted.port
        && bound.transport == wanted.transport
        && match wanted.address {
            None => true,
            Some(_) if bound.address.is_unspecified() => true,
            Some(address) => address == bound.address,
        }
}

/// One line of `/proc/net/tcp` and its like: what listens, or for datagrams is bound and not connected.
fn parse(line: &str, transport: Transport) -> Option<Bound> {
    /// `TCP_LISTEN`, and `TCP_CLOSE`, which every unconnected socket for datagrams is in.
    const LISTENING: &str = "0A";
    const UNCONNECTED: &str = "07";
    let words: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (*words.get(1)?, *words.get(3)?, words.get(9)?.parse().ok()?);
    let expected = if transport == Transport::Tcp { LISTENING } else { UNCONNECTED };
    if state != expected {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of 32 bits, each in the order of this machine.
    let mut bytes = Vec::with_capacity(16);
    for at in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let address = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        _ => match Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?) {
            address if let Some(v4) = address.to_ipv4_mapped() => IpAddr::V4(v4),
            address => IpAddr::V6(address),
        },
    };
    (port != 0).then_some(Bound { address, port, transport, inode })
}

/// Which processes hold the sockets `inodes`.
fn owners(inodes: &[u64]) -> BTreeMap<u64, PortOwner> {
    let mut owners = BTreeMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        // A process that ends while it is looked at has nothing any more.
        let descriptors = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        for descriptor in descriptors {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            let Some(inode) = inode.and_then(|inode| inode.parse::<u64>().ok()) else { continue };
            if inodes.contains(&inode) && !owners.contains_key(&inode) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                let name = name.trim_end().to_owned();
                owners.insert(inode, PortOwner::Process { pid, name });
            }
        }
        if owners.len() == inodes.len() {
            break;
        }
    }
    owners
}

/// Two services that want one port: the names of both, and the port.
#[must_use]
pub fn doubled<'a>(
    wanted: impl IntoIterator<Item = (&'a str, HostPort)>,
) -> Option<(&'a str, &'a str, HostPort)> {
    let mut by_port: BTreeMap<(Transport, u16), Vec<(&str, HostPort)>> = BTreeMap::new();
    for (service, port) in wanted {
        let others = by_port.entry((port.transport, port.port)).or_default();
        if let Some((other, _)) = others.iter().find(|(_, other)| other.collides(&port)) {
            return Some((other, service, port));
        }
        others.push((service, port));
    }
    None
}

/// The port of the host for a publication that leaves the choice: the one that it had, if it still may, or the first
/// of `range` that is in nobody's way. `None` when there is none.
#[must_use]
pub fn choose(
    had: Option<u16>,
    range: std::ops::RangeInclusive<u16>,
    is_free: impl Fn(u16) -> bool,
) -> Option<u16> {
    had.into_iter().filter(|port| range.contains(port)).chain(range.clone()).find(|p| is_free(*p))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::sys::netns;

    fn port(address: &str, port: u16, transport: Transport) -> HostPort {
        HostPort { address: address.parse().ok(), port, transport }
    }

    #[test]
    fn the_owner_of_a_port_is_named() {
        let host = netns::make().unwrap();
        netns::within(host.as_fd(), || {
            let up = ["link", "set", "lo", "up"];
            assert!(std::process::Command::new("ip").args(up).status().unwrap().success());
            let _all = TcpListener::bind("[::]:80").unwrap();
            let _one = TcpListener::bind("127.0.0.1:5432").unwrap();
            let _datagrams = UdpSocket::bind("0.0.0.0:53").unwrap();
            let (tcp, udp) = (Transport::Tcp, Transport::Udp);
            let wanted = [
                port("", 80, tcp),
                port("192.0.2.1", 80, tcp),
                port("", 5432, tcp),
                port("127.0.0.1", 5432, tcp),
                port("127.0.0.2", 5432, tcp),
                port("", 53, udp),
                port("", 53, tcp),
                port("", 8080, tcp),
            ];
            let found = taken(&wanted).unwrap();
            let ports: Vec<HostPort> = found.iter().map(|taken| taken.port).collect();
            let mut expected = [0, 1, 2, 3, 5].map(|n: usize| wanted[n]);
            let mut sorted = ports;
            sorted.sort();
            expected.sort();
            assert_eq!(sorted, expected);
            let pid = i32::try_from(std::process::id()).unwrap();
            for taken in &found {
                let PortOwner::Process { pid: owner, name } = &taken.owner else {
                    panic!("{taken}");
                };
                assert_eq!(*owner, pid);
                assert!(!name.is_empty());
            }
            let text = found.iter().map(ToString::to_string).find(|t| t.contains("53/udp"));
            assert!(text.unwrap().starts_with("port `53/udp` is in use by `"));
        })
        .unwrap();
    }

    #[test]
    fn a_port_is_had_by_one_service() {
        let tcp = Transport::Tcp;
        let all =
            |list: &[(&'static str, HostPort)]| doubled(list.to_vec()).map(|(a, b, _)| (a, b));
        let (any, a, b) = (port("", 80, tcp), port("192.0.2.1", 80, tcp), port("::1", 80, tcp));
        assert_eq!(all(&[("x", a), ("y", b), ("z", port("", 81, tcp))]), None);
        assert_eq!(all(&[("x", a), ("y", b), ("z", any)]), Some(("x", "z")));
        assert_eq!(
            all(&[("x", any), ("y", port("", 80, Transport::Udp)), ("z", b)]),
            Some(("x", "z"))
        );
        assert_eq!(any.to_string(), "80/tcp");
        assert_eq!(b.to_string(), "[::1]:80/tcp");
    }

    #[test]
    fn a_chosen_port_is_kept() {
        assert_eq!(choose(Some(8005), 8000..=8010, |_| true), Some(8005));
        assert_eq!(choose(Some(8005), 8000..=8010, |port| port != 8005), Some(8000));
        assert_eq!(choose(Some(9000), 8000..=8010, |_| true), Some(8000));
        assert_eq!(choose(None, 8000..=8001, |_| false), None);
    }
}
