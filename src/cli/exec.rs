//! `supervisor exec`: control names the container, its monitor gets our descriptors, and no byte passes through us
//! unless there is a terminal.

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use anyhow::ensure;
use hyper::Method;

use super::args::ExecArguments;
use super::settings::Settings;
use super::{EXEC_FAILED, connect, output, project};
use crate::api::Subject;
use crate::container::{self, ExecRequest, TerminalSize};
use crate::supervise::report::ExecTarget;

pub(super) fn run(settings: &Settings, arguments: ExecArguments) -> anyhow::Result<ExitCode> {
    for pair in &arguments.env {
        ensure!(pair.contains('='), "`{pair}` is not an environment variable; expected K=V");
    }
    let target: ExecTarget = connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let selected = &arguments.project;
        let project =
            project::required(settings, &client, &selected.file, selected.project_name.as_deref())
                .await?;
        let subject = Subject { project, service: arguments.service.clone() };
        client.call(Method::POST, "/v1/exec", &subject).await.map_err(anyhow::Error::from)
    })?;
    let tty = !arguments.no_tty && std::io::stdin().is_terminal();
    let request = ExecRequest {
        env: arguments.env,
        user: arguments.user,
        cwd: arguments.workdir,
        terminal: if tty { TerminalSize::of(std::io::stdin()) } else { None },
        ..ExecRequest::new(arguments.command)
    };
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let streams = container::ExecStreams {
        stdin: stdin.as_fd(),
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
    };
    let id = target.container.parse()?;
    match container::exec::run(&settings.run_dir, &id, &request, streams) {
        Ok(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(EXEC_FAILED))),
        Err(error) => {
            output::error(&anyhow::anyhow!("{}", crate::telemetry::Chain(&error)));
            if let container::ExecError::NoMonitor { source, .. } = &error
                && source.kind() == std::io::ErrorKind::PermissionDenied
            {
                output::hint(
                    "run it as root: `exec` passes its own standard streams to the container's monitor, and only the \
                     API socket is the group's",
                );
            }
            Ok(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXEC_FAILED)))
        }
    }
}
