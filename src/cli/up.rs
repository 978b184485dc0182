//! `supervisor up`: makes a services file the desired state, follows its logs, and stops it at Ctrl-C. In the background
//! it is [`background`]'s.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use hyper::Method;

use super::args::ProjectArguments;
use super::attach::{Attached, Claim, Seen};
use super::settings::{ServiceManager, Settings};
use super::signals::{Ended, Signals};
use super::{background, connect, output, project, run};
use crate::api::{ApiClient, StopRequest};
use crate::spec::Interpolation;
use crate::supervise::report::{ServiceReport, Standing, UpRequest};

/// Seconds that `up -d` waits for the services.
const WAIT_TIMEOUT: u64 = 120;

/// `up`.
#[derive(Debug, Args)]
#[command(
    after_help = "Ctrl-C stops the services in order; a second Ctrl-C kills them. Edit the file while it runs: \
changed services are recreated, unchanged ones are not touched. With -d the project runs in the background: the command \
returns when every service runs (or has ended with code 0), and with code 1 when one cannot or the time is over; \
Ctrl-C then leaves the project as it is.\n\nExamples:\n  supervisor up\n  supervisor up ./services.yaml\n  supervisor \
up -d --wait-timeout 30 web\n  supervisor up -f site.yaml web"
)]
pub(super) struct UpArguments {
    /// Services file if it contains a slash or ends in .yml or .yaml; else services to start (default: all)
    #[arg(value_name = "FILE|SERVICE")]
    targets: Vec<String>,
    /// Run in the background; return when all services run
    #[arg(short, long)]
    detach: bool,
    /// The same as -d, which waits by itself
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// With -d: how many seconds the services may take (default: 120)
    #[arg(long, value_name = "SECS")]
    wait_timeout: Option<u64>,
    /// With -d: return as soon as the file is accepted
    #[arg(long, conflicts_with = "wait_timeout")]
    no_wait: bool,
    /// Start only the named services, without those that they depend on
    #[arg(long)]
    no_deps: bool,
    /// New containers for the named services (default: all), also where nothing has changed; jobs run again
    #[arg(long)]
    force_recreate: bool,
    /// Which project.
    #[command(flatten)]
    project: ProjectArguments,
}

pub(super) fn run(settings: &Settings, arguments: UpArguments) -> anyhow::Result<ExitCode> {
    let detached = arguments.detach || arguments.wait || arguments.no_wait;
    ensure!(
        detached || arguments.wait_timeout.is_none(),
        "`--wait-timeout` is for `up -d`: an attached `up` shows the services and waits for nothing"
    );
    let (mut request, wanted) =
        requested(settings, arguments.targets, arguments.project, arguments.no_deps)?;
    if arguments.force_recreate {
        request.recreate.clone_from(&wanted);
    }
    if detached {
        let patience = patience(arguments.wait_timeout, arguments.no_wait);
        return connect::runtime()?
            .block_on(Box::pin(background::up(settings, &request, wanted, patience)));
    }
    run::runtime()?.block_on(Box::pin(follow(settings, &request)))
}

/// How long a detached `up` waits, given what was said of it.
fn patience(wait_timeout: Option<u64>, no_wait: bool) -> background::Patience {
    (!no_wait).then_some(Duration::from_secs(wait_timeout.unwrap_or(WAIT_TIMEOUT)))
}

/// The request that is meant, and the services that are waited for. `alone`: without those that they depend on.
pub(super) fn requested(
    settings: &Settings,
    targets: Vec<String>,
    project: ProjectArguments,
    alone: bool,
) -> anyhow::Result<(UpRequest, Vec<String>)> {
    let (mut files, services) = split(targets);
    ensure!(
        files.is_empty() || project.file.is_empty(),
        "services files are given with `-f` and without; choose one way"
    );
    files.extend(project.file);
    let composition = super::project::compose(
        settings,
        &files,
        project.project_name.as_deref(),
        &services,
        Interpolation::Replace,
    )?;
    let desired = super::project::check(&composition)?;
    composition.warnings.iter().for_each(|warning| output::warning(&warning.to_string()));
    for name in &services {
        let known = desired.services.keys().any(|service| service.as_str() == name);
        ensure!(known, "no such service in `{}`: `{name}`", composition.main_file());
    }
    let wanted = if services.is_empty() {
        desired.services.keys().map(ToString::to_string).collect()
    } else {
        services.clone()
    };
    let mut request = super::project::request(settings, &composition, services);
    if alone {
        request.independent.clone_from(&wanted);
    }
    Ok((request, wanted))
}

/// The request that describes `service`, and the services that it depends on.
pub(super) fn request_for_run(
    settings: &Settings,
    service: &str,
    selected: ProjectArguments,
) -> anyhow::Result<(UpRequest, Vec<String>)> {
    let services = vec![service.to_owned()];
    let composition = super::project::compose(
        settings,
        &selected.file,
        selected.project_name.as_deref(),
        &services,
        Interpolation::Replace,
    )?;
    let desired = super::project::check(&composition)?;
    let found = desired.services.iter().find(|(name, _)| name.as_str() == service);
    let Some((_, found)) = found else {
        anyhow::bail!("no such service in `{}`: `{service}`", composition.main_file());
    };
    let depends_on = found.depends_on.keys().map(ToString::to_string).collect();
    Ok((super::project::request(settings, &composition, services), depends_on))
}

/// A target is a file if it looks like one, else a service.
fn split(targets: Vec<String>) -> (Vec<PathBuf>, Vec<String>) {
    let is_file = |target: &String| {
        let lower = target.to_ascii_lowercase();
        target.contains('/') || lower.ends_with(".yml") || lower.ends_with(".yaml")
    };
    let (files, services): (Vec<String>, Vec<String>) = targets.into_iter().partition(is_file);
    (files.into_iter().map(PathBuf::from).collect(), services)
}

/// What ends an `up`.
enum End {
    Interrupted,
    HungUp,
    /// Somebody else took the project down.
    Down,
}

impl From<Ended> for End {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Interrupted | Ended::Terminated => Self::Interrupted,
            Ended::HungUp => Self::HungUp,
        }
    }
}

async fn follow(settings: &Settings, request: &UpRequest) -> anyhow::Result<ExitCode> {
    // Signals first: from here on, ending means stopping the services.
    let mut signals = Signals::new()?;
    let served = match connect::connect(settings).await? {
        Some(_) => None,
        None => match run::start(settings, None, &ServiceManager::default()) {
            Ok(served) => Some(served),
            // Another command started one between the two.
            Err(error) if run::is_running(&error) => None,
            Err(error) => return Err(error),
        },
    };
    // Nobody can have heard of it from the events of this control.
    served.iter().flat_map(|served| served.losses()).for_each(|loss| output::warning(loss));
    let mut client = match served {
        Some(_) => ApiClient::connect(&settings.run_dir).await?.0,
        None => connect::connect_or_start(settings).await?,
    };
    let stops = Stops::find(&client, request).await?;
    let mut attached = Attached::to(&client, request, Claim::Up).await?;
    let end = loop {
        tokio::select! {
            // Cancel-safe: a stream keeps what it has read of a line.
            ended = signals.next() => break End::from(ended),
            seen = attached.show_next() => match seen {
                Seen::Shown => {}
                Seen::Down => break End::Down,
                Seen::Lost(error) if served.is_some() => return Err(error),
                // The services go on without control; what they need is another one.
                Seen::Lost(_) => {
                    output::warning("the supervisor ended; the services go on, and another one takes over");
                    client = connect::connect_or_start(settings).await?;
                    attached.again(&client, request).await?;
                }
            },
        }
    };
    match end {
        End::Down => output::note(&format!("project {} was taken down", request.project)),
        End::HungUp => {}
        End::Interrupted => match stops.services() {
            Some(services) => stop(&client, request, services, &mut signals, &mut attached).await?,
            None => output::note("\nall of it ran before and goes on; `supervisor down` ends it"),
        },
    }
    if let Some(served) = served {
        // Detached, or the control of others too: it goes on in the background.
        let goes_on = served.control().wants_anything().await.unwrap_or(false);
        served.stop_leaving_running().await;
        if goes_on {
            connect::hand_over(settings)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What Ctrl-C stops.
enum Stops {
    /// The project.
    Everything,
    /// Only these services: others of the project ran before, for somebody else.
    Only(Vec<String>),
}

impl Stops {
    /// Asks what runs before `request` is made. One that names no services is about the whole project.
    async fn find(client: &ApiClient, request: &UpRequest) -> anyhow::Result<Self> {
        if request.services.is_empty() {
            return Ok(Self::Everything);
        }
        let reports = match project::reports(client, Some(&request.project)).await {
            Ok(reports) => reports,
            Err(error) if ApiClient::is_not_found(&error) => return Ok(Self::Everything),
            Err(error) => return Err(error.into()),
        };
        let ran =
            |report: &&ServiceReport| matches!(report.standing, Standing::Up | Standing::Coming);
        let ran: Vec<&str> =
            reports.iter().filter(ran).map(|report| report.service.as_str()).collect();
        if ran.iter().all(|service| request.services.iter().any(|named| named == service)) {
            return Ok(Self::Everything);
        }
        let started = request.services.iter().filter(|named| !ran.contains(&named.as_str()));
        Ok(Self::Only(started.cloned().collect()))
    }

    /// The services of a request to stop, none meaning all; `None` when there is nothing to stop.
    fn services(&self) -> Option<Vec<String>> {
        match self {
            Self::Everything => Some(Vec::new()),
            Self::Only(services) => Some(services.clone()).filter(|services| !services.is_empty()),
        }
    }
}

/// Stops the project or some services of it, shows what it still has to say, and kills it at the second signal.
async fn stop(
    client: &ApiClient,
    request: &UpRequest,
    services: Vec<String>,
    signals: &mut Signals,
    attached: &mut Attached,
) -> anyhow::Result<()> {
    output::note("\nstopping; Ctrl-C again kills");
    let path = format!("/v1/projects/{}/stop", request.project);
    let graceful = StopRequest { services, ..StopRequest::default() };
    let kill = StopRequest { kill: true, ..graceful.clone() };
    let mut stopping =
        std::pin::pin!(client.call::<_, Vec<String>>(Method::POST, &path, &graceful));
    loop {
        tokio::select! {
            // Cancel-safe: as above; the request itself is polled to its end or given up for good.
            stopped = &mut stopping => {
                attached.show_rest().await;
                return Ok(stopped.map(drop)?);
            }
            ended = signals.next() => {
                // A closed terminal asks for no hurry: what is being stopped keeps its grace period.
                if ended == Ended::HungUp {
                    return Ok(());
                }
                output::note("killing");
                client.call::<_, Vec<String>>(Method::POST, &path, &kill).await?;
                return Ok(());
            }
            seen = attached.show_next() => if let Seen::Lost(error) = seen { return Err(error) },
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::super::args::{Arguments, Command};
    use super::*;

    /// How long a command line waits for services.
    fn waits(words: &[&str]) -> background::Patience {
        let words = ["supervisor"].iter().chain(words);
        match Arguments::try_parse_from(words).unwrap().command {
            Command::Up(up) => patience(up.wait_timeout, up.no_wait),
            Command::Start(start) => Some(Duration::from_secs(start.wait_timeout)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn services_are_waited_for_two_minutes_unless_something_else_is_said() {
        let two_minutes = Some(Duration::from_secs(120));
        for words in [["up", "-d"], ["up", "--wait"], ["start", "--wait"]] {
            assert_eq!(waits(&words), two_minutes, "{words:?}");
        }
        assert_eq!(waits(&["up", "-d", "--wait-timeout", "7"]), Some(Duration::from_secs(7)));
        assert_eq!(waits(&["up", "-d", "--no-wait"]), None);
        for name in ["up", "start"] {
            let mut all = Arguments::command();
            let command = all.find_subcommand_mut(name).unwrap();
            let help = command.render_long_help().to_string();
            assert!(help.contains("default: 120"), "{help}");
        }
    }
}
