//! Which project a command is about: by name, by the services file, or the only one that runs.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use crate::spec::{
    self, Composition, Desired, Interpolation, LoadInput, NameError, Problem, ProblemKind,
    ProjectName, ServiceName,
};
use crate::supervise::report::{ServiceReport, UpRequest};
use crate::supervise::{FileKinds, HostFiles};

use super::settings::Settings;
use super::{look_up, output};
use crate::api::{ApiClient, ClientError};
use crate::container::ContainerId;

/// What is said when there is no services file.
pub(super) const NO_FILE: &str = "there is no services.yaml or compose.yaml in this directory or one above; name a file with `-f FILE`";

/// Reads the name of a service that was typed. What passes can stand in a path or a query of the API as it is.
pub(super) fn service_name(text: &str) -> Result<String, NameError> {
    text.parse().map(|name: ServiceName| name.to_string())
}

/// The same for a container or a service.
pub(super) fn service_or_container(text: &str) -> Result<String, NameError> {
    match text.parse::<ContainerId>() {
        Ok(id) => Ok(id.to_string()),
        Err(_) => service_name(text),
    }
}

/// The same for a project.
pub(super) fn project_name(text: &str) -> Result<String, NameError> {
    text.parse().map(|name: ProjectName| name.to_string())
}

/// What control knows of the services of a project, or of all projects.
pub(super) async fn reports(
    client: &ApiClient,
    project: Option<&str>,
) -> Result<Vec<ServiceReport>, ClientError> {
    let query = project.map(|project| format!("?project={project}")).unwrap_or_default();
    client.call(hyper::Method::GET, &format!("/v1/services{query}"), &()).await
}

/// Puts the project together from the files that are meant.
pub(super) fn compose(
    settings: &Settings,
    files: &[PathBuf],
    name: Option<&str>,
    services: &[String],
    interpolation: Interpolation,
) -> anyhow::Result<Composition> {
    let sources = look_up::sources(settings, files)?.context(NO_FILE)?;
    let project: Option<ProjectName> =
        name.or(settings.choice.project_name.as_deref()).map(str::parse).transpose()?;
    let input = LoadInput {
        sources: &sources,
        project: project.as_ref(),
        environment: &settings.environment,
        named: services,
        interpolation,
    };
    let source = HostFiles::new(Some(settings.working_dir.clone()), FileKinds::Any);
    spec::compose(&input, &source).map_err(|problems| anyhow::anyhow!("{problems}"))
}

/// What the files mean; their problems are the error, and what was left out is warned of.
pub(super) fn check(composition: &Composition) -> anyhow::Result<Desired> {
    let checked = composition.checked().map_err(|problems| {
        let is_unsupported = |problem: &Problem| problem.kind == ProblemKind::Unsupported;
        if problems.iter().any(is_unsupported) {
            let hint = "what is not supported is left out with `--allow-unsupported`";
            anyhow::anyhow!("{problems}\n{hint}")
        } else {
            anyhow::anyhow!("{problems}")
        }
    })?;
    for problem in &checked.left_out {
        output::warning(&format!("{problem}; left out"));
    }
    Ok(checked.desired)
}

/// The request that makes a project the desired state.
pub(super) fn request(
    settings: &Settings,
    composition: &Composition,
    services: Vec<String>,
) -> UpRequest {
    // Only what the files name: the request is kept, and a caller's environment holds secrets.
    let environment =
        settings.environment.iter().filter(|(name, _)| composition.used.contains(*name));
    let sources = composition.sources.clone();
    UpRequest {
        project: composition.project().to_string(),
        base_dir: sources.project_dir.clone(),
        file: sources.files.first().cloned().unwrap_or_default(),
        text: composition.text(),
        environment: environment.map(|(key, value)| (key.clone(), value.clone())).collect(),
        services,
        independent: Vec::new(),
        recreate: Vec::new(),
        sources: Some(sources),
    }
}

/// The project that is meant, or `None` for all: there is no services file here and no name was given.
pub(super) fn name(
    settings: &Settings,
    files: &[PathBuf],
    named: Option<&str>,
) -> anyhow::Result<Option<String>> {
    if let Some(name) = named.or(settings.choice.project_name.as_deref()) {
        let name: ProjectName = name.parse()?;
        return Ok(Some(name.to_string()));
    }
    let Some(sources) = look_up::sources(settings, files)? else { return Ok(None) };
    if let Ok(composition) = compose(settings, files, None, &[], Interpolation::Replace) {
        return Ok(Some(composition.project().to_string()));
    }
    // A file that is invalid at the moment still names its project.
    let first = sources.files.first().context(NO_FILE)?;
    let text = std::fs::read_to_string(first)
        .with_context(|| format!("could not read `{}`", first.display()))?;
    let folder = || {
        let folder = sources.project_dir.file_name()?;
        ProjectName::from_directory(&folder.to_string_lossy())
    };
    let name = written_name(&text).or_else(folder);
    Ok(Some(name.map_or_else(|| "default".to_owned(), |name| name.to_string())))
}

/// The project's name in a text that is no valid file, as far as one can tell: what cannot be read must still be
/// possible to take down.
fn written_name(text: &str) -> Option<ProjectName> {
    let value = text.lines().find_map(|line| line.strip_prefix("name:"))?;
    let value = value.split(" #").next().unwrap_or_default().trim();
    value.trim_matches(['"', '\'']).parse().ok()
}

/// The project that is meant by a command that needs one; the only one that control knows if nothing says which.
pub(super) async fn required(
    settings: &Settings,
    client: &ApiClient,
    files: &[PathBuf],
    named: Option<&str>,
) -> anyhow::Result<String> {
    or_only(client, name(settings, files, named)?).await
}

/// `name`, or the only project that control knows.
pub(super) async fn or_only(
    client: &crate::api::ApiClient,
    name: Option<String>,
) -> anyhow::Result<String> {
    if let Some(name) = name {
        return Ok(name);
    }
    let projects: Vec<String> = client
        .call(hyper::Method::GET, "/v1/projects", &())
        .await
        .context("could not list the projects")?;
    match projects.as_slice() {
        [only] => Ok(only.clone()),
        [] => bail!(
            "there is no services.yaml or compose.yaml in this directory or one above, and no project runs; name a file with `-f FILE`"
        ),
        several => bail!("several projects run ({}); say which with `-p NAME`", several.join(", ")),
    }
}

/// The same from a command's flags.
pub(super) async fn selected(
    settings: &Settings,
    client: &ApiClient,
    arguments: &super::args::ProjectArguments,
) -> anyhow::Result<String> {
    required(settings, client, &arguments.file, arguments.project_name.as_deref()).await
}

/// As [`name`], from a command's flags.
pub(super) fn named(
    settings: &Settings,
    arguments: &super::args::ProjectArguments,
) -> anyhow::Result<Option<String>> {
    name(settings, &arguments.file, arguments.project_name.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_change_a_query_is_refused() {
        for name in ["a&tail=1", "a b", "a#b", "a?b", "a%26", "a/b", "a,b", "", "é"] {
            for read in [service_name, service_or_container, project_name] {
                let message = read(name).unwrap_err().to_string();
                assert!(message.contains(&format!("`{name}` is not a")), "{message}");
            }
        }
        let id = "x".repeat(64);
        assert_eq!(service_or_container(&id).ok(), Some(id));
        assert_eq!(service_or_container("_web"), Ok("_web".to_owned()));
    }

    #[test]
    fn a_broken_file_still_tells_its_name() {
        let name = |text| written_name(text).map(|name| name.to_string());
        assert_eq!(name("# x\nname: \"app\" # mine\nservices: {bad"), Some("app".to_owned()));
        assert_eq!(name("services:\n  name: web\n"), None);
        assert_eq!(name("name: Not A Name\n"), None);
    }
}
