//! `extends`: a service that begins as a copy of another one, of the same file or of another.

use std::path::PathBuf;

use super::load::{Document, Loader, Scope};
use super::raw::{Entry, Node, Value};
use super::{Position, merge};

/// Longest chain of services that extend each other.
const MAX_CHAIN: usize = 50;

/// Where a file names another one.
#[derive(Clone, Copy)]
struct NamedAt<'a> {
    at: Position,
    path: &'a str,
}

impl Loader<'_> {
    /// Resolves `extends` of all services of a file. `earlier`: what files before it make.
    pub(super) fn extend_all(
        &mut self,
        document: &mut Document,
        scope: Scope<'_, '_>,
        earlier: Option<&Node>,
    ) {
        let services = document.root.get("services").and_then(Node::entries).unwrap_or_default();
        let names: Vec<String> = services
            .iter()
            .filter(|entry| entry.value.get("extends").is_some())
            .map(|entry| entry.key.clone())
            .collect();
        let mut extended = Vec::new();
        for name in names {
            let service = self.extended(document, &name, scope, earlier, &mut Vec::new());
            extended.push((name, service));
        }
        let Some(services) = document.root.get_mut("services") else { return };
        for (name, service) in extended {
            match service {
                Some(service) => services.set(&name, service.at, service),
                // What was wrong with it is told; the key itself would be told again.
                None => {
                    if let Some(service) = services.get_mut(&name) {
                        service.remove("extends");
                    }
                }
            }
        }
    }

    /// A service with what it extends below it. `None` after a problem.
    fn extended(
        &mut self,
        document: &Document,
        name: &str,
        scope: Scope<'_, '_>,
        earlier: Option<&Node>,
        chain: &mut Vec<(PathBuf, String)>,
    ) -> Option<Node> {
        let mut service = document.root.get("services")?.get(name)?.clone();
        self.afford(&service)?;
        let Some(extends) = service.remove("extends") else { return Some(service) };
        if extends.value.value == Value::Null || document.resets(name, "extends") {
            return Some(service);
        }
        let at = extends.value.at;
        let path = format!("{name}.extends");
        let (parent, file) = self.read_extends(&extends.value, &path)?;
        let this = (document.path.clone(), name.to_owned());
        if chain.contains(&this) || chain.len() >= MAX_CHAIN {
            let names: Vec<&str> =
                chain.iter().chain([&this]).map(|(_, name)| name.as_str()).collect();
            let shown = names.get(..names.len().min(8)).unwrap_or_default().join("` → `");
            self.problem(at, &path, format!("the services extend each other: `{shown}`"));
            return None;
        }
        chain.push(this);
        let base = match file {
            None => {
                let here = document.root.get("services").and_then(|services| services.get(&parent));
                match here {
                    Some(_) => self.extended(document, &parent, scope, earlier, chain),
                    None => {
                        let found = earlier
                            .and_then(|earlier| earlier.get("services")?.get(&parent))
                            .cloned();
                        if found.is_none() {
                            self.problem(at, &path, format!("there is no service `{parent}`"));
                        }
                        found
                    }
                }
            }
            Some(file) => {
                let named = NamedAt { at, path: &path };
                self.extended_elsewhere(&file, &parent, named, scope, chain)
            }
        };
        chain.pop();
        let mut base = base?;
        document.clear(name, &mut base);
        let mut conflicts = Vec::new();
        let merged = merge::service(name, base, service, &mut conflicts);
        self.conflicts(conflicts);
        self.afford(&merged)?;
        Some(merged)
    }

    fn extended_elsewhere(
        &mut self,
        file: &str,
        parent: &str,
        named: NamedAt<'_>,
        scope: Scope<'_, '_>,
        chain: &mut Vec<(PathBuf, String)>,
    ) -> Option<Node> {
        let file = scope.folder.join(file);
        // Its relative paths are its own.
        let folder = file.parent().unwrap_or(&file).to_owned();
        let inner = Scope { folder: &folder, variables: scope.variables };
        let other = self.document(&file, Some(named.at), inner)?;
        if other.root.get("services").and_then(|services| services.get(parent)).is_none() {
            let shown = self.source.display(&file);
            self.problem(
                named.at,
                named.path,
                format!("there is no service `{parent}` in `{shown}`"),
            );
            return None;
        }
        self.extended(&other, parent, inner, None, chain)
    }

    /// Name of the service, and its file.
    fn read_extends(&mut self, node: &Node, path: &str) -> Option<(String, Option<String>)> {
        match &node.value {
            Value::Text(service) => Some((service.clone(), None)),
            Value::Map(entries) => {
                let (mut service, mut file) = (None, None);
                for Entry { key, at, value } in entries {
                    match (key.as_str(), value.scalar()) {
                        ("service", Some(text)) => service = Some(text),
                        ("file", Some(text)) => file = Some(text),
                        ("file", None) if value.value == Value::Null => {}
                        ("service" | "file", None) => {
                            let message = format!("expected a text, found {}", value.value.kind());
                            self.problem(value.at, &format!("{path}.{key}"), message);
                            return None;
                        }
                        _ => {
                            let message =
                                format!("unknown key `{key}`; `extends` has `service` and `file`");
                            self.problem(*at, path, message);
                        }
                    }
                }
                if service.is_none() {
                    self.problem(node.at, path, "there is no `service:`");
                }
                Some((service?, file))
            }
            other => {
                let message = format!("expected the name of a service, found {}", other.kind());
                self.problem(node.at, path, message);
                None
            }
        }
    }
}
