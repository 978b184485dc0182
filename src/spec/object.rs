//! Mappings whose keys are in a table, and the kinds of values that several keys have.

use super::Position;
use super::field::Checker;
use super::keys::{self, Class, Key};
use super::raw::{Entry, Node, Value};
use super::size::{self, Base};

/// An entry of a mapping, with what the table says of its key.
pub(super) struct Found<'n> {
    pub(super) key: &'static Key,
    /// For messages.
    pub(super) path: String,
    /// Of the key.
    pub(super) at: Position,
    pub(super) value: &'n Node,
}

impl Checker<'_> {
    /// The entries of a mapping that have a value; unknown keys are noted.
    pub(super) fn entries<'n>(
        &mut self,
        path: &str,
        node: &'n Node,
        keys: &'static [Key],
    ) -> Vec<Found<'n>> {
        let entries = match &node.value {
            Value::Null => return Vec::new(),
            Value::Map(entries) => entries,
            _ => {
                self.mismatch(path, node, "a mapping");
                return Vec::new();
            }
        };
        let mut found = Vec::new();
        for Entry { key, at, value } in entries {
            let path = format!("{path}.{key}");
            match keys::find(keys, key) {
                Some(known) if value.value != Value::Null => {
                    found.push(Found { key: known, path, at: *at, value });
                }
                Some(_) => {}
                None if key.starts_with("x-") => {}
                None => self.problem(Some(*at), &path, keys::unknown(key, keys)),
            }
        }
        found
    }

    /// Does with a key what its table says, when nothing else reads it.
    pub(super) fn leave(&mut self, found: &Found<'_>) {
        match found.key.class {
            Class::Rejected => self.unsupported(found.at, &found.path, keys::refusal(found.key)),
            Class::Accepted | Class::Implemented => {
                if !found.key.shape.fits(&found.value.value) {
                    self.mismatch(&found.path, found.value, found.key.shape.expected());
                }
            }
        }
    }

    /// The texts of a text or of a list, with their paths and places.
    pub(super) fn texts<'n>(
        &mut self,
        path: &str,
        node: &'n Node,
    ) -> Vec<(String, String, &'n Node)> {
        match &node.value {
            Value::Null => Vec::new(),
            Value::List(items) => {
                let mut texts = Vec::with_capacity(items.len());
                for (n, item) in items.iter().enumerate() {
                    let path = format!("{path}[{n}]");
                    if let Some(text) = self.text(&path, item) {
                        texts.push((path, text, item));
                    }
                }
                texts
            }
            Value::Map(_) => {
                self.mismatch(path, node, "a text or a list of texts");
                Vec::new()
            }
            _ => {
                let text = self.text(path, node);
                text.map(|text| (path.to_owned(), text, node)).into_iter().collect()
            }
        }
    }

    /// An amount of memory in bytes.
    pub(super) fn size(&mut self, path: &str, node: &Node) -> Option<u64> {
        let text = self.text(path, node)?;
        let size = self.checked(path, node, size::parse(&text, Base::Binary))?;
        if i64::try_from(size).is_err() {
            self.problem(Some(node.at), path, format!("`{text}` is more than any host has"));
            return None;
        }
        Some(size)
    }

    /// A whole number from `least` to `most`.
    pub(super) fn integer(
        &mut self,
        path: &str,
        node: &Node,
        least: i64,
        most: i64,
    ) -> Option<i64> {
        let text = self.text(path, node)?;
        let number = text.parse::<i64>().ok().filter(|number| (least..=most).contains(number));
        if number.is_none() {
            let message = match most {
                i64::MAX => format!("`{text}` is not a whole number from {least}"),
                _ => format!("`{text}` is not a whole number from {least} to {most}"),
            };
            self.problem(Some(node.at), path, message);
        }
        number
    }

    /// A value of which only one is implemented, which changes nothing.
    pub(super) fn only(&mut self, found: &Found<'_>, choices: &[&str]) {
        let Some(text) = self.text(&found.path, found.value) else { return };
        if !choices.contains(&text.as_str()) {
            let name = found.key.name;
            let message =
                format!("`{name}: {text}` is not supported in this version: {}", found.key.text);
            self.unsupported(found.value.at, &found.path, message);
        }
    }
}
