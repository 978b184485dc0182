//! `include`: other projects' files as part of this one; each with its own folder and its own variables.

use std::path::{Path, PathBuf};

use super::load::{Document, Loader, Scope};
use super::raw::{Entry, Node, Value};
use super::{emit, place};

/// What stands in a file that other files may name; each name may stand in one of them only.
const RESOURCES: [&str; 6] = ["services", "networks", "volumes", "configs", "secrets", "models"];

struct Include<'n> {
    at: &'n Node,
    files: Vec<PathBuf>,
    folder: Option<PathBuf>,
    env_files: Option<Vec<PathBuf>>,
}

impl Loader<'_> {
    /// Brings in what a file includes.
    pub(super) fn include(
        &mut self,
        document: &mut Document,
        scope: Scope<'_, '_>,
        chain: &mut Vec<PathBuf>,
    ) {
        let Some(include) = document.root.remove("include") else { return };
        let items = match &include.value.value {
            Value::Null => return,
            Value::List(items) => items,
            other => {
                let message = format!("expected a list of files, found {}", other.kind());
                self.problem(include.value.at, "include", message);
                return;
            }
        };
        for item in items {
            let Some(include) = self.read_include(item, scope.folder) else { continue };
            let first =
                include.files.first().and_then(|file| file.parent()).unwrap_or(Path::new("/"));
            let folder = include.folder.clone().unwrap_or_else(|| first.to_owned());
            let at = Some(include.at.at);
            let variables = scope.variables.map(|variables| {
                self.defaults(include.env_files.as_deref(), &folder, at, variables)
            });
            let inner = Scope { folder: &folder, variables: variables.as_ref() };
            if let Some(included) = self.merged(&include.files, at, inner, chain) {
                self.import(document, included, include.at);
            }
        }
    }

    fn read_include<'n>(&mut self, item: &'n Node, base: &Path) -> Option<Include<'n>> {
        let absolute = |text: &str| {
            base.to_str().map_or_else(|| base.join(text), |base| place::joined(base, text).into())
        };
        let mut include = Include { at: item, files: Vec::new(), folder: None, env_files: None };
        match &item.value {
            Value::Text(file) => include.files.push(absolute(file)),
            Value::Map(entries) => {
                for Entry { key, at, value } in entries {
                    let texts: Option<Vec<String>> = match &value.value {
                        Value::Text(text) => Some(vec![text.clone()]),
                        Value::List(items) => items.iter().map(Node::scalar).collect(),
                        _ => None,
                    };
                    match (key.as_str(), texts) {
                        (_, _) if key.starts_with("x-") || value.value == Value::Null => {}
                        ("path", Some(texts)) => {
                            include.files.extend(texts.iter().map(|text| absolute(text)));
                        }
                        ("project_directory", Some(texts)) if texts.len() == 1 => {
                            include.folder = texts.first().map(|text| absolute(text));
                        }
                        ("env_file", Some(texts)) => {
                            include.env_files =
                                Some(texts.iter().map(|text| absolute(text)).collect());
                        }
                        ("path" | "project_directory" | "env_file", _) => {
                            let message = format!("expected a path, found {}", value.value.kind());
                            self.problem(value.at, &format!("include.{key}"), message);
                        }
                        _ => {
                            let message = format!(
                                "unknown key `{key}`; an include has `path`, `project_directory` and `env_file`"
                            );
                            self.problem(*at, "include", message);
                        }
                    }
                }
            }
            other => {
                let message =
                    format!("expected a file or a mapping with `path:`, found {}", other.kind());
                self.problem(item.at, "include", message);
                return None;
            }
        }
        if include.files.is_empty() || include.files.iter().any(|file| file.as_os_str().is_empty())
        {
            self.problem(item.at, "include", "there is no `path:`");
            return None;
        }
        Some(include)
    }

    /// Adds what was included; a name that is taken already by something else is a mistake.
    fn import(&mut self, document: &mut Document, included: Node, at: &Node) {
        let root_at = document.root.at;
        let Value::Map(entries) = included.value else { return };
        for Entry { key, at: key_at, value } in entries {
            if !RESOURCES.contains(&key.as_str()) {
                continue;
            }
            let Value::Map(resources) = value.value else { continue };
            if document.root.entries().is_none() {
                document.root = Node { value: Value::Map(Vec::new()), at: root_at };
            }
            if document.root.get(&key).is_none_or(|node| node.value == Value::Null) {
                let empty = Node { value: Value::Map(Vec::new()), at: value.at };
                document.root.set(&key, key_at, empty);
            }
            for Entry { key: name, at: name_at, value } in resources {
                let Some(known) = document.root.get_mut(&key) else { continue };
                match known.get(&name) {
                    None => known.set(&name, name_at, value),
                    Some(same) if emit::json(same) == emit::json(&value) => {}
                    Some(_) => {
                        let message = format!(
                            "`{name}` of `{key}` stands in an included file and elsewhere; change it in an override file"
                        );
                        self.problem(at.at, "include", message);
                    }
                }
            }
        }
    }
}
