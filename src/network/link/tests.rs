//! In namespaces that the tests make: one plays the host, others containers.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use super::*;
use crate::network::{Attachment, Neighbours, NetworkKey};
use crate::sys::netns;

fn owner() -> Owner {
    Owner::new("0badcafe").unwrap()
}

fn within<T: Send>(namespace: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    netns::within(namespace.as_fd(), work).unwrap()
}

fn bridge(network: &str, subnet: u8) -> Bridge {
    Bridge {
        network: NetworkKey::named(format!("shop_{network}")),
        v4: ([10, 213, subnet, 1].into(), 24),
        v6: Some((format!("fd00:{subnet}::1").parse().unwrap(), 64)),
    }
}

fn attachment(what: &str, bridge: &str, subnet: u8, host: u8) -> Attachment {
    Attachment {
        what: what.to_owned(),
        bridge: bridge.to_owned(),
        interface: "eth0".to_owned(),
        mac: Attachment::mac_for(what),
        v4: Some(([10, 213, subnet, host].into(), 24)),
        v6: Some((format!("fd00:{subnet}::{host}").parse().unwrap(), 64)),
        gateway4: Some([10, 213, subnet, 1].into()),
        gateway6: Some(format!("fd00:{subnet}::1").parse().unwrap()),
        neighbours: Neighbours::Seen,
    }
}

fn names() -> Vec<String> {
    let all = request::links(&mut Netlink::open().unwrap()).unwrap();
    all.into_iter().map(|link| link.name).collect()
}

#[test]
fn containers_on_a_bridge_reach_each_other_and_the_host() {
    let (host, a, b) = (netns::make().unwrap(), netns::make().unwrap(), netns::make().unwrap());
    let name = within(&host, || {
        let name = ensure_bridge(&owner(), &bridge("default", 7)).unwrap();
        attach(&owner(), a.as_fd(), &[attachment("web-1@default", &name, 7, 2)]).unwrap();
        attach(&owner(), b.as_fd(), &[attachment("db-1@default", &name, 7, 3)]).unwrap();
        name
    });
    assert_eq!(within(&a, names), ["lo", "eth0"]);
    for (server, client, address) in [
        (&a, &b, "10.213.7.2:80"),
        (&a, &b, "[fd00:7::2]:80"),
        (&host, &b, "10.213.7.1:80"),
        (&b, &host, "10.213.7.3:80"),
    ] {
        let listener = within(server, || TcpListener::bind(address)).unwrap();
        let peer = within(client, || {
            let to = address.parse().unwrap();
            TcpStream::connect_timeout(&to, Duration::from_secs(20)).unwrap().local_addr().unwrap()
        });
        assert_eq!(listener.accept().unwrap().1, peer, "{address}");
    }
    // The way out leads to the bridge.
    let local = within(&a, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("192.0.2.1:9").unwrap();
        socket.local_addr().unwrap().ip().to_string()
    });
    assert_eq!(local, "10.213.7.2");
    within(&host, || {
        let ours = list(&owner()).unwrap();
        let whats: Vec<_> = ours.iter().filter_map(|link| link.what.as_deref()).collect();
        assert_eq!(whats, ["shop_default", "web-1@default", "db-1@default"]);
        assert_eq!(ours[0].name, name);
    });
}

#[test]
fn those_who_do_not_see_their_neighbours_reach_the_host_and_not_each_other() {
    let (host, a, b) = (netns::make().unwrap(), netns::make().unwrap(), netns::make().unwrap());
    within(&host, || {
        // Absent where the kernel knows no such filter.
        for setting in ["iptables", "ip6tables"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{setting}");
            let _ = std::fs::write(path, "0");
        }
        let name = ensure_bridge(&owner(), &bridge("shared", 7)).unwrap();
        let unseen = |what: &str, n| Attachment {
            neighbours: Neighbours::Unseen,
            ..attachment(what, &name, 7, n)
        };
        attach(&owner(), a.as_fd(), &[unseen("one-1@bridge", 2)]).unwrap();
        attach(&owner(), b.as_fd(), &[unseen("two-1@bridge", 3)]).unwrap();
    });
    let connect = |client: &OwnedFd, to: &str, wait| {
        let to = to.parse().unwrap();
        within(client, || TcpStream::connect_timeout(&to, wait)).map(drop)
    };
    let long = Duration::from_secs(20);
    for (server, client, address) in
        [(&host, &a, "10.213.7.1:80"), (&host, &b, "[fd00:7::1]:80"), (&b, &host, "10.213.7.3:80")]
    {
        let _listener = within(server, || TcpListener::bind(address)).unwrap();
        connect(client, address, long).unwrap();
    }
    for address in ["10.213.7.2:80", "[fd00:7::2]:80"] {
        let _listener = within(&a, || TcpListener::bind(address)).unwrap();
        assert!(connect(&b, address, Duration::from_millis(300)).is_err(), "{address}");
    }
    // Not even who they are.
    let known = within(&b, || std::fs::read_to_string("/proc/thread-self/net/arp")).unwrap();
    let of_a = Attachment::mac_for("one-1@bridge").map(|byte| format!("{byte:02x}")).join(":");
    assert!(!known.contains(&of_a), "{known}");
}

#[test]
fn a_bridge_is_made_once_and_corrected() {
    let host = netns::make().unwrap();
    within(&host, || {
        let first = ensure_bridge(&owner(), &bridge("default", 7)).unwrap();
        let before = list(&owner()).unwrap();
        assert_eq!(ensure_bridge(&owner(), &bridge("default", 7)).unwrap(), first);
        assert_eq!(list(&owner()).unwrap(), before);
        ensure_bridge(&owner(), &bridge("default", 9)).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let have = request::addresses(&mut netlink).unwrap();
        let have: Vec<String> = have.iter().map(|(_, a, p)| format!("{a}/{p}")).collect();
        assert_eq!(have, ["10.213.9.1/24", "fd00:9::1/64"]);
    });
}

#[test]
fn a_container_that_comes_again_takes_the_place_of_its_leftover() {
    let (host, old, new) = (netns::make().unwrap(), netns::make().unwrap(), netns::make().unwrap());
    within(&host, || {
        let name = ensure_bridge(&owner(), &bridge("default", 7)).unwrap();
        let wanted = [attachment("web-1@default", &name, 7, 2)];
        attach(&owner(), old.as_fd(), &wanted).unwrap();
        attach(&owner(), new.as_fd(), &wanted).unwrap();
        assert_eq!(list(&owner()).unwrap().len(), 2);
    });
    assert_eq!(within(&old, names), ["lo"]);
    assert_eq!(within(&new, names), ["lo", "eth0"]);
}

#[test]
fn what_fails_half_way_leaves_nothing() {
    let (host, container) = (netns::make().unwrap(), netns::make().unwrap());
    within(&host, || {
        let name = ensure_bridge(&owner(), &bridge("default", 7)).unwrap();
        let mut second = attachment("web-1@other", "nowhere", 8, 2);
        second.interface = "eth1".to_owned();
        let wanted = [attachment("web-1@default", &name, 7, 2), second];
        let error = attach(&owner(), container.as_fd(), &wanted).unwrap_err();
        assert!(matches!(&error, LinkError::NoBridge(name) if name == "nowhere"), "{error}");
        assert_eq!(names(), ["lo".to_owned(), name]);
    });
    assert_eq!(within(&container, names), ["lo"]);
}

#[test]
fn leftovers_go_and_what_others_made_stays() {
    let (host, container) = (netns::make().unwrap(), netns::make().unwrap());
    within(&host, || {
        let other = Owner::new("0badcaff").unwrap();
        let kept = ensure_bridge(&owner(), &bridge("default", 7)).unwrap();
        let gone = ensure_bridge(&owner(), &bridge("gone", 8)).unwrap();
        let theirs = ensure_bridge(&other, &bridge("default", 9)).unwrap();
        attach(&owner(), container.as_fd(), &[attachment("web-1@gone", &gone, 8, 2)]).unwrap();
        let port = list(&owner()).unwrap().into_iter().find(|l| l.kind == LinkKind::Port).unwrap();
        let mut removed =
            collect(&owner(), |link| link.what.as_deref() == Some("shop_default")).unwrap();
        removed.sort();
        assert_eq!(removed, [gone, port.name]);
        assert_eq!(names(), ["lo".to_owned(), kept, theirs]);
        assert!(collect(&owner(), |_| true).unwrap().is_empty());
    });
}

#[test]
fn the_subnets_of_the_host_are_seen_and_ours_are_not() {
    let host = netns::make().unwrap();
    within(&host, || {
        ensure_bridge(&owner(), &bridge("default", 7)).unwrap();
        assert_eq!(look_around(&owner()).unwrap(), HostLinks::default());
        let other = Owner::new("0badcaff").unwrap();
        let around = look_around(&other).unwrap();
        let taken: Vec<String> = around.taken.iter().map(ToString::to_string).collect();
        assert_eq!(taken, ["10.213.7.0/24", "fd00:7::/64"]);
        assert!(!around.has_ipv6);
    });
}
