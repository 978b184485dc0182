//! Subnets and addresses, over sequences of requests.

use proptest::prelude::*;

use super::*;
use crate::network::Reach;

fn spec(key: &str, subnets: Vec<Subnet>) -> NetworkSpec {
    let key = NetworkKey::named(format!("shop_{key}"));
    NetworkSpec {
        key,
        owner: Some("shop".to_owned()),
        reach: Reach::Outside,
        ipv6: Ipv6::AsHost,
        subnets,
    }
}

fn chosen(net: &str) -> Subnet {
    Subnet { net: net.parse().unwrap(), gateway: None, range: None, reserved: Vec::new() }
}

fn wish(name: &str) -> EndpointWish {
    EndpointWish { name: name.to_owned(), v4: None, v6: None }
}

fn fixed(name: &str, address: &str) -> EndpointWish {
    EndpointWish { v4: Some(address.parse().unwrap()), ..wish(name) }
}

fn dual() -> Surroundings {
    Surroundings { has_ipv6: true, seed: "0badcafe".to_owned(), ..Surroundings::default() }
}

#[test]
fn a_network_keeps_its_subnet_and_a_service_its_address() {
    let mut book = AddressBook::default();
    let spec = spec("default", Vec::new());
    let net = book.ensure_network(&spec, &dual()).unwrap().clone();
    assert_eq!(net.v4.net.to_string(), "10.213.0.0/24");
    assert_eq!(net.v4.gateway.to_string(), "10.213.0.1");
    let first = book.assign(&spec.key, &[wish("web"), wish("db")]).unwrap();
    assert_eq!(first["web"].v4.to_string(), "10.213.0.2");
    assert!(net.v6.unwrap().net.contains(&IpAddr::V6(first["db"].v6.unwrap())));
    // `web` is away for a while, others come, and the uplink is down.
    let away = book.assign(&spec.key, &[wish("db"), wish("cache")]).unwrap();
    assert_eq!(away["db"], first["db"]);
    assert_ne!(away["cache"].v4, first["web"].v4);
    let text = serde_json::to_string(&book).unwrap();
    let mut book: AddressBook = serde_json::from_str(&text).unwrap();
    book.ensure_network(&spec, &Surroundings::default()).unwrap();
    let again = book.assign(&spec.key, &[wish("web"), wish("db"), wish("cache")]).unwrap();
    assert_eq!((again["web"], again["db"]), (first["web"], first["db"]));
    assert_eq!(again["cache"], away["cache"]);
}

#[test]
fn what_the_host_uses_is_left_alone() {
    let mut book = AddressBook::default();
    let mut around = dual();
    around.taken = vec!["10.192.0.0/10".parse().unwrap(), "172.29.0.0/25".parse().unwrap()];
    let a = book.ensure_network(&spec("a", Vec::new()), &around).unwrap().v4.net;
    let b = book.ensure_network(&spec("b", Vec::new()), &around).unwrap().v4.net;
    assert_eq!((a.to_string(), b.to_string()), ("172.29.1.0/24".into(), "172.29.2.0/24".into()));
    around.taken.push("0.0.0.0/1".parse().unwrap());
    around.taken.push("128.0.0.0/1".parse().unwrap());
    let key = NetworkKey::named("shop_c");
    let refused = book.ensure_network(&spec("c", Vec::new()), &around).unwrap_err();
    assert_eq!(refused, SubnetError::Exhausted(key));
    // Those that are there stay: a route that comes later cannot move what runs.
    assert_eq!(book.ensure_network(&spec("a", Vec::new()), &around).unwrap().v4.net, a);
}

#[test]
fn a_chosen_subnet_is_taken_as_it_is() {
    let mut book = AddressBook::default();
    let mut subnet = chosen("10.5.0.0/16");
    subnet.gateway = Some("10.5.0.254".parse().unwrap());
    subnet.range = Some("10.5.9.0/30".parse().unwrap());
    subnet.reserved = vec!["10.5.9.1".parse().unwrap()];
    let spec_a = spec("a", vec![subnet, chosen("fd00:5::/64")]);
    let net = book.ensure_network(&spec_a, &Surroundings::default()).unwrap();
    assert_eq!(net.v4.gateway.to_string(), "10.5.0.254");
    assert_eq!(net.v6.as_ref().unwrap().gateway.to_string(), "fd00:5::1");
    let wanted = [wish("x"), fixed("y", "10.5.9.2"), fixed("z", "10.5.77.7"), wish("w")];
    let given = book.assign(&spec_a.key, &wanted).unwrap();
    let v4 = |name: &str| given[name].v4.to_string();
    assert_eq!(
        [v4("x"), v4("y"), v4("z"), v4("w")],
        ["10.5.9.0", "10.5.9.2", "10.5.77.7", "10.5.9.3"]
    );
    let full = book.assign(&spec_a.key, &[wish("x"), fixed("y", "10.5.9.2"), wish("w"), wish("v")]);
    assert!(matches!(full, Err(AddressError::Exhausted { .. })), "{full:?}");

    let overlap = book.ensure_network(&spec("b", vec![chosen("10.5.128.0/17")]), &dual());
    assert!(matches!(overlap, Err(SubnetError::Doubled { .. })), "{overlap:?}");
    let mut around = dual();
    around.taken = vec!["10.9.0.0/16".parse().unwrap()];
    let taken = book.ensure_network(&spec("b", vec![chosen("10.9.1.0/24")]), &around);
    assert!(matches!(taken, Err(SubnetError::Taken { .. })), "{taken:?}");
    for wrong in ["10.5.0.1/16", "10.6.0.0/31", "0.0.0.0/0", "127.0.0.0/24", "224.0.0.0/24"] {
        let refused = book.ensure_network(&spec("b", vec![chosen(wrong)]), &dual());
        assert!(matches!(refused, Err(SubnetError::Unusable { .. })), "{wrong}: {refused:?}");
    }
}

#[test]
fn a_fixed_address_comes_before_one_that_was_given() {
    let mut book = AddressBook::default();
    let spec = spec("default", Vec::new());
    book.ensure_network(&spec, &Surroundings::default()).unwrap();
    let first = book.assign(&spec.key, &[wish("web")]).unwrap();
    let address = first["web"].v4.to_string();
    let after = book.assign(&spec.key, &[wish("web"), fixed("db", &address)]).unwrap();
    assert_eq!(after["db"].v4, first["web"].v4);
    assert_ne!(after["web"].v4, first["web"].v4);
    for (wanted, expected) in [
        (vec![fixed("a", "10.213.0.9"), fixed("b", "10.213.0.9")], "both have the address"),
        (vec![fixed("a", "10.213.0.1")], "cannot have the address"),
        (vec![fixed("a", "10.213.0.255")], "cannot have the address"),
        (vec![fixed("a", "10.214.0.2")], "its subnet is `10.213.0.0/24`"),
        (vec![EndpointWish { v6: Some("fd00::2".parse().unwrap()), ..wish("a") }], "has no IPv6"),
    ] {
        let error = book.clone().assign(&spec.key, &wanted).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

proptest! {
    #[test]
    fn addresses_are_unique_stable_and_of_the_subnet(
        rounds in prop::collection::vec(prop::collection::btree_set(0_u8..40, 0..30), 1..8),
        pinned in prop::collection::btree_map(0_u8..40, 2_u8..250, 0..5),
    ) {
        let mut book = AddressBook::default();
        let spec = spec("default", Vec::new());
        let net = book.ensure_network(&spec, &dual()).unwrap().clone();
        let mut hosts = BTreeSet::new();
        let pinned: BTreeMap<u8, u8> = pinned.into_iter().filter(|(_, host)| hosts.insert(*host)).collect();
        let mut before: BTreeMap<String, Addresses> = BTreeMap::new();
        for round in rounds {
            let wanted: Vec<EndpointWish> = round.iter().map(|n| EndpointWish {
                v4: pinned.get(n).map(|host| Ipv4Addr::new(10, 213, 0, *host)),
                ..wish(&n.to_string())
            }).collect();
            let given = book.assign(&spec.key, &wanted).unwrap();
            prop_assert_eq!(given.len(), wanted.len());
            let v4: BTreeSet<_> = given.values().map(|a| a.v4).collect();
            let v6: BTreeSet<_> = given.values().map(|a| a.v6.unwrap()).collect();
            prop_assert_eq!((v4.len(), v6.len()), (given.len(), given.len()));
            for wish in &wanted {
                let got = given[&wish.name];
                prop_assert!(net.v4.net.contains(&IpAddr::V4(got.v4)));
                prop_assert!(IpAddr::V4(got.v4) != net.v4.gateway);
                if let Some(fixed) = wish.v4 {
                    prop_assert_eq!(got.v4, fixed);
                } else if let Some(had) = before.get(&wish.name) {
                    let is_needed = wanted.iter().any(|other| other.v4 == Some(had.v4));
                    prop_assert!(is_needed || got == *had);
                }
            }
            // The same wish again changes nothing.
            prop_assert_eq!(&book.assign(&spec.key, &wanted).unwrap(), &given);
            before.retain(|_, had| !given.values().any(|a| a.v4 == had.v4));
            before.extend(given);
        }
    }

    #[test]
    fn networks_never_overlap(count in 1_usize..60, taken in prop::collection::vec((0_u8..255, 8_u8..25), 0..6)) {
        let mut book = AddressBook::default();
        let mut around = dual();
        around.taken = taken.iter().map(|(octet, prefix)| {
            IpNet::new(IpAddr::V4(Ipv4Addr::new(10, 213, *octet, 0)), *prefix).unwrap().trunc()
        }).collect();
        let mut nets: Vec<IpNet> = Vec::new();
        for n in 0..count {
            let entry = book.ensure_network(&spec(&n.to_string(), Vec::new()), &around).unwrap();
            for net in [entry.v4.net, entry.v6.as_ref().unwrap().net] {
                let clash = nets.iter().chain(&around.taken).find(|other| subnet::overlap(&net, other));
                prop_assert!(clash.is_none(), "{} and {:?}", net, clash);
                nets.push(net);
            }
        }
    }
}
