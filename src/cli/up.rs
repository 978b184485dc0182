//! `supervisor up`: makes a services file the desired state, follows its logs, and stops it at Ctrl-C.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{bail, ensure};
use hyper::Method;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};

use super::args::UpArguments;
use super::logs::Printer;
use super::run::Served;
use super::settings::{ServicesFile, Settings};
use super::{connect, logs, output, project, run};
use crate::api::{ApiClient, LogLine, LogsQuery, StopRequest};
use crate::supervise::report::{Event, EventLevel, UpRequest};

pub(super) fn run(settings: &Settings, arguments: UpArguments) -> anyhow::Result<ExitCode> {
    let (file, services) = targets(arguments.targets)?;
    ensure!(
        file.is_none() || arguments.project.file.is_none(),
        "two services files are given; name one, with `-f` or without"
    );
    let file = ServicesFile::read(file.or(arguments.project.file).as_deref())?;
    let desired = project::parse(settings, &file, arguments.project.project_name.as_deref())?;
    for name in &services {
        let known = desired.services.keys().any(|service| service.as_str() == name);
        ensure!(known, "no such service in `{}`: `{name}`", file.display);
    }
    let request = project::request(settings, file, &desired, services);
    run::runtime()?.block_on(async {
        let served = match connect::connect(settings).await? {
            Some(_) => None,
            None => match Served::start(settings, None) {
                Ok(served) => Some(served),
                // Another command started one between the two.
                Err(error) if run::is_running(&error) => None,
                Err(error) => return Err(error),
            },
        };
        let client = match served {
            Some(_) => ApiClient::connect(&settings.run_dir).await?.0,
            None => connect::connect_or_start(settings).await?,
        };
        attached(settings, &client, &request, served).await
    })
}

/// A target is a file if it looks like one, else a service.
fn targets(targets: Vec<String>) -> anyhow::Result<(Option<PathBuf>, Vec<String>)> {
    let is_file = |target: &String| {
        let lower = target.to_ascii_lowercase();
        target.contains('/') || lower.ends_with(".yml") || lower.ends_with(".yaml")
    };
    let (files, services): (Vec<String>, Vec<String>) = targets.into_iter().partition(is_file);
    match files.as_slice() {
        [] => Ok((None, services)),
        [file] => Ok((Some(PathBuf::from(file)), services)),
        several => {
            bail!("several services files are given ({}); one is supported", several.join(", "))
        }
    }
}

/// What ends an attached `up`.
enum End {
    Interrupted,
    HungUp,
    /// Somebody else took the project down.
    Down,
    Lost(anyhow::Error),
}

async fn attached(
    settings: &Settings,
    client: &ApiClient,
    request: &UpRequest,
    served: Option<Served>,
) -> anyhow::Result<ExitCode> {
    // Signals first: from here on, ending means stopping the services.
    let mut signals = Signals::new()?;
    let mut events = client.lines(Method::GET, "/v1/events", &()).await?;
    let since = Timestamp::now();
    let path = format!("/v1/projects/{}", request.project);
    client.call::<_, ()>(Method::PUT, &path, request).await?;
    let query = LogsQuery {
        project: request.project.clone(),
        services: request.services.join(","),
        follow: true,
        tail: None,
        since: Some(since),
    };
    let mut lines = client.lines(Method::GET, &logs::path(&query), &()).await?;
    let mut printer = Printer::default();
    let end = loop {
        tokio::select! {
            // Cancel-safe: a stream keeps what it has read of a line.
            end = signals.next() => break end,
            line = lines.next::<LogLine>() => match line {
                Ok(Some(line)) => printer.print(&line),
                Ok(None) => break End::Lost(anyhow::anyhow!("the supervisor has ended")),
                Err(error) => break End::Lost(error.into()),
            },
            event = events.next::<Event>() => match event {
                Ok(Some(event)) if event.kind == "project-down" && event.project == request.project => {
                    break End::Down;
                }
                Ok(Some(event)) => show(&event, &request.project),
                Ok(None) => break End::Lost(anyhow::anyhow!("the supervisor has ended")),
                Err(error) => break End::Lost(error.into()),
            },
        }
    };
    match end {
        End::Lost(error) => Err(error),
        End::Down => {
            output::note(&format!("project {} was taken down", request.project));
            if let Some(served) = served {
                served.stop().await;
            }
            Ok(ExitCode::SUCCESS)
        }
        End::HungUp => {
            // Detached: the services go on, and so must their control.
            if let Some(served) = served {
                served.stop().await;
                connect::start(settings).await?;
            }
            Ok(ExitCode::SUCCESS)
        }
        End::Interrupted => {
            stop(client, request, &mut signals, &mut lines, &mut events, &mut printer).await?;
            if let Some(served) = served {
                served.stop().await;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Stops the project, shows what it still has to say, and kills it at the second signal.
async fn stop(
    client: &ApiClient,
    request: &UpRequest,
    signals: &mut Signals,
    lines: &mut crate::api::Lines,
    events: &mut crate::api::Lines,
    printer: &mut Printer,
) -> anyhow::Result<()> {
    output::note("\nstopping; Ctrl-C again kills");
    let path = format!("/v1/projects/{}/stop", request.project);
    let (graceful, kill) = (StopRequest { kill: false }, StopRequest { kill: true });
    let mut stopping = std::pin::pin!(client.call::<_, ()>(Method::POST, &path, &graceful));
    loop {
        tokio::select! {
            // Cancel-safe: as above; the request itself is polled to its end or given up for good.
            stopped = &mut stopping => {
                // What the services said last has been written by now.
                while let Ok(Ok(Some(line))) =
                    tokio::time::timeout(std::time::Duration::from_millis(50), lines.next::<LogLine>()).await
                {
                    printer.print(&line);
                }
                return Ok(stopped?);
            }
            _ = signals.next() => {
                output::note("killing");
                client.call::<_, ()>(Method::POST, &path, &kill).await?;
                return Ok(());
            }
            Ok(Some(line)) = lines.next::<LogLine>() => printer.print(&line),
            Ok(Some(event)) = events.next::<Event>() => show(&event, &request.project),
        }
    }
}

/// Tells people what happens to the project, and to the host as far as it may concern it.
fn show(event: &Event, project: &str) {
    if event.project != project && !event.project.is_empty() {
        return;
    }
    let hint = event.attributes.get("hint").filter(|hint| !hint.is_empty()).map(String::as_str);
    match event.level {
        EventLevel::Error => output::failure(&event.message, hint),
        EventLevel::Warning => output::warning(&event.message),
        EventLevel::Info if event.kind.starts_with("project-") => {}
        EventLevel::Info if event.kind == "image-pulling" => {
            output::note(&format!(" … {}", event.message))
        }
        EventLevel::Info => output::note(&format!(" ✔ {}", event.message)),
    }
}

/// The signals that end an attached `up`.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> End {
        tokio::select! {
            // Cancel-safe: receiving a signal takes it or leaves it.
            _ = self.interrupt.recv() => End::Interrupted,
            _ = self.terminate.recv() => End::Interrupted,
            _ = self.hang_up.recv() => End::HungUp,
        }
    }
}
