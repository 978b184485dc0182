//! `supervisor run`: a container like that of a service, once and beside it.

use std::hash::BuildHasher as _;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use hyper::Method;

use super::args::ProjectArguments;
use super::settings::Settings;
use super::signals::Signals;
use super::{EXEC_FAILED, background, connect, output, project, up};
use crate::api::{ApiClient, ClientError, RunRequest, RunStreams};
use crate::container::{CallerTerminal, TerminalSize};
use crate::spec::split_words;
use crate::supervise::report::{RunEnd, UpRequest};

/// How long the services that it depends on may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// `run`.
#[derive(Debug, Args)]
#[command(
    after_help = "The container is made as the file says, with another command, without published ports and health \
checks, and it is no container of the service: nothing restarts it, `down` removes it. Its output is passed on and not \
kept; with -d it is kept in the container's folder. The exit code is the command's (125 supervisor failed, 126 not \
executable, 127 not found).\n\nExamples:\n  supervisor run --rm web sh\n  supervisor run --rm -T db pg_dump app > app.sql\n  \
supervisor run --rm --no-deps -e DEBUG=1 worker ./migrate --all"
)]
pub(super) struct RunArguments {
    /// The service
    #[arg(value_parser = project::service_name)]
    service: String,
    /// Run in the background and print the container's name
    #[arg(short, long)]
    detach: bool,
    /// Remove the container when it has ended
    #[arg(long)]
    rm: bool,
    /// Environment, K=V
    #[arg(short, long, value_name = "K=V")]
    env: Vec<String>,
    /// Volume beside those of the service: ./FOLDER:/PATH[:ro]
    #[arg(short, long, value_name = "VOLUME")]
    volume: Vec<String>,
    /// What runs the command, instead of the image's
    #[arg(long, value_name = "CMD")]
    entrypoint: Option<String>,
    /// Name of the container
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// User, by name or id, optionally with :GROUP
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Do not start the services that it depends on
    #[arg(long)]
    no_deps: bool,
    /// No terminal, even when standard input is one
    #[arg(short = 'T', long)]
    no_tty: bool,
    /// Publish the ports of the service
    #[arg(short = 'P', long)]
    service_ports: bool,
    /// Which project.
    #[command(flatten)]
    project: ProjectArguments,
    /// The command and its arguments (default: the service's)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

pub(super) fn run(settings: &Settings, arguments: RunArguments) -> anyhow::Result<ExitCode> {
    let RunArguments { service, project, .. } = &arguments;
    let selected =
        ProjectArguments { file: project.file.clone(), project_name: project.project_name.clone() };
    let (request, depends_on) = up::request_for_run(settings, service, selected)?;
    let entrypoint = arguments
        .entrypoint
        .as_deref()
        .map(|text| split_words(text).with_context(|| format!("`--entrypoint {text}`")))
        .transpose()?;
    let is_terminal = !arguments.no_tty
        && !arguments.detach
        && std::io::stdin().is_terminal()
        && std::io::stdout().is_terminal();
    let size = if is_terminal { TerminalSize::of(std::io::stdin()) } else { None };
    let terminal =
        size.map(CallerTerminal::open).transpose().context("could not make a terminal")?;
    let streams = (!arguments.detach).then(|| match &terminal {
        Some(terminal) => {
            let number = terminal.slave().as_raw_fd();
            RunStreams { numbers: [number; 3], terminal: true }
        }
        None => RunStreams { numbers: [0, 1, 2], terminal: false },
    });
    let run = RunRequest {
        up: request.clone(),
        service: service.clone(),
        command: (!arguments.command.is_empty()).then_some(arguments.command),
        entrypoint,
        environment: arguments.env.iter().map(|pair| with_value(settings, pair)).collect(),
        volumes: arguments.volume,
        user: arguments.user,
        working_dir: arguments.workdir,
        name: arguments.name,
        ports: arguments.service_ports,
        remove: arguments.rm,
        streams,
        idempotency_key: Some(unique()),
    };
    connect::runtime()?.block_on(async {
        if !arguments.no_deps && !depends_on.is_empty() {
            let needed = UpRequest { services: depends_on.clone(), ..request };
            let code = background::up(settings, &needed, depends_on, Some(PATIENCE)).await?;
            if code != ExitCode::SUCCESS {
                return Ok(ExitCode::from(EXEC_FAILED));
            }
        }
        let project = &run.up.project;
        let client = connect::connect_or_start(settings).await?;
        let path = format!("/v1/projects/{project}/run");
        // One that a control began before it died is not begun again.
        let container: String = connect::call_again(settings, &client, &path, &run).await?;
        if arguments.detach {
            output::line(&container);
            return Ok(ExitCode::SUCCESS);
        }
        let end = follow(settings, client, project, &container, terminal).await?;
        if let Some(reason) = &end.reason {
            output::failure(reason, None);
        }
        let code = end.code.and_then(|code| u8::try_from(code).ok());
        Ok(ExitCode::from(code.unwrap_or(EXEC_FAILED)))
    })
}

/// Compose's `-e NAME`: the value that the caller has.
fn with_value(settings: &Settings, pair: &str) -> String {
    match settings.environment.get(pair) {
        Some(value) if !pair.contains('=') => format!("{pair}={value}"),
        _ => pair.to_owned(),
    }
}

/// What no other run has: each hasher of the standard library has keys of its own, from the kernel's random numbers.
fn unique() -> String {
    let random = || std::hash::RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", random(), random())
}

/// Waits for the end of the run, and copies between terminals meanwhile.
async fn follow(
    settings: &Settings,
    client: ApiClient,
    project: &str,
    container: &str,
    terminal: Option<CallerTerminal>,
) -> anyhow::Result<RunEnd> {
    let mut signals = Signals::new()?;
    let copying = terminal
        .map(|terminal| {
            let (ended, tell) = std::io::pipe()?;
            let copying = tokio::task::spawn_blocking(move || {
                let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
                terminal.copy(stdin.as_fd(), stdout.as_fd(), ended.as_fd())
            });
            std::io::Result::Ok((copying, tell))
        })
        .transpose()?;
    let base = format!("/v1/projects/{project}/runs/{container}");
    let mut ending = std::pin::pin!(end(settings, client, &base));
    let end = loop {
        tokio::select! {
            // Cancel-safe: the request is polled to its end, and a signal is taken or left.
            end = &mut ending => break end,
            _ = signals.next() => {
                // The container's own terminal has passed it on already, if there is one.
                if let Ok(Some(client)) = connect::connect(settings).await {
                    let path = format!("{base}/stop");
                    let _ = client.call::<_, ()>(Method::POST, &path, &()).await;
                }
            }
        }
    };
    if let Some((copying, mut tell)) = copying {
        let _ = tell.write_all(b".");
        drop(tell);
        // What the container wrote last is shown before the terminal is as it was.
        copying.await?.context("could not copy between the terminal and the container")?;
    }
    end
}

async fn end(settings: &Settings, mut client: ApiClient, base: &str) -> anyhow::Result<RunEnd> {
    loop {
        match client.call(Method::GET, &format!("{base}/end"), &()).await {
            // The container goes on without control; how it ends is known to the next one.
            Err(ClientError::Lost(_) | ClientError::NotRunning { .. }) => {
                client = connect::connect_or_start(settings).await?;
            }
            Err(error) if ApiClient::is_not_found(&error) => {
                anyhow::bail!("the container is gone, and nobody saw how it ended")
            }
            other => return Ok(other?),
        }
    }
}
