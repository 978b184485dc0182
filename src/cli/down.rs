//! `supervisor down`.

use std::process::ExitCode;

use clap::Args;
use hyper::Method;

use super::args::ProjectArguments;
use super::settings::Settings;
use super::{connect, output, project};
use crate::api::{ApiClient, ClientError, DownAnswer, DownRequest, StopRequest};
use crate::spec::Interpolation;

/// `down`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  supervisor down\n  supervisor down -t 60\n  supervisor down web\n  supervisor down -v"
)]
pub(super) struct DownArguments {
    /// Services to take down (default: the whole project)
    #[arg(value_name = "SERVICE", value_parser = project::service_name)]
    pub(super) services: Vec<String>,
    /// Seconds from the stop signal to the kill (default: the service's stop_grace_period)
    #[arg(short, long, value_name = "SECS")]
    pub(super) timeout: Option<u64>,
    /// Remove the named volumes of the project too, with all that is in them; one that another project has stays
    #[arg(short, long, conflicts_with = "services")]
    pub(super) volumes: bool,
    /// Kill at once, and end the connection of lazy layers when containers wait for it and cannot be killed
    #[arg(long)]
    pub(super) force: bool,
    /// Which project.
    #[command(flatten)]
    pub(super) project: ProjectArguments,
}

pub(super) fn run(settings: &Settings, arguments: DownArguments) -> anyhow::Result<ExitCode> {
    connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let project = project::selected(settings, &client, &arguments.project).await?;
        let path = format!("/v1/projects/{project}/down");
        let whole = arguments.services.is_empty();
        let request = StopRequest {
            services: arguments.services,
            timeout: arguments.timeout,
            force: arguments.force,
            ..StopRequest::default()
        };
        if arguments.volumes {
            return with_volumes(settings, &client, &project, request, &arguments.project).await;
        }
        let is_gone = |error: &anyhow::Error| {
            let error = error.downcast_ref::<ClientError>();
            whole && error.is_some_and(ApiClient::is_not_found)
        };
        let removed: Vec<String> =
            match connect::call_again(settings, &client, &path, &request).await {
                Err(error) if is_gone(&error) => {
                    output::note(&format!("project `{project}` does not run; nothing to do"));
                    return Ok(ExitCode::SUCCESS);
                }
                removed => removed?,
            };
        output::containers(&project, &removed, "Removed");
        Ok(ExitCode::SUCCESS)
    })
}

async fn with_volumes(
    settings: &Settings,
    client: &ApiClient,
    project: &str,
    stop: StopRequest,
    selected: &ProjectArguments,
) -> anyhow::Result<ExitCode> {
    // Nobody but the file knows the volumes of a project that is down.
    let volumes = volumes_of_file(settings, project, selected);
    let request = DownRequest { stop, volumes };
    let path = format!("/v1/projects/{project}/down-with-volumes");
    // Once: the next control would know the volumes of the file alone, if the project is down already.
    let gone: DownAnswer = client.call(Method::POST, &path, &request).await?;
    output::became(&gone.containers, "Removed");
    for volume in &gone.volumes {
        output::done(&format!("Volume {volume}  Removed"));
    }
    if gone.containers.is_empty() && gone.volumes.is_empty() {
        output::note(&format!("there is no container and no volume of project `{project}`"));
    }
    Ok(ExitCode::SUCCESS)
}

/// None where there is no file of this project, or not a valid one.
fn volumes_of_file(settings: &Settings, project: &str, selected: &ProjectArguments) -> Vec<String> {
    let name = selected.project_name.as_deref();
    let composed = project::compose(settings, &selected.file, name, &[], Interpolation::Replace);
    let Ok(composition) = composed else { return Vec::new() };
    if composition.project().to_string() != project {
        return Vec::new();
    }
    let Ok(checked) = composition.checked() else { return Vec::new() };
    let services = checked.desired.services.values();
    let named = services.flat_map(|service| service.named_volumes.iter());
    named.map(|named| named.volume.clone()).collect()
}
