//! From the raw mirror to [`Desired`]: the file and its services. Single values are read in `field`.

use std::collections::{BTreeMap, BTreeSet};

use super::field::Checker;
use super::interpolate::{Report, Usage, Variables};
use super::keys;
use super::raw::{Entry, Node, Value};
use super::{
    Checked, Desired, Extensions, GrantKind, ParseInput, Problem, ProblemKind, Problems,
    ProjectName, Selection, Service, ServiceName, Unsupported, raw, read_service,
};

/// Reads and checks `text`, and reports everything that is wrong with it.
pub(super) fn parse(
    text: &str,
    input: &ParseInput<'_>,
    selection: &Selection,
) -> Result<Checked, Problems> {
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
                (Ok(checked), None) => Ok(checked),
            }
        }
        Err(error) => {
            let file = input.file.to_owned();
            let (path, message) = (String::new(), error.message);
            let kind = ProblemKind::Invalid;
            problems.push(Problem { file, at: error.at, path, message, kind });
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
) -> Result<Checked, Problems> {
    let mut checker = Checker::new(input, shown, selection);
    let desired = file(&mut checker, root);
    let is_left_out = |problem: &Problem| {
        problem.kind == ProblemKind::Unsupported && selection.unsupported == Unsupported::LeaveOut
    };
    let (left_out, problems) = checker.problems.into_iter().partition(is_left_out);
    match (Problems::new(problems), desired) {
        (Some(problems), _) => Err(problems),
        (None, Some(desired)) => {
            let left_out = Problems::new(left_out);
            let left_out = left_out.map(|problems| problems.iter().cloned().collect());
            Ok(Checked { desired, left_out: left_out.unwrap_or_default() })
        }
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
    if let Some(value) = root.get("name").filter(|name| name.value != Value::Null) {
        let named = checker.text("name", value).and_then(|text| {
            let name = text.parse::<ProjectName>();
            name.map_err(|error| checker.problem(Some(value.at), "name", error)).ok()
        });
        if checker.input.project_choice == super::ProjectChoice::Default {
            project = named.unwrap_or(project);
        }
    }
    if let Some(volumes) = root.get("volumes") {
        checker.named_volumes = checker.declared_volumes(volumes, &project);
    }
    checker.project = project.clone();
    if let Some(networks) = root.get("networks") {
        checker.networks = checker.declare_networks(networks, &project);
    }
    for kind in GrantKind::ALL {
        if let Some(node) = root.get(kind.key()) {
            checker.declare_grants(kind, node);
        }
    }
    let mut parsed = None;
    let words = root.get("x-supervisor").map(|node| checker.extensions("x-supervisor", node));
    let words = words.unwrap_or_default();
    for Entry { key, at, value } in entries {
        match key.as_str() {
            "services" => parsed = Some(services(checker, value, &words)),
            // Read before.
            "name" | "volumes" | "networks" | "configs" | "secrets" => {}
            // Obsolete in compose too; any scalar is found in files.
            "version" => {}
            _ if key.starts_with("x-") => {}
            // Nothing is left of one that was resolved.
            _ if value.value == Value::Null && keys::find(keys::TOP, key).is_some() => {}
            "include" => {
                let message = "`include` names files, and this text was given without its folder";
                checker.problem(Some(*at), key, message);
            }
            _ => match keys::find(keys::TOP, key) {
                Some(_) if is_empty(value) => {}
                Some(known) => checker.unsupported(*at, key, keys::refusal(known)),
                None => checker.problem(Some(*at), key, keys::unknown_top(key)),
            },
        }
    }
    let Some(services) = parsed else {
        checker.problem(Some(root.at), "services", "the file has no `services:`");
        return None;
    };
    Some(Desired { project, services: services? })
}

/// Whether there is nothing in it that could have an effect.
fn is_empty(node: &Node) -> bool {
    match &node.value {
        Value::List(items) => items.is_empty(),
        Value::Map(entries) => entries.is_empty(),
        _ => false,
    }
}

fn services(
    checker: &mut Checker<'_>,
    node: &Node,
    words: &Extensions,
) -> Option<BTreeMap<ServiceName, Service>> {
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
                if let Some(mut service) = read_service::read(checker, name.clone(), value) {
                    service.extensions.complete(words);
                    service.bind_ports();
                    services.insert(name, service);
                }
            }
            Err(error) => checker.problem(Some(*at), "services", error),
        }
    }
    checker.share_networks(&mut services, entries);
    checker.check_dependencies(&services, entries);
    Some(services)
}
