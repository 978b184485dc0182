//! Single values of a services file: each method reads one kind of value, or notes what is wrong and gives `None`.
//!
//! A key whose value is nothing (`command:` alone) counts as left out, as in compose.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::grants::Declared;
use super::networks::DeclaredNetworks;
use super::raw::{Entry, Node, Value};
use super::{
    NetworkMode, ParseInput, Position, Problem, ProblemKind, ProjectName, RestartPolicy, Selection,
    Signal,
};
use super::{duration, words};
use crate::image::ImageRef;

/// Why a value is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) kind: ProblemKind,
    pub(super) message: String,
}

impl Refusal {
    /// The value is right, and not for this version.
    pub(super) fn unsupported(message: impl Into<String>) -> Self {
        Self { kind: ProblemKind::Unsupported, message: message.into() }
    }
}

impl From<String> for Refusal {
    fn from(message: String) -> Self {
        Self { kind: ProblemKind::Invalid, message }
    }
}

/// Collects problems while values are read.
pub(super) struct Checker<'a> {
    pub(super) input: &'a ParseInput<'a>,
    /// Names of the files that positions are of.
    pub(super) shown: &'a [String],
    pub(super) selection: &'a Selection,
    pub(super) problems: Vec<Problem>,
    /// Volumes at the top of the file, see [`Checker::declared_volumes`].
    pub(super) named_volumes: BTreeMap<String, Option<String>>,
    /// Networks at the top of the file.
    pub(super) networks: DeclaredNetworks,
    /// The project, once its name is known.
    pub(super) project: ProjectName,
    /// Configs and secrets at the top of the file.
    pub(super) declared_grants: Declared,
}

impl<'a> Checker<'a> {
    pub(super) fn new(
        input: &'a ParseInput<'a>,
        shown: &'a [String],
        selection: &'a Selection,
    ) -> Self {
        Self {
            input,
            shown,
            selection,
            problems: Vec::new(),
            named_volumes: BTreeMap::new(),
            networks: DeclaredNetworks::new(),
            project: input.project.clone(),
            declared_grants: Declared::new(),
        }
    }

    pub(super) fn problem(&mut self, at: Option<Position>, path: &str, message: impl ToString) {
        let shown = at.and_then(|at| self.shown.get(usize::from(at.file)));
        let file = shown.cloned().unwrap_or_else(|| self.input.file.to_owned());
        let message = message.to_string();
        let kind = ProblemKind::Invalid;
        self.problems.push(Problem { file, at, path: path.to_owned(), message, kind });
    }

    /// Notes what is right and not for this version.
    pub(super) fn unsupported(&mut self, at: Position, path: &str, message: impl ToString) {
        self.problem(Some(at), path, message);
        if let Some(problem) = self.problems.last_mut() {
            problem.kind = ProblemKind::Unsupported;
        }
    }

    /// Notes `refusal` at `node`.
    pub(super) fn refused<T>(
        &mut self,
        path: &str,
        node: &Node,
        result: Result<T, Refusal>,
    ) -> Option<T> {
        result
            .map_err(|refusal| match refusal.kind {
                ProblemKind::Invalid => self.problem(Some(node.at), path, refusal.message),
                ProblemKind::Unsupported => self.unsupported(node.at, path, refusal.message),
            })
            .ok()
    }

    /// Notes `error` at `node`.
    pub(super) fn checked<T, E: ToString>(
        &mut self,
        path: &str,
        node: &Node,
        result: Result<T, E>,
    ) -> Option<T> {
        result.map_err(|error| self.problem(Some(node.at), path, error)).ok()
    }

    pub(super) fn mismatch(&mut self, path: &str, node: &Node, expected: &str) {
        let message = format!("expected {expected}, found {}", node.value.kind());
        self.problem(Some(node.at), path, message);
    }

    /// The text of a scalar; numbers keep their spelling, booleans are `true` or `false`.
    pub(super) fn scalar(&mut self, path: &str, node: &Node, expected: &str) -> Option<String> {
        match &node.value {
            Value::Text(text) | Value::Number(text) => Some(text.clone()),
            Value::Bool(value) => Some(value.to_string()),
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.mismatch(path, node, expected);
                None
            }
        }
    }

    /// A text that says something.
    pub(super) fn text(&mut self, path: &str, node: &Node) -> Option<String> {
        let text = self.scalar(path, node, "a text")?;
        if text.is_empty() {
            self.problem(Some(node.at), path, "the text is empty");
            return None;
        }
        if text.contains('\0') {
            self.problem(Some(node.at), path, "the text holds a NUL character");
            return None;
        }
        Some(text)
    }

    pub(super) fn image(&mut self, path: &str, node: &Node) -> Option<ImageRef> {
        let text = self.text(path, node)?;
        match self.checked(path, node, text.parse())? {
            ImageRef::Layout { path, tag } => {
                Some(ImageRef::Layout { path: normalize(&self.input.base_dir.join(path)), tag })
            }
            image @ ImageRef::Registry { .. } => Some(image),
        }
    }

    /// A command: a text that is split into words, or a list of them.
    pub(super) fn words(&mut self, path: &str, node: &Node) -> Option<Vec<String>> {
        match &node.value {
            Value::Null => None,
            Value::List(items) => {
                let word = |(n, item): (usize, &Node)| {
                    self.scalar(&format!("{path}[{n}]"), item, "a text")
                };
                let words: Vec<_> = items.iter().enumerate().map(word).collect();
                let words: Option<Vec<String>> = words.into_iter().collect();
                self.without_nul(path, node, words?)
            }
            Value::Text(_) | Value::Number(_) | Value::Bool(_) => {
                let text = self.scalar(path, node, "a text")?;
                let words = self.checked(path, node, words::split(&text))?;
                self.without_nul(path, node, words)
            }
            Value::Map(_) => {
                self.mismatch(path, node, "a text or a list of texts");
                None
            }
        }
    }

    fn without_nul(&mut self, path: &str, node: &Node, words: Vec<String>) -> Option<Vec<String>> {
        if words.iter().any(|word| word.contains('\0')) {
            self.problem(Some(node.at), path, "a word holds a NUL character");
            return None;
        }
        Some(words)
    }

    /// Variables, as a mapping or as a list of `NAME=VALUE`; a name without a value takes it from the environment.
    pub(super) fn environment(
        &mut self,
        path: &str,
        node: &Node,
    ) -> BTreeMap<String, Option<String>> {
        let mut variables = BTreeMap::new();
        match &node.value {
            Value::Null => {}
            Value::Map(entries) => {
                for Entry { key, at, value } in entries {
                    let path = format!("{path}.{key}");
                    let given = match &value.value {
                        Value::Null => self.input.environment.get(key).cloned(),
                        _ => match self.scalar(&path, value, "a text, a number or nothing") {
                            Some(text) => Some(text),
                            None => continue,
                        },
                    };
                    self.variable(&path, *at, key, given, &mut variables);
                }
            }
            Value::List(items) => {
                for (n, item) in items.iter().enumerate() {
                    let path = format!("{path}[{n}]");
                    let Some(text) = self.scalar(&path, item, "a text `NAME=VALUE`") else {
                        continue;
                    };
                    let (name, given) = match text.split_once('=') {
                        Some((name, value)) => (name, Some(value.to_owned())),
                        None => (text.as_str(), self.input.environment.get(&text).cloned()),
                    };
                    // As in compose, the last one of a name wins.
                    self.variable(&path, item.at, name, given, &mut variables);
                }
            }
            Value::Text(_) | Value::Number(_) | Value::Bool(_) => {
                self.mismatch(path, node, "a mapping or a list of `NAME=VALUE`");
            }
        }
        variables
    }

    fn variable(
        &mut self,
        path: &str,
        at: Position,
        name: &str,
        value: Option<String>,
        variables: &mut BTreeMap<String, Option<String>>,
    ) {
        if name.is_empty() || name.contains(['=', '\0']) {
            let message = format!("`{name}` cannot be the name of a variable");
            self.problem(Some(at), path, message);
        } else if value.as_ref().is_some_and(|value| value.contains('\0')) {
            self.problem(Some(at), path, "the value holds a NUL character");
        } else {
            variables.insert(name.to_owned(), value);
        }
    }

    pub(super) fn absolute(&mut self, path: &str, node: &Node) -> Option<String> {
        if node.value == Value::Null {
            return None;
        }
        let text = self.text(path, node)?;
        if !text.starts_with('/') {
            let message = format!("`{text}` is not an absolute path in the container");
            self.problem(Some(node.at), path, message);
            return None;
        }
        Some(text)
    }

    pub(super) fn user(&mut self, path: &str, node: &Node) -> Option<String> {
        if node.value == Value::Null {
            return None;
        }
        let text = self.text(path, node)?;
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text.as_str(), None),
        };
        let is_part = |part: &str| {
            !part.is_empty() && !part.contains(|c: char| c == ':' || c.is_whitespace())
        };
        if !is_part(user) || !group.is_none_or(is_part) {
            let message = format!("`{text}` is not of the form `USER[:GROUP]`");
            self.problem(Some(node.at), path, message);
            return None;
        }
        Some(text)
    }

    pub(super) fn boolean(&mut self, path: &str, node: &Node) -> Option<bool> {
        match &node.value {
            Value::Null => None,
            Value::Bool(value) => Some(*value),
            Value::Text(text) if text == "true" || text == "false" => Some(text == "true"),
            _ => {
                self.mismatch(path, node, "`true` or `false`");
                None
            }
        }
    }

    pub(super) fn restart(&mut self, path: &str, node: &Node) -> Option<RestartPolicy> {
        match &node.value {
            Value::Null => None,
            // YAML 1.1 tools write `no` unquoted and readers make a boolean of it.
            Value::Bool(false) => Some(RestartPolicy::No),
            _ => {
                let text = self.scalar(path, node, "a restart policy")?;
                self.checked(path, node, restart_policy(&text))
            }
        }
    }

    pub(super) fn signal(&mut self, path: &str, node: &Node) -> Option<Signal> {
        if node.value == Value::Null {
            return None;
        }
        let text = self.text(path, node)?;
        self.checked(path, node, text.parse())
    }

    pub(super) fn duration(&mut self, path: &str, node: &Node) -> Option<Duration> {
        if node.value == Value::Null {
            return None;
        }
        let text = self.text(path, node)?;
        self.checked(path, node, duration::parse(&text))
    }

    pub(super) fn network_mode(&mut self, path: &str, node: &Node) -> Option<NetworkMode> {
        if node.value == Value::Null {
            return None;
        }
        let text = self.text(path, node)?;
        let mode = match (text.as_str(), text.split_once(':')) {
            ("host", _) => Ok(NetworkMode::Host),
            ("none", _) => Ok(NetworkMode::None),
            ("bridge", _) => Ok(NetworkMode::Bridge),
            (_, Some(("service", name))) => {
                name.parse().map(NetworkMode::Service).map_err(|error| error.to_string())
            }
            (_, Some(("container", name))) if !name.is_empty() => {
                Ok(NetworkMode::Container(name.to_owned()))
            }
            _ => Err(format!(
                "unknown network mode `{text}`; use `bridge`, `host`, `none`, `service:NAME` or `container:NAME`"
            )),
        };
        self.checked(path, node, mode)
    }

    /// Which profiles a service has is read before; here it is only checked.
    pub(super) fn profiles(&mut self, path: &str, node: &Node) {
        match &node.value {
            Value::Null => {}
            Value::List(items) => {
                for (n, item) in items.iter().enumerate() {
                    let path = &format!("{path}[{n}]");
                    let Some(text) = self.text(path, item) else { continue };
                    let allowed =
                        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
                    if !text.bytes().all(allowed) || !text.as_bytes()[0].is_ascii_alphanumeric() {
                        let message = format!("`{text}` cannot be the name of a profile");
                        self.problem(Some(item.at), path, message);
                    }
                }
            }
            _ => self.mismatch(path, node, "a list of profiles"),
        }
    }
}

fn restart_policy(text: &str) -> Result<RestartPolicy, String> {
    match text {
        "no" => Ok(RestartPolicy::No),
        "always" => Ok(RestartPolicy::Always),
        "unless-stopped" => Ok(RestartPolicy::UnlessStopped),
        "on-failure" => Ok(RestartPolicy::OnFailure { max: None }),
        _ => match text.strip_prefix("on-failure:").map(str::parse::<u32>) {
            // As under Docker, 0 means no limit.
            Some(Ok(0)) => Ok(RestartPolicy::OnFailure { max: None }),
            Some(Ok(max)) => Ok(RestartPolicy::OnFailure { max: Some(max) }),
            Some(Err(_)) => Err(format!("`{text}` does not end with a number of restarts")),
            None => Err(format!(
                "unknown restart policy `{text}`; use `no`, `always`, `on-failure[:N]` or `unless-stopped`"
            )),
        },
    }
}

/// `path` without `.`, `..` and doubled slashes, by its text alone; links are the business of who opens it.
pub(super) fn normalize(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => {
                normal.push(component)
            }
        }
    }
    normal
}
