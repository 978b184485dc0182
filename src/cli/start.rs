//! `supervisor start` and `supervisor restart`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use hyper::Method;
use serde::Serialize;

use super::args::ProjectArguments;
use super::settings::Settings;
use super::{connect, output, project};
use crate::api::{ApiClient, StartRequest, StopRequest};
use crate::supervise::report::ServiceReport;

/// `start`.
#[derive(Debug, Args)]
#[command(
    after_help = "Returns when the services have been started. What takes longer goes on in the background.\n\n\
Examples:\n  supervisor start web\n  supervisor start --wait --wait-timeout 30"
)]
pub(super) struct StartArguments {
    /// Services to start (default: all)
    #[arg(value_name = "SERVICE", value_parser = project::service_name)]
    pub(super) services: Vec<String>,
    /// Fail if a service has ended with an error by then
    #[arg(long)]
    pub(super) wait: bool,
    /// Seconds to wait for the services at most
    #[arg(long, value_name = "SECS", default_value_t = 120)]
    pub(super) wait_timeout: u64,
    /// Which project.
    #[command(flatten)]
    pub(super) project: ProjectArguments,
}

/// `restart`.
#[derive(Debug, Args)]
#[command(
    after_help = "The containers stay, with what they have written. Services that do not run are started.\n\n\
Examples:\n  supervisor restart web\n  supervisor restart -t 0"
)]
pub(super) struct RestartArguments {
    /// Services to restart (default: all)
    #[arg(value_name = "SERVICE", value_parser = project::service_name)]
    pub(super) services: Vec<String>,
    /// Seconds from the stop signal to the kill (default: the service's stop_grace_period)
    #[arg(short, long, value_name = "SECS")]
    pub(super) timeout: Option<u64>,
    /// Which project.
    #[command(flatten)]
    pub(super) project: ProjectArguments,
}

pub(super) fn run(settings: &Settings, arguments: StartArguments) -> anyhow::Result<ExitCode> {
    connect::runtime()?.block_on(async {
        // The files are read while control answers the first time.
        let (client, named) = tokio::join!(
            biased;
            connect::connect_or_start(settings),
            async { project::named(settings, &arguments.project) }
        );
        let client = client?;
        let project = project::or_only(&client, named?).await?;
        let request = StartRequest { services: arguments.services.clone() };
        let limit = Duration::from_secs(arguments.wait_timeout);
        let asked = ask(&client, &project, "start", &request);
        let Ok(started) = tokio::time::timeout(limit, asked).await else {
            let waiting: Vec<String> = reports(&client, &project, &arguments.services)
                .await?
                .into_iter()
                .filter(|report| report.state != "running")
                .map(|report| format!("`{}` is {}", report.service, report.status))
                .collect();
            bail!(
                "not all services were started within {} s, which goes on in the background: {}",
                arguments.wait_timeout,
                waiting.join(", ")
            );
        };
        output::containers(&project, &started?, "Started");
        if arguments.wait {
            for report in reports(&client, &project, &arguments.services).await? {
                let failed = report.exit_code.is_some_and(|code| code != 0);
                if report.state != "running" && failed {
                    bail!("service `{}` is {}", report.service, report.status);
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub(super) fn restart(
    settings: &Settings,
    arguments: RestartArguments,
) -> anyhow::Result<ExitCode> {
    connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let project = project::selected(settings, &client, &arguments.project).await?;
        let request = StopRequest {
            services: arguments.services,
            timeout: arguments.timeout,
            ..StopRequest::default()
        };
        let restarted = ask(&client, &project, "restart", &request).await?;
        output::containers(&project, &restarted, "Restarted");
        Ok(ExitCode::SUCCESS)
    })
}

/// Asks for what `verb` says, once, and gives the names of the containers that it was done to.
async fn ask(
    client: &ApiClient,
    project: &str,
    verb: &str,
    request: &(impl Serialize + Sync),
) -> anyhow::Result<Vec<String>> {
    Ok(client.call(Method::POST, &format!("/v1/projects/{project}/{verb}"), request).await?)
}

async fn reports(
    client: &ApiClient,
    project: &str,
    services: &[String],
) -> anyhow::Result<Vec<ServiceReport>> {
    let mut reports = project::reports(client, Some(project)).await?;
    reports.retain(|report| services.is_empty() || services.contains(&report.service));
    Ok(reports)
}
