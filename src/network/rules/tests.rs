//! The text, and what it does to packets between namespaces that the tests make.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Command;
use std::time::Duration;

use super::*;
use crate::network::link::{Bridge, attach, ensure_bridge};
use crate::network::{Attachment, Ipv6, NetworkKey, ensure_forwarding, prepare_bridge};
use crate::sys::netns;

fn owner() -> Owner {
    Owner::new("0badcafe").unwrap()
}

fn publish(host: &str, port: u16, transport: Transport, to: &str, to_port: u16) -> Publication {
    let host_ip = (!host.is_empty()).then(|| host.parse().unwrap());
    Publication { host_ip, host_port: port, transport, to: to.parse().unwrap(), to_port }
}

fn network(bridge: &str, subnet: u8, reach: Reach) -> NetworkRules {
    let subnets = [format!("10.213.{subnet}.0/24"), format!("fd00:{subnet}::/64")]
        .map(|n| n.parse().unwrap());
    NetworkRules {
        bridge: bridge.to_owned(),
        subnets: subnets.to_vec(),
        reach,
        neighbours: crate::network::Neighbours::Seen,
        containers: Vec::new(),
    }
}

#[test]
fn the_table_is_what_was_wanted() {
    let mut a = network("s0badcafebaaaaa", 7, Reach::Outside);
    a.containers = vec![
        ("10.213.7.2".parse().unwrap(), HostAccess::Granted),
        ("10.213.7.3".parse().unwrap(), HostAccess::Denied),
    ];
    let ruleset = Ruleset {
        networks: vec![a, network("s0badcafebbbbbb", 8, Reach::Internal)],
        publications: vec![
            publish("", 8080, Transport::Tcp, "10.213.7.2", 80),
            publish("0.0.0.0", 8081, Transport::Tcp, "10.213.7.2", 81),
            publish("127.0.0.1", 5432, Transport::Tcp, "10.213.7.3", 5432),
            publish("", 53, Transport::Udp, "10.213.7.3", 53),
            publish("", 8080, Transport::Tcp, "fd00:7::2", 80),
            // An address of the one family cannot lead to one of the other.
            publish("::1", 9, Transport::Tcp, "10.213.7.3", 9),
        ],
        closed: Closed::default(),
    };
    let text = ruleset.text(&owner());
    assert_eq!(text, include_str!("golden.nft"));
}

/// A host with two projects and an internal network, and a neighbour on a network that is none of ours.
struct World {
    host: OwnedFd,
    neighbour: OwnedFd,
    web: OwnedFd,
    db: OwnedFd,
    other: OwnedFd,
    hidden: OwnedFd,
    ruleset: Ruleset,
}

fn within<T: Send>(namespace: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    netns::within(namespace.as_fd(), work).unwrap()
}

fn put(owner: &Owner, container: &OwnedFd, bridge: &str, net: &str, host: u8, v6: &str) {
    let v4 = |host: u8| format!("{net}.{host}").parse().unwrap();
    let what = format!("{net}.{host}");
    let attachment = Attachment {
        mac: Attachment::mac_for(&what),
        what,
        bridge: bridge.to_owned(),
        interface: "eth0".to_owned(),
        v4: Some((v4(host), 24)),
        v6: Some((format!("{v6}::{host}").parse().unwrap(), 64)),
        gateway4: Some(v4(1)),
        gateway6: Some(format!("{v6}::1").parse().unwrap()),
        neighbours: crate::network::Neighbours::Seen,
    };
    attach(owner, container.as_fd(), &[attachment]).unwrap();
}

impl World {
    fn new() -> Self {
        let [host, neighbour, web, db, other, hidden] =
            std::array::from_fn(|_| netns::make().unwrap());
        let ruleset = within(&host, || {
            let _ = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            ensure_forwarding(Ipv6::Always).unwrap();
            let foreign = Owner::new("0badcaff").unwrap();
            let bridge = |owner: &Owner, network: &str, v4: [u8; 4], v6: &str| {
                let network = NetworkKey::named(format!("shop_{network}"));
                let v6 = Some((v6.parse().unwrap(), 64));
                ensure_bridge(owner, &Bridge { network, v4: (v4.into(), 24), v6 }).unwrap()
            };
            let wire = bridge(&foreign, "wire", [192, 0, 2, 1], "2001:db8::1");
            put(&foreign, &neighbour, &wire, "192.0.2", 9, "2001:db8");
            let a = bridge(&owner(), "a", [10, 213, 7, 1], "fd00:7::1");
            let b = bridge(&owner(), "b", [10, 213, 8, 1], "fd00:8::1");
            let c = bridge(&owner(), "c", [10, 213, 9, 1], "fd00:9::1");
            put(&owner(), &web, &a, "10.213.7", 2, "fd00:7");
            put(&owner(), &db, &a, "10.213.7", 3, "fd00:7");
            put(&owner(), &other, &b, "10.213.8", 2, "fd00:8");
            put(&owner(), &hidden, &c, "10.213.9", 2, "fd00:9");
            for name in [&a, &b, &c] {
                prepare_bridge(name).unwrap();
            }
            let mut first = network(&a, 7, Reach::Outside);
            first.containers = vec![("10.213.7.3".parse().unwrap(), HostAccess::Granted)];
            Ruleset {
                networks: vec![
                    first,
                    network(&b, 8, Reach::Outside),
                    network(&c, 9, Reach::Internal),
                ],
                publications: vec![
                    publish("", 8080, Transport::Tcp, "10.213.7.2", 80),
                    publish("", 8080, Transport::Tcp, "fd00:7::2", 80),
                    publish("", 5353, Transport::Udp, "10.213.7.2", 53),
                    publish("127.0.0.1", 5432, Transport::Tcp, "10.213.7.3", 5432),
                    publish("192.0.2.1", 9000, Transport::Tcp, "10.213.7.3", 90),
                ],
                closed: Closed::default(),
            }
        });
        let world = Self { host, neighbour, web, db, other, hidden, ruleset };
        within(&world.host, || Rules::new(owner()).ensure(&world.ruleset)).unwrap();
        world
    }
}

/// Connects from `client` and returns the address that `server`, listening at `at`, sees.
fn seen(server: &OwnedFd, at: &str, client: &OwnedFd, to: &str) -> IpAddr {
    let listener = within(server, || TcpListener::bind(at)).unwrap();
    let to: SocketAddr = to.parse().unwrap();
    let stream = within(client, || TcpStream::connect_timeout(&to, Duration::from_secs(30)));
    stream.unwrap_or_else(|error| panic!("{to}: {error}"));
    listener.accept().unwrap().1.ip()
}

/// How a connection from `client` fails while `server` listens at `at`.
fn refused(server: &OwnedFd, at: &str, client: &OwnedFd, to: &str) -> ErrorKind {
    let _listener = within(server, || TcpListener::bind(at)).unwrap();
    let to: SocketAddr = to.parse().unwrap();
    // A dropped packet can only be told by waiting; a short wait can at worst miss a hole, never see one.
    let stream = within(client, || TcpStream::connect_timeout(&to, Duration::from_millis(300)));
    stream.map(|_| ()).expect_err(&format!("{to} must not be reached")).kind()
}

#[test]
fn published_ports_are_reached_and_the_source_is_preserved() {
    let world = World::new();
    let World { host, neighbour, web, db, other, .. } = &world;
    for (server, at, client, to, expected) in [
        (web, "0.0.0.0:80", neighbour, "192.0.2.1:8080", "192.0.2.9"),
        (web, "[::]:80", neighbour, "[2001:db8::1]:8080", "2001:db8::9"),
        (db, "0.0.0.0:90", neighbour, "192.0.2.1:9000", "192.0.2.9"),
        // This host, by each of its addresses.
        (web, "0.0.0.0:80", host, "192.0.2.1:8080", "192.0.2.1"),
        (web, "0.0.0.0:80", host, "127.0.0.1:8080", "10.213.7.1"),
        (db, "0.0.0.0:5432", host, "127.0.0.1:5432", "10.213.7.1"),
        // Containers: a neighbour of the one that serves, that one itself, and one of another project.
        (web, "0.0.0.0:80", db, "192.0.2.1:8080", "10.213.7.1"),
        (web, "0.0.0.0:80", web, "192.0.2.1:8080", "10.213.7.1"),
        (web, "0.0.0.0:80", web, "10.213.7.1:8080", "10.213.7.1"),
        (web, "[::]:80", web, "[fd00:7::1]:8080", "fd00:7::1"),
        (web, "0.0.0.0:80", other, "192.0.2.1:8080", "10.213.7.1"),
    ] {
        assert_eq!(seen(server, at, client, to).to_string(), expected, "{to}");
    }
    let server = within(web, || UdpSocket::bind("0.0.0.0:53")).unwrap();
    let client = within(neighbour, || UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.send_to(b"?", "192.0.2.1:5353").unwrap();
    let mut buffer = [0; 8];
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(from.ip().to_string(), "192.0.2.9");
    server.send_to(b"!", from).unwrap();
    assert_eq!(client.recv_from(&mut buffer).unwrap().1.to_string(), "192.0.2.1:5353");
}

#[test]
fn a_bridge_leads_outside_and_nowhere_else() {
    let world = World::new();
    let World { host, neighbour, web, db, other, hidden, .. } = &world;
    assert_eq!(seen(neighbour, "0.0.0.0:7", web, "192.0.2.9:7").to_string(), "192.0.2.1");
    assert_eq!(seen(neighbour, "[::]:7", web, "[2001:db8::9]:7").to_string(), "2001:db8::1");
    assert_eq!(seen(db, "0.0.0.0:7", web, "10.213.7.3:7").to_string(), "10.213.7.2");
    for (server, at, client, to) in [
        // Another project, the internal network, the host by three of its addresses.
        (web, "0.0.0.0:7", other, "10.213.7.2:7"),
        (web, "[::]:7", other, "[fd00:7::2]:7"),
        (hidden, "0.0.0.0:7", web, "10.213.9.2:7"),
        (host, "0.0.0.0:22", web, "10.213.7.1:22"),
        (host, "0.0.0.0:22", web, "192.0.2.1:22"),
        (host, "[::]:22", web, "[fd00:7::1]:22"),
        // Out of the internal network, also through a published port.
        (neighbour, "0.0.0.0:7", hidden, "192.0.2.9:7"),
        (web, "0.0.0.0:80", hidden, "192.0.2.1:8080"),
    ] {
        let kind = refused(server, at, client, to);
        assert_eq!(kind, ErrorKind::ConnectionRefused, "{to}: rejected at once");
    }
    // What was granted to one is not granted to the other.
    assert_eq!(seen(host, "0.0.0.0:22", db, "10.213.7.1:22").to_string(), "10.213.7.3");
}

#[test]
fn nothing_reaches_a_container_past_its_published_ports() {
    let world = World::new();
    let World { host, neighbour, web, db, .. } = &world;
    let route = |to: &str| {
        let route = ["route", "add", to, "via", "192.0.2.1"];
        assert!(Command::new("ip").args(route).status().unwrap().success());
    };
    within(neighbour, || route("10.213.7.0/24"));
    refused(web, "0.0.0.0:7", neighbour, "10.213.7.2:7");
    refused(db, "0.0.0.0:5432", neighbour, "192.0.2.1:5432");
    // Ports published at a loopback address, by packets that claim to be for it.
    within(neighbour, || {
        let _ = Command::new("ip")
            .args(["route", "del", "local", "127.0.0.0/8", "table", "local"])
            .status();
        let _ = Command::new("ip").args(["addr", "del", "127.0.0.1/8", "dev", "lo"]).status();
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
        route("127.0.0.1/32");
    });
    refused(db, "0.0.0.0:5432", neighbour, "127.0.0.1:5432");
    refused(host, "127.0.0.1:6379", neighbour, "127.0.0.1:6379");
}

#[test]
fn what_the_host_did_not_forward_before_it_does_not_forward_now() {
    let World { host, neighbour, ruleset, web, .. } = World::new();
    let behind = netns::make().unwrap();
    let [wire, lan] = within(&host, || {
        let foreign = Owner::new("0badcaff").unwrap();
        let network = NetworkKey::named("lan");
        let v6 = Some(("2001:db8:1::1".parse().unwrap(), 64));
        let bridge = Bridge { network, v4: ([198, 51, 100, 1].into(), 24), v6 };
        let lan = ensure_bridge(&foreign, &bridge).unwrap();
        put(&foreign, &behind, &lan, "198.51.100", 9, "2001:db8:1");
        let links = crate::network::link::list(&foreign).unwrap();
        let mut bridges = links.into_iter().filter(|l| l.what.as_deref() == Some("shop_wire"));
        [bridges.next().unwrap().name, lan]
    });
    let to = ["198.51.100.9:7", "[2001:db8:1::9]:7"];
    // Somebody else's wish.
    assert_eq!(seen(&behind, "0.0.0.0:7", &neighbour, to[0]).to_string(), "192.0.2.9");
    let known = std::collections::BTreeSet::from([wire, lan]);
    let closed = Closed { v4: known.clone(), v6: known, ..Closed::default() };
    let ruleset = Ruleset { closed, ..ruleset };
    within(&host, || Rules::new(owner()).ensure(&ruleset)).unwrap();
    refused(&behind, "0.0.0.0:7", &neighbour, to[0]);
    refused(&behind, "[::]:7", &neighbour, to[1]);
    // Our bridges lead out as before.
    assert_eq!(seen(&behind, "0.0.0.0:7", &web, to[0]).to_string(), "198.51.100.1");
}

#[test]
fn rules_that_are_gone_are_noticed_and_come_back() {
    let host = netns::make().unwrap();
    within(&host, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut rules = Rules::new(owner());
            let ruleset = Ruleset {
                networks: vec![network("s0badcafebaaaaa", 7, Reach::Outside)],
                publications: vec![publish("", 8080, Transport::Tcp, "10.213.7.2", 80)],
                closed: Closed::default(),
            };
            assert_eq!(rules.ensure(&ruleset).unwrap(), Change::Applied);
            assert_eq!(rules.ensure(&ruleset).unwrap(), Change::None);
            // Others' rules are neither seen nor touched.
            apply_text("add table inet theirs\nadd chain inet theirs x\n").unwrap();
            assert_eq!(rules.ensure(&ruleset).unwrap(), Change::None);
            for harm in [
                "flush ruleset".to_owned(),
                format!("delete table inet {}", owner().table()),
                format!("flush chain inet {} forward", owner().table()),
                format!("delete element inet {} tcp4 {{ 8080 }}", owner().table()),
            ] {
                let watch = RulesWatch::open(&owner()).unwrap();
                apply_text("add table inet theirs\nadd chain inet theirs y\n").unwrap();
                apply_text(&harm).unwrap();
                watch.changed().await.unwrap();
                assert_eq!(rules.ensure(&ruleset).unwrap(), Change::Restored, "{harm}");
                assert_eq!(rules.ensure(&ruleset).unwrap(), Change::None);
            }
            rules.remove().unwrap();
            rules.remove().unwrap();
            assert_eq!(rules.ensure(&ruleset).unwrap(), Change::Applied);
        });
    });
}

#[test]
fn many_networks_and_ports_are_one_transaction() {
    let host = netns::make().unwrap();
    let networks = (0..100).map(|n| {
        network(
            &owner().link(crate::network::LinkKind::Bridge, &n.to_string(), 0),
            n,
            Reach::Outside,
        )
    });
    let publications = (1..2000).map(|n| publish("", n, Transport::Tcp, "10.213.7.2", n));
    let ruleset = Ruleset {
        networks: networks.collect(),
        publications: publications.collect(),
        closed: Closed::default(),
    };
    within(&host, || {
        let mut rules = Rules::new(owner());
        assert_eq!(rules.ensure(&ruleset).unwrap(), Change::Applied);
        assert_eq!(rules.ensure(&ruleset).unwrap(), Change::None);
    });
}

#[test]
fn those_on_the_shared_bridge_reach_what_they_publish_and_nothing_else_of_each_other() {
    use crate::network::Neighbours;
    use crate::network::link::{Apart, keep_apart};
    let [host, one, two] = std::array::from_fn(|_| netns::make().unwrap());
    let filter = |program: &str, value: &str| {
        std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{program}"), value)
    };
    let put = |container: &OwnedFd, bridge: &str, host: u8| {
        let what = format!("{host}@bridge");
        let attachment = Attachment {
            mac: Attachment::mac_for(&what),
            what,
            bridge: bridge.to_owned(),
            interface: "eth0".to_owned(),
            v4: Some(([10, 213, 7, host].into(), 24)),
            v6: Some((format!("fd00:7::{host}").parse().unwrap(), 64)),
            gateway4: Some([10, 213, 7, 1].into()),
            gateway6: Some("fd00:7::1".parse().unwrap()),
            neighbours: Neighbours::Unseen,
        };
        attach(&owner(), container.as_fd(), &[attachment]).unwrap();
    };
    let (bridge, is_known) = within(&host, || {
        let _ = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        ensure_forwarding(Ipv6::Always).unwrap();
        let v6 = Some(("fd00:7::1".parse().unwrap(), 64));
        let v4 = ([10, 213, 7, 1].into(), 24);
        let wanted = Bridge { network: NetworkKey::shared(), v4, v6 };
        let bridge = ensure_bridge(&owner(), &wanted).unwrap();
        // Absent where the kernel knows no such filter.
        let is_known = filter("iptables", "0").and_then(|()| filter("ip6tables", "0")).is_ok();
        put(&one, &bridge, 2);
        put(&two, &bridge, 3);
        prepare_bridge(&bridge).unwrap();
        let shared = network(&bridge, 7, Reach::Outside);
        let ruleset = Ruleset {
            networks: vec![NetworkRules { neighbours: Neighbours::Unseen, ..shared }],
            publications: vec![
                publish("", 8080, Transport::Tcp, "10.213.7.2", 80),
                publish("", 8080, Transport::Tcp, "fd00:7::2", 80),
            ],
            closed: Closed::default(),
        };
        Rules::new(owner()).ensure(&ruleset).unwrap();
        (bridge, is_known)
    });
    // Nobody filters; then somebody comes who does, of one version only, as for containers that are there; and goes.
    for (value, apart) in [("0", Apart::ByBridge), ("1", Apart::ByRules), ("0", Apart::ByBridge)] {
        if value == "1" && !is_known {
            continue;
        }
        within(&host, || {
            let _ = filter("iptables", value);
            assert_eq!(Apart::now(), apart);
            keep_apart(&owner(), &bridge, apart).unwrap();
        });
        for client in [&one, &two] {
            assert_eq!(
                seen(&one, "0.0.0.0:80", client, "10.213.7.1:8080").to_string(),
                "10.213.7.1"
            );
            assert_eq!(seen(&one, "[::]:80", client, "[fd00:7::1]:8080").to_string(), "fd00:7::1");
        }
        refused(&one, "0.0.0.0:80", &two, "10.213.7.2:80");
        refused(&one, "[::]:80", &two, "[fd00:7::2]:80");
        refused(&two, "0.0.0.0:7", &one, "10.213.7.3:7");
    }
}
