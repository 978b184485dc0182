//! Which project a command is about: by name, by the services file, or the only one that runs.

use std::path::Path;

use anyhow::{Context as _, bail};

use crate::spec::{self, Desired, ParseInput, ProjectChoice, ProjectName};
use crate::supervise::report::UpRequest;

use super::settings::{ServicesFile, Settings};

/// The name for a services file's project: the one that was given, else the folder's.
fn choice(
    file: &ServicesFile,
    named: Option<&str>,
) -> anyhow::Result<(ProjectName, ProjectChoice)> {
    if let Some(name) = named {
        return Ok((name.parse()?, ProjectChoice::Explicit));
    }
    let folder = file.folder();
    let name =
        folder.file_name().and_then(|name| ProjectName::from_directory(&name.to_string_lossy()));
    // The root folder has no name, and one may have no usable letter.
    Ok((name.map_or_else(|| "default".parse(), Ok)?, ProjectChoice::Default))
}

/// Reads what a services file asks for; its problems are the error.
pub(super) fn parse(
    settings: &Settings,
    file: &ServicesFile,
    named: Option<&str>,
) -> anyhow::Result<Desired> {
    let (project, project_choice) = choice(file, named)?;
    let base_dir = file.folder();
    let input = ParseInput {
        file: &file.display,
        project,
        project_choice,
        base_dir: &base_dir,
        environment: &settings.environment,
    };
    spec::parse(&file.text, &input).map_err(|problems| anyhow::anyhow!("{problems}"))
}

/// The request that makes `file` the desired state.
pub(super) fn request(
    settings: &Settings,
    file: ServicesFile,
    desired: &Desired,
    services: Vec<String>,
) -> UpRequest {
    // Only what the file takes over by name: the request is kept, and a caller's environment holds secrets.
    let named = |key: &String| {
        desired.services.values().any(|service| service.environment.contains_key(key))
    };
    let environment = settings.environment.iter().filter(|(key, _)| named(key));
    UpRequest {
        project: desired.project.to_string(),
        base_dir: file.folder(),
        file: file.path,
        text: file.text,
        environment: environment.map(|(key, value)| (key.clone(), value.clone())).collect(),
        services,
    }
}

/// The project that is meant, or `None` for all: there is no services file here and no name was given.
pub(super) fn name(
    settings: &Settings,
    file: Option<&Path>,
    named: Option<&str>,
) -> anyhow::Result<Option<String>> {
    if let Some(name) = named {
        let name: ProjectName = name.parse()?;
        return Ok(Some(name.to_string()));
    }
    if file.is_none() && ServicesFile::default_path().is_none() {
        return Ok(None);
    }
    let file = ServicesFile::read(file)?;
    match parse(settings, &file, None) {
        Ok(desired) => Ok(Some(desired.project.to_string())),
        // A file that is invalid at the moment still names its project.
        Err(_) => match written_name(&file.text) {
            Some(name) => Ok(Some(name.to_string())),
            None => Ok(Some(choice(&file, None)?.0.to_string())),
        },
    }
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
    client: &crate::api::ApiClient,
    file: Option<&Path>,
    named: Option<&str>,
) -> anyhow::Result<String> {
    if let Some(name) = name(settings, file, named)? {
        return Ok(name);
    }
    let projects: Vec<String> = client
        .call(hyper::Method::GET, "/v1/projects", &())
        .await
        .context("could not list the projects")?;
    match projects.as_slice() {
        [only] => Ok(only.clone()),
        [] => bail!(
            "there is no services.yaml in this directory, and no project runs; name a file with `-f FILE`"
        ),
        several => bail!("several projects run ({}); say which with `-p NAME`", several.join(", ")),
    }
}

/// The same from a command's flags.
pub(super) async fn selected(
    settings: &Settings,
    client: &crate::api::ApiClient,
    arguments: &super::args::ProjectArguments,
) -> anyhow::Result<String> {
    required(settings, client, arguments.file.as_deref(), arguments.project_name.as_deref()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_file_still_tells_its_name() {
        let name = |text| written_name(text).map(|name| name.to_string());
        assert_eq!(name("# x\nname: \"app\" # mine\nservices: {bad"), Some("app".to_owned()));
        assert_eq!(name("services:\n  name: web\n"), None);
        assert_eq!(name("name: Not A Name\n"), None);
    }
}
