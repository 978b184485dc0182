//! The monitor role: one process per container, single-threaded, that only polls.
//!
//! ```text
//!  launch ─► Starting ──Started──► Running ──stop──► Stopping ─┐
//!               │ Failed, stop, deadline  │ init ended         │ init ended
//!               └────────────────┬────────┴────────────────────┘
//!                                ▼
//!                           finishing (nothing is left behind) ─► Ended: record, tell, exit
//! ```
//!
//! Whatever may block is done by forked children ([`super::start`], [`super::join`], [`super::finish`]) which report
//! over a socket pair and die with the monitor; killing the monitor kills nothing of the container. A monitor that is
//! started with `adopt` enters the drawing wherever the files in `$RUN/containers/<id>` say.

mod adopt;
mod children;
mod client;
mod event;
mod health;
mod output;
mod poll;
mod request;
mod run;
mod session;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use tracing::{error, warn};

use super::finish::{self, GROUPS_LOCK};
use super::handle::{ADOPT_WITH_PROCESS, next_launch};
use super::record::{self, ExitRecord};
use super::wire::{CONNECTION_DESCRIPTOR, Message, PROCESS_DESCRIPTOR};
use super::{ContainerId, ContainerIdError, Lack, Launch, RunPaths};
use crate::boundary::Boundary;
use crate::sys::process::{self, ProcessIdentity};
use crate::sys::signal::{self, SignalFd};
use crate::sys::{cgroup, heap, mount, socket};
use crate::telemetry::{Chain, LogFormat, LogOptions, init_logging};

/// How long a monitor whose container has ended is waited for.
const LEAVING: Duration = Duration::from_secs(3);

/// Why a monitor does not begin.
#[derive(Debug, thiserror::Error)]
enum MonitorStartError {
    #[error("expected `launch` or `adopt`, a run directory and a container id as arguments")]
    Arguments,
    #[error("bad container id")]
    Id(#[source] ContainerIdError),
    #[error("container `{0}` has a living monitor")]
    Alive(ContainerId),
    #[error("container `{0}` still runs and its monitor is dead; it must be adopted")]
    StillRuns(ContainerId),
    #[error("nothing is known of container `{0}`")]
    Unknown(ContainerId),
    #[error("could not {step}")]
    Step {
        step: &'static str,
        #[source]
        source: io::Error,
    },
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> MonitorStartError {
    move |source| MonitorStartError::Step { step, source }
}

/// What a monitor owns from its first moment.
struct Begin {
    launch: Launch,
    paths: RunPaths,
    identity: ProcessIdentity,
    signals: SignalFd,
    listener: OwnedFd,
    /// Held as long as this process lives; children close it.
    lock: File,
    /// See [`GROUPS_LOCK`].
    groups_lock: File,
}

/// How a process changes its control group: all at once, or what takes the kernel a grace period later.
type Enter = fn(&str) -> io::Result<Vec<(PathBuf, io::Error)>>;

/// Enters the monitors' control group.
fn enter_group(launch: &Launch, enter: Enter) {
    if launch.lacks(Lack::Cgroup) {
        return;
    }
    let refused = enter(&launch.monitor_cgroup).unwrap_or_else(|error| {
        warn!(%error, "could not enter the control groups");
        Vec::new()
    });
    for (path, error) in refused {
        warn!(path = %path.display(), %error, "could not enter a control group");
    }
}

/// The role's `main`.
pub(crate) fn monitor_main(args: Vec<OsString>) -> ExitCode {
    signal::ignore_sigpipe();
    let options = LogOptions { level: "info".to_owned(), format: LogFormat::Text };
    let _ = init_logging(&options);
    let first = process::inherited(CONNECTION_DESCRIPTOR).ok();
    // Only where it was passed: anything may have the number otherwise.
    let kept = (args.first().is_some_and(|action| action == ADOPT_WITH_PROCESS))
        .then(|| process::inherited(PROCESS_DESCRIPTOR).ok())
        .flatten();
    match begin(&args, first.as_ref()) {
        Ok(Some(begun)) => begun.run(first, kept),
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = %Chain(&error), "monitor does not begin");
            if let Some(connection) = first {
                // The client's first two packets are taken, or their loss would be what it hears of.
                for _ in 0..2 {
                    let _ = socket::receive(connection.as_fd());
                }
                let refusal = Message::Refused { reason: Chain(&error).to_string() };
                let bytes = serde_json::to_vec(&refusal).unwrap_or_default();
                let _ = socket::send(connection.as_fd(), &bytes, &[]);
            }
            ExitCode::FAILURE
        }
    }
}

/// How a monitor begins.
enum Begun {
    Launch(Box<Begin>),
    Adopt(Box<Begin>),
    /// The container has ended and everything is written down.
    Over(Box<Begin>, ExitRecord),
}

impl Begun {
    fn run(self, first: Option<OwnedFd>, kept: Option<OwnedFd>) -> ExitCode {
        let monitor = match self {
            Self::Launch(begin) => {
                let monitor = run::Monitor::new(*begin, first).launch();
                // Beside the child that starts the container, which comes first; that one does the rest.
                enter_group(&monitor.launch, cgroup::enter_at_once);
                monitor
            }
            Self::Adopt(begin) => {
                enter_group(&begin.launch, cgroup::enter);
                adopt::adopt(run::Monitor::new(*begin, first), kept)
            }
            Self::Over(begin, record) => run::Monitor::new(*begin, first).over(record),
        };
        heap::trim();
        monitor.run()
    }
}

/// `None`: nobody wants it any more.
fn begin(args: &[OsString], first: Option<&OwnedFd>) -> Result<Option<Begun>, MonitorStartError> {
    let [action, run_dir, id] = args else { return Err(MonitorStartError::Arguments) };
    let run_dir = PathBuf::from(run_dir);
    let id: ContainerId =
        id.to_str().ok_or(MonitorStartError::Arguments)?.parse().map_err(MonitorStartError::Id)?;
    let paths = RunPaths::new(&run_dir, &id);
    let adopts = match action.to_str() {
        Some("launch") => false,
        Some("adopt" | ADOPT_WITH_PROCESS) => true,
        _ => return Err(MonitorStartError::Arguments),
    };
    if !adopts && !is_wanted(first) {
        return Ok(None);
    }
    let lock = lock(&paths, &id)?;
    let previous: Option<record::RunRecord> =
        record::read_json(&paths.process).unwrap_or_else(|error| {
            warn!(%error, "the record of the running process cannot be read");
            None
        });
    if !adopts {
        if previous.is_some_and(|run| run.process.open().is_some()) {
            return Err(MonitorStartError::StillRuns(id));
        }
        let _ = std::fs::remove_file(&paths.process);
        let _ = std::fs::remove_file(&paths.exit);
        Boundary::LAUNCH_TAKEN.reach(&run_dir);
        std::fs::rename(next_launch(&paths), &paths.launch).map_err(step("take the launch"))?;
    }
    let launch: Launch = record::read_json(&paths.launch)
        .map_err(step("read the launch"))?
        .ok_or_else(|| MonitorStartError::Unknown(id.clone()))?;
    let ended = record::read_json(&paths.exit).unwrap_or_default();
    let has_run_record = paths.process.exists();
    let begin = Box::new(enter(launch, paths, lock)?);
    if adopts { Boundary::ADOPTER_READY } else { Boundary::MONITOR_READY }.reach(&run_dir);
    Ok(Some(match ended {
        _ if !adopts => Begun::Launch(begin),
        Some(record) if !has_run_record => Begun::Over(begin, record),
        _ => Begun::Adopt(begin),
    }))
}

/// Waits until whoever started it says the first word, which is left to be read: the launch is written then. `false`
/// when they have closed the connection without one.
fn is_wanted(first: Option<&OwnedFd>) -> bool {
    let Some(first) = first else { return true };
    loop {
        let peeked = rustix::net::recv(first, &mut [0_u8; 1], rustix::net::RecvFlags::PEEK);
        match peeked {
            Ok((_, 0)) => return false,
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

fn lock(paths: &RunPaths, id: &ContainerId) -> Result<File, MonitorStartError> {
    let open = || File::options().write(true).create(true).truncate(false).open(&paths.lock);
    let lock = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MonitorStartError::Unknown(id.clone()));
        }
        other => other.map_err(step("open the container's lock"))?,
    };
    let until = Instant::now() + LEAVING;
    while rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        // One that has written the exit record only has to say so to its clients.
        if !paths.exit.exists() || Instant::now() > until {
            return Err(MonitorStartError::Alive(id.clone()));
        }
        finish::wait_ms(5);
    }
    Ok(lock)
}

/// Its place in the system: namespace, signals, socket. Not its control group, see [`enter_group`].
fn enter(launch: Launch, paths: RunPaths, lock: File) -> Result<Begin, MonitorStartError> {
    let groups_lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(paths.socket_dir.join(GROUPS_LOCK))
        .map_err(step("open the lock of the control groups"))?;
    rustix::fs::flock(&groups_lock, FlockOperation::LockShared)
        .map_err(|error| step("lock the control groups")(error.into()))?;
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
        .map_err(|error| step("become a subreaper")(error.into()))?;
    mount::enter_private_namespace().map_err(step("make a mount namespace"))?;
    if launch.lacks(Lack::Cgroup) {
        cgroup::hide().map_err(step("hide the control groups"))?;
    }
    // The first four would end it, and with it the logs of a container that goes on.
    let signals = SignalFd::block(&[1, 2, 3, 15, 17]).map_err(step("block signals"))?;
    let socket_dir = File::open(&paths.socket_dir).map_err(step("open the socket directory"))?;
    let listener = socket::listen(socket_dir.as_fd(), &paths.socket_name)
        .map_err(step("listen on the monitor's socket"))?;
    let identity = ProcessIdentity::current().map_err(step("identify the monitor"))?;
    Ok(Begin { launch, paths, identity, signals, listener, lock, groups_lock })
}
