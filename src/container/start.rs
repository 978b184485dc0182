//! Starting a container, in a forked child of its monitor. Everything here may block for as long as content takes to
//! arrive; the monitor waits with a deadline and kills it where it must.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::error::LibcontainerError;
use libcontainer::notify_socket::{NOTIFY_FILE, NotifySocket};
use libcontainer::syscall::syscall::SyscallType;
use rustix::fs::{CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::capability::CgroupLayout;
use super::executor::{NotExecuted, Program, Restriction, TRANSIENT};
use super::filter::{self, FilterError};
use super::image_root::ImageRoot;
use super::oci::{self, Facts};
use super::record::{self, RECORD_VERSION, RunRecord, WritableState};
use super::user::{self, ResolvedUser, UserError};
use super::writable::{self, WritableLayer};
use super::{Lack, Launch, MountKind, Network, RunPaths, content, network, volume};
use crate::boundary::Boundary;
use crate::logs::Stream;
use crate::network::OwnerError;
use crate::network::link::LinkError;
use crate::network::names::EntryError;
use crate::sys::process::ProcessIdentity;
use crate::sys::{cgroup, child, mount, socket};
use crate::telemetry::Chain;

/// From a starting child to its monitor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Progress {
    /// The root file system is mounted.
    Mounted(WritableState),
    /// The first process exists and waits.
    Created(ProcessIdentity),
    /// The program runs.
    Started(Timestamp),
    /// It does not, and will not.
    Failed(NotExecuted),
}

/// Why a container did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("could not enter the control group `{0}`")]
    Cgroup(String, #[source] io::Error),
    #[error("could not prepare the writable layer in `{0}`")]
    Writable(PathBuf, #[source] io::Error),
    #[error("could not mount the root file system of {0} layers")]
    Overlay(usize, #[source] io::Error),
    #[error("could not look up a user in the image")]
    ReadUsers(#[source] io::Error),
    #[error(transparent)]
    User(#[from] UserError),
    #[error("could not make the working directory `{0}`")]
    WorkingDir(String, #[source] io::Error),
    #[error("could not prepare `{0}`")]
    Prepare(PathBuf, #[source] io::Error),
    #[error("could not write the file that is mounted at `{0}`")]
    Content(PathBuf, #[source] io::Error),
    #[error("could not prepare the volume that is mounted at `{0}`")]
    Volume(PathBuf, #[source] io::Error),
    #[error("volume source `{0}` does not exist")]
    NoSource(PathBuf),
    #[error("could not make a network namespace")]
    Network(#[source] io::Error),
    #[error(transparent)]
    Instance(#[from] OwnerError),
    #[error("could not connect the container to its networks")]
    Attach(#[source] LinkError),
    #[error("could not give the container a resolver")]
    Resolver(#[source] EntryError),
    #[error("could not prepare the filter of system calls")]
    Filter(#[source] FilterError),
    #[error("the runtime could not create the container")]
    Create(#[source] LibcontainerError),
    #[error("the runtime could not start the container")]
    Start(#[source] LibcontainerError),
    #[error("could not tell whether the program was executed")]
    Report(#[source] io::Error),
    #[error("{}", .0.reason)]
    NotExecuted(NotExecuted),
}

impl StartError {
    fn into_failure(self) -> NotExecuted {
        match self {
            Self::NotExecuted(failure) => failure,
            other => NotExecuted { reason: Chain(&other).to_string(), code: 125 },
        }
    }
}

/// The whole life of the child: its exit code.
pub(super) fn run(launch: &Launch, monitor: i32, progress: BorrowedFd<'_>) -> u8 {
    let prepared = child::die_with(monitor).and_then(|()| child::close_all_except(&[progress]));
    if prepared.is_err() {
        return 1;
    }
    let tell = |message: &Progress| {
        let bytes = serde_json::to_vec(message).unwrap_or_default();
        let _ = socket::send(progress, &bytes, &[]);
    };
    match start(launch, &tell) {
        Ok(()) => 0,
        Err(error) => {
            tell(&Progress::Failed(error.into_failure()));
            1
        }
    }
}

fn start(launch: &Launch, tell: &dyn Fn(&Progress)) -> Result<(), StartError> {
    let paths = launch.paths();
    let layer = WritableLayer::of(&launch.state_dir);
    let writable = fs::create_dir_all(&launch.state_dir)
        .and_then(|()| layer.prepare(launch.rootfs.writable))
        .map_err(|error| StartError::Writable(launch.state_dir.clone(), error))?;
    writable::mount(&launch.rootfs, &layer, &paths.rootfs)
        .map_err(|error| StartError::Overlay(launch.rootfs.layers.len(), error))?;
    Boundary::ROOT_MOUNTED.reach(&launch.run_dir);
    tell(&Progress::Mounted(writable.clone()));

    let user = look_into_image(launch, &paths)?;
    let [stdout, stderr] = Stream::ALL.map(|stream| open_output(&paths.fifo(stream), &user));
    make_sources(launch, &paths)?;
    // Stays open until the container has joined it.
    let network = network::make(launch)?;
    let mut facts = Facts {
        network: network
            .as_ref()
            .map(|fd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))),
        hostname: hostname(launch),
        files: write_files(launch, &paths)?,
        layout: if launch.lacks(Lack::Cgroup) {
            CgroupLayout::Absent
        } else {
            CgroupLayout::of_host()
        },
        user,
    };
    // In every hierarchy, not only in those that the runtime limits: what is in the group can be found and killed.
    // Not before, because the kernel may take a grace period over the first change, and that passes beside all above.
    cgroup::enter(&launch.cgroup)
        .map_err(|error| StartError::Cgroup(launch.cgroup.clone(), error))?;
    Boundary::GROUP_ENTERED.reach(&launch.run_dir);
    let spec = oci::spec(launch, &facts);
    let (given, restriction) = restrict(launch, &spec)?;
    let config = paths.bundle.join("config.json");
    make_bundle(&paths, &config, &given)?;
    Boundary::CONFIGURED.reach(&launch.run_dir);

    let (mut report, writer) = io::pipe().map_err(StartError::Report)?;
    let program = Program { report: Arc::new(writer), restriction };
    let mut container = ContainerBuilder::new(launch.id.to_string(), SyscallType::default())
        .with_root_path(&paths.runtime)
        .map_err(StartError::Create)?
        .with_executor(program)
        .with_stdout(stdout?)
        .with_stderr(stderr?)
        .as_init(&paths.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(StartError::Create)?;
    let pid = container.pid().map_or(0, |pid| pid.as_raw());
    Boundary::PROCESS_MADE.reach(&launch.run_dir);
    let process = ProcessIdentity::of(pid).map_err(StartError::Report)?;
    if facts.network.is_some() {
        // The descriptor ends with this process, and the runtime looks at the path again when it runs a program.
        facts.network = Some(PathBuf::from(format!("/proc/{pid}/ns/net")));
    }
    // As it is for whoever runs a program in the container, and without what was only for its first moments.
    record::write_json(&config, &oci::spec(launch, &facts))
        .map_err(|error| StartError::Prepare(paths.bundle.clone(), error))?;
    // Before the program runs, so that no death of the monitor leaves a program that nobody knows.
    let started_at = Timestamp::now();
    let run = RunRecord {
        version: RECORD_VERSION,
        process: process.clone(),
        started_at,
        user: facts.user,
        writable,
        ended: None,
        stop_requested: false,
        health: None,
    };
    record::write_json(&paths.process, &run)
        .map_err(|error| StartError::Prepare(paths.process.clone(), error))?;
    Boundary::PROCESS_RECORDED.reach(&launch.run_dir);
    tell(&Progress::Created(process));
    release(&mut container)?;
    Boundary::RELEASED.reach(&launch.run_dir);
    await_execution(&mut report)?;
    Boundary::EXECUTED.reach(&launch.run_dir);
    tell(&Progress::Started(started_at));
    detach_foreign_mounts(launch, &paths);
    Ok(())
}

fn make_bundle(paths: &RunPaths, config: &Path, given: &Value) -> Result<(), StartError> {
    private_dir(&paths.bundle)
        // Read by this process alone, and replaced before anybody else looks at it.
        .and_then(|()| fs::write(config, given.to_string()))
        .and_then(|()| private_dir(&paths.runtime))
        .map_err(|error| StartError::Prepare(paths.bundle.clone(), error))
}

/// What the runtime does of `spec`, and what is left for the executor: to load the filter, and to give up the
/// capabilities that this takes. None are needed where no program can gain privileges: anybody may filter himself then.
fn restrict(launch: &Launch, spec: &Value) -> Result<(Value, Restriction), StartError> {
    let Some(profile) = oci::profile(spec) else {
        return Ok((spec.clone(), Restriction::default()));
    };
    let filter = Some(filter::program(&launch.run_dir, profile).map_err(StartError::Filter)?);
    if launch.process.no_new_privileges {
        let restriction = Restriction { filter, capabilities: None };
        return Ok((oci::without_filter(spec, &[]), restriction));
    }
    let restriction = Restriction { filter, capabilities: Some(oci::capabilities(spec)) };
    Ok((oci::without_filter(spec, &TRANSIENT), restriction))
}

/// Tells the first process to execute its program. In another order than [`Container::start`], which writes down that
/// the container runs after it has told the process: a death of the monitor between the two leaves a container that
/// runs and in which the runtime executes nothing, because for it the container is only created.
fn release(container: &mut Container) -> Result<(), StartError> {
    container.set_status(ContainerStatus::Running).save().map_err(StartError::Start)?;
    NotifySocket::new(container.root.join(NOTIFY_FILE))
        .notify_container_start()
        .map_err(|error| StartError::Start(error.into()))
}

/// Returns when the program was executed: the other end of `report` is closed by that.
pub(super) fn await_execution(report: &mut io::PipeReader) -> Result<(), StartError> {
    let mut text = Vec::new();
    report.read_to_end(&mut text).map_err(StartError::Report)?;
    if text.is_empty() {
        return Ok(());
    }
    let failure = serde_json::from_slice(&text)
        .map_err(|error| StartError::Report(io::Error::from(error)))?;
    Err(StartError::NotExecuted(failure))
}

fn look_into_image(launch: &Launch, paths: &RunPaths) -> Result<ResolvedUser, StartError> {
    let root = ImageRoot::open(&paths.rootfs).map_err(StartError::ReadUsers)?;
    let user = resolve_user(&root, launch.process.user.as_deref().unwrap_or(""))?;
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

/// The container's end of an output FIFO: for reading too, so that it never lacks a reader, whoever else dies.
fn open_output(fifo: &Path, user: &ResolvedUser) -> Result<OwnedFd, StartError> {
    let open = || -> io::Result<OwnedFd> {
        chown(fifo, Some(user.uid), Some(user.gid))?;
        Ok(rustix::fs::openat(CWD, fifo, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
    };
    open().map_err(|error| StartError::Prepare(fifo.to_owned(), error))
}

fn make_sources(launch: &Launch, paths: &RunPaths) -> Result<(), StartError> {
    for mount in &launch.mounts {
        let (source, create) = match &mount.kind {
            MountKind::Bind { source, create } => (source, create),
            MountKind::Volume { source, copy } => {
                ImageRoot::open(&paths.rootfs)
                    .and_then(|root| volume::prepare(&root, &mount.target, source, *copy))
                    .map_err(|error| StartError::Volume(mount.target.clone(), error))?;
                continue;
            }
            MountKind::Content(content) => {
                content::write(paths, &mount.target, content)
                    .map_err(|error| StartError::Content(mount.target.clone(), error))?;
                continue;
            }
            MountKind::Tmpfs { .. } => continue,
        };
        match source.try_exists() {
            Ok(true) => {}
            Ok(false) if *create => fs::create_dir_all(source)
                .map_err(|error| StartError::Prepare(source.clone(), error))?,
            Ok(false) => return Err(StartError::NoSource(source.clone())),
            Err(error) => return Err(StartError::Prepare(source.clone(), error)),
        }
    }
    Ok(())
}

fn hostname(launch: &Launch) -> String {
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
        Network::None | Network::Namespace(_) | Network::Attached(_) => {
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

fn private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Takes what the monitor does not need out of its namespace: a file system that the host unmounts would stay busy
/// there, unseen. The container has its own namespace by now.
fn detach_foreign_mounts(launch: &Launch, paths: &RunPaths) {
    let log = launch.log.path.parent().unwrap_or(Path::new("/"));
    let needed = [paths.dir.as_path(), &paths.socket_dir, &launch.state_dir, log, &paths.rootfs];
    let fixed = ["/proc", "/sys", "/sys/fs/cgroup", "/dev"];
    let Ok(mounts) = mount::mounts() else { return };
    // The last mounted first: what is on top goes before what is beneath.
    for mount in mounts.iter().rev() {
        let point = mount.mount_point.as_path();
        let is_needed = needed.iter().any(|path| path.starts_with(point))
            || fixed.iter().any(|path| point == Path::new(path))
            || matches!(mount.fs_type.as_str(), "cgroup" | "cgroup2");
        if !is_needed {
            let _ = mount::detach(point);
        }
    }
}
