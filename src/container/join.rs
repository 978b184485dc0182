//! Executing a program in a running container, in a forked child of its monitor.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use rustix::termios::Winsize;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::executor::{NotExecuted, Program, Restriction, TRANSIENT};
use super::filter::{self, FilterError};
use super::groups::{self, View};
use super::image_root::ImageRoot;
use super::oci;
use super::prepare::resolve_user;
use super::record::read_json;
use super::start::{StartError, await_execution};
use super::{ExecRequest, Launch, RunPaths};
use crate::sys::{cgroup, child, socket};
use crate::telemetry::Chain;

/// From a joining child to its monitor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Joined {
    /// The program runs; its terminal's master comes along where it has one.
    Started(i32),
    /// It does not.
    Failed(NotExecuted),
}

#[derive(Debug, thiserror::Error)]
enum JoinError {
    #[error("could not prepare the program's environment")]
    Prepare(#[source] io::Error),
    #[error("could not enter the working directory `{0}`")]
    Directory(String, #[source] io::Error),
    #[error("the container has no configuration")]
    NoConfiguration,
    #[error("could not prepare the filter of system calls")]
    Filter(#[source] FilterError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the runtime could not run a program in the container")]
    Runtime(#[source] LibcontainerError),
    #[error("could not get the program's terminal")]
    Terminal(#[source] io::Error),
}

/// The whole life of the child: its exit code. `init` is the container's first process, `streams` are standard
/// input, output and error where the program has no terminal.
pub(super) fn run(
    launch: &Launch,
    monitor: i32,
    init: i32,
    request: &ExecRequest,
    streams: Vec<OwnedFd>,
    joined: BorrowedFd<'_>,
) -> u8 {
    let mut keep = vec![joined];
    keep.extend(streams.iter().map(OwnedFd::as_fd));
    if child::die_with(monitor).and_then(|()| child::close_all_except(&keep)).is_err() {
        return 1;
    }
    let (message, master, code) = match join(launch, init, request, streams) {
        Ok((pid, master)) => (Joined::Started(pid), master, 0),
        Err(error) => {
            let failure = match error {
                JoinError::Start(StartError::NotExecuted(failure)) => failure,
                other => NotExecuted { reason: Chain(&other).to_string(), code: 125 },
            };
            (Joined::Failed(failure), None, 1)
        }
    };
    let bytes = serde_json::to_vec(&message).unwrap_or_default();
    let descriptors: Vec<BorrowedFd<'_>> = master.iter().map(OwnedFd::as_fd).collect();
    let _ = socket::send(joined, &bytes, &descriptors);
    code
}

fn join(
    launch: &Launch,
    init: i32,
    request: &ExecRequest,
    streams: Vec<OwnedFd>,
) -> Result<(i32, Option<OwnedFd>), JoinError> {
    let paths = launch.paths();
    cgroup::enter(&launch.cgroup).map_err(JoinError::Prepare)?;
    let layout = groups::layout(launch);
    let container: Value = read_json(&paths.bundle.join("config.json"))
        .map_err(JoinError::Prepare)?
        .ok_or(JoinError::NoConfiguration)?;
    // As the container sees it, with its mounts.
    let root =
        ImageRoot::open(Path::new(&format!("/proc/{init}/root"))).map_err(JoinError::Prepare)?;
    let user = request.user.as_ref().map(|user| resolve_user(&root, user)).transpose()?;
    if let Some(cwd) = &request.cwd {
        // libcontainer's own error names neither the directory nor the reason.
        root.check_dir(cwd).map_err(|source| JoinError::Directory(cwd.clone(), source))?;
    }
    let process = oci::exec_process(&container, request, user.as_ref(), &TRANSIENT);
    let [process_path, console_path] = files(&paths, std::process::id());
    // It is read once, by this process: nothing of it needs to survive anything.
    fs::write(&process_path, process.to_string()).map_err(JoinError::Prepare)?;
    let view = View::enter(layout).and_then(|view| view.map(|view| view.hide(launch)).transpose());
    let built = view
        .map_err(JoinError::Prepare)
        .and_then(|_| build(launch, request, streams, &container, &process_path, &console_path));
    let _ = fs::remove_file(&process_path);
    let _ = fs::remove_file(&console_path);
    built
}

/// What the child `pid` needs while it joins: the program's description, and the socket of its terminal.
fn files(paths: &RunPaths, pid: u32) -> [PathBuf; 2] {
    ["json", "sock"].map(|end| paths.runtime.join(format!("exec-{pid}.{end}")))
}

/// Removes what a child has left that was killed while it joined.
pub(super) fn clear_up(paths: &RunPaths, pid: i32) {
    let files = u32::try_from(pid).map(|pid| files(paths, pid));
    files.into_iter().flatten().for_each(|path| drop(fs::remove_file(path)));
}

fn build(
    launch: &Launch,
    request: &ExecRequest,
    streams: Vec<OwnedFd>,
    container: &Value,
    process_path: &Path,
    console_path: &Path,
) -> Result<(i32, Option<OwnedFd>), JoinError> {
    let filter = oci::profile(container)
        .map(|profile| filter::program(&launch.run_dir, profile))
        .transpose()
        .map_err(JoinError::Filter)?;
    let capabilities = Some(oci::capabilities(container));
    let (mut report, writer) = io::pipe().map_err(JoinError::Prepare)?;
    let restriction = Restriction { filter, capabilities };
    let program = Program {
        report: Arc::new(writer),
        restriction,
        terminal: false,
        first: super::FirstProcess::Program,
    };
    let mut builder = ContainerBuilder::new(launch.id.to_string(), SyscallType::default())
        .with_root_path(launch.paths().runtime)
        .map_err(JoinError::Runtime)?
        .with_executor(program);
    let mut console = None;
    if request.terminal.is_some() {
        console = Some(listen(console_path).map_err(JoinError::Terminal)?);
        builder = builder.with_console_socket(Some(console_path));
    } else {
        let mut streams = streams.into_iter();
        if let (Some(stdin), Some(stdout), Some(stderr)) =
            (streams.next(), streams.next(), streams.next())
        {
            builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
        }
    }
    let built = builder
        .as_tenant()
        .with_detach(true)
        .with_process(Some(process_path))
        .build()
        .map_err(JoinError::Runtime);
    // The executor's own words come before those that the runtime makes of them.
    await_execution(&mut report)?;
    let pid = built?.as_raw();
    let master = match console {
        Some(console) => Some(receive_master(&console, request).map_err(JoinError::Terminal)?),
        None => None,
    };
    Ok((pid, master))
}

/// The runtime connects through a link in its own directory, so the length of this path does not matter to it; here
/// the directory becomes the working directory, which nothing else in this child depends on.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default();
    std::env::set_current_dir(dir)?;
    let listener = UnixListener::bind(name)?;
    std::env::set_current_dir("/")?;
    Ok(listener)
}

fn receive_master(console: &UnixListener, request: &ExecRequest) -> io::Result<OwnedFd> {
    let (connection, _) = console.accept()?;
    let (_, mut descriptors) = socket::receive(connection.as_fd())?;
    let master = descriptors.pop().ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    if let Some(size) = request.terminal {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size)?;
    }
    Ok(master)
}
