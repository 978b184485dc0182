//! What a container needs before the runtime makes it: its root file system, and the files and folders that are mounted
//! into it. In the child that starts it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::pipe::PipeFlags;

use super::devices::{self, Node};
use super::image_root::ImageRoot;
use super::record::WritableState;
use super::start::StartError;
use super::user::{self, ResolvedUser};
use super::writable::{self, WritableLayer};
use super::{Input, Launch, MountKind, Network, RunPaths, content, image_volume, volume};
use crate::boundary::Boundary;
use crate::logs::Stream;

/// What was prepared, and was found on the way.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) user: ResolvedUser,
    pub(super) writable: WritableState,
    pub(super) streams: Streams,
    pub(super) files: Vec<(&'static str, PathBuf)>,
    /// See [`super::oci::Facts`].
    pub(super) images: BTreeMap<PathBuf, PathBuf>,
    /// Devices of the host.
    pub(super) devices: Vec<Node>,
}

/// The standard streams of the container's first process.
#[derive(Debug)]
pub(super) struct Streams {
    /// Nothing to read where there is none.
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    /// They are a terminal of its own.
    pub(super) terminal: bool,
}

/// Prepares all; `mounted` is told when there is a root file system.
pub(super) fn prepare(
    launch: &Launch,
    paths: &RunPaths,
    mounted: &dyn Fn(WritableState),
) -> Result<Prepared, StartError> {
    let layer = WritableLayer::of(&launch.state_dir);
    let writable = fs::create_dir_all(&launch.state_dir)
        .and_then(|()| layer.prepare(launch.rootfs.writable))
        .map_err(|error| StartError::Writable(launch.state_dir.clone(), error))?;
    writable::mount(&launch.rootfs, &layer, &paths.rootfs)
        .map_err(|error| StartError::Overlay(launch.rootfs.layers.len(), error))?;
    Boundary::ROOT_MOUNTED.reach(&launch.run_dir);
    mounted(writable.clone());

    let user = look_into_image(launch, paths)?;
    let streams = streams(launch, paths, &user)?;
    let images = make_sources(launch, paths)?;
    let files = write_files(launch, paths)?;
    let mut devices = if launch.bounds.privileged { devices::all() } else { Vec::new() };
    let named = devices::find(&launch.bounds.devices);
    devices.extend(named.map_err(|(path, error)| StartError::Device(path, error))?);
    Ok(Prepared { user, writable, streams, files, images, devices })
}

fn look_into_image(launch: &Launch, paths: &RunPaths) -> Result<ResolvedUser, StartError> {
    let root = ImageRoot::open(&paths.rootfs).map_err(StartError::ReadUsers)?;
    let mut user = resolve_user(&root, launch.process.user.as_deref().unwrap_or(""))?;
    if !launch.process.groups.is_empty() {
        let group = root.read_text("/etc/group").map_err(StartError::ReadUsers)?;
        user.join(&launch.process.groups, &group)?;
    }
    if let Some(cwd) = &launch.process.cwd {
        root.make_dir_all(Path::new(cwd))
            .map_err(|error| StartError::WorkingDir(cwd.clone(), error))?;
    }
    Ok(user)
}

/// Who `user` is in the image.
pub(super) fn resolve_user(root: &ImageRoot, user: &str) -> Result<ResolvedUser, StartError> {
    let passwd = root.read_text("/etc/passwd").map_err(StartError::ReadUsers)?;
    let group = root.read_text("/etc/group").map_err(StartError::ReadUsers)?;
    Ok(user::resolve(user, &passwd, &group)?)
}

/// Those of a caller, or the ones that are logged.
fn streams(launch: &Launch, paths: &RunPaths, user: &ResolvedUser) -> Result<Streams, StartError> {
    let Some(caller) = &launch.caller else {
        let [stdout, stderr] = Stream::ALL.map(|stream| open_output(&paths.fifo(stream), user));
        let stdin = match launch.process.input {
            Input::Empty => None,
            Input::Open => Some(open_input(user).map_err(StartError::Streams)?),
        };
        return Ok(Streams { stdin, stdout: stdout?, stderr: stderr?, terminal: false });
    };
    let [stdin, stdout, stderr] = caller.take(user).map_err(StartError::Streams)?;
    Ok(Streams { stdin: Some(stdin), stdout, stderr, terminal: caller.terminal })
}

/// The container's end of an output FIFO: for reading too, so that it never lacks a reader, whoever else dies.
fn open_output(fifo: &Path, user: &ResolvedUser) -> Result<OwnedFd, StartError> {
    let open = || -> io::Result<OwnedFd> {
        chown(fifo, Some(user.uid), Some(user.gid))?;
        Ok(rustix::fs::openat(CWD, fifo, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
    };
    open().map_err(|error| StartError::Prepare(fifo.to_owned(), error))
}

/// An input that never ends: a pipe of which the container has the other end too, so that nobody has to keep it.
fn open_input(user: &ResolvedUser) -> io::Result<OwnedFd> {
    let (reader, _writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fchown(&reader, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
    let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
    Ok(rustix::fs::openat(CWD, path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes what is mounted in the container. Returns where the images are, by their place in the container.
fn make_sources(
    launch: &Launch,
    paths: &RunPaths,
) -> Result<BTreeMap<PathBuf, PathBuf>, StartError> {
    let mut images = BTreeMap::new();
    for mount in &launch.mounts {
        let (source, create) = match &mount.kind {
            MountKind::Bind { source, create } => (source, create),
            MountKind::Volume { source, copy } => {
                ImageRoot::open(&paths.rootfs)
                    .and_then(|root| volume::prepare(&root, &mount.target, source, *copy))
                    .map_err(|error| StartError::Volume(mount.target.clone(), error))?;
                continue;
            }
            MountKind::Image { layers, subpath } => {
                let (target, call) = (mount.target.clone(), launch.rootfs.mount_call());
                let source =
                    image_volume::prepare(paths, &target, layers, subpath.as_deref(), call)
                        .map_err(|error| StartError::ImageVolume(target.clone(), error))?;
                images.insert(target, source);
                continue;
            }
            MountKind::Content(content) => {
                content::write(paths, &mount.target, content)
                    .map_err(|error| StartError::Content(mount.target.clone(), error))?;
                continue;
            }
            MountKind::Tmpfs { .. } | MountKind::Other(_) => continue,
        };
        match source.try_exists() {
            Ok(true) => {}
            Ok(false) if *create => fs::create_dir_all(source)
                .map_err(|error| StartError::Prepare(source.clone(), error))?,
            Ok(false) => return Err(StartError::NoSource(source.clone())),
            Err(error) => return Err(StartError::Prepare(source.clone(), error)),
        }
    }
    Ok(images)
}

pub(super) fn hostname(launch: &Launch) -> String {
    let of_host = || {
        let name = rustix::system::uname();
        name.nodename().to_string_lossy().into_owned()
    };
    match (&launch.hostname, &launch.network) {
        (Some(name), _) => name.clone(),
        (None, Network::Host) => of_host(),
        // A host name has at most 63 characters.
        (None, _) => launch.id.as_str().chars().take(63).collect(),
    }
}

/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`, which are mounted over the image's.
fn write_files(
    launch: &Launch,
    paths: &RunPaths,
) -> Result<Vec<(&'static str, PathBuf)>, StartError> {
    let of_host = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut hosts = match launch.network {
        Network::Host => of_host("/etc/hosts"),
        Network::None
        | Network::Of(_)
        | Network::Namespace(_)
        | Network::Attached(_)
        | Network::Other(_) => {
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned()
        }
    };
    if let Network::Attached(attached) = &launch.network {
        // What many programs look their own address up by.
        for (address, _) in attached.attachments.iter().filter_map(|attachment| attachment.v4) {
            hosts.push_str(&format!("{address}\t{}\n", hostname(launch)));
        }
    }
    if !hosts.is_empty() && !hosts.ends_with('\n') {
        hosts.push('\n');
    }
    for entry in &launch.extra_hosts {
        hosts.push_str(&format!("{}\t{}\n", entry.address, entry.names.join(" ")));
    }
    let resolv = launch.resolv_conf.clone().unwrap_or_else(|| of_host("/etc/resolv.conf"));
    let files = [
        ("/etc/hosts", "hosts", hosts),
        ("/etc/hostname", "hostname", format!("{}\n", hostname(launch))),
        ("/etc/resolv.conf", "resolv.conf", resolv),
    ];
    let mut written = Vec::with_capacity(files.len());
    for (target, name, content) in files {
        let path = paths.dir.join(name);
        fs::write(&path, content)
            // Every user of the container reads them, whatever our umask.
            .and_then(|()| {
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            })
            .map_err(|error| StartError::Prepare(path.clone(), error))?;
        written.push((target, path));
    }
    Ok(written)
}

pub(super) fn private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
