//! Containers: what one is launched with, the monitor that runs it, and control's handle on that monitor.
//!
//! A [`Launch`] is everything that one run needs. [`MonitorHandle::launch`] starts a *monitor* for it: a
//! single-threaded role whose loop only polls. Whatever could block (mounting the root file system, looking into the
//! image, creating the container, executing in it, cleaning up) is done by forked children with a deadline, so that
//! logs, signals and stop are never delayed by content that has yet to come over the network. Creating a container
//! also clones the caller and changes it, which neither a threaded program nor a loop that must go on survives.
//!
//! A monitor can be killed at any time: the container goes on, [`MonitorHandle::attach`] puts another in its place.
//!
//! Only this module names libcontainer.

mod bounds;
mod caller;
mod capability;
mod connection;
mod content;
mod devices;
pub mod exec;
mod executor;
mod filter;
mod finish;
mod groups;
mod handle;
mod health;
mod id;
mod image_root;
mod image_volume;
mod init;
mod join;
mod launch;
mod monitor;
mod network;
mod oci;
mod prepare;
mod probe;
mod process;
mod record;
mod remove;
mod run_paths;
mod seccomp;
mod start;
mod terminal;
mod user;
mod volume;
mod wire;
mod writable;

pub use crate::spec::{Signal, SignalError};
pub use bounds::{Bounds, Filter, Rlimit};
pub use caller::{CallerStreams, CallerTerminal};
pub use content::Content;
pub use devices::PassedDevice;
pub use exec::{ExecError, ExecRequest, ExecStreams, TerminalSize};
pub use handle::{
    Link, MonitorError, MonitorHandle, Seen, WaitingMonitor, exit_record, launch_record, list,
    running_process,
};
pub use health::{HealthCheck, HealthState, HealthStatus, Probe};
pub use id::{ContainerId, ContainerIdError, MAX_ID_LENGTH};
pub use launch::{
    HostEntry, LAUNCH_VERSION, Lack, Launch, LaunchProblem, LogKept, LogOverflow, LogTarget, Mount,
    MountKind, Rootfs, StopPolicy, Writable, cgroup_of,
};
pub(crate) use monitor::monitor_main;
pub use network::{Attached, Network};
pub use process::{FirstProcess, Input, Process};
pub use record::{ExitRecord, Outcome, Phase, RECORD_VERSION, Status, WritableState};
pub use remove::{RemoveError, remove};
pub use run_paths::RunPaths;
