//! Starting a container, in a forked child of its monitor. Everything here may block for as long as content takes to
//! arrive; the monitor waits with a deadline and kills it where it must.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use jiff::Timestamp;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::error::LibcontainerError;
use libcontainer::notify_socket::{NOTIFY_FILE, NotifySocket};
use libcontainer::syscall::syscall::SyscallType;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::executor::{NotExecuted, Program, Restriction, TRANSIENT};
use super::filter::{self, FilterError};
use super::groups::{self, GroupError, View};
use super::oci::{self, Facts};
use super::prepare::{self, Prepared, Streams, private_dir};
use super::record::{self, RECORD_VERSION, RunRecord, WritableState};
use super::user::UserError;
use super::{Launch, RunPaths, network};
use crate::boundary::Boundary;
use crate::network::OwnerError;
use crate::network::link::LinkError;
use crate::network::names::EntryError;
use crate::sys::process::ProcessIdentity;
use crate::sys::{child, mount, socket};
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
    Cgroup(String, #[source] GroupError),
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
    #[error("could not mount the image at `{0}`")]
    ImageVolume(PathBuf, #[source] io::Error),
    #[error("could not find the device `{0}`")]
    Device(PathBuf, #[source] io::Error),
    #[error("volume source `{0}` does not exist")]
    NoSource(PathBuf),
    #[error("could not take over the standard streams of the caller")]
    Streams(#[source] io::Error),
    #[error("could not make a network namespace")]
    Network(#[source] io::Error),
    #[error(transparent)]
    Instance(#[from] OwnerError),
    #[error("could not join the network of another container")]
    Shared(#[source] io::Error),
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
            other => {
                let mut reason = Chain(&other).to_string();
                // What is left of the group and the runtime's files is removed when the container is finished, and the
                // group has this process in it until then.
                if let Some(at) = reason.find(". error during cleanup: ") {
                    reason.truncate(at);
                }
                NotExecuted { reason, code: 125 }
            }
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
    match start(launch, monitor, &tell) {
        Ok(()) => 0,
        Err(error) => {
            tell(&Progress::Failed(error.into_failure()));
            1
        }
    }
}

fn start(launch: &Launch, monitor: i32, tell: &dyn Fn(&Progress)) -> Result<(), StartError> {
    let paths = launch.paths();
    let layout = groups::layout(launch);
    groups::enter(launch, layout)
        .map_err(|error| StartError::Cgroup(launch.cgroup.clone(), error))?;
    Boundary::GROUP_ENTERED.reach(&launch.run_dir);
    // A network namespace takes the kernel as long as all else before the runtime, and needs nothing of it.
    let (prepared, network) = thread::scope(|scope| {
        let making = scope.spawn(|| network::make(launch));
        let prepared = prepare::prepare(launch, &paths, &|state| tell(&Progress::Mounted(state)));
        (prepared, making.join())
    });
    let Prepared { user, writable, streams, files, images, devices } = prepared?;
    let died = |_| Err(StartError::Network(io::ErrorKind::Other.into()));
    // Stays open until the container has joined it.
    let network = network.unwrap_or_else(died)?;
    // From here on nothing is mounted that is meant to stay.
    let failed = |error| StartError::Prepare(paths.groups.clone(), error);
    let view = View::enter(layout).map_err(failed)?;
    let groups = view.as_ref().map(|view| view.show(launch, &paths)).transpose().map_err(failed)?;
    let is_limited = view.as_ref().map_or(Ok(false), |view| view.hide(launch)).map_err(failed)?;
    let mut facts = Facts {
        network: network
            .as_ref()
            .map(|fd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))),
        hostname: prepare::hostname(launch),
        files,
        images,
        devices,
        capabilities: our_capabilities(),
        layout,
        groups,
        user,
    };
    let spec = oci::spec(launch, &facts);
    let (mut given, restriction) = restrict(launch, &spec)?;
    if is_limited {
        oci::remove_resources(&mut given);
    }
    let config = paths.bundle.join("config.json");
    make_bundle(&paths, &config, &given)?;
    Boundary::CONFIGURED.reach(&launch.run_dir);

    let (mut report, writer) = io::pipe().map_err(StartError::Report)?;
    let program = Program {
        report: Arc::new(writer),
        restriction,
        terminal: streams.terminal,
        first: launch.process.first,
    };
    let mut container = create(launch, &paths, program, streams).map_err(StartError::Create)?;
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
    if view.is_none_or(|view| view.leave().is_ok()) {
        detach_foreign_mounts(launch, &paths);
    }
    groups::place_monitor(launch, monitor, layout);
    Ok(())
}

fn create(
    launch: &Launch,
    paths: &RunPaths,
    program: Program,
    streams: Streams,
) -> Result<Container, LibcontainerError> {
    let builder = ContainerBuilder::new(launch.id.to_string(), SyscallType::default())
        .with_root_path(&paths.runtime)?
        .with_executor(program)
        .with_stdout(streams.stdout)
        .with_stderr(streams.stderr);
    let stdin = streams.stdin.into_iter();
    let builder = stdin.fold(builder, |builder, stdin| builder.with_stdin(stdin));
    builder.as_init(&paths.bundle).with_systemd(false).with_detach(true).build()
}

/// Those that can be given at all.
fn our_capabilities() -> Vec<String> {
    let ours = caps::read(None, caps::CapSet::Permitted).unwrap_or_default();
    ours.iter().map(ToString::to_string).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_its_reason_and_not_what_the_runtime_could_not_remove() {
        let error = LibcontainerError::Other("no. error during cleanup: busy".to_owned());
        let failure = StartError::Create(error).into_failure();
        assert_eq!(failure.reason, "the runtime could not create the container: no");
        assert_eq!(failure.code, 125);
    }
}
