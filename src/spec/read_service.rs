//! One service: its keys, and what only several of them together can tell.

use super::field::Checker;
use super::keys::{self, HasImage};
use super::object::Found;
use super::raw::{Node, Value};
use super::volume::Mounted;
use super::{GrantKind, NetworkMode, Service, ServiceName};
use crate::image::ImageRef;

/// `None` only after a problem was reported.
pub(super) fn read(checker: &mut Checker<'_>, name: ServiceName, node: &Node) -> Option<Service> {
    let Value::Map(entries) = &node.value else {
        let found = node.value.kind();
        let message = format!("expected a mapping with `image:`, found {found}");
        checker.problem(Some(node.at), name.as_str(), message);
        return None;
    };
    let has = |wanted: &str| entries.iter().any(|entry| entry.key == wanted);
    let has_image = if has("image") { HasImage::Yes } else { HasImage::No };
    let image = node.get("image").map(|image| checker.image(&format!("{name}.image"), image));
    if image.is_none() && !has("build") {
        checker.problem(Some(node.at), name.as_str(), "the service has no `image:`");
    }
    let mut service = bare(name);
    let mut unread = Vec::new();
    for found in checker.entries(service.name.as_str(), node, keys::SERVICE) {
        if !container(checker, &found, &mut service)
            && !surroundings(checker, &found, &mut service)
            && !checker.limit(&found, &mut service.limits)
        {
            unread.push(found);
        }
    }
    for found in unread {
        let (path, value) = (found.path.as_str(), found.value);
        match found.key.name {
            // Read before.
            "image" => {}
            "build" => match has_image {
                HasImage::Yes => checker.unsupported(found.at, path, keys::build(has_image)),
                // Nothing would be left to run.
                HasImage::No => checker.problem(Some(found.at), path, keys::build(has_image)),
            },
            "env_file" | "extends" => {
                let key = found.key.name;
                let message =
                    format!("`{key}` names a file, and this text was given without its folder");
                checker.problem(Some(found.at), path, message);
            }
            "deploy" => {
                checker.deploy(path, value, &mut service.limits, &mut service.restart);
            }
            // With the network that holds, which any key before or after it may say.
            "ports" => service.ports = checker.ports(path, value, service.network_mode.as_ref()),
            "tty" => {
                if checker.boolean(path, value).is_some() {
                    checker.only(&found, &["false"]);
                }
            }
            "scale" => checker.only(&found, &["1"]),
            "pull_policy" => checker.only(&found, &["missing", "if_not_present"]),
            "runtime" => {
                checker.only(&found, &["runc", "crun", "youki", "io.containerd.runc.v2"]);
            }
            "platform" => platform(checker, &found),
            _ => checker.leave(&found),
        }
    }
    check(checker, node, &mut service);
    service.image = image??;
    Some(service)
}

/// A service of which nothing is known.
fn bare(name: ServiceName) -> Service {
    Service {
        name,
        // Replaced, or the service is given up.
        image: ImageRef::Layout { path: std::path::PathBuf::new(), tag: None },
        command: None,
        entrypoint: None,
        environment: Default::default(),
        working_dir: None,
        user: None,
        volumes: Vec::new(),
        read_only: None,
        restart: None,
        stop_signal: None,
        stop_grace_period: None,
        network_mode: None,
        networks: Vec::new(),
        container_name: None,
        logging: None,
        named_volumes: Vec::new(),
        image_volumes: Vec::new(),
        grants: Vec::new(),
        tmpfs: Vec::new(),
        hostname: None,
        extra_hosts: Vec::new(),
        dns: Default::default(),
        limits: Default::default(),
        privileges: Default::default(),
        kernel: Default::default(),
        first: Default::default(),
        ports: Vec::new(),
        depends_on: Default::default(),
        healthcheck: None,
        extensions: Default::default(),
    }
}

/// Keys of what runs; false if it is another one.
fn container(checker: &mut Checker<'_>, found: &Found<'_>, service: &mut Service) -> bool {
    let (path, value) = (found.path.as_str(), found.value);
    match found.key.name {
        "command" => service.command = checker.words(path, value),
        "entrypoint" => service.entrypoint = checker.words(path, value),
        "environment" => service.environment = checker.environment(path, value),
        "working_dir" => service.working_dir = checker.absolute(path, value),
        "user" => service.user = checker.user(path, value),
        "volumes" => {
            let mounted = checker.volumes(path, value);
            mount(checker, found, mounted, service);
        }
        "tmpfs" => {
            let mounted = checker.tmpfs(path, value);
            mount(checker, found, mounted, service);
        }
        "configs" => grant(checker, found, GrantKind::Config, service),
        "secrets" => grant(checker, found, GrantKind::Secret, service),
        "read_only" => service.read_only = checker.boolean(path, value),
        "cap_add" => service.privileges.cap_add = checker.capabilities(path, value),
        "cap_drop" => service.privileges.cap_drop = checker.capabilities(path, value),
        "privileged" => service.privileges.privileged = checker.boolean(path, value),
        "devices" => service.kernel.devices = checker.devices(path, value),
        "sysctls" => service.kernel.sysctls = checker.sysctls(path, value),
        "group_add" => service.first.groups = checker.groups(path, value),
        "init" => service.first.init = checker.boolean(path, value),
        "stdin_open" => service.first.stdin_open = checker.boolean(path, value),
        "security_opt" => checker.security_opt(path, value, &mut service.privileges),
        "stop_signal" => service.stop_signal = checker.signal(path, value),
        "stop_grace_period" => service.stop_grace_period = checker.duration(path, value),
        _ => return false,
    }
    true
}

/// Keys of what is around it; false if it is another one.
fn surroundings(checker: &mut Checker<'_>, found: &Found<'_>, service: &mut Service) -> bool {
    let (path, value) = (found.path.as_str(), found.value);
    match found.key.name {
        "restart" => service.restart = checker.restart(path, value),
        "network_mode" => service.network_mode = checker.network_mode(path, value),
        "networks" => service.networks = checker.service_networks(path, value),
        "container_name" => service.container_name = checker.hostname(path, value),
        "domainname" => service.kernel.domainname = checker.hostname(path, value),
        "hostname" => service.hostname = checker.hostname(path, value),
        "extra_hosts" => service.extra_hosts = checker.extra_hosts(path, value),
        "dns" => service.dns.servers = checker.dns_servers(path, value),
        "dns_search" => service.dns.search = checker.dns_words(path, value),
        "dns_opt" => service.dns.options = checker.dns_words(path, value),
        "logging" => service.logging = checker.logging(path, value),
        "profiles" => checker.profiles(path, value),
        "depends_on" => {
            service.depends_on = checker.depends_on(path, value);
        }
        "healthcheck" => {
            service.healthcheck = checker.healthcheck(path, value);
        }
        "x-supervisor" => service.extensions = checker.extensions(path, value),
        _ => return false,
    }
    true
}

/// Adds configs or secrets.
fn grant(checker: &mut Checker<'_>, found: &Found<'_>, kind: GrantKind, service: &mut Service) {
    for grant in checker.grants(kind, &found.path, found.value) {
        if is_taken(service, &grant.target) {
            let message = format!("something is mounted at `{}` already", grant.target);
            checker.problem(Some(found.value.at), &found.path, message);
        } else {
            service.grants.push(grant);
        }
    }
}

/// Whether something is mounted there.
fn is_taken(service: &Service, target: &str) -> bool {
    service.volumes.iter().any(|bind| bind.target == target)
        || service.named_volumes.iter().any(|named| named.target == target)
        || service.image_volumes.iter().any(|image| image.target == target)
        || service.tmpfs.iter().any(|tmpfs| tmpfs.target == target)
        || service.grants.iter().any(|grant| grant.target == target)
}

/// Adds what is mounted; nothing is mounted twice in one place.
fn mount(
    checker: &mut Checker<'_>,
    found: &Found<'_>,
    mounted: Vec<Mounted>,
    service: &mut Service,
) {
    for mounted in mounted {
        let target = mounted.target();
        if is_taken(service, target) {
            let message = format!("something is mounted at `{target}` already");
            checker.problem(Some(found.value.at), &found.path, message);
            continue;
        }
        match mounted {
            Mounted::Bind(bind) => service.volumes.push(bind),
            Mounted::Tmpfs(tmpfs) => service.tmpfs.push(tmpfs),
            Mounted::Named(named) => service.named_volumes.push(named),
            Mounted::Image(image) => service.image_volumes.push(image),
        }
    }
}

/// What only several keys together can tell.
fn check(checker: &mut Checker<'_>, node: &Node, service: &mut Service) {
    let name = service.name.to_string();
    checker.check_limits(node.at, &name, &service.limits);
    networks(checker, node, service);
    settings(checker, node, service);
    let dns = &service.dns;
    if service.network_mode == Some(NetworkMode::Host)
        && dns.servers.is_empty()
        && !(dns.search.is_empty() && dns.options.is_empty())
    {
        let key = if dns.search.is_empty() { "dns_opt" } else { "dns_search" };
        let at = node.get(key).map_or(node.at, |node| node.at);
        let message = format!("`{key}` is not supported with the host's network without `dns`");
        checker.unsupported(at, &format!("{name}.{key}"), message);
        service.dns = Default::default();
    }
    let has_no_names = match &service.network_mode {
        Some(NetworkMode::None) => Some("has no meaning without a network (`network_mode: none`)"),
        Some(NetworkMode::Service(_) | NetworkMode::Container(_)) => {
            Some("is said by the service that the network is of")
        }
        _ => None,
    };
    if let Some(reason) = has_no_names.filter(|_| !service.dns.servers.is_empty()) {
        let at = node.get("dns").map_or(node.at, |node| node.at);
        let message = format!("`dns` {reason}");
        checker.problem(Some(at), &format!("{name}.dns"), message);
    }
}

/// Settings of a network are of whoever it is.
fn settings(checker: &mut Checker<'_>, node: &Node, service: &mut Service) {
    let of_others = match &service.network_mode {
        Some(NetworkMode::Host) => "with the host's network it is a setting of the host",
        Some(NetworkMode::Service(_) | NetworkMode::Container(_)) => {
            "it is said by the service that the network is of"
        }
        _ => return,
    };
    let name = service.name.to_string();
    let Some(setting) = service.kernel.sysctls.keys().find(|name| name.starts_with("net.")) else {
        return;
    };
    let at = node.get("sysctls").map_or(node.at, |node| node.at);
    checker.unsupported(at, &format!("{name}.sysctls.{setting}"), of_others);
    service.kernel.sysctls.retain(|name, _| !name.starts_with("net."));
}

/// The networks that hold, and what is at odds with them.
fn networks(checker: &mut Checker<'_>, node: &Node, service: &mut Service) {
    let at = |key: &str| node.get(key).map_or(node.at, |node| node.at);
    if let Some(mode) = &service.network_mode {
        if !service.networks.is_empty() {
            let message = format!("a service has `networks` or `network_mode: {mode}`, not both");
            checker.problem(Some(at("networks")), &format!("{}.networks", service.name), message);
        }
        return;
    }
    if service.networks.is_empty() {
        service.networks.extend(checker.default_network());
    }
    let is_internal = |network: &super::ServiceNetwork| network.network.internal;
    if !service.ports.is_empty()
        && !service.networks.is_empty()
        && service.networks.iter().all(is_internal)
    {
        let message = "ports cannot be published: all networks of the service are internal";
        checker.unsupported(at("ports"), &format!("{}.ports", service.name), message);
        service.ports.clear();
    }
}

fn platform(checker: &mut Checker<'_>, found: &Found<'_>) {
    // The architecture that this program was made for; in a name of images.
    let own: &[&str] = if cfg!(target_arch = "x86_64") {
        &["linux/amd64", "linux/x86_64", "amd64", "linux"]
    } else if cfg!(target_arch = "aarch64") {
        &["linux/arm64", "linux/arm64/v8", "linux/aarch64", "arm64", "linux"]
    } else {
        &["linux"]
    };
    checker.only(found, own);
}
