//! From a service to the networks that its container is in. Pure.

use super::held::ImpliedNetwork;
use crate::container::ContainerId;
use crate::network::{
    HostAccess, Ipv6, MemberWish, MembershipWish, NetworkKey, NetworkSpec, PortWish, Reach, Subnet,
    Transport,
};
use crate::spec::{
    self, HostAddress, NetworkMode, NetworkOwner, Protocol, Service, ServiceNetwork,
};

/// What a container sees of networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Surroundings {
    /// Those of the host.
    Host,
    /// None.
    Nothing,
    /// Bridges of ours.
    Bridges,
    /// What another container sees.
    Anothers,
}

/// What a container of `service` sees.
pub(super) fn surroundings(service: &Service, implied: ImpliedNetwork) -> Surroundings {
    match (service.network_mode.as_ref(), implied) {
        (Some(NetworkMode::Service(_) | NetworkMode::Container(_)), _) => Surroundings::Anothers,
        (Some(NetworkMode::Host), _) => Surroundings::Host,
        (Some(NetworkMode::None), _) => Surroundings::Nothing,
        (Some(NetworkMode::Bridge), _) => Surroundings::Bridges,
        (None, ImpliedNetwork::Host) if !service.asks_for_network() => Surroundings::Host,
        (None, _) => Surroundings::Bridges,
    }
}

/// What a container wants of the networks that its service is in.
pub(super) fn member(id: &ContainerId, project: &str, service: &Service) -> MemberWish {
    let name = &service.name;
    let names_host = service.extra_hosts.iter().any(|host| host.address == HostAddress::Gateway);
    let networks = if service.network_mode == Some(NetworkMode::Bridge) {
        vec![shared(project, service)]
    } else {
        service.networks.iter().map(|network| of_file(id, project, service, network)).collect()
    };
    MemberWish {
        container: id.to_string(),
        endpoint: endpoint(project, name.as_str()),
        networks,
        ports: ports(service).collect(),
        host_access: if names_host { HostAccess::Granted } else { HostAccess::Denied },
        dns: service.dns.servers.clone(),
    }
}

/// The bridge that all services with `network_mode: bridge` share. They have no names for each other there, as under
/// Docker, because services of any project are on it.
fn shared(project: &str, service: &Service) -> MembershipWish {
    MembershipWish {
        network: NetworkSpec {
            key: NetworkKey::shared(),
            owner: None,
            reach: Reach::Outside,
            ipv6: Ipv6::AsHost,
            subnets: Vec::new(),
        },
        v4: None,
        v6: None,
        canonical: format!("{}.bridge", spec::container_name(project, &service.name)),
        names: Vec::new(),
    }
}

fn of_file(
    id: &ContainerId,
    project: &str,
    service: &Service,
    wanted: &ServiceNetwork,
) -> MembershipWish {
    let network = &wanted.network;
    let subnet = |subnet: &spec::NetworkSubnet| Subnet {
        net: subnet.net,
        gateway: subnet.gateway,
        range: subnet.range,
        reserved: subnet.reserved.clone(),
    };
    let ordinal = spec::container_name(project, &service.name);
    let own = [service.name.to_string(), ordinal.clone(), id.to_string()];
    let given = service.container_name.iter().chain(&service.hostname).chain(&wanted.aliases);
    MembershipWish {
        network: NetworkSpec {
            key: NetworkKey::named(network.name.as_str()),
            owner: (network.owner == NetworkOwner::Project).then(|| project.to_owned()),
            reach: if network.internal { Reach::Internal } else { Reach::Outside },
            ipv6: match network.ipv6 {
                None => Ipv6::AsHost,
                Some(true) => Ipv6::Always,
                Some(false) => Ipv6::Never,
            },
            subnets: network.subnets.iter().map(subnet).collect(),
        },
        v4: wanted.v4,
        v6: wanted.v6,
        canonical: format!("{ordinal}.{}", network.name),
        names: own.into_iter().chain(given.cloned()).collect(),
    }
}

/// What is published of `service`.
pub(super) fn ports(service: &Service) -> impl Iterator<Item = PortWish> {
    service.ports.iter().map(|port| PortWish {
        host_ip: port.host_ip,
        published: port.published.map(|(first, last)| first..=last),
        target: port.target,
        transport: match port.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
            Protocol::Sctp => Transport::Sctp,
        },
    })
}

/// What a service is called across recreation, in networks.
pub(super) fn endpoint(project: &str, service: &str) -> String {
    format!("{project}/{service}-1")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::spec::{ParseInput, ProjectChoice};

    fn service(keys: &str) -> Service {
        let text = format!("services: {{web: {{image: i, {keys}}}}}\nnetworks: {{back: }}\n");
        let environment = BTreeMap::new();
        let input = ParseInput {
            file: "services.yaml",
            project: "shop".parse().unwrap(),
            project_choice: ProjectChoice::Explicit,
            base_dir: std::path::Path::new("/srv"),
            environment: &environment,
        };
        crate::spec::parse(&text, &input).unwrap().services.remove("web").unwrap()
    }

    #[test]
    fn a_container_keeps_the_network_that_nobody_asked_for() {
        // Records of versions that gave the host's network say nothing of it.
        let earlier = ImpliedNetwork::default();
        for (keys, before, now) in [
            ("", Surroundings::Host, Surroundings::Bridges),
            ("networks: [back]", Surroundings::Bridges, Surroundings::Bridges),
            ("network_mode: host", Surroundings::Host, Surroundings::Host),
            ("network_mode: none", Surroundings::Nothing, Surroundings::Nothing),
            ("network_mode: bridge", Surroundings::Bridges, Surroundings::Bridges),
            ("network_mode: 'container:x'", Surroundings::Anothers, Surroundings::Anothers),
        ] {
            let service = service(keys);
            assert_eq!(surroundings(&service, earlier), before, "{keys}");
            assert_eq!(surroundings(&service, ImpliedNetwork::Project), now, "{keys}");
        }
    }

    #[test]
    fn a_container_is_called_by_all_of_its_names() {
        let keys = "container_name: store, hostname: h, networks: {back: {aliases: [a]}}";
        let id = "shop-web-1-abcdef".parse().unwrap();
        let wish = member(&id, "shop", &service(keys));
        let back = &wish.networks[0];
        assert_eq!(back.names, ["web", "shop-web-1", "shop-web-1-abcdef", "store", "h", "a"]);
        assert_eq!(back.canonical, "shop-web-1.shop_back");
        let shared = member(&id, "shop", &service("network_mode: bridge"));
        assert!(shared.networks[0].names.is_empty(), "services of any project are there");
    }
}
