//! Named volumes: what the file declares at its top, and what services make of them.

use std::collections::BTreeMap;

use super::field::Checker;
use super::keys;
use super::raw::{Entry, Node, Value};
use super::{CopyUp, NamedVolume, Position, ProjectName};

/// Longest name of a volume; it is the name of a folder.
const MAX_NAME: usize = 200;

impl Checker<'_> {
    /// The volumes at the top of the file: their names on this host by their keys. `None` for those that were left out.
    pub(super) fn declared_volumes(
        &mut self,
        node: &Node,
        project: &ProjectName,
    ) -> BTreeMap<String, Option<String>> {
        let mut volumes = BTreeMap::new();
        let entries = match &node.value {
            Value::Null => return volumes,
            Value::Map(entries) => entries,
            _ => {
                self.mismatch("volumes", node, "a mapping from names of volumes");
                return volumes;
            }
        };
        for Entry { key, at, value } in entries {
            if key.starts_with("x-") {
                continue;
            }
            let path = format!("volumes.{key}");
            let mut name = is_name(key).then(|| format!("{project}_{key}"));
            if name.is_none() {
                self.problem(Some(*at), &path, format!("`{key}` cannot be the name of a volume"));
            }
            for found in self.entries(&path, value, keys::NAMED_VOLUME) {
                let before = self.problems.len();
                match found.key.name {
                    "name" => {
                        if let Some(text) = self.text(&found.path, found.value) {
                            let message = format!("`{text}` cannot be the name of a volume");
                            let given = is_name(&text).then_some(text).ok_or(message);
                            name = self.checked(&found.path, found.value, given);
                        }
                    }
                    "external" => {
                        if self.boolean(&found.path, found.value).is_some() {
                            self.only(&found, &["false"]);
                        }
                    }
                    "driver" => self.only(&found, &["local"]),
                    // Often there and empty.
                    "driver_opts" if found.value.entries().is_some_and(<[_]>::is_empty) => {}
                    _ => self.leave(&found),
                }
                if self.problems.len() > before {
                    name = None;
                }
            }
            volumes.insert(key.clone(), name);
        }
        volumes
    }

    /// A volume under its name on this host; nothing if it is not declared or was left out.
    pub(super) fn declared(
        &mut self,
        path: &str,
        at: Position,
        named: NamedVolume,
    ) -> Option<NamedVolume> {
        let Some(name) = self.named_volumes.get(&named.volume) else {
            let key = &named.volume;
            let message = format!(
                "the volume `{key}` is not declared; add `{key}:` below `volumes:` at the top of the file"
            );
            self.problem(Some(at), path, message);
            return None;
        };
        name.clone().map(|volume| NamedVolume { volume, ..named })
    }

    /// What is said below `volume:` of a volume in its long form.
    pub(super) fn volume_options(&mut self, path: &str, node: &Node) -> CopyUp {
        let mut copy_up = CopyUp::IfEmpty;
        for found in self.entries(path, node, keys::VOLUME_OPTIONS) {
            match found.key.name {
                "nocopy" => {
                    if self.boolean(&found.path, found.value) == Some(true) {
                        copy_up = CopyUp::Never;
                    }
                }
                _ => self.leave(&found),
            }
        }
        copy_up
    }
}

/// What can be the name of a folder, and is one in Docker.
fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    text.len() <= MAX_NAME
        && text.bytes().all(allowed)
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
}
