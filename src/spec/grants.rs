//! Configs and secrets: small files that are given to services, with who may read them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::field::{Checker, normalize};
use super::keys;
use super::raw::{Entry, Node, Value};
use super::volume::mount_point;

/// A config or secret as a service sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Which of the two it is.
    pub kind: GrantKind,
    /// Its key at the top of the file.
    pub source: String,
    /// Absolute, normalized path in the container.
    pub target: String,
    /// What is in it.
    pub content: GrantContent,
    /// Its owner. `None`: root.
    pub uid: Option<u32>,
    /// Its group. `None`: root's.
    pub gid: Option<u32>,
    /// Its permission bits. `None`: 0444.
    pub mode: Option<u32>,
}

/// Configs and secrets differ in where they are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GrantKind {
    /// At `/NAME`.
    Config,
    /// At `/run/secrets/NAME`.
    Secret,
}

/// What is in a config or secret.
#[derive(Clone, PartialEq, Eq)]
pub enum GrantContent {
    /// What is in this file of the host when a container starts.
    File(PathBuf),
    /// This.
    Text(String),
}

impl std::fmt::Debug for GrantContent {
    /// Without the text, which may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
        }
    }
}

impl GrantKind {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Config, Self::Secret];

    /// The key, at the top of the file and of a service.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Config => "configs",
            Self::Secret => "secrets",
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Config => "/",
            Self::Secret => "/run/secrets",
        }
    }
}

/// What the top of the file says: what is in them, or why that is not known; `Err(None)` if it was told.
pub(super) type Declared = BTreeMap<(GrantKind, String), Result<GrantContent, Option<String>>>;

impl Checker<'_> {
    /// Reads `configs` or `secrets` at the top of the file.
    pub(super) fn declare_grants(&mut self, kind: GrantKind, node: &Node) {
        let entries = match &node.value {
            Value::Null => return,
            Value::Map(entries) => entries,
            _ => return self.mismatch(kind.key(), node, "a mapping from names"),
        };
        for Entry { key, value, .. } in entries {
            if key.starts_with("x-") {
                continue;
            }
            let path = format!("{}.{key}", kind.key());
            let content = self.grant_content(&path, value);
            self.declared_grants.insert((kind, key.clone()), content);
        }
    }

    fn grant_content(&mut self, path: &str, node: &Node) -> Result<GrantContent, Option<String>> {
        let before = self.problems.len();
        let mut contents = Vec::new();
        for found in self.entries(path, node, keys::GRANT) {
            let (path, value) = (found.path.as_str(), found.value);
            match found.key.name {
                "file" => {
                    let file = self.text(path, value).ok_or(None)?;
                    let file = normalize(&self.input.base_dir.join(file));
                    contents.push(Ok(GrantContent::File(file)));
                }
                "content" => {
                    let text = self.scalar(path, value, "a text").ok_or(None)?;
                    contents.push(Ok(GrantContent::Text(text)));
                }
                "environment" => {
                    let name = self.text(path, value).ok_or(None)?;
                    let message = format!("the variable `{name}` is not set");
                    let text = self.input.environment.get(&name).cloned();
                    contents.push(text.map(GrantContent::Text).ok_or(Some(message)));
                }
                "external" => {
                    if self.boolean(path, value).is_some() {
                        self.only(&found, &["false"]);
                    }
                }
                _ => self.leave(&found),
            }
        }
        match (contents.pop(), contents.len()) {
            _ if self.problems.len() > before => Err(None),
            (Some(content), 0) => content,
            _ => {
                let message = "it has one of `file`, `content` and `environment`";
                self.problem(Some(node.at), path, message);
                Err(None)
            }
        }
    }

    /// Reads `configs` or `secrets` of a service.
    pub(super) fn grants(&mut self, kind: GrantKind, path: &str, node: &Node) -> Vec<Grant> {
        let Value::List(items) = &node.value else {
            self.mismatch(path, node, "a list of names or mappings");
            return Vec::new();
        };
        let mut grants = Vec::with_capacity(items.len());
        for (n, item) in items.iter().enumerate() {
            let path = &format!("{path}[{n}]");
            let (mut source, mut target) = (None, None);
            let (mut uid, mut gid, mut mode) = (None, None, None);
            if let Value::Map(_) = item.value {
                for found in self.entries(path, item, keys::GRANTED) {
                    let (path, value) = (found.path.as_str(), found.value);
                    match found.key.name {
                        "source" => source = self.text(path, value),
                        "target" => target = self.text(path, value),
                        "uid" => uid = self.id(path, value),
                        "gid" => gid = self.id(path, value),
                        "mode" => mode = self.mode(path, value),
                        _ => self.leave(&found),
                    }
                }
            } else {
                source = self.text(path, item);
            }
            let Some(source) = source else {
                if item.get("source").is_none() && matches!(item.value, Value::Map(_)) {
                    self.problem(Some(item.at), path, "there is no `source:`");
                }
                continue;
            };
            let target = Path::new(kind.folder()).join(target.as_deref().unwrap_or(&source));
            let target = mount_point(&target.to_string_lossy());
            let target = self.checked(path, item, target);
            let content = match self.declared_grants.get(&(kind, source.clone())).cloned() {
                Some(Ok(content)) => Some(content),
                Some(Err(None)) => None,
                Some(Err(Some(message))) => self.checked(path, item, Err(message)),
                None => {
                    let key = kind.key();
                    let message =
                        format!("`{source}` is not declared below `{key}:` at the top of the file");
                    self.checked(path, item, Err(message))
                }
            };
            if let (Some(target), Some(content)) = (target, content) {
                grants.push(Grant { kind, source, target, content, uid, gid, mode });
            }
        }
        grants
    }

    fn id(&mut self, path: &str, node: &Node) -> Option<u32> {
        let number = self.integer(path, node, 0, i64::from(u32::MAX) - 1)?;
        u32::try_from(number).ok()
    }
}
