//! A program in a container, run to its end, with its output in memory.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use crate::container::{self, ContainerId, ContainerIdError, ExecError, ExecRequest, ExecStreams};
use crate::supervise::RequestError;

/// How a program in a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its exit code; 128 and the signal if one ended it.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

/// A program in a container did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecFailed {
    /// The service is not known or does not run.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// It could not be run.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// Control named something that is no container.
    #[error("control named something that is no container")]
    Container(#[from] ContainerIdError),
    /// Its streams could not be made or read.
    #[error("could not pass the streams of the program on")]
    Streams(#[source] io::Error),
}

/// Runs it. A terminal makes no sense here, so there is none.
pub(super) async fn run(
    run_dir: PathBuf,
    container: &str,
    mut request: ExecRequest,
) -> Result<ExecOutput, ExecFailed> {
    let id: ContainerId = container.parse()?;
    request.terminal = None;
    // On a thread of its own: it blocks until the program has ended.
    tokio::task::spawn_blocking(move || run_blocking(&run_dir, &id, &request))
        .await
        .map_err(|error| ExecFailed::Streams(io::Error::other(error)))?
}

fn run_blocking(
    run_dir: &std::path::Path,
    id: &ContainerId,
    request: &ExecRequest,
) -> Result<ExecOutput, ExecFailed> {
    let stdin = File::open("/dev/null").map_err(ExecFailed::Streams)?;
    let (mut stdout, stdout_end) = io::pipe().map_err(ExecFailed::Streams)?;
    let (mut stderr, stderr_end) = io::pipe().map_err(ExecFailed::Streams)?;
    std::thread::scope(|scope| {
        let read = |pipe: &mut io::PipeReader| {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).map(|_| bytes)
        };
        let stdout = scope.spawn(move || read(&mut stdout));
        let stderr = scope.spawn(move || read(&mut stderr));
        let streams = ExecStreams {
            stdin: stdin.as_fd(),
            stdout: stdout_end.as_fd(),
            stderr: stderr_end.as_fd(),
        };
        let code = container::exec::run(run_dir, id, request, streams);
        // The readers end when the last writer is gone: our ends, and then whoever inherited the program's.
        drop((stdout_end, stderr_end));
        let bytes = |reader: std::thread::ScopedJoinHandle<'_, io::Result<Vec<u8>>>| {
            reader
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the reader panicked")))
                .map_err(ExecFailed::Streams)
        };
        let (stdout, stderr) = (bytes(stdout), bytes(stderr));
        Ok(ExecOutput { code: code?, stdout: stdout?, stderr: stderr? })
    })
}
