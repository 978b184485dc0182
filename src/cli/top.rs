//! `supervisor top`: the processes in containers.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use hyper::Method;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::args::ProjectArguments;
use super::settings::Settings;
use super::{connect, output, project};
use crate::supervise::report::{ContainerProcesses, ProcessReport};

/// `top`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  supervisor top\n  supervisor top web")]
pub(super) struct TopArguments {
    /// Services to look at (default: all that run)
    #[arg(value_name = "SERVICE", value_parser = project::service_name)]
    services: Vec<String>,
    /// Which project.
    #[command(flatten)]
    project: ProjectArguments,
}

pub(super) fn run(settings: &Settings, arguments: &TopArguments) -> anyhow::Result<ExitCode> {
    let containers: Vec<ContainerProcesses> = connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let project = project::selected(settings, &client, &arguments.project).await?;
        let path = format!("/v1/top?project={project}&names={}", arguments.services.join(","));
        client.call(Method::GET, &path, &()).await.map_err(anyhow::Error::from)
    })?;
    let heading = ["SERVICE", "UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];
    let rows = containers
        .iter()
        .flat_map(|one| one.processes.iter().map(move |process| row(&one.service, process)));
    output::table(&heading, rows);
    Ok(ExitCode::SUCCESS)
}

/// As `ps -ef` has it.
fn row(service: &str, process: &ProcessReport) -> Vec<String> {
    let began = Timestamp::now() - Duration::from_millis(process.age_ms);
    let form = if process.age_ms < 86_400_000 { "%H:%M" } else { "%b%d" };
    vec![
        service.to_owned(),
        process.uid.to_string(),
        process.pid.to_string(),
        process.ppid.to_string(),
        (process.cpu_ms * 100 / process.age_ms.max(1)).to_string(),
        began.to_zoned(TimeZone::system()).strftime(form).to_string(),
        if process.has_terminal { "pts" } else { "?" }.to_owned(),
        clock(process.cpu_ms / 1000),
        process.command.clone(),
    ]
}

fn clock(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
