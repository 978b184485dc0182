//! `supervisor down`.

use std::process::ExitCode;

use hyper::Method;

use super::args::ProjectArguments;
use super::settings::Settings;
use super::{connect, output, project};
use crate::api::StopRequest;

pub(super) fn run(settings: &Settings, arguments: &ProjectArguments) -> anyhow::Result<ExitCode> {
    connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let project = project::required(
            settings,
            &client,
            arguments.file.as_deref(),
            arguments.project_name.as_deref(),
        )
        .await?;
        let path = format!("/v1/projects/{project}/down");
        let removed: Vec<String> =
            match client.call(Method::POST, &path, &StopRequest::default()).await {
                Ok(removed) => removed,
                Err(error) if crate::api::ApiClient::is_not_found(&error) => {
                    output::note(&format!("project `{project}` does not run; nothing to do"));
                    return Ok(ExitCode::SUCCESS);
                }
                Err(error) => return Err(error.into()),
            };
        for container in &removed {
            output::note(&format!(" ✔ Container {container}  Removed"));
        }
        if removed.is_empty() {
            output::note(&format!("project `{project}` has no containers"));
        }
        Ok(ExitCode::SUCCESS)
    })
}
