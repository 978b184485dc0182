//! `env_file`: the variables of files become those of `environment`, which win over them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::dotenv::Format;
use super::interpolate::Variables;
use super::load::Loader;
use super::raw::{Entry, Node, Value};
use super::{Selection, forms, place};

/// Brings the variables of `env_file` into `environment`, and gives those without a value their value.
pub(super) fn resolve(
    root: &mut Node,
    loader: &mut Loader<'_>,
    variables: &Variables<'_>,
    folder: &Path,
    selection: &Selection,
) {
    let Some(entries) = root.get_mut("services").and_then(Node::entries_mut) else { return };
    for entry in entries {
        // What does not run need not be right, but may be named by a later request.
        let told = loader.problems.len();
        let as_written =
            (!selection.is_active(&entry.key, &entry.value)).then(|| entry.value.clone());
        resolve_environment(&entry.key, entry.at, &mut entry.value, loader, variables, folder);
        if let Some(as_written) = as_written
            && loader.problems.len() > told
        {
            loader.problems.truncate(told);
            entry.value = as_written;
        }
    }
}

fn resolve_environment(
    name: &str,
    service_at: super::Position,
    service: &mut Node,
    loader: &mut Loader<'_>,
    variables: &Variables<'_>,
    folder: &Path,
) {
    let mut of_files = BTreeMap::new();
    if let Some(files) = service.remove("env_file") {
        let at = files.at;
        let files = forms::Form::EnvFiles.long(files.value);
        let path = format!("{name}.env_file");
        match &files.value {
            Value::Null => {}
            Value::List(items) => {
                for item in items {
                    let read = read_env_file(item, &path, loader, variables, folder, &of_files);
                    // A later file wins.
                    of_files.extend(read.into_iter().map(|(name, value)| (name, (value, at))));
                }
            }
            other => {
                let message = format!("expected a path or a list of paths, found {}", other.kind());
                loader.problem(files.at, &path, message);
            }
        }
    }
    let known = service.remove("environment");
    if known.is_none() && of_files.is_empty() {
        return;
    }
    let at = known.as_ref().map_or(service_at, |known| known.at);
    let mut environment = match known {
        Some(known) => forms::Form::Pairs.long(known.value),
        None => Node { value: Value::Null, at },
    };
    if environment.value == Value::Null {
        environment.value = Value::Map(Vec::new());
    }
    if let Some(entries) = environment.entries_mut() {
        for entry in entries.iter_mut().filter(|entry| entry.value.value == Value::Null) {
            if let Some(value) = variables.get(&entry.key) {
                entry.value.value = Value::Text(value);
            }
        }
        let written: BTreeSet<String> = entries.iter().map(|entry| entry.key.clone()).collect();
        for (name, (value, at)) in of_files {
            if !written.contains(&name) {
                let value = Node::text(value, at);
                entries.push(Entry { key: name, at, value });
            }
        }
    }
    service.set("environment", at, environment);
}

/// One item of `env_file`.
fn read_env_file(
    item: &Node,
    path: &str,
    loader: &mut Loader<'_>,
    variables: &Variables<'_>,
    folder: &Path,
    above: &BTreeMap<String, (String, super::Position)>,
) -> BTreeMap<String, String> {
    let nothing = BTreeMap::new();
    let (mut file, mut required, mut format) = (None, true, Format::Compose);
    for entry in item.entries().unwrap_or_default() {
        let value = &entry.value;
        match (entry.key.as_str(), value.scalar().as_deref()) {
            ("path", Some(text)) => file = Some(text.to_owned()),
            ("required", Some("true")) => {}
            ("required", Some("false")) => required = false,
            ("format", Some("raw")) => format = Format::Raw,
            ("format", _) if value.value == Value::Null => {}
            ("format", Some("")) => {}
            ("required", _) => loader.problem(value.at, path, "`required` is `true` or `false`"),
            ("format", _) => loader.problem(value.at, path, "`format` is `raw` or left out"),
            (key, _) if key.starts_with("x-") => {}
            (key, _) => {
                let message =
                    format!("unknown key `{key}`; a file has `path`, `required` and `format`");
                loader.problem(entry.at, path, message);
            }
        }
    }
    let Some(file) = file.filter(|file| !file.is_empty()) else {
        loader.problem(item.at, path, "there is no `path:`");
        return nothing;
    };
    let absolute = folder
        .to_str()
        .map_or_else(|| folder.join(&file), |folder| place::joined(folder, &file).into());
    let text = if required {
        loader.text(&absolute, Some(item.at))
    } else {
        loader.read.insert(absolute.clone());
        loader.source.read(&absolute).ok().flatten()
    };
    let Some(text) = text else { return nothing };
    let above = above.iter().map(|(name, (value, _))| (name.clone(), value.clone()));
    let scope = variables.with_defaults(above);
    loader.env_file(&absolute, format, &text, &scope).unwrap_or_default()
}
