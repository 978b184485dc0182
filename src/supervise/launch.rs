//! From a service and its image to what a monitor launches. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::bridges::Joined;
use crate::container::{
    Bounds, Content, Filter, FirstProcess, HostEntry, Input, Lack, Launch, LogKept, LogOverflow,
    LogTarget, Mount, MountKind, Network, PassedDevice, Process, Rlimit, Rootfs, Signal,
    StopPolicy, Writable,
};
use crate::host::Features;
use crate::image::{ImageConfig, ImageRef};
use crate::network::names;
use crate::spec::{
    self, Access, CopyUp, GrantContent, HostAddress, LogDriver, LogMode, Service, Swap, SystemCalls,
};

/// Where the pieces of one container are.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) id: crate::container::ContainerId,
    pub(super) instance: String,
    pub(super) run_dir: PathBuf,
    pub(super) state_dir: PathBuf,
    pub(super) log: PathBuf,
    /// Folder of all named volumes.
    pub(super) volumes: PathBuf,
}

/// The command line: the service's words over the image's, as Docker combines them.
pub(super) fn command_line(service: &Service, image: &ImageConfig) -> Vec<String> {
    let entrypoint = service.entrypoint.as_ref().unwrap_or(&image.entrypoint);
    // A service that replaces the entry point does not want the arguments that were meant for the image's.
    let inherited: &[String] = if service.entrypoint.is_some() { &[] } else { &image.cmd };
    let command = service.command.as_deref().unwrap_or(inherited);
    entrypoint.iter().chain(command).cloned().collect()
}

/// The image's variables, with the service's over them and in order: the image's first.
fn environment(service: &Service, image: &ImageConfig) -> Vec<String> {
    let name = |pair: &str| pair.split_once('=').map_or(pair, |(name, _)| name).to_owned();
    let kept =
        image.env.iter().filter(|pair| !service.environment.contains_key(&name(pair))).cloned();
    let own = service
        .environment
        .iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)));
    kept.chain(own).collect()
}

/// The signal that asks the container to stop: the service's, else the image's, else SIGTERM.
pub(super) fn stop_signal(service: &Service, image: &ImageConfig) -> Signal {
    let named = |text: &String| text.parse().ok();
    service
        .stop_signal
        .or_else(|| image.stop_signal.as_ref().and_then(named))
        .unwrap_or(Signal::TERM)
}

/// What the monitor of a container gets, but for its network.
pub(super) fn launch(
    service: &Service,
    image: &ImageConfig,
    layers: Vec<PathBuf>,
    mounted: &BTreeMap<ImageRef, Vec<PathBuf>>,
    place: Place,
    features: &Features,
) -> Launch {
    let rootfs = Rootfs {
        layers,
        writable: Writable::Volatile,
        read_only: service.is_read_only(),
        legacy_mount: !features.overlay_lowerdir_plus.is_present(),
    };
    let process = Process {
        args: command_line(service, image),
        env: environment(service, image),
        cwd: service.working_dir.clone().or_else(|| image.working_dir.clone()),
        user: service.user.clone().or_else(|| image.user.clone()),
        groups: service.first.groups.clone(),
        no_new_privileges: service.privileges.no_new_privileges.unwrap_or(false),
        first: match service.first.init {
            Some(true) => FirstProcess::Init,
            Some(false) | None => FirstProcess::Program,
        },
        input: match service.first.stdin_open {
            Some(true) => Input::Open,
            Some(false) | None => Input::Empty,
        },
    };
    let name = place.id.to_string();
    let volumes = place.volumes;
    let mut launch =
        Launch::new(place.id, &place.instance, place.run_dir, place.state_dir, rootfs, process);
    launch.log = log(service, &launch.process, &name, place.log);
    let lacks = [
        (&features.cgroup, Lack::Cgroup),
        (&features.seccomp, Lack::Seccomp),
        (&features.exit_codes, Lack::ExitCodes),
    ];
    let lacks = lacks.into_iter().filter(|(feature, _)| !feature.is_present());
    launch.lacks = lacks.map(|(_, lack)| lack).collect();
    launch.mounts = service
        .volumes
        .iter()
        .map(|bind| Mount {
            target: PathBuf::from(&bind.target),
            kind: MountKind::Bind { source: bind.source.clone(), create: true },
            read_only: bind.access == Access::ReadOnly,
        })
        .chain(service.named_volumes.iter().map(|named| Mount {
            target: PathBuf::from(&named.target),
            kind: MountKind::Volume {
                source: volumes.join(&named.volume).join("data"),
                copy: named.copy_up == CopyUp::IfEmpty,
            },
            read_only: named.access == Access::ReadOnly,
        }))
        .chain(service.image_volumes.iter().map(|volume| Mount {
            target: PathBuf::from(&volume.target),
            kind: MountKind::Image {
                layers: mounted.get(&volume.image).cloned().unwrap_or_default(),
                subpath: volume.subpath.as_ref().map(PathBuf::from),
            },
            read_only: true,
        }))
        .chain(service.grants.iter().map(granted))
        .chain(service.tmpfs.iter().map(|tmpfs| Mount {
            target: PathBuf::from(&tmpfs.target),
            kind: MountKind::Tmpfs { size: tmpfs.size, mode: tmpfs.mode },
            read_only: tmpfs.access == Access::ReadOnly,
        }))
        .collect();
    launch.hostname.clone_from(&service.hostname);
    launch.extra_hosts = extra_hosts(service);
    launch.resolv_conf = resolv_conf(service);
    launch.bounds = bounds(service);
    launch.health = super::health::check(service, image);
    launch.stop =
        StopPolicy { signal: stop_signal(service, image), grace_ms: millis(service.grace()) };
    launch
}

/// Launches a container into the networks that it has joined.
pub(super) fn attach(launch: &mut Launch, service: &Service, joined: Joined) {
    let gateway = joined.gateway.map_or_else(|| "127.0.0.1".to_owned(), |ip| ip.to_string());
    for (entry, host) in launch.extra_hosts.iter_mut().zip(&service.extra_hosts) {
        if host.address == HostAddress::Gateway {
            entry.address.clone_from(&gateway);
        }
    }
    // A dot alone searches nowhere.
    let search: Vec<String> = service.dns.search.iter().filter(|s| *s != ".").cloned().collect();
    launch.resolv_conf = Some(names::resolv_conf(&search, &service.dns.options));
    launch.network = Network::Attached(joined.attached);
}

/// A container that shares the host's network reaches the host as itself.
fn extra_hosts(service: &Service) -> Vec<HostEntry> {
    let entry = |host: &spec::ExtraHost| HostEntry {
        address: match host.address {
            HostAddress::Ip(ip) => ip.to_string(),
            HostAddress::Gateway => "127.0.0.1".to_owned(),
        },
        names: vec![host.name.clone()],
    };
    service.extra_hosts.iter().map(entry).collect()
}

fn granted(grant: &spec::Grant) -> Mount {
    let (text, file) = match &grant.content {
        GrantContent::Text(text) => (Some(text.clone()), None),
        GrantContent::File(file) => (None, Some(file.clone())),
    };
    let (uid, gid) = (grant.uid.unwrap_or(0), grant.gid.unwrap_or(0));
    let content = Content { text, file, uid, gid, mode: grant.mode.unwrap_or(0o444) };
    Mount {
        target: PathBuf::from(&grant.target),
        kind: MountKind::Content(content),
        read_only: true,
    }
}

/// `None`: the host's.
fn resolv_conf(service: &Service) -> Option<String> {
    let dns = &service.dns;
    if dns.servers.is_empty() {
        return None;
    }
    let mut text: String = dns.servers.iter().map(|ip| format!("nameserver {ip}\n")).collect();
    // A dot alone searches nowhere.
    let search: Vec<&str> = dns.search.iter().map(String::as_str).filter(|s| *s != ".").collect();
    for (word, list) in
        [("search", search), ("options", dns.options.iter().map(String::as_str).collect())]
    {
        if !list.is_empty() {
            text.push_str(&format!("{word} {}\n", list.join(" ")));
        }
    }
    Some(text)
}

fn bounds(service: &Service) -> Bounds {
    let (limits, privileges) = (&service.limits, &service.privileges);
    let rlimit = |(name, limit): (&String, &spec::Ulimit)| Rlimit {
        name: format!("RLIMIT_{}", name.to_ascii_uppercase()),
        soft: limit.soft,
        hard: limit.hard,
    };
    Bounds {
        memory: limits.memory,
        swap: limits.swap.map(|swap| match swap {
            Swap::Unlimited => -1,
            Swap::Bytes(bytes) => i64::try_from(bytes).unwrap_or(i64::MAX),
        }),
        memory_reservation: limits.memory_reservation,
        nano_cpus: limits.nano_cpus,
        cpu_shares: limits.cpu_shares,
        cpuset: limits.cpuset.clone(),
        pids: limits.pids.filter(|pids| *pids > 0),
        shm_size: limits.shm_size,
        oom_score_adj: limits.oom_score_adj,
        rlimits: limits.ulimits.iter().map(rlimit).collect(),
        cap_add: privileges.cap_add.iter().cloned().collect(),
        cap_drop: privileges.cap_drop.iter().cloned().collect(),
        filter: match privileges.system_calls {
            SystemCalls::Default => Filter::Default,
            SystemCalls::Unconfined => Filter::None,
        },
        privileged: privileges.privileged == Some(true),
        devices: service.kernel.devices.iter().map(device).collect(),
        sysctls: sysctls(service),
    }
}

fn device(device: &spec::Device) -> PassedDevice {
    PassedDevice {
        source: device.source.clone(),
        target: PathBuf::from(&device.target),
        permissions: device.permissions.clone(),
    }
}

/// The domain name of NIS is such a setting too.
fn sysctls(service: &Service) -> BTreeMap<String, String> {
    let domain =
        service.kernel.domainname.iter().map(|name| ("kernel.domainname".to_owned(), name.clone()));
    service.kernel.sysctls.clone().into_iter().chain(domain).collect()
}

/// Bytes that wait for a log before lines are dropped, where that is asked for; Docker's default.
const LOG_BUFFER: u64 = 1 << 20;

fn log(service: &Service, process: &Process, container: &str, path: PathBuf) -> LogTarget {
    let mut target = LogTarget::new(path);
    let Some(logging) = &service.logging else { return target };
    target.max_size = logging.max_size.unwrap_or(target.max_size);
    target.max_files = logging.max_files.unwrap_or(target.max_files);
    if logging.mode == Some(LogMode::NonBlocking) {
        let buffer = logging.max_buffer_size.unwrap_or(LOG_BUFFER);
        target.overflow = LogOverflow::Drop { buffer };
    }
    if logging.driver == Some(LogDriver::None) {
        target.kept = LogKept::Nothing;
    }
    let pairs = process.env.iter().filter_map(|pair| pair.split_once('='));
    target.attributes = pairs
        .filter(|(name, _)| logging.env.contains(*name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let tag = logging.tag(container, &service.image.to_string());
    target.attributes.extend(tag.map(|tag| ("tag".to_owned(), tag)));
    target
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::spec::{ParseInput, ProjectChoice};

    fn service(fields: &str) -> Service {
        let text = format!("services:\n  web:\n    image: example\n{fields}");
        let environment = BTreeMap::new();
        let input = ParseInput {
            file: "services.yaml",
            project: "site".parse().unwrap(),
            project_choice: ProjectChoice::Explicit,
            base_dir: std::path::Path::new("/srv"),
            environment: &environment,
        };
        let mut desired = crate::spec::parse(&text, &input).unwrap();
        desired.services.remove("web").unwrap()
    }

    fn image() -> ImageConfig {
        ImageConfig::parse(
            br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]},
            "config":{"Entrypoint":["/entry"],"Cmd":["default"],"Env":["A=1","B=2"],
            "WorkingDir":"/app","User":"www","StopSignal":"SIGQUIT"}}"#,
        )
        .unwrap()
    }

    fn place() -> Place {
        Place {
            id: "site-web-1".parse().unwrap(),
            instance: "00c0ffee".to_owned(),
            run_dir: PathBuf::from("/run/supervisor"),
            state_dir: PathBuf::from("/state/containers/site-web-1"),
            log: PathBuf::from("/state/logs/site/web/log.json"),
            volumes: PathBuf::from("/state/volumes"),
        }
    }

    #[test]
    fn command_lines_combine_as_under_docker() {
        for (fields, expected) in [
            ("", vec!["/entry", "default"]),
            ("    command: [run]\n", vec!["/entry", "run"]),
            ("    command: []\n", vec!["/entry"]),
            ("    entrypoint: [/other]\n", vec!["/other"]),
            ("    entrypoint: [/other]\n    command: [run]\n", vec!["/other", "run"]),
            ("    entrypoint: []\n    command: [run]\n", vec!["run"]),
        ] {
            assert_eq!(command_line(&service(fields), &image()), expected, "{fields}");
        }
    }

    #[test]
    fn what_the_service_says_wins_over_the_image() {
        let fields = "    environment: {B: two, C: three}\n    user: '1000'\n    working_dir: /srv\n    \
            stop_signal: INT\n    stop_grace_period: 3s\n    network_mode: none\n    read_only: true\n    \
            volumes: [./data:/data:ro]\n";
        let launch = launch(
            &service(fields),
            &image(),
            vec![PathBuf::from("/l/1")],
            &BTreeMap::new(),
            place(),
            &Features::assumed(),
        );
        assert_eq!(launch.process.env, ["A=1", "B=two", "C=three"]);
        assert_eq!(launch.process.user.as_deref(), Some("1000"));
        assert_eq!(launch.process.cwd.as_deref(), Some("/srv"));
        assert_eq!((launch.stop.signal.number(), launch.stop.grace_ms), (2, 3000));
        assert!(launch.rootfs.read_only && launch.mounts[0].read_only);
        let source = PathBuf::from("/srv/data");
        assert_eq!(launch.mounts[0].kind, MountKind::Bind { source, create: true });
    }

    #[test]
    fn the_log_is_what_the_service_asks_for() {
        let log = |fields: &str| {
            launch(
                &service(fields),
                &image(),
                vec![PathBuf::from("/l/1")],
                &BTreeMap::new(),
                place(),
                &Features::assumed(),
            )
            .log
        };
        let default = log("");
        assert_eq!(default, LogTarget::new(place().log));
        assert_eq!((default.max_size, default.max_files), (10_000_000, 3), "10 MB × 3");
        assert_eq!((default.kept, default.overflow), (LogKept::Files, LogOverflow::Wait));
        let full = log(
            "    environment: {C: three}\n    logging:\n      driver: local\n      options:\n        \
            max-size: 2m\n        max-file: 5\n        mode: non-blocking\n        max-buffer-size: 4k\n        \
            env: A,C,D\n        tag: '{{.ImageName}}/{{ .Name }}'\n",
        );
        assert_eq!((full.max_size, full.max_files), (2_000_000, 5));
        assert_eq!(full.overflow, LogOverflow::Drop { buffer: 4096 });
        let attributes: Vec<_> =
            full.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(attributes.len(), 3);
        assert!(attributes.contains(&("A", "1")) && attributes.contains(&("C", "three")));
        let tag = format!("{}/site-web-1", service("").image);
        assert!(attributes.contains(&("tag", tag.as_str())), "{attributes:?}");
        assert_eq!(log("    logging: {driver: none}\n").kept, LogKept::Nothing);
        assert_eq!(log("    logging: {options: {max-size: '-1'}}\n").max_size, 0);
    }

    #[test]
    fn what_the_service_leaves_open_is_the_image_s() {
        let launch = launch(
            &service(""),
            &image(),
            vec![PathBuf::from("/l/1")],
            &BTreeMap::new(),
            place(),
            &Features::assumed(),
        );
        assert_eq!(launch.process.env, ["A=1", "B=2"]);
        assert_eq!(launch.process.user.as_deref(), Some("www"));
        assert_eq!(launch.process.cwd.as_deref(), Some("/app"));
        assert_eq!((launch.stop.signal.number(), launch.stop.grace_ms), (3, 10_000));
        assert_eq!(launch.check(), Ok(()));
    }
}
