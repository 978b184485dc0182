//! `supervisor stop`, and the hidden commands for the host's shutdown.

use std::process::ExitCode;

use clap::Args;
use hyper::Method;

use super::args::ProjectArguments;
use super::settings::Settings;
use super::{connect, output, project};
use crate::api::StopRequest;

/// `stop`.
#[derive(Debug, Args)]
#[command(
    after_help = "Containers stay, with what they have written. A stopped service stays stopped, also after a restart \
of the host, until `start`, `restart` or `up`.\n\nExamples:\n  supervisor stop web\n  supervisor stop -t 60 db"
)]
pub(super) struct StopArguments {
    /// Services to stop (default: all)
    #[arg(value_name = "SERVICE", value_parser = project::service_name)]
    pub(super) services: Vec<String>,
    /// Seconds from the stop signal to the kill (default: the service's stop_grace_period)
    #[arg(short, long, value_name = "SECS")]
    pub(super) timeout: Option<u64>,
    /// Which project.
    #[command(flatten)]
    pub(super) project: ProjectArguments,
}

pub(super) fn run(settings: &Settings, arguments: StopArguments) -> anyhow::Result<ExitCode> {
    connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let project = project::selected(settings, &client, &arguments.project).await?;
        let request = StopRequest {
            services: arguments.services,
            timeout: arguments.timeout,
            ..StopRequest::default()
        };
        let path = format!("/v1/projects/{project}/stop");
        let stopped: Vec<String> = connect::call_again(settings, &client, &path, &request).await?;
        output::containers(&project, &stopped, "Stopped");
        Ok(ExitCode::SUCCESS)
    })
}

/// Stops all services of the host without anybody having asked for it.
pub(super) fn for_shutdown(settings: &Settings) -> anyhow::Result<ExitCode> {
    connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let stopped: Vec<String> = client.call(Method::POST, "/v1/host/shutdown", &()).await?;
        output::became(&stopped, "Stopped");
        Ok(ExitCode::SUCCESS)
    })
}

/// Takes that back.
pub(super) fn after_shutdown(settings: &Settings) -> anyhow::Result<ExitCode> {
    connect::runtime()?.block_on(async {
        // Without a control nothing is held back.
        if let Some(client) = connect::connect(settings).await? {
            client.call::<_, ()>(Method::DELETE, "/v1/host/shutdown", &()).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}
