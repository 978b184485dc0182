//! Networks of files: their forms, what holds where nothing is written, and what is refused.

use super::*;

fn parsed(text: &str) -> Result<Desired, Problems> {
    let environment = BTreeMap::new();
    let input = ParseInput {
        file: "services.yaml",
        project: "shop".parse().unwrap(),
        project_choice: ProjectChoice::Explicit,
        base_dir: Path::new("/srv"),
        environment: &environment,
    };
    parse(text, &input)
}

fn web(keys: &str, networks: &str) -> Service {
    let text = format!("services: {{web: {{image: i, {keys}}}}}\nnetworks: {networks}\n");
    parsed(&text).unwrap_or_else(|problems| panic!("{problems}")).services.remove("web").unwrap()
}

#[test]
fn a_service_that_names_no_network_is_in_that_of_its_project() {
    for (keys, networks) in [("", "{}"), ("networks: ", "{}"), ("networks: []", "{default: }")] {
        let web = web(keys, networks);
        let names: Vec<&str> = web.networks.iter().map(|n| n.network.name.as_str()).collect();
        assert_eq!(names, ["shop_default"], "{keys} {networks}");
        assert!(!web.asks_for_network(), "{keys} {networks}");
    }
    // An earlier version gave the host's network where nothing is written; containers of it are as they should be.
    let plain = web("", "{}").fingerprint();
    assert_eq!(plain.changed_fields(&web("networks: ", "{}").fingerprint()), Vec::<String>::new());
    for (keys, networks, field) in [
        ("", "{default: {internal: true}}", "networks.default"),
        ("", "{default: {name: other}}", "networks.default"),
        ("networks: [back]", "{back: }", "networks.back"),
        ("network_mode: host", "{}", "network_mode"),
    ] {
        let asked = web(keys, networks);
        assert!(asked.asks_for_network());
        assert_eq!(plain.changed_fields(&asked.fingerprint()), [field], "{keys} {networks}");
    }
}

#[test]
fn networks_are_read_in_every_form() {
    let web = web(
        "networks: {b: {aliases: [x, y_1, x], ipv4_address: 172.30.5.9, priority: 1}, a: , \
         c: {priority: 5, driver_opts: {}}, d: {gw_priority: 1}, old: }",
        "{a: {name: known}, b: {internal: true, driver: bridge, attachable: true, labels: [x], enable_ipv6: false, \
         ipam: {driver: default, config: [{subnet: 172.30.5.0/24, gateway: 172.30.5.254, ip_range: 172.30.5.0/25, \
         aux_addresses: {printer: 172.30.5.7}}, {subnet: 'fd01::/64'}]}}, c: {external: true}, \
         d: {external: true, name: lan}, old: {external: {name: older}}}",
    );
    let shown: Vec<(&str, &str)> =
        web.networks.iter().map(|n| (n.key.as_str(), n.network.name.as_str())).collect();
    assert_eq!(
        shown,
        [("d", "lan"), ("c", "c"), ("b", "shop_b"), ("a", "known"), ("old", "older")]
    );
    let back = &web.networks[2];
    assert_eq!(back.aliases, ["x", "y_1"]);
    assert_eq!(back.v4.unwrap().to_string(), "172.30.5.9");
    assert!(back.network.internal && back.network.ipv6 == Some(false));
    let subnet = &back.network.subnets[0];
    assert_eq!(subnet.gateway.unwrap().to_string(), "172.30.5.254");
    assert_eq!(subnet.reserved.len(), 1);
    let owners: Vec<bool> =
        web.networks.iter().map(|n| n.network.owner == NetworkOwner::Nobody).collect();
    assert_eq!(owners, [true, true, false, false, true]);
}

#[test]
fn what_networks_cannot_be_is_told_with_its_place() {
    let text = "\
services:
  a:
    image: a
    networks: [none_such, back, bad]
  b: {image: b, network_mode: host, networks: [back]}
  c: {image: c, networks: {back: {ipv4_address: 10.0.0.1, mac_address: x, aliases: ['a b'], nope: 1}}}
  d: {image: d, networks: [inner], ports: ['80:80']}
  e: {image: e, networks: text}
networks:
  back: {ipam: {config: [{subnet: 172.30.5.0/24}]}}
  inner: {internal: true}
  bad: {driver: overlay, driver_opts: {a: b}, attachable: true}
  ../up: {}
  mode: {external: true, name: host}
  shared: {name: bridge}
  none: {external: true}
  bridge: {external: {}}
  addresses:
    ipam:
      config:
        - {subnet: 172.30.5.1/24}
        - {subnet: here}
        - {gateway: 10.0.0.1}
        - {subnet: 172.30.6.0/24, gateway: 10.0.0.1}
        - {subnet: 172.30.6.0/24, ip_range: 10.0.0.0/24}
        - {subnet: 172.30.6.0/24}
        - {subnet: 172.30.7.0/24}
      driver: dhcp
  list: []
";
    insta::assert_snapshot!(parsed(text).unwrap_err());
}

#[test]
fn a_service_in_the_network_of_another_depends_on_it() {
    let text = "services: {vpn: {image: i, container_name: tunnel}, \
        a: {image: i, network_mode: 'service:vpn'}, b: {image: i, network_mode: 'container:tunnel'}, \
        c: {image: i, network_mode: 'container:shop-vpn-1', depends_on: {vpn: {condition: service_healthy}}}, \
        d: {image: i, network_mode: 'container:elsewhere'}}";
    let desired = parsed(text).unwrap();
    for (name, condition) in
        [("a", Condition::Started), ("b", Condition::Started), ("c", Condition::Healthy)]
    {
        let dependency = desired.services[name].depends_on["vpn"];
        assert_eq!(dependency, Dependency { condition, required: true, restart: true }, "{name}");
    }
    assert!(desired.services["d"].depends_on.is_empty());
    let text = "\
services:
  a: {image: i, network_mode: 'service:a'}
  b: {image: i, network_mode: 'service:none'}
  c: {image: i, network_mode: 'service:off'}
  off: {image: i, profiles: [x]}
  d: {image: i, network_mode: 'service:e', ports: ['80:80'], dns: 10.0.0.1}
  e: {image: i, network_mode: 'service:d'}
  f: {image: i, network_mode: 'service:'}
  g: {image: i, network_mode: 'container:'}
";
    insta::assert_snapshot!(parsed(text).unwrap_err());
}

#[test]
fn one_word_binds_all_ports_that_name_no_address() {
    let text = "x-supervisor: {ports_bind: 127.0.0.1}\nservices:\n  \
        a: {image: i, ports: ['8080:80', '0.0.0.0:81:81', '[::1]::82']}\n  \
        b: {image: i, ports: ['90'], x-supervisor: {ports_bind: '::'}}\n  \
        c: {image: i, ports: ['91:91'], network_mode: host}\n";
    let desired = parsed(text).unwrap();
    let bound = |name: &str| -> Vec<String> {
        let ports = desired.services[name].ports.iter();
        ports.map(|p| p.host_ip.map(|ip| ip.to_string()).unwrap_or_default()).collect()
    };
    assert_eq!(bound("a"), ["127.0.0.1", "0.0.0.0", "::1"]);
    assert_eq!((bound("b"), bound("c")), (vec!["::".to_owned()], vec![String::new()]));
    let wrong = parsed("x-supervisor: {ports_bind: here}\nservices: {a: {image: i}}").unwrap_err();
    assert!(
        wrong.to_string().contains("1:28: x-supervisor.ports_bind: `here` is no address"),
        "{wrong}"
    );
}
