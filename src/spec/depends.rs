//! `depends_on`: which services come first, and what they must have reached.

use std::collections::{BTreeMap, BTreeSet};

use super::field::Checker;
use super::raw::{Entry, Node, Value};
use super::{Desired, NetworkMode, Service, ServiceName};

/// What a service waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dependency {
    /// What the other one must have reached.
    pub condition: Condition,
    /// Whether the service waits for it even if it cannot come to its condition.
    pub required: bool,
    /// Whether it is restarted when the other one was started again, for whatever reason.
    pub restart: bool,
}

/// What a dependency must have reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It was started.
    Started,
    /// Its check says that it is healthy.
    Healthy,
    /// It ended with code 0.
    Completed,
}

impl Desired {
    /// `named` and all that these depend on, directly or not, as far as they are described.
    #[must_use]
    pub fn with_dependencies<'a>(
        &self,
        named: impl IntoIterator<Item = &'a ServiceName>,
    ) -> BTreeSet<ServiceName> {
        let mut found = BTreeSet::new();
        let mut open: Vec<&ServiceName> = named.into_iter().collect();
        while let Some(name) = open.pop() {
            let Some(service) = self.services.get(name) else { continue };
            if found.insert(name.clone()) {
                open.extend(service.depends_on.keys());
            }
        }
        found
    }
}

impl Checker<'_> {
    pub(super) fn depends_on(
        &mut self,
        path: &str,
        node: &Node,
    ) -> BTreeMap<ServiceName, Dependency> {
        let started = Dependency { condition: Condition::Started, required: true, restart: false };
        let mut found = BTreeMap::new();
        match &node.value {
            Value::Map(entries) => {
                for Entry { key, value, .. } in entries {
                    let path = &format!("{path}.{key}");
                    let name = self.checked(path, value, key.parse());
                    let mut dependency = started;
                    self.dependency(path, value, &mut dependency);
                    found.extend(name.map(|name| (name, dependency)));
                }
            }
            Value::List(_) => {
                for (path, text, item) in self.texts(path, node) {
                    let name = self.checked(&path, item, text.parse());
                    found.extend(name.map(|name| (name, started)));
                }
            }
            _ => self.mismatch(path, node, "a list of services or a mapping"),
        }
        found
    }

    fn dependency(&mut self, path: &str, node: &Node, dependency: &mut Dependency) {
        let entries = match &node.value {
            Value::Null => return,
            Value::Map(entries) => entries,
            _ => return self.mismatch(path, node, "a mapping with `condition:`"),
        };
        for Entry { key, at, value } in entries {
            let path = &format!("{path}.{key}");
            match key.as_str() {
                _ if value.value == Value::Null || key.starts_with("x-") => {}
                "condition" => {
                    let Some(text) = self.text(path, value) else { continue };
                    let condition = match text.as_str() {
                        "service_started" => Ok(Condition::Started),
                        "service_healthy" => Ok(Condition::Healthy),
                        "service_completed_successfully" => Ok(Condition::Completed),
                        _ => Err(format!(
                            "unknown condition `{text}`; use `service_started`, `service_healthy` or \
                             `service_completed_successfully`"
                        )),
                    };
                    if let Some(condition) = self.checked(path, value, condition) {
                        dependency.condition = condition;
                    }
                }
                "required" => dependency.required = self.boolean(path, value).unwrap_or(true),
                "restart" => dependency.restart = self.boolean(path, value).unwrap_or(false),
                _ => {
                    let message = format!(
                        "unknown key `{key}`; a dependency has `condition`, `required` and `restart`"
                    );
                    self.problem(Some(*at), path, message);
                }
            }
        }
    }

    /// A service in the network of another starts after it, and again with it: a network ends with the run that made it.
    pub(super) fn share_networks(
        &mut self,
        services: &mut BTreeMap<ServiceName, Service>,
        entries: &[Entry],
    ) {
        let mut shared = Vec::new();
        for service in services.values() {
            let owner = match &service.network_mode {
                Some(NetworkMode::Service(owner)) => owner.clone(),
                // One of this project, by the name that its file gives it.
                Some(NetworkMode::Container(name)) => {
                    let is_it = |other: &&Service| {
                        other.container_name.as_ref() == Some(name)
                            || super::container_name(self.project.as_str(), &other.name) == *name
                    };
                    let Some(owner) = services.values().find(is_it) else { continue };
                    owner.name.clone()
                }
                _ => continue,
            };
            let entry = |name: &ServiceName| entries.iter().find(|e| e.key == name.as_str());
            let problem = if owner == service.name {
                format!("`{owner}` cannot be in its own network")
            } else if services.contains_key(&owner) {
                shared.push((service.name.clone(), owner));
                continue;
            } else {
                match entry(&owner) {
                    // It has problems of its own.
                    Some(e) if self.selection.is_active(&e.key, &e.value) => continue,
                    Some(_) => format!("`{owner}` is of a profile that is not active"),
                    None => format!("there is no service `{owner}`"),
                }
            };
            let at = entry(&service.name).and_then(|entry| entry.value.get("network_mode"));
            let path = format!("{}.network_mode", service.name);
            self.problem(at.map(|node| node.at), &path, problem);
        }
        for (name, owner) in shared {
            let Some(service) = services.get_mut(&name) else { continue };
            let started =
                Dependency { condition: Condition::Started, required: true, restart: true };
            let dependency = service.depends_on.entry(owner).or_insert(started);
            (dependency.required, dependency.restart) = (true, true);
        }
    }

    /// What only all services together can tell. `entries` are those of the file, active or not.
    pub(super) fn check_dependencies(
        &mut self,
        services: &BTreeMap<ServiceName, Service>,
        entries: &[Entry],
    ) {
        for Entry { key, value, .. } in entries {
            let Some(service) = services.get(key.as_str()) else { continue };
            let at = value.get("depends_on").map_or(value.at, |node| node.at);
            let path = format!("{key}.depends_on");
            for (other, dependency) in &service.depends_on {
                let message = if other.as_str() == key {
                    format!("`{key}` depends on itself")
                } else if services.contains_key(other) || !dependency.required {
                    continue;
                } else if entries.iter().any(|entry| entry.key == other.as_str()) {
                    // One with problems of its own is not in the list either.
                    let entry = entries.iter().find(|entry| entry.key == other.as_str());
                    if entry.is_some_and(|e| self.selection.is_active(&e.key, &e.value)) {
                        continue;
                    }
                    format!("`{other}` is of a profile that is not active")
                } else {
                    format!("there is no service `{other}`")
                };
                self.problem(Some(at), &path, message);
            }
        }
        if let Some(cycle) = cycle(services) {
            let names: Vec<&str> = cycle.iter().map(|name| name.as_str()).collect();
            let first = names.first().copied().unwrap_or_default();
            let entry = entries.iter().find(|entry| entry.key == first);
            let says = |entry: &'_ Entry| {
                let keys = ["depends_on", "network_mode"];
                keys.iter().find_map(|key| entry.value.get(key)).map(|node| node.at)
            };
            let at = entry.and_then(says);
            let message = format!("services depend on each other: `{}`", names.join("` → `"));
            self.problem(at, &format!("{first}.depends_on"), message);
        }
    }
}

/// Services that depend on each other, the first one again at the end. One that depends on itself is told before.
fn cycle(services: &BTreeMap<ServiceName, Service>) -> Option<Vec<&ServiceName>> {
    // Those that nothing is left to wait for are taken away until nothing changes; what remains leads to a cycle.
    let mut left: BTreeSet<&ServiceName> = services.keys().collect();
    let waits = |name: &ServiceName, left: &BTreeSet<&ServiceName>| {
        let service = services.get(name)?;
        service
            .depends_on
            .keys()
            .find(|other| *other != name && left.contains(other))
            .and_then(|other| services.get_key_value(other).map(|(key, _)| key))
    };
    loop {
        let free: Vec<&ServiceName> =
            left.iter().copied().filter(|name| waits(name, &left).is_none()).collect();
        if free.is_empty() {
            break;
        }
        left.retain(|name| !free.contains(name));
    }
    let mut path = vec![*left.first()?];
    loop {
        let next = waits(path.last()?, &left)?;
        if let Some(start) = path.iter().position(|name| *name == next) {
            path.drain(..start);
            path.push(next);
            return Some(path);
        }
        path.push(next);
    }
}
