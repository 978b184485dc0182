//! `supervisor stats`: what containers use, once a second.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde_json::json;

use super::args::{ListFormat, ProjectArguments};
use super::settings::Settings;
use super::signals::Signals;
use super::{connect, output, project};
use crate::api::ApiClient;
use crate::supervise::report::ContainerUsage;

/// Between two looks: a share of a processor is one over some time.
const PERIOD: Duration = Duration::from_secs(1);
/// To the upper left corner, and nothing below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// `stats`.
#[derive(Debug, Args)]
#[command(
    after_help = "100% is one processor. Memory is without files that the kernel can give up at once. A service in the \
network of the host has no counters of its own there.\n\nExamples:\n  supervisor stats\n  supervisor stats --no-stream \
--format json web"
)]
pub(super) struct StatsArguments {
    /// Services to look at (default: all that run)
    #[arg(value_name = "SERVICE", value_parser = project::service_name)]
    services: Vec<String>,
    /// Once, instead of every second until Ctrl-C
    #[arg(long)]
    no_stream: bool,
    /// Form of the list; json is one object a line
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: ListFormat,
    /// Which project; all projects when neither is given and no services file is here.
    #[command(flatten)]
    project: ProjectArguments,
}

pub(super) fn run(settings: &Settings, arguments: &StatsArguments) -> anyhow::Result<ExitCode> {
    let selected = &arguments.project;
    let project = project::name(settings, &selected.file, selected.project_name.as_deref())?;
    let mut path = format!("/v1/stats?names={}", arguments.services.join(","));
    if let Some(project) = project {
        path.push_str("&project=");
        path.push_str(&project);
    }
    connect::runtime()?.block_on(async {
        let mut signals = Signals::new()?;
        let mut client = connect::connect_or_start(settings).await?;
        let mut before = look(&client, &path).await?;
        loop {
            tokio::select! {
                // Cancel-safe: both only wait.
                ended = signals.next() => {
                    return Ok(ExitCode::from(if arguments.no_stream { ended.code() } else { 0 }));
                }
                () = tokio::time::sleep(PERIOD) => {}
            }
            let now = match look(&client, &path).await {
                Err(_) if connect::connect(settings).await?.is_none() => {
                    client = connect::connect_or_start(settings).await?;
                    look(&client, &path).await?
                }
                other => other?,
            };
            show(arguments, &before, &now);
            if arguments.no_stream {
                return Ok(ExitCode::SUCCESS);
            }
            before = now;
        }
    })
}

type Usages = BTreeMap<String, ContainerUsage>;

async fn look(client: &ApiClient, path: &str) -> anyhow::Result<Usages> {
    let usages: Vec<ContainerUsage> = client.call(Method::GET, path, &()).await?;
    Ok(usages.into_iter().map(|usage| (usage.container.clone(), usage)).collect())
}

fn show(arguments: &StatsArguments, before: &Usages, now: &Usages) {
    let share = |usage: &ContainerUsage| share(before.get(&usage.container)?, usage);
    if arguments.format == ListFormat::Json {
        now.values().for_each(|usage| output::line(&json_line(usage, share(usage)).to_string()));
        return;
    }
    if !arguments.no_stream && std::io::stdout().is_terminal() {
        output::bare(CLEAR);
    }
    let heading = ["NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"];
    let row = |usage: &ContainerUsage| {
        let words = Words::of(usage, share(usage));
        vec![
            usage.container.clone(),
            words.cpu,
            words.memory,
            words.memory_share,
            words.network,
            words.disk,
            words.pids,
        ]
    };
    output::table(&heading, now.values().map(row));
}

/// Hundredths of a percent of one processor between two looks.
fn share(before: &ContainerUsage, now: &ContainerUsage) -> Option<u64> {
    let used = now.cpu_ns?.checked_sub(before.cpu_ns?)?;
    let time = now.at_ns.checked_sub(before.at_ns).filter(|time| *time > 0)?;
    u64::try_from(u128::from(used) * 10_000 / u128::from(time)).ok()
}

/// As Docker writes it.
struct Words {
    cpu: String,
    memory: String,
    memory_share: String,
    network: String,
    disk: String,
    pids: String,
}

impl Words {
    fn of(usage: &ContainerUsage, share: Option<u64>) -> Self {
        let unknown = || "--".to_owned();
        let hundredths = |value: u64| format!("{}.{:02}%", value / 100, value % 100);
        let limit = usage.memory_limit.unwrap_or(usage.host_memory);
        let both = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (Some(one), Some(other)) => {
                format!("{} / {}", output::bytes(one), output::bytes(other))
            }
            _ => unknown(),
        };
        let of_limit = usage.memory.and_then(|used| used.saturating_mul(10_000).checked_div(limit));
        Self {
            cpu: share.map_or_else(unknown, hundredths),
            memory: both(usage.memory, Some(limit)),
            memory_share: of_limit.map_or_else(unknown, hundredths),
            network: both(usage.received, usage.sent),
            disk: both(usage.read, usage.written),
            pids: usage.pids.map_or_else(unknown, |count| count.to_string()),
        }
    }
}

/// Docker's field names, plus ours.
fn json_line(usage: &ContainerUsage, share: Option<u64>) -> serde_json::Value {
    let words = Words::of(usage, share);
    json!({
        "Container": usage.container,
        "ID": usage.container,
        "Name": usage.container,
        "Project": usage.project,
        "Service": usage.service,
        "CPUPerc": words.cpu,
        "MemUsage": words.memory,
        "MemPerc": words.memory_share,
        "NetIO": words.network,
        "BlockIO": words.disk,
        "PIDs": words.pids,
        "CPUNanoseconds": usage.cpu_ns,
        "MemoryBytes": usage.memory,
        "MemoryLimitBytes": usage.memory_limit,
        "NetworkReceivedBytes": usage.received,
        "NetworkSentBytes": usage.sent,
        "BlockReadBytes": usage.read,
        "BlockWrittenBytes": usage.written,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(at_ns: u64, cpu_ns: u64) -> ContainerUsage {
        ContainerUsage {
            project: "p".to_owned(),
            service: "web".to_owned(),
            container: "p-web-1".to_owned(),
            at_ns,
            cpu_ns: Some(cpu_ns),
            memory: Some(500_000),
            memory_limit: None,
            host_memory: 2_000_000,
            received: None,
            sent: None,
            read: Some(0),
            written: Some(1500),
            pids: Some(3),
        }
    }

    #[test]
    fn a_share_is_one_of_one_processor_over_the_time_between() {
        let (before, now) = (usage(1_000_000_000, 0), usage(3_000_000_000, 2_500_000_000));
        assert_eq!(share(&before, &now), Some(12_500));
        assert_eq!(share(&now, &before), None);
        let words = Words::of(&now, share(&before, &now));
        assert_eq!((words.cpu.as_str(), words.memory_share.as_str()), ("125.00%", "25.00%"));
        assert_eq!((words.memory.as_str(), words.network.as_str()), ("500 kB / 2.0 MB", "--"));
        assert_eq!(Words::of(&now, None).cpu, "--");
    }
}
