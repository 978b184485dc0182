//! `supervisor down`.

use std::process::ExitCode;

use clap::Args;
use hyper::Method;

use super::args::ProjectArguments;
use super::settings::Settings;
use super::{connect, output, project};
use crate::api::StopRequest;

/// `down`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  supervisor down\n  supervisor down -t 60\n  supervisor down web"
)]
pub(super) struct DownArguments {
    /// Services to take down (default: the whole project)
    #[arg(value_name = "SERVICE", value_parser = project::service_name)]
    pub(super) services: Vec<String>,
    /// Seconds from the stop signal to the kill (default: the service's stop_grace_period)
    #[arg(short, long, value_name = "SECS")]
    pub(super) timeout: Option<u64>,
    /// Kill at once, and end the connection of lazy layers when containers wait for it and cannot be killed
    #[arg(long)]
    pub(super) force: bool,
    /// Which project.
    #[command(flatten)]
    pub(super) project: ProjectArguments,
}

pub(super) fn run(settings: &Settings, arguments: DownArguments) -> anyhow::Result<ExitCode> {
    connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let project = project::selected(settings, &client, &arguments.project).await?;
        let path = format!("/v1/projects/{project}/down");
        let whole = arguments.services.is_empty();
        let request = StopRequest {
            services: arguments.services,
            timeout: arguments.timeout,
            force: arguments.force,
            ..StopRequest::default()
        };
        let removed: Vec<String> = match client.call(Method::POST, &path, &request).await {
            Ok(removed) => removed,
            Err(error) if whole && crate::api::ApiClient::is_not_found(&error) => {
                output::note(&format!("project `{project}` does not run; nothing to do"));
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => return Err(error.into()),
        };
        output::containers(&project, &removed, "Removed");
        Ok(ExitCode::SUCCESS)
    })
}
