//! `supervisor ps`.

use std::net::SocketAddr;
use std::process::ExitCode;

use serde_json::json;

use super::args::{ListFormat, PsArguments};
use super::settings::Settings;
use super::{connect, output, project};
use crate::supervise::report::{ContentReport, PortReport, ServiceReport};

pub(super) fn run(settings: &Settings, arguments: &PsArguments) -> anyhow::Result<ExitCode> {
    let selected = &arguments.project;
    let project = project::name(settings, &selected.file, selected.project_name.as_deref())?;
    let mut reports = connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        match project::reports(&client, project.as_deref()).await {
            // A services file whose project never ran has nothing to list, which is no failure.
            Err(error) if crate::api::ApiClient::is_not_found(&error) => Ok(Vec::new()),
            other => other.map_err(anyhow::Error::from),
        }
    })?;
    for name in &arguments.services {
        anyhow::ensure!(
            reports.iter().any(|report| report.service == *name),
            "no such service: `{name}`"
        );
    }
    reports.retain(|report| {
        arguments.services.is_empty() || arguments.services.contains(&report.service)
    });
    match arguments.format {
        ListFormat::Json => {
            reports.iter().for_each(|report| output::line(&json_line(report).to_string()))
        }
        ListFormat::Table => {
            let first = reports.first().map(|report| &report.project);
            let several = reports.iter().any(|report| Some(&report.project) != first);
            let heading = [
                "PROJECT", "SERVICE", "IMAGE", "STATE", "PID", "UPTIME", "RESTARTS", "LOCAL",
                "OFFLINE", "LAZY", "PORTS",
            ];
            let skipped = usize::from(!several);
            // Most services that publish nothing need no column for it.
            let columns = heading.len() - usize::from(reports.iter().all(|r| r.ports.is_empty()));
            let rows = reports.iter().map(|report| {
                let mut row = row(report).split_off(skipped);
                row.truncate(columns - skipped);
                row
            });
            output::table(&heading[skipped..columns], rows);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(report: &ServiceReport) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        report.project.clone(),
        report.service.clone(),
        report.image.clone(),
        short(&report.status),
        report.pid.map_or_else(dash, |pid| pid.to_string()),
        uptime(report).unwrap_or_else(dash),
        restarts(report),
        report.content.as_ref().map_or_else(dash, |content| output::percent(content.local)),
        report.content.as_ref().map_or_else(dash, offline),
        report.content.as_ref().map_or_else(dash, lazy),
        ports(report),
    ]
}

/// Whether it starts and runs without a network.
pub(super) fn offline(content: &ContentReport) -> String {
    if content.complete { "ready".to_owned() } else { "no".to_owned() }
}

/// As Docker writes them: `0.0.0.0:8080->80/tcp`.
fn ports(report: &ServiceReport) -> String {
    let port = |port: &PortReport| {
        let host = SocketAddr::new(port.host_ip, port.host_port);
        format!("{host}->{}/{}", port.container_port, port.protocol)
    };
    report.ports.iter().map(port).collect::<Vec<_>>().join(", ")
}

/// Longest state in the table; a terminal would break it into lines, and a pipe would get a column as wide as the
/// longest error. `--format json` and `inspect` have all of it.
const LONGEST_STATE: usize = 60;

fn short(status: &str) -> String {
    let line = status.lines().next().unwrap_or_default();
    if line.len() == status.len() && line.chars().count() <= LONGEST_STATE {
        return line.to_owned();
    }
    let kept: String = line.chars().take(LONGEST_STATE - 1).collect();
    format!("{}…", kept.trim_end())
}

/// How often it was started again, and how its last run ended, if that was not asked for.
fn restarts(report: &ServiceReport) -> String {
    let Some(last) = report.last_exit.as_ref().filter(|last| !last.asked && report.restarts > 0)
    else {
        return report.restarts.to_string();
    };
    let code = last.code.map_or_else(|| "unknown".to_owned(), |code| format!("exit {code}"));
    let oom = if last.oom_killed { ", out of memory" } else { "" };
    let ago = output::span(output::since(last.ended_at)).to_lowercase();
    format!("{} ({code}{oom}, {ago} ago)", report.restarts)
}

fn uptime(report: &ServiceReport) -> Option<String> {
    report.pid?;
    Some(output::span(output::since(report.started_at?)).to_lowercase())
}

/// `yes`, or how many layers are not and why.
pub(super) fn lazy(content: &ContentReport) -> String {
    let full = content.layers - content.lazy_layers;
    let why = content.full_because.join("; ");
    match (full, content.lazy_layers, why.is_empty()) {
        (0, _, _) => "yes".to_owned(),
        (_, 0, true) => "no".to_owned(),
        (_, 0, false) => format!("no: {why}"),
        (_, lazy, true) => format!("{lazy} of {} layers", content.layers),
        (_, lazy, false) => format!("{lazy} of {} layers: {why}", content.layers),
    }
}

/// Compose's field names, plus ours.
fn json_line(report: &ServiceReport) -> serde_json::Value {
    let created = report.created_at.map(|time| time.to_string()).unwrap_or_default();
    let running_for = report
        .created_at
        .map(|time| format!("{} ago", output::span(output::since(time))))
        .unwrap_or_default();
    let name = report.container.clone().unwrap_or_default();
    let content = report.content.as_ref();
    let publishers = report.ports.iter().map(|port| {
        json!({
            "URL": port.host_ip,
            "TargetPort": port.container_port,
            "PublishedPort": port.host_port,
            "Protocol": port.protocol,
        })
    });
    json!({
        "ID": name,
        "Name": name,
        "Names": name,
        "Project": report.project,
        "Service": report.service,
        "Image": report.image,
        "Command": report.command,
        "State": report.state,
        "Status": report.status,
        "Health": report.health,
        "ExitCode": report.exit_code.unwrap_or(0),
        "CreatedAt": created,
        "StartedAt": report.started_at.map(|time| time.to_string()).unwrap_or_default(),
        "RunningFor": running_for,
        "Publishers": publishers.collect::<Vec<_>>(),
        "Ports": ports(report),
        "Labels": "",
        "Mounts": "",
        "Networks": "",
        "Pid": report.pid.unwrap_or(0),
        "Restarts": report.restarts,
        "LastExit": report.last_exit,
        "ImageLocal": content.map_or(0.0, |content| content.local),
        "OfflineReady": content.is_some_and(|content| content.complete),
        "Lazy": content.is_some_and(|content| content.lazy_layers > 0),
        "LazyLayers": content.map_or(0, |content| content.lazy_layers),
        "Layers": content.map_or(0, |content| content.layers),
        "NotLazyBecause": content.map(|content| content.full_because.clone()).unwrap_or_default(),
    })
}
