//! What a run has in the place of its service's own. Pure.

use super::handle::{RequestError, RequestErrorKind};
use super::report::UpRequest;
use crate::container::CallerStreams;
use crate::reconcile::ServiceKey;
use crate::spec::{HealthTest, Healthcheck, RestartPolicy, Service};

/// What a run has in the place of its service's own, and how it is done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// What runs; the service's own when `None`.
    pub command: Option<Vec<String>>,
    /// What runs it.
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value`, or `NAME` for none, over the service's.
    pub environment: Vec<String>,
    /// Volumes beside the service's, as a services file has them.
    pub volumes: Vec<String>,
    /// User, by name or id.
    pub user: Option<String>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// Name of the container; one is made up when `None`.
    pub name: Option<String>,
    /// Publish the ports of the service.
    pub ports: bool,
    /// Remove the container when it has ended.
    pub remove: bool,
    /// Whose streams it has; a log of its own when `None`.
    pub streams: Option<CallerStreams>,
    /// Tells this run from every other: asked for with the same one again, it is the same run. Not told from others when
    /// `None`.
    pub idempotency_key: Option<String>,
}

/// The service that is run, with what the run has in its place.
pub(super) fn settings(
    request: &UpRequest,
    service: &str,
    options: &RunOptions,
) -> Result<(ServiceKey, Box<Service>), RequestError> {
    let invalid = |message: String| RequestError::new(RequestErrorKind::Invalid, message);
    let mut desired = super::project::parse(request)?;
    let project = desired.project.clone();
    let missing = || invalid(format!("no such service: `{service}`"));
    let mut settings = desired.services.remove(service).ok_or_else(missing)?;
    if let Some(entrypoint) = &options.entrypoint {
        settings.entrypoint = Some(entrypoint.clone());
        // As a services file that gives another one without a command.
        settings.command = None;
    }
    if let Some(command) = &options.command {
        settings.command = Some(command.clone());
    }
    for pair in &options.environment {
        let (name, value) = match pair.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (pair.as_str(), None),
        };
        settings.environment.insert(name.to_owned(), value);
    }
    if !options.volumes.is_empty() {
        let more = volumes(request, options)?;
        let is_replaced = |target: &str| more.volumes.iter().any(|bind| bind.target == target);
        settings.volumes.retain(|bind| !is_replaced(&bind.target));
        settings.named_volumes.retain(|named| !is_replaced(&named.target));
        settings.image_volumes.retain(|image| !is_replaced(&image.target));
        settings.volumes.extend(more.volumes);
    }
    settings.user = options.user.clone().or(settings.user);
    settings.working_dir = options.working_dir.clone().or(settings.working_dir);
    settings.restart = Some(RestartPolicy::No);
    settings.extensions.probe = None;
    let disabled = Some(HealthTest::Disabled);
    settings.healthcheck = Some(Healthcheck { test: disabled, ..Healthcheck::default() });
    if !options.ports {
        settings.ports.clear();
    }
    let service = ServiceKey { project, service: settings.name.clone() };
    Ok((service, Box::new(settings)))
}

/// Volumes of the command line, read as those of a file in the same place.
fn volumes(request: &UpRequest, options: &RunOptions) -> Result<Service, RequestError> {
    let volumes = serde_json::to_string(&options.volumes).unwrap_or_default();
    let text = format!("services:\n  run:\n    image: scratch\n    volumes: {volumes}\n");
    let request = UpRequest {
        text: text.replace('$', "$$"),
        sources: None,
        services: Vec::new(),
        independent: Vec::new(),
        ..request.clone()
    };
    let invalid = |error: RequestError| {
        let message = of_options(&error.message, &options.volumes);
        RequestError::new(RequestErrorKind::Invalid, message)
    };
    let mut desired = super::project::parse(&request).map_err(invalid)?;
    Ok(desired.services.remove("run").expect("the text has this service"))
}

/// What is said of places in a text that nobody wrote, said of the options that it was made of.
fn of_options(message: &str, volumes: &[String]) -> String {
    let of_option = |line: &str| {
        let (number, rest) = line.split_once(" run.volumes[")?.1.split_once(']')?;
        let volume = volumes.get(number.parse::<usize>().ok()?)?;
        Some(format!("`--volume {volume}`: {}", rest.split_once(": ")?.1))
    };
    let lines = message.lines();
    let lines = lines.map(|line| of_option(line).unwrap_or_else(|| format!("`--volume`: {line}")));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_volume_that_is_not_valid_is_told_by_its_option() {
        let told =
            |message| super::of_options(message, &["/a:/b".to_owned(), "a:b:c:d".to_owned()]);
        let option = "`--volume a:b:c:d`: too many parts";
        assert_eq!(told("services.yaml:4:15: run.volumes[1]: too many parts"), option);
        assert_eq!(told("services.yaml:4:15: run.volumes[1].mode: too many parts"), option);
        assert_eq!(told("something else"), "`--volume`: something else");
    }
}
