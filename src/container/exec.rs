//! Running a program in a container, from the command line's side: it speaks to the monitor directly, and its
//! descriptors travel there.
//!
//! Everything here blocks; a caller with a runtime uses a blocking thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ContainerId;
use super::terminal::Session;
use super::wire::{self, Message, Request};
use crate::sys::socket;

/// A program to run in a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments; at least one. Looked up in the container's `PATH`.
    pub args: Vec<String>,
    /// `NAME=value`, beside or instead of the container's own.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory; the container's where `None`.
    #[serde(default)]
    pub cwd: Option<String>,
    /// As [`super::Process::user`]; the container's where `None`.
    #[serde(default)]
    pub user: Option<String>,
    /// It gets a terminal of this size.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
    /// After so many milliseconds it is killed.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

impl ExecRequest {
    /// `args` as the container's user, in its directory, with its environment, without a terminal.
    #[must_use]
    pub fn new(args: Vec<String>) -> Self {
        Self { args, env: Vec::new(), cwd: None, user: None, terminal: None, timeout_ms: None }
    }
}

/// Lines and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

impl TerminalSize {
    /// The size of the terminal `fd`; `None` when it is none.
    #[must_use]
    pub fn of(fd: impl AsFd) -> Option<Self> {
        let size = rustix::termios::tcgetwinsize(fd).ok()?;
        Some(Self { rows: size.ws_row, columns: size.ws_col })
    }
}

/// The caller's standard streams.
#[derive(Debug, Clone, Copy)]
pub struct ExecStreams<'a> {
    /// Standard input.
    pub stdin: BorrowedFd<'a>,
    /// Standard output.
    pub stdout: BorrowedFd<'a>,
    /// Standard error.
    pub stderr: BorrowedFd<'a>,
}

/// Why a program in a container was not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The container does not run, or its monitor is being replaced.
    #[error("no monitor of container `{id}` answers")]
    NoMonitor {
        /// Which container.
        id: ContainerId,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It could not be started.
    #[error("could not run `{program}` in container `{id}`: {reason}")]
    NotStarted {
        /// Which container.
        id: ContainerId,
        /// The program.
        program: String,
        /// In words.
        reason: String,
        /// What a shell would say.
        code: i32,
    },
    /// The monitor died while it ran; the program goes on, its exit code is lost.
    #[error("monitor of container `{0}` was lost while the program ran")]
    MonitorLost(ContainerId),
    /// The other side does not keep to the protocol.
    #[error("monitor of container `{id}` answers unexpectedly: {answer}")]
    Protocol {
        /// Which container.
        id: ContainerId,
        /// What it said.
        answer: String,
    },
    /// A stream or terminal of the caller.
    #[error("could not copy between the terminal and the program")]
    Copy(#[source] io::Error),
}

impl ExecError {
    /// The exit code that stands for it: 127 not found, 126 cannot be executed, 125 everything else.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NotStarted { code, .. } => *code,
            Self::NoMonitor { .. }
            | Self::MonitorLost(_)
            | Self::Protocol { .. }
            | Self::Copy(_) => 125,
        }
    }
}

/// Runs a program in container `id` and returns its exit code (128 plus the signal that ended it). Without a
/// terminal it gets the caller's streams themselves; with one, bytes are copied, the caller's terminal is raw
/// meanwhile, and changes of its size are passed on.
///
/// # Errors
/// See [`ExecError`].
pub fn run(
    run_dir: &Path,
    id: &ContainerId,
    request: &ExecRequest,
    streams: ExecStreams<'_>,
) -> Result<i32, ExecError> {
    let connection = connect(run_dir, id)?;
    let passed = [streams.stdin, streams.stdout, streams.stderr];
    let passed = if request.terminal.is_some() { &[][..] } else { &passed[..] };
    let conversation = Conversation { id, connection: connection.as_fd() };
    conversation.send(&Request::Exec { exec: request.clone() }, passed)?;
    let mut descriptors = match conversation.receive()? {
        (Message::ExecStarted { .. }, descriptors) => descriptors,
        (Message::ExecFailed { reason, code }, _) => {
            let program = request.args.first().cloned().unwrap_or_default();
            return Err(ExecError::NotStarted { id: id.clone(), program, reason, code });
        }
        (other, _) => return Err(conversation.unexpected(&other)),
    };
    if request.terminal.is_some() {
        let master = descriptors.pop().ok_or_else(|| ExecError::Protocol {
            id: id.clone(),
            answer: "no terminal came along".to_owned(),
        })?;
        let session =
            Session::begin(master, streams.stdin, streams.stdout).map_err(ExecError::Copy)?;
        session.copy_until(connection.as_fd()).map_err(ExecError::Copy)?;
    }
    match conversation.receive()? {
        (Message::ExecEnded { code }, _) => Ok(code),
        (other, _) => Err(conversation.unexpected(&other)),
    }
}

/// Connects and exchanges versions.
fn connect(run_dir: &Path, id: &ContainerId) -> Result<OwnedFd, ExecError> {
    let no_monitor = |source| ExecError::NoMonitor { id: id.clone(), source };
    let connection = super::handle::open_socket(run_dir, id).map_err(no_monitor)?;
    let conversation = Conversation { id, connection: connection.as_fd() };
    conversation.send(&wire::hello(), &[])?;
    match conversation.receive()? {
        (Message::Hello { .. }, _) => Ok(connection),
        (other, _) => Err(conversation.unexpected(&other)),
    }
}

struct Conversation<'a> {
    id: &'a ContainerId,
    connection: BorrowedFd<'a>,
}

impl Conversation<'_> {
    fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), ExecError> {
        let bytes = serde_json::to_vec(request).expect("a request is plain data");
        socket::send(self.connection, &bytes, descriptors)
            .map_err(|source| ExecError::NoMonitor { id: self.id.clone(), source })
    }

    fn receive(&self) -> Result<(Message, Vec<OwnedFd>), ExecError> {
        let (bytes, descriptors) = socket::receive(self.connection)
            .map_err(|_| ExecError::MonitorLost(self.id.clone()))?;
        if bytes.is_empty() {
            return Err(ExecError::MonitorLost(self.id.clone()));
        }
        let message = serde_json::from_slice(&bytes).map_err(|error| ExecError::Protocol {
            id: self.id.clone(),
            answer: error.to_string(),
        })?;
        Ok((message, descriptors))
    }

    fn unexpected(&self, message: &Message) -> ExecError {
        match message {
            Message::Refused { reason } => ExecError::NotStarted {
                id: self.id.clone(),
                program: String::new(),
                reason: reason.clone(),
                code: 125,
            },
            other => ExecError::Protocol { id: self.id.clone(), answer: format!("{other:?}") },
        }
    }
}
