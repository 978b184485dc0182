//! `supervisor plan`: what `up` would do, and why.

use std::process::ExitCode;

use clap::Args;
use hyper::Method;

use super::args::{ListFormat, ProjectArguments};
use super::settings::Settings;
use super::{connect, output, up};
use crate::supervise::report::{Downtime, PlanReport, PlannedStep};

/// Exit code where there is something to do, if that was asked for.
const CHANGES: u8 = 2;

/// `plan`.
#[derive(Debug, Args)]
#[command(
    after_help = "What follows only when an image has come or another service is ready is printed as \"later\".\n\n\
Examples:\n  supervisor plan\n  supervisor plan --format json web\n  supervisor plan --detailed-exitcode && echo nothing to do"
)]
pub(super) struct PlanArguments {
    /// As of `up`: a services file if it contains a slash or ends in .yml or .yaml; else services
    #[arg(value_name = "FILE|SERVICE")]
    targets: Vec<String>,
    /// Only the named services, without those that they depend on
    #[arg(long)]
    no_deps: bool,
    /// Form of the answer; json: one object
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: ListFormat,
    /// Exit with 0 when there is nothing to do, with 2 when there is, with 1 on errors
    #[arg(long)]
    detailed_exitcode: bool,
    /// Which project.
    #[command(flatten)]
    project: ProjectArguments,
}

pub(super) fn run(settings: &Settings, arguments: PlanArguments) -> anyhow::Result<ExitCode> {
    let PlanArguments { targets, no_deps, format, detailed_exitcode, project } = arguments;
    let (request, _) = up::requested(settings, targets, project, no_deps)?;
    let plan: PlanReport = connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        client.call(Method::POST, "/v1/plan", &request).await.map_err(anyhow::Error::from)
    })?;
    let is_empty = plan.steps.is_empty() && plan.later.is_empty();
    match format {
        ListFormat::Json => output::line(&serde_json::to_string(&plan)?),
        ListFormat::Table if is_empty => output::line("nothing to do"),
        ListFormat::Table => {
            plan.steps.iter().for_each(|step| output::line(&line(step)));
            for later in &plan.later {
                let (service, cause, when) = (&later.service, &later.cause, &later.when);
                output::line(&format!("later, when {when}: create and start {service}: {cause}"));
            }
        }
    }
    let code = if detailed_exitcode && !is_empty { CHANGES } else { 0 };
    Ok(ExitCode::from(code))
}

fn line(step: &PlannedStep) -> String {
    let services = step.services.join(", ");
    let what = match &step.image {
        Some(image) if step.action == "pull" => format!("{image} for {services}"),
        Some(image) => format!("{services} from {image}"),
        None => services,
    };
    let down = match &step.downtime {
        None => String::new(),
        Some(Downtime { stop_at_most_ms, starts_again }) => {
            let seconds = stop_at_most_ms.div_ceil(1000);
            let then = if *starts_again { "then its start" } else { "and stays down" };
            format!(" (down: at most {seconds} s to stop, {then})")
        }
    };
    format!("{} {what}: {}{down}", step.action, step.cause)
}
