//! The process that answers: `supervisor-role names DIRECTORY LEVEL GROUP`.
//!
//! It reads its table at the start and when it is told to, and takes sockets over its own socket. One per directory;
//! a second one waits for the first one's end, so that a successor can be started before.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::NameTable;
use super::serve::Server;
use super::upstream::HostResolvers;
use crate::sys::confine::{self, Admin, Rights};
use crate::sys::{cgroup, readiness, signal, socket};
use crate::telemetry;

/// The name of the role.
pub const NAMES_ROLE: &str = "names";
/// Its socket, in its directory.
pub const NAMES_SOCKET: &str = "names.sock";
/// What it knows, in its directory: a [`NameTable`] as JSON.
pub const NAMES_TABLE: &str = "names.json";
/// Held for as long as it serves.
const LOCK: &str = "names.lock";
/// What it speaks; only added to.
pub(super) const VERSION: u32 = 1;
const HOST_RESOLVERS: &str = "/etc/resolv.conf";

/// What it may be asked. The first message of a connection is [`Request::Hello`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    Hello {
        version: u32,
    },
    /// With two descriptors: for datagrams, and for streams.
    Adopt {
        client: String,
    },
    Release {
        client: String,
    },
    Reload,
    List,
    Stop,
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    Hello { version: u32 },
    Done,
    Clients { clients: Vec<String> },
    Failed { message: String },
}

/// Runs the role.
pub(crate) fn names_main(args: Vec<OsString>) -> ExitCode {
    let [directory, level, group] = args.as_slice() else { return ExitCode::from(2) };
    let _ = telemetry::init_logging(&telemetry::LogOptions {
        level: level.to_string_lossy().into_owned(),
        format: telemetry::LogFormat::Text,
    });
    signal::ignore_sigpipe();
    // Not in control's group, which ends with it under a service manager. A host without groups has none to leave.
    for (place, error) in cgroup::enter(&group.to_string_lossy()).unwrap_or_default() {
        tracing::debug!(place = %place.display(), %error, "a control group cannot be entered");
    }
    match run(&PathBuf::from(directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "names cannot be answered");
            ExitCode::FAILURE
        }
    }
}

/// Serves until it is told to stop. Blocks while another one serves.
fn run(path: &Path) -> io::Result<()> {
    let directory = File::open(path)?;
    let lock = File::options().create(true).truncate(false).write(true).open(path.join(LOCK))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let listener = socket::listen(directory.as_fd(), NAMES_SOCKET)?;
    // What resolv.conf is a link to, on hosts whose resolver writes it.
    let resolvers = ["/etc", "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager"];
    let read = resolvers.iter().map(PathBuf::from).chain([path.to_owned()]).collect();
    let rights = Rights { read, admin: Admin::Drop, ..Rights::default() };
    for gap in confine::confine(&rights)? {
        tracing::warn!(gap, "this host confines the resolver less");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(listener, path.join(NAMES_TABLE)))
}

pub(super) async fn serve(listener: OwnedFd, table: PathBuf) -> io::Result<()> {
    let listener = readiness::watch(listener, Interest::READABLE)?;
    let known = read_table(&table).unwrap_or_else(|error| {
        tracing::warn!(%error, "starting without names");
        NameTable::default()
    });
    let resolvers = HostResolvers::new(PathBuf::from(HOST_RESOLVERS));
    let state = Arc::new(State {
        server: Mutex::new(Server::new(known, resolvers)),
        table,
        stop: Notify::new(),
    });
    loop {
        // Both are cancel safe: readiness is asked for again, and a stop that nobody waits for is kept.
        let mut ready = tokio::select! {
            ready = listener.readable() => ready?,
            () = state.stop.notified() => return Ok(()),
        };
        match socket::accept(listener.get_ref().as_fd()) {
            Ok(connection) => {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    if let Err(error) = converse(&state, connection).await {
                        tracing::debug!(%error, "a connection ended");
                    }
                });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) => tracing::warn!(%error, "a connection cannot be accepted"),
        }
    }
}

#[derive(Debug)]
struct State {
    server: Mutex<Server>,
    table: PathBuf,
    stop: Notify,
}

fn read_table(path: &Path) -> io::Result<NameTable> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Answers the requests of one connection until its other end closes.
async fn converse(state: &State, connection: OwnedFd) -> io::Result<()> {
    let connection = readiness::watch(connection, Interest::READABLE)?;
    loop {
        let Some((message, descriptors)) = receive(&connection).await? else { return Ok(()) };
        let reply = match serde_json::from_slice(&message) {
            Ok(request) => obey(state, request, descriptors),
            Err(error) => Reply::Failed { message: format!("no request: {error}") },
        };
        let reply = serde_json::to_vec(&reply)?;
        // Replies are small and one waits at a time, so there is always room.
        socket::send(connection.get_ref().as_fd(), &reply, &[])?;
    }
}

async fn receive(connection: &AsyncFd<OwnedFd>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    loop {
        let mut ready = connection.readable().await?;
        match socket::receive(connection.get_ref().as_fd()) {
            Ok((message, _)) if message.is_empty() => return Ok(None),
            Ok(received) => return Ok(Some(received)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) => return Err(error),
        }
    }
}

fn obey(state: &State, request: Request, mut descriptors: Vec<OwnedFd>) -> Reply {
    let mut server = state.server.lock().unwrap_or_else(PoisonError::into_inner);
    match request {
        Request::Hello { .. } => Reply::Hello { version: VERSION },
        Request::Adopt { client } => {
            let (tcp, udp) = (descriptors.pop(), descriptors.pop());
            let (Some(udp), Some(tcp)) = (udp, tcp) else {
                return Reply::Failed { message: "two sockets were expected".to_owned() };
            };
            done(server.adopt(client, udp, tcp))
        }
        Request::Release { client } => {
            server.release(&client);
            Reply::Done
        }
        Request::Reload => done(read_table(&state.table).map(|table| server.replace_table(table))),
        Request::List => Reply::Clients { clients: server.clients() },
        Request::Stop => {
            state.stop.notify_one();
            Reply::Done
        }
        Request::Unknown => Reply::Failed { message: "unknown request".to_owned() },
    }
}

fn done(result: io::Result<()>) -> Reply {
    match result {
        Ok(()) => Reply::Done,
        Err(error) => Reply::Failed { message: error.to_string() },
    }
}
