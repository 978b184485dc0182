//! `supervisor inspect`.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use hyper::Method;
use serde_json::Value;

use super::args::ProjectArguments;
use super::settings::Settings;
use super::{connect, output, project};

/// `inspect`.
#[derive(Debug, Args)]
#[command(
    after_help = "What is printed holds the values of environment variables.\n\nExamples:\n  supervisor inspect web\n  \
supervisor inspect web | jq '.[0].image_content.layers'"
)]
pub(super) struct InspectArguments {
    /// Services or containers (default: all services)
    #[arg(value_name = "SERVICE|CONTAINER", value_parser = project::service_or_container)]
    pub(super) names: Vec<String>,
    /// Form of the answer: one JSON array
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    pub(super) format: InspectFormat,
    /// Which project; all projects when neither is given and no services file is here.
    #[command(flatten)]
    pub(super) project: ProjectArguments,
}

/// `--format` of `inspect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum InspectFormat {
    /// One array.
    Json,
}

pub(super) fn run(settings: &Settings, arguments: &InspectArguments) -> anyhow::Result<ExitCode> {
    let selected = &arguments.project;
    let project = project::name(settings, &selected.file, selected.project_name.as_deref())?;
    let found: Vec<Value> = connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let mut path = format!("/v1/inspect?names={}", arguments.names.join(","));
        if let Some(project) = project {
            path.push_str("&project=");
            path.push_str(&project);
        }
        client.call(Method::GET, &path, &()).await.map_err(anyhow::Error::from)
    })?;
    output::line(&serde_json::to_string_pretty(&found)?);
    Ok(ExitCode::SUCCESS)
}
