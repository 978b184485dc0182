//! Small things that every pass over the raw tree needs.

use super::Position;
use super::raw::{Entry, Node, Value};

impl Node {
    /// The value of `key`, if this is a mapping that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entries()?.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        self.entries_mut()?.iter_mut().find(|entry| entry.key == key).map(|entry| &mut entry.value)
    }

    /// Takes `key` out.
    pub(crate) fn remove(&mut self, key: &str) -> Option<Entry> {
        let entries = self.entries_mut()?;
        let at = entries.iter().position(|entry| entry.key == key)?;
        Some(entries.remove(at))
    }

    /// Puts `key` in or replaces it, if this is a mapping.
    pub(crate) fn set(&mut self, key: &str, at: Position, value: Node) {
        if let Some(known) = self.get_mut(key) {
            *known = value;
        } else if let Some(entries) = self.entries_mut() {
            entries.push(Entry { key: key.to_owned(), at, value });
        }
    }

    pub(crate) fn entries(&self) -> Option<&[Entry]> {
        match &self.value {
            Value::Map(entries) => Some(entries),
            _ => None,
        }
    }

    pub(crate) fn entries_mut(&mut self) -> Option<&mut Vec<Entry>> {
        match &mut self.value {
            Value::Map(entries) => Some(entries),
            _ => None,
        }
    }

    pub(crate) fn items(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// The spelling of a scalar.
    pub(crate) fn scalar(&self) -> Option<String> {
        match &self.value {
            Value::Text(text) | Value::Number(text) => Some(text.clone()),
            Value::Bool(value) => Some(value.to_string()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    pub(crate) fn text(text: impl Into<String>, at: Position) -> Self {
        Self { value: Value::Text(text.into()), at }
    }

    pub(crate) fn map(entries: Vec<(&str, Node)>, at: Position) -> Self {
        let entry = |(key, value): (&str, Node)| Entry { key: key.to_owned(), at: value.at, value };
        Self { value: Value::Map(entries.into_iter().map(entry).collect()), at }
    }

    /// How many nodes there are, this one included.
    pub(crate) fn count(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Self::count).sum::<usize>(),
            Value::Map(entries) => entries.iter().map(|entry| entry.value.count()).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => 0,
        }
    }
}

/// A path as messages show it: `web.volumes[1]`, without `services` in front.
pub(crate) fn shown(path: &[String]) -> String {
    let path = match path {
        [first, rest @ ..] if first == "services" && !rest.is_empty() => rest,
        _ => path,
    };
    let mut shown = String::new();
    for part in path {
        if !shown.is_empty() && !part.starts_with('[') {
            shown.push('.');
        }
        shown.push_str(part);
    }
    shown
}

/// Whether a path is of a pattern, in which `*` stands for any one part.
pub(crate) fn matches(pattern: &str, path: &[&str]) -> bool {
    let mut parts = path.iter();
    pattern
        .split('.')
        .all(|wanted| parts.next().is_some_and(|part| wanted == "*" || wanted == *part))
        && parts.next().is_none()
}
