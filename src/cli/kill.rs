//! `supervisor kill`.

use std::process::ExitCode;

use clap::Args;
use hyper::Method;

use super::args::ProjectArguments;
use super::settings::Settings;
use super::{connect, output, project};
use crate::api::KillRequest;
use crate::container::{Signal, SignalError};

/// `kill`.
#[derive(Debug, Args)]
#[command(
    after_help = "KILL is a stop without a grace period: the services stay stopped until `start`, `restart` or `up`. \
Another signal is only sent; a service that ends by it is started again as its restart policy says.\n\n\
Examples:\n  supervisor kill web\n  supervisor kill -s HUP proxy"
)]
pub(super) struct KillArguments {
    /// Services that get the signal (default: all that run)
    #[arg(value_name = "SERVICE", value_parser = project::service_name)]
    services: Vec<String>,
    /// Which signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = signal)]
    signal: Signal,
    /// Which project.
    #[command(flatten)]
    project: ProjectArguments,
}

fn signal(text: &str) -> Result<Signal, SignalError> {
    text.parse()
}

pub(super) fn run(settings: &Settings, arguments: KillArguments) -> anyhow::Result<ExitCode> {
    connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let project = project::selected(settings, &client, &arguments.project).await?;
        let signal = arguments.signal.to_string();
        let request = KillRequest { services: arguments.services, signal: signal.clone() };
        let path = format!("/v1/projects/{project}/kill");
        // Once: the same signal again could meet another run.
        let told: Vec<String> = client.call(Method::POST, &path, &request).await?;
        let what = if arguments.signal == Signal::KILL { "Killed" } else { "Signalled" };
        output::containers(&project, &told, what);
        Ok(ExitCode::SUCCESS)
    })
}
