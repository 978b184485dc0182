//! `supervisor prune`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::args::ListFormat;
use super::settings::Settings;
use super::{connect, output};
use crate::api::PruneRequest;
use crate::supervise::report::{PruneReport, Pruned};

/// `prune`.
#[derive(Debug, Args)]
#[command(
    after_help = "What goes, in this order: what nothing leads to, what pulls left that did not come to their end, images \
that were replaced by a later pull; with --all also images that no container and no services file uses, and content of \
lazy layers that is not in use at present and is fetched again when it is read. What services files name, what containers \
have, the image before it, and what `image pin` keeps stays in any case. Volumes and logs are never touched."
)]
pub(super) struct PruneArguments {
    /// Show what would go, and remove nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Also images that nothing uses, and content of lazy layers that can be fetched again
    #[arg(short, long)]
    pub(super) all: bool,
    /// Form of the list; json is one object a line
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(super) format: ListFormat,
}

pub(super) fn run(settings: &Settings, arguments: &PruneArguments) -> anyhow::Result<ExitCode> {
    let request = PruneRequest { dry_run: arguments.dry_run, all: arguments.all };
    let report: PruneReport = connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        connect::call_again(settings, &client, "/v1/prune", &request).await
    })?;
    match arguments.format {
        ListFormat::Json => {
            report.removed.iter().for_each(|one| output::line(&json_line(one).to_string()));
        }
        ListFormat::Table => {
            if !report.removed.is_empty() {
                output::table(&["KIND", "NAME", "WHY", "SIZE"], report.removed.iter().map(row));
            }
            let what =
                if arguments.dry_run { "Reclaimable space" } else { "Total reclaimed space" };
            output::line(&format!("{what}: {}", output::bytes(report.bytes)));
        }
    }
    for reason in &report.kept_because {
        output::warning(&format!("something stays: {reason}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn row(one: &Pruned) -> Vec<String> {
    // A digest is told by its beginning.
    let name = match one.name.parse::<crate::image::Digest>() {
        Ok(digest) => digest.short(),
        Err(_) => one.name.clone(),
    };
    vec![one.kind.clone(), name, one.class.to_string(), output::bytes(one.bytes)]
}

fn json_line(one: &Pruned) -> serde_json::Value {
    json!({ "Kind": one.kind, "Name": one.name, "Why": one.class, "Size": one.bytes })
}
