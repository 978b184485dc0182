//! From the raw mirror to [`Desired`]: the file and its services. Single values are read in `field`.

use std::collections::{BTreeMap, BTreeSet};

use super::field::Checker;
use super::interpolate::{Report, Usage, Variables};
use super::keys::{self, HasImage};
use super::raw::{Entry, Node, Value};
use super::{
    Desired, ParseInput, Problem, Problems, ProjectName, Selection, Service, ServiceName, raw,
};

/// Reads and checks `text`, and reports everything that is wrong with it.
pub(super) fn parse(
    text: &str,
    input: &ParseInput<'_>,
    selection: &Selection,
) -> Result<Desired, Problems> {
    let mut problems = Vec::new();
    let shown = [input.file.to_owned()];
    match raw::read(text, 0) {
        Ok(mut root) => {
            let usage = Usage::default();
            let mut report = Report {
                file: input.file,
                problems: &mut problems,
                warnings: &mut Vec::new(),
                warned: &mut BTreeSet::new(),
            };
            Variables::new(input.environment, &usage).apply(&mut root, &mut report);
            match (check(&root, input, &shown, selection), Problems::new(problems)) {
                (Err(checked), more) => Err(checked.joined(more)),
                (Ok(_), Some(problems)) => Err(problems),
                (Ok(desired), None) => Ok(desired),
            }
        }
        Err(error) => {
            let file = input.file.to_owned();
            let (path, message) = (String::new(), error.message);
            problems.push(Problem { file, at: error.at, path, message });
            Err(Problems::new(problems).expect("one was just added"))
        }
    }
}

/// Checks a tree whose variables are replaced; `shown` names the files that its positions are of.
pub(super) fn check(
    root: &Node,
    input: &ParseInput<'_>,
    shown: &[String],
    selection: &Selection,
) -> Result<Desired, Problems> {
    let mut checker = Checker::new(input, shown, selection);
    let desired = file(&mut checker, root);
    match (Problems::new(checker.problems), desired) {
        (Some(problems), _) => Err(problems),
        (None, Some(desired)) => Ok(desired),
        (None, None) => unreachable!("what keeps a file from being used was reported"),
    }
}

fn file(checker: &mut Checker<'_>, root: &Node) -> Option<Desired> {
    let Value::Map(entries) = &root.value else {
        let message = match root.value {
            Value::Null => "the file is empty; it needs a `services:` mapping".to_owned(),
            ref other => {
                format!("the file is {}; it must be a mapping with `services:`", other.kind())
            }
        };
        checker.problem(Some(root.at), "", message);
        return None;
    };
    let mut project = checker.input.project.clone();
    let mut parsed = None;
    for Entry { key, at, value } in entries {
        match key.as_str() {
            "services" => parsed = Some(services(checker, value)),
            "name" => {
                let named = checker.text("name", value).and_then(|text| {
                    let name = text.parse::<ProjectName>();
                    name.map_err(|error| checker.problem(Some(value.at), "name", error)).ok()
                });
                if checker.input.project_choice == super::ProjectChoice::Default {
                    project = named.unwrap_or(project);
                }
            }
            // Obsolete in compose too; any scalar is found in files.
            "version" => {}
            _ if key.starts_with("x-") => {}
            _ => checker.problem(Some(*at), key, keys::top_problem(key)),
        }
    }
    let Some(services) = parsed else {
        checker.problem(Some(root.at), "services", "the file has no `services:`");
        return None;
    };
    Some(Desired { project, services: services? })
}

fn services(checker: &mut Checker<'_>, node: &Node) -> Option<BTreeMap<ServiceName, Service>> {
    let Value::Map(entries) = &node.value else {
        let found = node.value.kind();
        let message = format!("expected a mapping from names to services, found {found}");
        checker.problem(Some(node.at), "services", message);
        return None;
    };
    if entries.is_empty() {
        checker.problem(Some(node.at), "services", "there is no service");
        return None;
    }
    let mut services = BTreeMap::new();
    if !entries.iter().any(|entry| checker.selection.is_active(&entry.key, &entry.value)) {
        let message =
            "every service has a profile, and none of them is active; choose one with `--profile`";
        checker.problem(Some(node.at), "services", message);
        return None;
    }
    for Entry { key, at, value } in entries {
        // As in compose, what does not run need not be right.
        if !checker.selection.is_active(key, value) {
            continue;
        }
        match key.parse::<ServiceName>() {
            Ok(name) => {
                if let Some(service) = service(checker, name.clone(), value) {
                    services.insert(name, service);
                }
            }
            Err(error) => checker.problem(Some(*at), "services", error),
        }
    }
    Some(services)
}

/// `None` only after a problem was reported.
fn service(checker: &mut Checker<'_>, name: ServiceName, node: &Node) -> Option<Service> {
    let Value::Map(entries) = &node.value else {
        let found = node.value.kind();
        let message = format!("expected a mapping with `image:`, found {found}");
        checker.problem(Some(node.at), name.as_str(), message);
        return None;
    };
    let has = |wanted: &str| entries.iter().any(|entry| entry.key == wanted);
    let has_image = if has("image") { HasImage::Yes } else { HasImage::No };
    let mut image = None;
    let mut service = Unfinished::default();
    for entry in entries {
        let Entry { key, at, value } = entry;
        let path = &format!("{name}.{key}");
        match key.as_str() {
            "image" => image = checker.image(path, value),
            "command" => service.command = checker.words(path, value),
            "entrypoint" => service.entrypoint = checker.words(path, value),
            "environment" => service.environment = checker.environment(path, value),
            "working_dir" => service.working_dir = checker.absolute(path, value),
            "user" => service.user = checker.user(path, value),
            "volumes" => service.volumes = checker.volumes(path, value),
            "read_only" => service.read_only = checker.boolean(path, value),
            "restart" => service.restart = checker.restart(path, value),
            "stop_signal" => service.stop_signal = checker.signal(path, value),
            "stop_grace_period" => service.stop_grace_period = checker.duration(path, value),
            "network_mode" => service.network_mode = checker.network_mode(path, value),
            "logging" => service.logging = checker.logging(path, value),
            "profiles" => checker.profiles(path, value),
            _ if key.starts_with("x-") => {}
            _ => checker.problem(Some(*at), path, keys::service_problem(key, has_image)),
        }
    }
    if has_image == HasImage::No && !has("build") {
        let message = "the service has no `image:`";
        checker.problem(Some(node.at), name.as_str(), message);
    }
    Some(Service {
        name,
        image: image?,
        command: service.command,
        entrypoint: service.entrypoint,
        environment: service.environment,
        working_dir: service.working_dir,
        user: service.user,
        volumes: service.volumes,
        read_only: service.read_only,
        restart: service.restart,
        stop_signal: service.stop_signal,
        stop_grace_period: service.stop_grace_period,
        network_mode: service.network_mode,
        logging: service.logging,
    })
}

/// A service while its keys are read, which come in any order.
#[derive(Default)]
struct Unfinished {
    command: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    environment: BTreeMap<String, Option<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    volumes: Vec<super::Bind>,
    read_only: Option<bool>,
    restart: Option<super::RestartPolicy>,
    stop_signal: Option<super::Signal>,
    stop_grace_period: Option<std::time::Duration>,
    network_mode: Option<super::NetworkMode>,
    logging: Option<super::Logging>,
}
