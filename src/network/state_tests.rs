//! Who is in which network, computed; and a host that is made so, in a namespace.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::Duration;

use super::link::attach;
use super::names::{Outside, Ready};
use super::port::HostPort;
use super::rules::Change;
use super::*;
use crate::sys::netns;

fn network(name: &str, reach: Reach) -> NetworkSpec {
    let key = NetworkKey::named(format!("shop_{name}"));
    NetworkSpec {
        key,
        owner: Some("shop".to_owned()),
        reach,
        ipv6: Ipv6::AsHost,
        subnets: Vec::new(),
    }
}

fn member(service: &str, networks: &[NetworkSpec], ports: &[&str]) -> MemberWish {
    let port = |text: &&str| {
        let (published, target) = text.split_once(':').unwrap_or(("", text));
        let range = published.split_once('-').unwrap_or((published, published));
        let published = range.0.parse().ok().map(|first| first..=range.1.parse().unwrap());
        let target = target.parse().unwrap();
        PortWish { host_ip: None, published, target, transport: Transport::Tcp }
    };
    MemberWish {
        container: format!("{service}-1-aaaaaa"),
        endpoint: format!("shop/{service}-1"),
        networks: networks
            .iter()
            .map(|network| MembershipWish {
                network: network.clone(),
                v4: None,
                v6: None,
                canonical: format!("shop-{service}-1"),
                names: vec![service.to_owned()],
            })
            .collect(),
        ports: ports.iter().map(port).collect(),
        host_access: HostAccess::Denied,
        dns: Vec::new(),
    }
}

fn around() -> Surroundings {
    Surroundings { seed: "0badcafe".to_owned(), has_ipv6: true, ..Surroundings::default() }
}

#[test]
fn what_a_container_gets_follows_from_the_state() {
    let mut state = NetworkState::default();
    let (open, closed) = (network("default", Reach::Outside), network("back", Reach::Internal));
    let web = member("web", &[closed.clone(), open.clone()], &["8080:80", "81"]);
    state.join(&web, &around(), |_| true).unwrap();
    state.join(&member("db", &[closed], &[]), &around(), |_| true).unwrap();
    let text = serde_json::to_string(&state).unwrap();
    let state: NetworkState = serde_json::from_str(&text).unwrap();

    let attachments = state.attachments("web-1-aaaaaa", |key| format!("b-{key}"));
    let shown: Vec<_> = attachments
        .iter()
        .map(|a| (a.interface.as_str(), a.bridge.as_str(), a.gateway4.is_some()))
        .collect();
    assert_eq!(shown, [("eth0", "b-shop_back", false), ("eth1", "b-shop_default", true)]);
    let macs: BTreeSet<_> = attachments.iter().map(|a| a.mac).collect();
    assert_eq!(macs.len(), 2);

    let ruleset = state.ruleset(|key| format!("b-{key}"));
    assert_eq!(ruleset.networks.len(), 2);
    let ports: Vec<(u16, u16, bool)> =
        ruleset.publications.iter().map(|p| (p.host_port, p.to_port, p.to.is_ipv6())).collect();
    assert_eq!(ports, [(8080, 80, false), (8080, 80, true), (32768, 81, false), (32768, 81, true)]);
    // By the network that leads outside.
    let (address, _) = attachments[1].v4.unwrap();
    assert_eq!(ruleset.publications[0].to, address);

    let table = state.name_table();
    assert_eq!(table.clients["web-1-aaaaaa"].outside, Outside::Asked);
    assert_eq!(table.clients["db-1-aaaaaa"].outside, Outside::Closed);
    let hosts = &table.networks[&NetworkKey::named("shop_back")].hosts;
    assert_eq!(hosts.len(), 2);
    assert!(hosts.iter().all(|host| host.ready == Ready::No));
}

#[test]
fn a_network_is_what_its_project_says() {
    let (open, closed) = (network("lan", Reach::Outside), network("lan", Reach::Internal));
    let found = NetworkSpec { owner: None, ..open.clone() };
    let foreign = NetworkSpec { owner: Some("other".to_owned()), ..open };
    let mut state = NetworkState::default();
    // Whoever only uses it may come first.
    state.join(&member("guest", std::slice::from_ref(&found), &[]), &around(), |_| true).unwrap();
    state.join(&member("web", &[closed], &[]), &around(), |_| true).unwrap();
    let attachments = state.attachments("guest-1-aaaaaa", |key| key.to_string());
    assert_eq!(attachments[0].gateway4, None);
    let ports = state.join(&member("late", &[found], &["80:80"]), &around(), |_| true);
    assert!(matches!(ports, Err(JoinError::NoWayIn(_))));
    let refused = state.join(&member("thief", &[foreign], &[]), &around(), |_| true);
    let error = refused.unwrap_err().to_string();
    assert!(error.starts_with("network `shop_lan` belongs to project `shop`; "), "{error}");
}

#[test]
fn who_only_uses_a_network_changes_nothing_of_it() {
    let mut state = NetworkState::default();
    let own = NetworkSpec { ipv6: Ipv6::Never, ..network("lan", Reach::Outside) };
    let found = NetworkSpec { owner: None, ..network("lan", Reach::Outside) };
    state.join(&member("web", std::slice::from_ref(&own), &[]), &around(), |_| true).unwrap();
    let guest = member("guest", &[found], &[]);
    state.join(&guest, &around(), |_| true).unwrap();
    assert!(!state.has_ipv6());
    // Nor where the owner is away for a moment.
    state.leave("web-1-aaaaaa");
    state.leave("guest-1-aaaaaa");
    state.keep(|_| true);
    state.join(&guest, &around(), |_| true).unwrap();
    assert!(!state.has_ipv6());
    state.join(&member("web", &[own], &[]), &around(), |_| true).unwrap();
    // The shared bridge is nobody's, and gets what the host has when nobody is on it.
    let shared = |ipv6| NetworkSpec {
        key: NetworkKey::shared(),
        owner: None,
        ipv6,
        ..network("", Reach::Outside)
    };
    let poor = Surroundings { has_ipv6: false, ..around() };
    let [one, two] = ["one", "two"].map(|name| member(name, &[shared(Ipv6::AsHost)], &[]));
    state.join(&one, &poor, |_| true).unwrap();
    state.join(&two, &around(), |_| true).unwrap();
    assert!(!state.has_ipv6());
    state.keep(|container| container.starts_with("web"));
    state.join(&one, &around(), |_| true).unwrap();
    assert!(state.has_ipv6());
    let seen: Vec<Neighbours> = ["web", "one"]
        .map(|name| state.attachments(&format!("{name}-1-aaaaaa"), |key| key.to_string()))
        .map(|attachments| attachments[0].neighbours)
        .to_vec();
    assert_eq!(seen, [Neighbours::Seen, Neighbours::Unseen]);
}

#[test]
fn subnets_of_networks_that_are_gone_are_given_out_again() {
    let mut state = NetworkState::default();
    let around = Surroundings { pools: vec!["10.0.0.0/23".parse().unwrap()], ..around() };
    let of = |name| member(name, &[network(name, Reach::Outside)], &[]);
    let address = |state: &NetworkState, name: &str| {
        state.attachments(&format!("{name}-1-aaaaaa"), |key| key.to_string())[0].v4.unwrap().0
    };
    state.join(&of("a"), &around, |_| true).unwrap();
    state.join(&of("b"), &around, |_| true).unwrap();
    let before = address(&state, "b");
    assert!(state.join(&of("c"), &around, |_| true).is_err(), "all are used");
    state.keep(|container| container.starts_with('b'));
    state.join(&of("c"), &around, |_| true).unwrap();
    assert_eq!(address(&state, "b"), before);
    // Nor is one in the way of what a file asks for.
    state.keep(|container| container.starts_with('b'));
    let mut chosen = network("d", Reach::Outside);
    let net = "10.0.0.0/24".parse().unwrap();
    chosen.subnets = vec![Subnet { net, gateway: None, range: None, reserved: Vec::new() }];
    state.join(&member("d", &[chosen], &[]), &around, |_| true).unwrap();
}

#[test]
fn a_recreated_container_has_what_it_had() {
    let mut state = NetworkState::default();
    let open = network("default", Reach::Outside);
    let wish = member("web", std::slice::from_ref(&open), &["80", "8000-8010:81"]);
    let taken = |port: HostPort| port.port != 32768 && port.port != 8000;
    state.join(&wish, &around(), taken).unwrap();
    let before = state.publications("web-1-aaaaaa").to_vec();
    let ports: BTreeSet<u16> = before.iter().map(|p| p.host_port).collect();
    assert_eq!(ports, BTreeSet::from([32769, 8001]));
    state.leave("web-1-aaaaaa");
    state
        .join(&member("other", std::slice::from_ref(&open), &["82"]), &around(), |_| true)
        .unwrap();
    // The old one is still there while the new one comes.
    let next = MemberWish { container: "web-1-bbbbbb".to_owned(), ..wish };
    state.join(&next, &around(), |_| true).unwrap();
    assert_eq!(state.publications("web-1-bbbbbb"), before);

    let refused =
        state.join(&member("late", std::slice::from_ref(&open), &["8001:1"]), &around(), |_| true);
    let error = refused.unwrap_err().to_string();
    assert_eq!(error, "port `8001/tcp` is published by `shop/web-1` already");
    let hidden = member("hidden", &[network("back", Reach::Internal)], &["1:1"]);
    let before = state.clone();
    assert!(matches!(state.join(&hidden, &around(), |_| true), Err(JoinError::NoWayIn(_))));
    assert_eq!(state, before, "a refusal changes nothing");
    let none = state.join(&member("late", &[open], &["9000-9001:1"]), &around(), |_| false);
    assert!(matches!(none, Err(JoinError::NoPort { .. })));
    state.keep(|_| false);
    assert!(state.bridges().is_empty() && state.ruleset(|_| String::new()).publications.is_empty());
}

#[test]
fn a_host_becomes_what_the_state_says_and_nothing_is_left_of_it() {
    let (host, web, db) = (netns::make().unwrap(), netns::make().unwrap(), netns::make().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let work = || {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let owner = Owner::new("0badcafe").unwrap();
        let mut network_of_host = HostNetwork::new(owner.clone(), folder.path().join("network"));
        let mut state = NetworkState::default();
        let open = network("default", Reach::Outside);
        let surroundings = network_of_host.surroundings().unwrap();
        for (service, ports) in [("web", &["8080:80"][..]), ("db", &[])] {
            let wish = member(service, std::slice::from_ref(&open), ports);
            state.join(&wish, &surroundings, |_| true).unwrap();
        }
        let applied = network_of_host.apply(&state).unwrap();
        assert_eq!((applied.rules, applied.collected.len()), (Change::Applied, 0));
        for (container, namespace) in [("web-1-aaaaaa", &web), ("db-1-aaaaaa", &db)] {
            let attachments = network_of_host.attachments(&state, container);
            attach(&owner, namespace.as_fd(), &attachments).unwrap();
        }
        let again = network_of_host.apply(&state).unwrap();
        assert_eq!(
            again,
            Applied { settings: Vec::new(), rules: Change::None, collected: Vec::new() }
        );

        let listener =
            netns::within(web.as_fd(), || TcpListener::bind("0.0.0.0:80")).unwrap().unwrap();
        let to = "127.0.0.1:8080".parse().unwrap();
        TcpStream::connect_timeout(&to, Duration::from_secs(30)).unwrap();
        listener.accept().unwrap();

        // Another control finds the same, and what ended meanwhile goes.
        let mut next = HostNetwork::new(owner.clone(), folder.path().join("network"));
        state.keep(|container| container.starts_with("db"));
        let applied = next.apply(&state).unwrap();
        assert_eq!((applied.rules, applied.collected.len()), (Change::Applied, 1));
        state.keep(|_| false);
        assert_eq!(next.apply(&state).unwrap().collected.len(), 2);
        assert!(super::link::list(&owner).unwrap().is_empty());
        let tables = Command::new("nft").args(["list", "tables"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&tables.stdout), "");
    };
    netns::within(host.as_fd(), work).unwrap();
}
