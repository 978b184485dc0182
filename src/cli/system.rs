//! `supervisor system df`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::json;

use super::args::ListFormat;
use super::settings::Settings;
use super::{connect, output};
use crate::supervise::report::{DiskReport, DiskRow};

/// `system …`.
#[derive(Debug, Subcommand)]
pub(super) enum SystemCommand {
    /// Show what occupies the disk, and what `prune --all` would free
    Df(DfArguments),
}

/// `system df`.
#[derive(Debug, Args)]
pub(super) struct DfArguments {
    /// Form of the list; json is one object a line
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(super) format: ListFormat,
}

pub(super) fn run(settings: &Settings, command: &SystemCommand) -> anyhow::Result<ExitCode> {
    let SystemCommand::Df(arguments) = command;
    let report: DiskReport = connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        client.call(Method::GET, "/v1/disk", &()).await.map_err(anyhow::Error::from)
    })?;
    match arguments.format {
        ListFormat::Json => {
            report.rows.iter().for_each(|row| output::line(&json_line(row).to_string()));
        }
        ListFormat::Table => {
            let heading = ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"];
            output::table(&heading, report.rows.iter().map(row));
            output::note(&format!(
                "{} of {} are free at {}",
                output::bytes(report.free_bytes),
                output::bytes(report.total_bytes),
                report.state_dir.display()
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn kind(row: &DiskRow) -> &str {
    match row.kind.as_str() {
        "images" => "Images",
        "layers" => "Layers",
        "lazy-content" => "Lazy Content",
        "containers" => "Containers",
        "volumes" => "Local Volumes",
        "logs" => "Logs",
        other => other,
    }
}

fn row(row: &DiskRow) -> Vec<String> {
    let share = (row.reclaimable_bytes * 100).checked_div(row.bytes).unwrap_or(0);
    vec![
        kind(row).to_owned(),
        row.count.to_string(),
        row.active.to_string(),
        output::bytes(row.bytes),
        format!("{} ({share}%)", output::bytes(row.reclaimable_bytes)),
    ]
}

fn json_line(row: &DiskRow) -> serde_json::Value {
    json!({
        "Type": kind(row),
        "TotalCount": row.count,
        "Active": row.active,
        "Size": row.bytes,
        "Reclaimable": row.reclaimable_bytes,
    })
}
