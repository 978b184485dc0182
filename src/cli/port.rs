//! `supervisor port`.

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};

use super::args::ProjectArguments;
use super::settings::Settings;
use super::{connect, output, project};
use crate::supervise::report::PortReport;

/// `port`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  supervisor port web\n  supervisor port web 80\n  supervisor port --protocol udp dns 53"
)]
pub(super) struct PortArguments {
    /// The service
    #[arg(value_parser = project::service_name)]
    service: String,
    /// Port of the container, also as PORT/udp; only its addresses are printed (default: all published ports)
    #[arg(value_name = "PRIVATE")]
    private: Option<String>,
    /// What is spoken there
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp")]
    protocol: Protocol,
    /// Which project.
    #[command(flatten)]
    project: ProjectArguments,
}

/// `--protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

pub(super) fn run(settings: &Settings, arguments: &PortArguments) -> anyhow::Result<ExitCode> {
    let wanted = arguments
        .private
        .as_deref()
        .map(|text| {
            let (port, protocol) =
                text.split_once('/').unwrap_or((text, arguments.protocol.name()));
            let port: u16 = port
                .parse()
                .with_context(|| format!("`{text}` is not a port such as 80 or 53/udp"))?;
            anyhow::Ok((port, protocol.to_ascii_lowercase()))
        })
        .transpose()?;
    let reports = connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let project = project::selected(settings, &client, &arguments.project).await?;
        project::reports(&client, Some(&project)).await.map_err(anyhow::Error::from)
    })?;
    let service = &arguments.service;
    let report = reports.into_iter().find(|report| report.service == *service);
    let report = report.with_context(|| format!("no such service: `{service}`"))?;
    ensure!(report.pid.is_some(), "service `{service}` does not run: {}", report.status);
    match wanted {
        None => {
            ensure!(!report.ports.is_empty(), "service `{service}` publishes no ports");
            for port in &report.ports {
                let PortReport { container_port, protocol, .. } = port;
                output::line(&format!("{container_port}/{protocol} -> {}", address(port)));
            }
        }
        Some((number, protocol)) => {
            let is_it =
                |port: &&PortReport| port.container_port == number && port.protocol == protocol;
            let found: Vec<&PortReport> = report.ports.iter().filter(is_it).collect();
            ensure!(
                !found.is_empty(),
                "port {number}/{protocol} of service `{service}` is not published"
            );
            found.iter().for_each(|port| output::line(&address(port)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn address(port: &PortReport) -> String {
    std::net::SocketAddr::new(port.host_ip, port.host_port).to_string()
}
