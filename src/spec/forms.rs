//! Long forms: compose lets many keys be written in several ways, and this makes one of them.
//!
//! What is malformed stays as it is written: saying what is wrong with it is the business of the validation.

use super::raw::{Entry, Node, Value};
use super::{ports, tree, words};

/// How a key may be written, and how two of them are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A mapping, or a list of `NAME=VALUE`.
    Pairs,
    /// A mapping, or a list of names: what each name stands for when nothing more is said.
    Names,
    /// As [`Form::Names`], with a condition.
    Dependencies,
    /// A text, or a list of texts of which each counts once.
    Texts,
    /// A list in which each text counts once, however often it is written.
    Unique,
    /// A text that is split into words, or a list of them; replaced as a whole.
    Words,
    /// As [`Form::Words`]; a text is for a shell.
    Test,
    /// Files with variables.
    EnvFiles,
    /// Published ports.
    Ports,
    /// What is mounted, one a target.
    Volumes,
    /// Devices, one a target.
    Devices,
    /// Configs and secrets, one a target.
    Grants,
    /// A folder, or a mapping with `context`.
    Build,
    /// Replaced as a whole when the driver is another one.
    Logging,
}

/// The keys that have more forms than one.
const FORMS: [(&str, Form); 41] = [
    ("services.*.environment", Form::Pairs),
    ("services.*.labels", Form::Pairs),
    ("services.*.annotations", Form::Pairs),
    ("services.*.sysctls", Form::Pairs),
    ("services.*.build.args", Form::Pairs),
    ("services.*.build.labels", Form::Pairs),
    ("services.*.deploy.labels", Form::Pairs),
    ("networks.*.labels", Form::Pairs),
    ("volumes.*.labels", Form::Pairs),
    ("configs.*.labels", Form::Pairs),
    ("secrets.*.labels", Form::Pairs),
    ("services.*.networks", Form::Names),
    ("services.*.models", Form::Names),
    ("services.*.depends_on", Form::Dependencies),
    ("services.*.dns", Form::Texts),
    ("services.*.dns_opt", Form::Texts),
    ("services.*.dns_search", Form::Texts),
    ("services.*.tmpfs", Form::Texts),
    ("services.*.label_file", Form::Texts),
    ("services.*.cap_add", Form::Unique),
    ("services.*.cap_drop", Form::Unique),
    ("services.*.expose", Form::Unique),
    ("services.*.extra_hosts", Form::Unique),
    ("services.*.external_links", Form::Unique),
    ("services.*.group_add", Form::Unique),
    ("services.*.links", Form::Unique),
    ("services.*.profiles", Form::Unique),
    ("services.*.security_opt", Form::Unique),
    ("services.*.volumes_from", Form::Unique),
    ("services.*.networks.*.aliases", Form::Unique),
    ("services.*.command", Form::Words),
    ("services.*.entrypoint", Form::Words),
    ("services.*.healthcheck.test", Form::Test),
    ("services.*.env_file", Form::EnvFiles),
    ("services.*.ports", Form::Ports),
    ("services.*.volumes", Form::Volumes),
    ("services.*.devices", Form::Devices),
    ("services.*.configs", Form::Grants),
    ("services.*.secrets", Form::Grants),
    ("services.*.build", Form::Build),
    ("services.*.logging", Form::Logging),
];

/// The form of the key at `path`.
pub(crate) fn of(path: &[&str]) -> Option<Form> {
    FORMS.iter().find(|(pattern, _)| tree::matches(pattern, path)).map(|(_, form)| *form)
}

/// The whole tree in long forms.
pub(crate) fn canonical(root: &Node) -> Node {
    walk(root.clone(), &mut Vec::new())
}

fn walk(node: Node, path: &mut Vec<String>) -> Node {
    let borrowed: Vec<&str> = path.iter().map(String::as_str).collect();
    let mut node = match of(&borrowed) {
        Some(form) => form.long(node),
        None => node,
    };
    if let (["services", _, "restart"], Value::Bool(false)) = (borrowed.as_slice(), &node.value) {
        node.value = Value::Text("no".to_owned());
    }
    if let Some(entries) = node.entries_mut() {
        for entry in entries {
            path.push(std::mem::take(&mut entry.key));
            let value = std::mem::replace(&mut entry.value, Node::text("", entry.at));
            entry.value = walk(value, path);
            entry.key = path.pop().unwrap_or_default();
        }
    }
    node
}

impl Form {
    /// `node` in its long form, or as it is if it has none.
    pub(crate) fn long(self, node: Node) -> Node {
        let at = node.at;
        match (self, &node.value) {
            (_, Value::Null) => node,
            (Self::Pairs, Value::Map(_) | Value::List(_)) => pairs(node),
            (Self::Names, Value::List(items)) => {
                keyed(&node, items, |item| Node { value: Value::Null, at: item.at })
            }
            (Self::Dependencies, Value::List(items)) => keyed(&node, items, |item| {
                let started = Node::text("service_started", item.at);
                let required = Node { value: Value::Bool(true), at: item.at };
                Node::map(vec![("condition", started), ("required", required)], item.at)
            }),
            (Self::Texts, Value::Text(text)) => {
                Node { value: Value::List(vec![Node::text(text.clone(), at)]), at }
            }
            (Self::Texts | Self::Unique, Value::List(items)) => {
                let text = |item: &Node| match item.scalar() {
                    Some(text) => Node::text(text, item.at),
                    None => item.clone(),
                };
                Node { value: Value::List(items.iter().map(text).collect()), at }
            }
            (Self::Words, Value::Text(text)) => match words::split(text) {
                Ok(words) => {
                    let words = words.into_iter().map(|word| Node::text(word, at)).collect();
                    Node { value: Value::List(words), at }
                }
                Err(_) => node,
            },
            (Self::Test, Value::Text(text)) => {
                let words = vec![Node::text("CMD-SHELL", at), Node::text(text.clone(), at)];
                Node { value: Value::List(words), at }
            }
            (Self::EnvFiles, Value::Text(_)) => {
                Node { value: Value::List(vec![env_file(node)]), at }
            }
            (Self::EnvFiles, Value::List(items)) => {
                Node { value: Value::List(items.iter().cloned().map(env_file).collect()), at }
            }
            (Self::Ports, Value::List(items)) => {
                Node { value: Value::List(items.iter().flat_map(ports::long).collect()), at }
            }
            (Self::Volumes, Value::List(items)) => {
                Node { value: Value::List(items.iter().map(volume).collect()), at }
            }
            (Self::Devices, Value::List(items)) => {
                Node { value: Value::List(items.iter().map(device).collect()), at }
            }
            (Self::Grants, Value::List(items)) => {
                let grant = |item: &Node| match &item.value {
                    Value::Text(name) => {
                        Node::map(vec![("source", Node::text(name.clone(), item.at))], item.at)
                    }
                    _ => item.clone(),
                };
                Node { value: Value::List(items.iter().map(grant).collect()), at }
            }
            (Self::Build, Value::Text(context)) => {
                Node::map(vec![("context", Node::text(context.clone(), at))], at)
            }
            _ => node,
        }
    }

    /// What makes an item of a list the same as one of an earlier file.
    pub(crate) fn identity(self, item: &Node) -> Option<String> {
        let field = |key: &str| item.get(key).and_then(Node::scalar);
        match self {
            Self::Texts | Self::Unique => item.scalar(),
            Self::EnvFiles => field("path"),
            Self::Ports => Some(format!(
                "{}:{}:{}/{}",
                field("host_ip").unwrap_or_default(),
                field("published").unwrap_or_default(),
                field("target")?,
                field("protocol").unwrap_or_else(|| "tcp".to_owned())
            )),
            Self::Volumes | Self::Devices => field("target"),
            Self::Grants => field("target").or_else(|| field("source")),
            _ => None,
        }
    }
}

/// A mapping from texts to texts; nothing stays nothing.
fn pairs(node: Node) -> Node {
    let at = node.at;
    let text = |value: Node| match value.scalar() {
        Some(text) => Node::text(text, value.at),
        None => value,
    };
    match node.value {
        Value::Map(entries) => {
            let entry = |entry: Entry| Entry { value: text(entry.value), ..entry };
            Node { value: Value::Map(entries.into_iter().map(entry).collect()), at }
        }
        Value::List(ref items) => {
            let mut map = Node { value: Value::Map(Vec::new()), at };
            for item in items {
                let Some(pair) = item.scalar() else { return node };
                match pair.split_once('=') {
                    Some((name, value)) => map.set(name, item.at, Node::text(value, item.at)),
                    None => map.set(&pair, item.at, Node { value: Value::Null, at: item.at }),
                }
            }
            map
        }
        _ => node,
    }
}

fn keyed(node: &Node, items: &[Node], value: impl Fn(&Node) -> Node) -> Node {
    let mut map = Node { value: Value::Map(Vec::new()), at: node.at };
    for item in items {
        let Some(name) = item.scalar() else { return node.clone() };
        map.set(&name, item.at, value(item));
    }
    map
}

fn env_file(node: Node) -> Node {
    let at = node.at;
    match &node.value {
        Value::Text(path) => {
            let required = Node { value: Value::Bool(true), at };
            Node::map(vec![("path", Node::text(path.clone(), at)), ("required", required)], at)
        }
        _ => node,
    }
}

fn device(item: &Node) -> Node {
    let Value::Text(text) = &item.value else { return item.clone() };
    let mut parts = text.split(':');
    let (Some(source), target, permissions, None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return item.clone();
    };
    let text = |text: &str| Node::text(text, item.at);
    Node::map(
        vec![
            ("source", text(source)),
            ("target", text(target.unwrap_or(source))),
            ("permissions", text(permissions.unwrap_or("rwm"))),
        ],
        item.at,
    )
}

/// A volume in the short form; the source of a folder is absolute by now.
fn volume(item: &Node) -> Node {
    let Value::Text(text) = &item.value else { return item.clone() };
    let at = item.at;
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => (None, *target, ""),
        [source, target] => (Some(*source), *target, ""),
        [source, target, options] => (Some(*source), *target, *options),
        _ => return item.clone(),
    };
    if source == Some("") || !target.starts_with('/') {
        return item.clone();
    }
    let is_bind = source.is_some_and(|source| source.starts_with(['/', '.', '~']));
    let flag = |value: bool| Node { value: Value::Bool(value), at };
    let mut own = Vec::new();
    let mut long = vec![("type", Node::text(if is_bind { "bind" } else { "volume" }, at))];
    if let Some(source) = source {
        long.push(("source", Node::text(source, at)));
    }
    long.push(("target", Node::text(target, at)));
    if is_bind {
        own.push(("create_host_path", flag(true)));
    }
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "rw" => {}
            "ro" => long.push(("read_only", flag(true))),
            "z" | "Z" if is_bind => own.push(("selinux", Node::text(option, at))),
            "cached" | "delegated" | "consistent" => {
                long.push(("consistency", Node::text(option, at)));
            }
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" if is_bind => {
                own.push(("propagation", Node::text(option, at)));
            }
            "nocopy" if !is_bind => own.push(("nocopy", flag(true))),
            _ => return item.clone(),
        }
    }
    if !own.is_empty() {
        long.push((if is_bind { "bind" } else { "volume" }, Node::map(own, at)));
    }
    Node::map(long, at)
}
