//! `supervisor wait`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use hyper::Method;

use super::args::ProjectArguments;
use super::settings::Settings;
use super::{connect, output, project};
use crate::api::{ApiClient, ServicesQuery, StopRequest};
use crate::supervise::report::ExitReport;

/// Exit code for an end that nobody saw.
const UNKNOWN: u8 = 125;

/// `wait`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exits with the code of the container that ended first; 125 when nobody saw how it ended. A container \
that does not run has ended.\n\nExample:\n  supervisor wait migrate && supervisor start web"
)]
pub(super) struct WaitArguments {
    /// Services to wait for (default: all)
    #[arg(value_name = "SERVICE", value_parser = project::service_name)]
    pub(super) services: Vec<String>,
    /// Take the project down when the first container ends
    #[arg(long)]
    pub(super) down_project: bool,
    /// Which project.
    #[command(flatten)]
    pub(super) project: ProjectArguments,
}

pub(super) fn run(settings: &Settings, arguments: &WaitArguments) -> anyhow::Result<ExitCode> {
    connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let project = project::selected(settings, &client, &arguments.project).await?;
        let mut waiting = arguments.services.clone();
        if waiting.is_empty() {
            let reports = project::reports(&client, Some(&project)).await?;
            waiting.extend(reports.into_iter().map(|report| report.service));
        }
        let code = follow(settings, client, &project, waiting, arguments.down_project).await?;
        if arguments.down_project {
            let client = connect::connect_or_start(settings).await?;
            let path = format!("/v1/projects/{project}/down");
            client.call::<_, Vec<String>>(Method::POST, &path, &StopRequest::default()).await?;
        }
        Ok(ExitCode::from(code))
    })
}

/// Prints ends until all have come, or the first one when that is enough. Gives the code of the first.
async fn follow(
    settings: &Settings,
    mut client: ApiClient,
    project: &str,
    mut waiting: Vec<String>,
    first_is_enough: bool,
) -> anyhow::Result<u8> {
    let mut first = None;
    loop {
        let query = ServicesQuery { services: waiting.join(",") };
        let path = format!("/v1/projects/{project}/wait?services={}", query.services);
        let mut ends = client.lines(Method::GET, &path, &()).await?;
        loop {
            match ends.next::<ExitReport>().await {
                Ok(Some(end)) => {
                    let code = end.code.and_then(|code| u8::try_from(code).ok());
                    let words = code.map_or("unknown".to_owned(), |code| code.to_string());
                    output::line(&format!(
                        "container \"{}\" exited with status code {words}",
                        end.container
                    ));
                    first.get_or_insert(code.unwrap_or(UNKNOWN));
                    waiting.retain(|service| *service != end.service);
                    if let Some(code) = first
                        && (first_is_enough || waiting.is_empty())
                    {
                        return Ok(code);
                    }
                }
                Ok(None) if ends_well(settings).await => {
                    bail!("nothing is left of `{}` to wait for", waiting.join("`, `"));
                }
                // Control ended; how what it watched ended is known to the next one.
                Ok(None) | Err(_) => break,
            }
        }
        client = connect::connect_or_start(settings).await?;
    }
}

/// Whether the control that has just ended a list goes on, so that it meant it.
async fn ends_well(settings: &Settings) -> bool {
    connect::connect(settings).await.is_ok_and(|client| client.is_some())
}
