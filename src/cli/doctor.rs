//! `supervisor doctor`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::doctor_view::Shown;
use super::settings::Settings;
use super::{look_up, output, project, run};
use crate::api::{ApiClient, SOCKET_NAME};
use crate::doctor::{Check, Health, Patient, examine};
use crate::image::ImageRef;
use crate::spec::{Interpolation, Service};
use crate::supervise::instance_of;
use crate::telemetry::Chain;

/// Control answers at once, whatever it does.
const PATIENCE: Duration = Duration::from_secs(5);

/// `doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Checks this host and what of ours is on it; changes nothing, and needs no running supervisor. \
Registries are those of the services file, of running services, and those that are named.\n\n\
Exit codes: 0 healthy or degraded, 1 something fails.\n\nExamples:\n  supervisor doctor\n  supervisor doctor \
-f site.yaml\n  supervisor doctor registry.example:5000 registry.example/web:1"
)]
pub(super) struct DoctorArguments {
    /// Registries (HOST[:PORT]) or images to check besides those of services
    #[arg(value_name = "REGISTRY|IMAGE")]
    pub(super) targets: Vec<String>,
    /// Services file whose registries are checked; several are merged (default: that of this directory, if there is one)
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Vec<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(settings: &Settings, arguments: &DoctorArguments) -> anyhow::Result<ExitCode> {
    let run_dir = std::fs::canonicalize(&settings.run_dir).unwrap_or(settings.run_dir.clone());
    let mut patient = Patient {
        state_dir: settings.state_dir.clone(),
        instance: instance_of(&run_dir),
        run_dir,
        forced: settings.forced()?,
        registry: run::registry(settings),
        hosts: Vec::new(),
        images: Vec::new(),
    };
    for target in &arguments.targets {
        if target.contains('/') {
            patient.images.push(target.parse()?);
        } else {
            patient.hosts.push(target.clone());
        }
    }
    let mut own = Vec::new();
    if look_up::sources(settings, &arguments.file)?.is_some() {
        own.push(services_file(settings, arguments, &mut patient.images));
    }
    let checks = super::connect::runtime()?.block_on(async {
        // It is told after what may be wrong with the host, and asked before: it knows images.
        let asked = tokio::time::timeout(PATIENCE, control(settings, &mut patient.images)).await;
        own.push(asked.unwrap_or_else(|_| silent_control(settings)));
        patient.images.sort_by_key(ToString::to_string);
        patient.images.dedup();
        let mut checks = examine(&patient).await;
        checks.extend(own);
        checks
    });
    if arguments.json {
        for check in &checks {
            output::line(&serde_json::to_string(check)?);
        }
    } else {
        show(&checks);
    }
    let failed = checks.iter().any(|check| check.health == Health::Failed);
    Ok(ExitCode::from(u8::from(failed)))
}

fn check(name: &str, health: Health, message: String, remedy: Option<&str>) -> Check {
    let (name, remedy) = (name.to_owned(), remedy.map(str::to_owned));
    Check { name, subject: None, health, message, remedy }
}

/// A control that takes connections, or does not even that, and says nothing.
fn silent_control(settings: &Settings) -> Check {
    // The credentials of a connection are those of whoever listens.
    let connected = std::os::unix::net::UnixStream::connect(settings.run_dir.join(SOCKET_NAME));
    let process = connected.and_then(|connection| crate::sys::socket::peer(&connection));
    let (who, kill) = match process {
        Ok(peer) => (format!("process {}", peer.pid), format!("`kill -9 {}`", peer.pid)),
        Err(_) => ("it".to_owned(), "end it".to_owned()),
    };
    let message = format!("{who} does not answer within {} s", PATIENCE.as_secs());
    let remedy = format!("{kill}: services go on, and the next command starts another control");
    check("control", Health::Failed, message, Some(&remedy))
}

fn services(count: usize) -> String {
    if count == 1 { "1 service".to_owned() } else { format!("{count} services") }
}

/// The services file, and the images that it names.
fn services_file(
    settings: &Settings,
    arguments: &DoctorArguments,
    images: &mut Vec<ImageRef>,
) -> Check {
    let name = "services-file";
    let read = project::compose(settings, &arguments.file, None, &[], Interpolation::Replace)
        .and_then(|composition| Ok((project::check(&composition)?, composition)));
    match read {
        Ok((desired, composition)) => {
            images.extend(desired.services.values().flat_map(Service::images).cloned());
            let count = services(desired.services.len());
            let message = format!("`{}`: {count}", composition.main_file());
            check(name, Health::Ok, message, None)
        }
        Err(error) => {
            let remedy = Some("correct the file where the message says");
            check(name, Health::Failed, format!("{error:#}"), remedy)
        }
    }
}

/// The running control, and the images of what it runs.
async fn control(settings: &Settings, images: &mut Vec<ImageRef>) -> Check {
    let name = "control";
    let (client, hello) = match ApiClient::connect(&settings.run_dir).await {
        Ok(connected) => connected,
        Err(error) if error.is_not_running() => {
            return check(name, Health::Ok, "none runs".to_owned(), None);
        }
        Err(error) => {
            let remedy = error.hint().unwrap_or("look at `control.log` in the run directory");
            return check(name, Health::Failed, Chain(&error).to_string(), Some(remedy));
        }
    };
    let services = match project::reports(&client, None).await {
        Ok(reports) => {
            images.extend(reports.iter().filter_map(|report| report.image.parse().ok()));
            reports.len()
        }
        Err(error) => {
            let remedy = Some("look at `control.log` in the run directory");
            return check(name, Health::Failed, Chain(&error).to_string(), remedy);
        }
    };
    let (version, pid) = (&hello.version, hello.pid);
    let message =
        format!("version {version} runs as process {pid} with {}", self::services(services));
    let build = crate::version::versions().build.to_string();
    if hello.version == build {
        check(name, Health::Ok, message, None)
    } else {
        let message = format!("{message}; this program is version {build}");
        check(
            name,
            Health::Degraded,
            message,
            Some("restart it with this program; containers go on"),
        )
    }
}

fn show(checks: &[Check]) {
    let width = output::width().unwrap_or(usize::MAX);
    for text in Shown::of(checks).lines(width) {
        output::line(&text);
    }
}
