//! The short-lived role that unpacks one layer: `supervisor-role unpack-layer REQUEST`.
//!
//! The blob comes on standard input, the staging directory is descriptor 3, the request is JSON in the argument,
//! the report is JSON on standard output. The role knows nothing else of the host.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::process::ExitCode;

use rustix::fs::{Mode, OFlags, ResolveFlags, XattrFlags};
use serde::{Deserialize, Serialize};

use super::path::show;
use super::xattr::{DeferredXattr, Denied};
use super::{FailureKind, UnpackInput, Unpacked, confine};
use crate::store::Staging;
use crate::sys::process::{Ended, RoleChild, RoleCommand, SealedExe, inherited};
use crate::telemetry::Chain;

/// The name of the role.
const ROLE: &str = "unpack-layer";

/// The number of the staging directory in the child.
const STAGING_NUMBER: i32 = 3;

/// A report holds one path per privileged attribute; more than this is none of ours.
const MAX_REPORT_BYTES: u64 = 64 << 20;

/// What the kernel buffers between the fetching and the unpacking process; more than the default of 64 KiB, so
/// that the two change places less often.
const PIPE_BYTES: usize = 1 << 20;

/// A layer could not be unpacked by the child.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The child could not be started.
    #[error("could not start the process that unpacks a layer")]
    Start(#[source] io::Error),
    /// The layer could not be unpacked; the message says why.
    #[error("{message}")]
    Failed {
        /// What to do about it.
        kind: FailureKind,
        /// As in the error of the child, causes included.
        message: String,
    },
    /// The child ended without a report.
    #[error("the process that unpacks the layer ended without a report ({0:?})")]
    Ended(Ended),
    /// What the child reported makes no sense.
    #[error("the report of the process that unpacks the layer cannot be used: {0}")]
    Report(String),
    /// The result could not be read, or an attribute could not be set.
    #[error("could not {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ChildError {
    /// What a caller does about it.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Failed { kind, .. } => *kind,
            Self::Start(_) | Self::Ended(_) | Self::Report(_) | Self::Io { .. } => {
                FailureKind::Host
            }
        }
    }
}

/// Who compares the blob with its digest. Hashing takes a good part of the time, so one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DigestCheck {
    /// The child, of what comes to it.
    Child,
    /// The caller, of what it feeds the child with. A child that reports success is believed only when the caller could
    /// write all of the blob and found it right, and its own finding counts before any other.
    Caller,
}

/// What is asked of the child.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    input: UnpackInput,
    check: DigestCheck,
}

/// What the child says on standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Unpacked { layer: Unpacked, deferred: Vec<DeferredXattr>, unconfined: Vec<String> },
    Failed { kind: FailureKind, message: String },
}

/// A pipe for the blob: the reading end for [`run_child`], the writing end for whoever fetches.
///
/// # Errors
/// When there are no descriptors left.
pub fn blob_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // The limit for pipes may be lower; then it is slower.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES);
    Ok((reader, writer))
}

/// Starts the child that unpacks the layer from `blob` (a pipe's end, or a file that stands at its start) into
/// `staging`. The caller feeds the pipe and closes it, while another thread waits ([`UnpackChild::wait`]).
///
/// # Errors
/// When the process cannot be started.
pub fn run_child(
    exe: &SealedExe,
    input: &UnpackInput,
    check: DigestCheck,
    staging: Staging,
    blob: OwnedFd,
) -> Result<UnpackChild, ChildError> {
    let start = || -> io::Result<(RoleChild, OwnedFd)> {
        let (report, report_writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let request = Request { input: input.clone(), check };
        let request = serde_json::to_string(&request)?;
        // A copy of the descriptor, and with it of the staging directory's lock.
        let directory = staging.directory().try_clone_to_owned()?;
        let mut command = RoleCommand::new([crate::ROLE_ARGUMENT, ROLE, &request])
            .descriptor(directory, STAGING_NUMBER);
        command.stdin = Some(blob);
        command.stdout = Some(report_writer);
        Ok((command.spawn(exe)?, report))
    };
    let (child, report) = start().map_err(ChildError::Start)?;
    Ok(UnpackChild { child, report: Some(report), staging: Some(staging) })
}

/// A layer that the child unpacked and verified.
#[derive(Debug)]
pub struct Finished {
    /// What was unpacked.
    pub layer: Unpacked,
    /// The tree, for `LayerDir::publish_full`.
    pub staging: Staging,
    /// What this kernel or sandbox lacks to confine the child as wanted; for a warning, once per start.
    pub unconfined: Vec<String>,
}

/// A layer that is being unpacked. Dropping it kills the child and removes the staging directory.
#[derive(Debug)]
pub struct UnpackChild {
    child: RoleChild,
    report: Option<OwnedFd>,
    staging: Option<Staging>,
}

impl UnpackChild {
    /// Waits for the end, sets the attributes that the child was not allowed to set, and gives the staging
    /// directory back for publishing. Blocks as long as the blob takes to arrive.
    ///
    /// # Errors
    /// See [`ChildError::kind`]; the staging directory is gone then.
    pub fn wait(mut self) -> Result<Finished, ChildError> {
        let failed = |action| move |source| ChildError::Io { action, source };
        let report = self.report.take().expect("the report is read once");
        let mut text = Vec::new();
        File::from(report)
            .take(MAX_REPORT_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(failed("read the report of the process that unpacks the layer"))?;
        if text.len() as u64 > MAX_REPORT_BYTES {
            return Err(ChildError::Report("it is too large".to_owned()));
        }
        let ended =
            self.child.wait().map_err(failed("wait for the process that unpacks the layer"))?;
        let staging = self.staging.take().expect("the staging directory is given back once");
        if text.is_empty() {
            return Err(ChildError::Ended(ended));
        }
        let report: Report =
            serde_json::from_slice(&text).map_err(|error| ChildError::Report(error.to_string()))?;
        match report {
            Report::Failed { kind, message } => Err(ChildError::Failed { kind, message }),
            Report::Unpacked { .. } if ended != Ended::Exited(0) => Err(ChildError::Ended(ended)),
            Report::Unpacked { layer, deferred, unconfined } => {
                set_deferred(&staging, &deferred)?;
                Ok(Finished { layer, staging, unconfined })
            }
        }
    }

    /// The process id of the child, for messages.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Ends the child; [`UnpackChild::wait`] then returns an error.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2).
    pub fn kill(&self) -> io::Result<()> {
        const SIGKILL: i32 = 9;
        self.child.signal(SIGKILL)
    }
}

impl Drop for UnpackChild {
    fn drop(&mut self) {
        // Present unless `wait` saw the child's end.
        if self.staging.is_some() {
            let _ = self.kill();
            let _ = self.child.wait();
        }
    }
}

/// Sets what the child could not. It parses what the network sent, so what it asks for is checked again: only
/// attributes that an image may have, only of what is in the staging directory.
fn set_deferred(staging: &Staging, deferred: &[DeferredXattr]) -> Result<(), ChildError> {
    for DeferredXattr { path, name, value } in deferred {
        let opaque = name == b"trusted.overlay.opaque" && value == b"y";
        let privileged = name.starts_with(b"trusted.") || name.starts_with(b"security.");
        if !opaque && (super::xattr::is_neutralized(name) || !privileged) {
            return Err(ChildError::Report(format!("it asks for the attribute `{}`", show(name))));
        }
        let path = if path.is_empty() { b".".as_slice() } else { path.as_slice() };
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // Opened as a place only: opening a fifo would wait, and a device would do something.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let set = || -> rustix::io::Result<()> {
            let (directory, last) = super::path::split(path);
            let directory = if directory.is_empty() { b".".as_slice() } else { directory };
            let directory =
                rustix::fs::openat2(staging.directory(), directory, flags, Mode::empty(), resolve)?;
            let number = directory.as_raw_fd();
            let node = [format!("/proc/self/fd/{number}/").as_bytes(), last].concat();
            rustix::fs::lsetxattr(node, name.as_slice(), value, XattrFlags::empty())
        };
        set().map_err(|errno| ChildError::Io {
            action: "set an extended attribute of the layer",
            source: errno.into(),
        })?;
    }
    Ok(())
}

/// The role. `args` are those after the role's name.
#[must_use]
pub fn child_main(args: Vec<OsString>) -> ExitCode {
    let report = match std::panic::catch_unwind(|| run(&args)) {
        Ok(report) => report,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            let message = format!("unpacking panicked: {}", text.unwrap_or("no message"));
            Report::Failed { kind: FailureKind::Malformed, message }
        }
    };
    let written = serde_json::to_vec(&report)
        .map_err(io::Error::from)
        .and_then(|text| io::stdout().lock().write_all(&text));
    match (report, written) {
        (Report::Unpacked { .. }, Ok(())) => ExitCode::SUCCESS,
        (Report::Failed { .. }, _) | (_, Err(_)) => ExitCode::FAILURE,
    }
}

fn run(args: &[OsString]) -> Report {
    let refused = |message: String| Report::Failed { kind: FailureKind::Host, message };
    let request = args.first().and_then(|request| request.to_str());
    let request: Option<Request> = request.and_then(|request| serde_json::from_str(request).ok());
    let Some(Request { input, check }) = request else {
        return refused("the request of the unpacking process is damaged".to_owned());
    };
    let staging = match inherited(STAGING_NUMBER) {
        Ok(staging) => staging,
        Err(error) => return refused(format!("there is no staging directory: {error}")),
    };
    rustix::process::umask(Mode::empty());
    let (directory, unconfined) = confine::confine(staging);
    let digest = (check == DigestCheck::Child).then_some(input.digest);
    match super::unpack(io::stdin(), &input, digest, directory.as_fd(), Denied::Defer) {
        Ok((layer, deferred)) => Report::Unpacked { layer, deferred, unconfined },
        Err(error) => Report::Failed { kind: error.kind(), message: Chain(&error).to_string() },
    }
}
