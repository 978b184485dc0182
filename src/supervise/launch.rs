//! From a service and its image to what a monitor launches. Pure.

use std::path::PathBuf;
use std::time::Duration;

use crate::container::{
    Launch, LogTarget, Mount, MountKind, Network, Process, Rootfs, Signal, StopPolicy, Writable,
};
use crate::image::ImageConfig;
use crate::spec::{Access, NetworkMode, Service};

/// Where the pieces of one container are.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) id: crate::container::ContainerId,
    pub(super) instance: String,
    pub(super) run_dir: PathBuf,
    pub(super) state_dir: PathBuf,
    pub(super) log: PathBuf,
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
        .as_ref()
        .and_then(|signal| signal.to_string().parse().ok())
        .or_else(|| image.stop_signal.as_ref().and_then(named))
        .unwrap_or(Signal::TERM)
}

/// What the monitor of a container gets.
pub(super) fn launch(
    service: &Service,
    image: &ImageConfig,
    layers: Vec<PathBuf>,
    place: Place,
) -> Launch {
    let rootfs = Rootfs {
        layers,
        writable: Writable::Volatile,
        read_only: service.is_read_only(),
        legacy_mount: false,
    };
    let process = Process {
        args: command_line(service, image),
        env: environment(service, image),
        cwd: service.working_dir.clone().or_else(|| image.working_dir.clone()),
        user: service.user.clone().or_else(|| image.user.clone()),
        no_new_privileges: false,
    };
    let mut launch =
        Launch::new(place.id, &place.instance, place.run_dir, place.state_dir, rootfs, process);
    launch.log = LogTarget::new(place.log);
    launch.network = match service.network() {
        NetworkMode::Host => Network::Host,
        NetworkMode::None => Network::None,
    };
    launch.mounts = service
        .volumes
        .iter()
        .map(|bind| Mount {
            target: PathBuf::from(&bind.target),
            kind: MountKind::Bind { source: bind.source.clone(), create: true },
            read_only: bind.access == Access::ReadOnly,
        })
        .collect();
    launch.stop =
        StopPolicy { signal: stop_signal(service, image), grace_ms: millis(service.grace()) };
    launch
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
