//! Our own words, under `x-supervisor`: for all services at the top of the file, and for one service, whose words win.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;
use super::field::Checker;
use super::keys;
use super::object::Found;
use super::raw::Node;
use super::volume::mount_point;

/// Most files that can be named for the prefetch of a service.
const MAX_PATHS: usize = 1000;

/// What the user wrote under `x-supervisor`, the words for all services already taken over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extensions {
    /// How files of the image come to this host.
    pub lazy: Lazy,
    /// What happens to reads when the registry is gone. Nothing acts on it yet.
    pub on_registry_loss: Option<RegistryLoss>,
    /// What happens to a service that becomes unhealthy.
    pub on_unhealthy: Option<UnhealthyAction>,
    /// How health is found out from outside.
    pub probe: Option<Probe>,
    /// Who comes first when the host has too little, the highest. Nothing acts on it yet.
    pub priority: Option<i32>,
    /// Where ports are published that name no address.
    pub ports_bind: Option<IpAddr>,
}

/// What the user wrote under `x-supervisor.lazy`. It says how content comes and not what the container is, so no
/// container is made again when it changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lazy {
    /// Whether files come when they are read. `None`: [`LazyMode::Auto`].
    pub mode: Option<LazyMode>,
    /// When files come that the service reads first. `None`: [`Prefetch::Overlap`].
    pub prefetch: Option<Prefetch>,
    /// Absolute, normalized paths in the container of files that the service reads first; empty: those that the image
    /// names. `None`: not said.
    pub prefetch_paths: Option<Vec<String>>,
    /// Whether the rest of the image comes while the service runs. `None`: yes.
    pub background: Option<bool>,
}

/// Whether files come when they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LazyMode {
    /// Where image and host allow it.
    #[default]
    Auto,
    /// Never: the image is complete before the start.
    Off,
    /// Always: what cannot be lazy does not start.
    Require,
}

/// When files come that the service reads first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prefetch {
    /// While it starts.
    #[default]
    Overlap,
    /// Before it starts.
    Before,
    /// When they are read.
    Off,
}

impl Lazy {
    /// The mode that holds.
    #[must_use]
    pub fn mode(&self) -> LazyMode {
        self.mode.unwrap_or_default()
    }

    /// The prefetch that holds.
    #[must_use]
    pub fn prefetch(&self) -> Prefetch {
        self.prefetch.unwrap_or_default()
    }

    /// The same for images that are mounted in the service: the paths are those of its own.
    #[must_use]
    pub fn without_paths(&self) -> Self {
        Self { prefetch_paths: None, ..self.clone() }
    }

    /// The files that the service reads first, in the order of the file; empty: those that the image names.
    #[must_use]
    pub fn prefetch_paths(&self) -> &[String] {
        self.prefetch_paths.as_deref().unwrap_or_default()
    }

    /// Whether the rest of the image comes while the service runs.
    #[must_use]
    pub fn background(&self) -> bool {
        self.background.unwrap_or(true)
    }
}

/// What happens to reads of a lazy service when the registry is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryLoss {
    /// They wait, at most this long where it is given, and then fail.
    Wait(Option<Duration>),
    /// They fail.
    Fail,
}

/// What happens to a service that becomes unhealthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnhealthyAction {
    /// It is restarted.
    Restart,
    /// It is stopped.
    Stop,
    /// It is only told.
    None,
}

/// How health is found out from outside of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What is asked.
    pub target: ProbeTarget,
    /// From one probe to the next.
    pub interval: Option<Duration>,
    /// How long one probe may take.
    pub timeout: Option<Duration>,
    /// How long failures do not count after the start.
    pub start_period: Option<Duration>,
    /// Failures in a row that make it unhealthy.
    pub retries: Option<u32>,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeTarget {
    /// A port that takes connections.
    Tcp(u16),
    /// A path that is answered with a code from 200 to 399.
    Http {
        /// In the container.
        port: u16,
        /// Begins with `/`.
        path: String,
    },
}

impl Extensions {
    /// Takes over from `all` what is not said.
    pub(super) fn complete(&mut self, all: &Self) {
        let lazy = &mut self.lazy;
        lazy.mode = lazy.mode.or(all.lazy.mode);
        lazy.prefetch = lazy.prefetch.or(all.lazy.prefetch);
        lazy.background = lazy.background.or(all.lazy.background);
        if lazy.prefetch_paths.is_none() {
            lazy.prefetch_paths.clone_from(&all.lazy.prefetch_paths);
        }
        self.on_registry_loss = self.on_registry_loss.or(all.on_registry_loss);
        self.on_unhealthy = self.on_unhealthy.or(all.on_unhealthy);
        self.priority = self.priority.or(all.priority);
        self.ports_bind = self.ports_bind.or(all.ports_bind);
        if self.probe.is_none() {
            self.probe.clone_from(&all.probe);
        }
    }
}

impl Checker<'_> {
    pub(super) fn extensions(&mut self, path: &str, node: &Node) -> Extensions {
        let mut words = Extensions::default();
        for found in self.entries(path, node, keys::SUPERVISOR) {
            let (path, value) = (found.path.as_str(), found.value);
            match found.key.name {
                "lazy" => words.lazy = self.lazy(path, value),
                "on_registry_loss" => {
                    words.on_registry_loss = self.text(path, value).and_then(|text| {
                        let read = registry_loss(&text);
                        self.checked(path, value, read)
                    });
                }
                "on_unhealthy" => {
                    let choices = [
                        ("restart", UnhealthyAction::Restart),
                        ("stop", UnhealthyAction::Stop),
                        ("none", UnhealthyAction::None),
                    ];
                    words.on_unhealthy = self.choice(&found, &choices);
                }
                "probe" => words.probe = self.probe(path, value),
                "ports_bind" => {
                    words.ports_bind = self.text(path, value).and_then(|text| {
                        let address = text.parse().map_err(|_| format!("`{text}` is no address"));
                        self.checked(path, value, address)
                    });
                }
                "priority" => {
                    let number = self.integer(path, value, -1000, 1000);
                    words.priority = number.and_then(|number| i32::try_from(number).ok());
                }
                _ => {}
            }
            self.leave(&found);
        }
        words
    }

    fn lazy(&mut self, path: &str, node: &Node) -> Lazy {
        let mut lazy = Lazy::default();
        for found in self.entries(path, node, keys::LAZY) {
            let (path, value) = (found.path.as_str(), found.value);
            match found.key.name {
                "mode" => {
                    let choices = [
                        ("auto", LazyMode::Auto),
                        ("off", LazyMode::Off),
                        ("require", LazyMode::Require),
                    ];
                    lazy.mode = self.choice(&found, &choices);
                    if lazy.mode.is_some() {
                        self.only(&found, &["auto"]);
                    }
                }
                "prefetch" => {
                    let choices = [
                        ("overlap", Prefetch::Overlap),
                        ("before", Prefetch::Before),
                        ("off", Prefetch::Off),
                    ];
                    lazy.prefetch = self.choice(&found, &choices);
                }
                "prefetch_paths" => {
                    let mut paths: Vec<String> = Vec::new();
                    for (path, text, item) in self.texts(path, value) {
                        let point = mount_point(&text)
                            .map_err(|_| format!("`{text}` is no absolute path of a file"));
                        let Some(file) = self.checked(&path, item, point) else { continue };
                        if !paths.contains(&file) {
                            paths.push(file);
                        }
                    }
                    if paths.len() > MAX_PATHS {
                        let message = format!("more than {MAX_PATHS} paths are named");
                        self.problem(Some(value.at), path, message);
                    }
                    lazy.prefetch_paths = Some(paths);
                }
                "background" => {
                    lazy.background = self.boolean(path, value);
                    if lazy.background.is_some() {
                        self.only(&found, &["true"]);
                    }
                }
                _ => self.leave(&found),
            }
        }
        lazy
    }

    fn probe(&mut self, path: &str, node: &Node) -> Option<Probe> {
        let mut targets = Vec::new();
        let mut probe = Probe {
            target: ProbeTarget::Tcp(0),
            interval: None,
            timeout: None,
            start_period: None,
            retries: None,
        };
        for found in self.entries(path, node, keys::PROBE) {
            let (path, value) = (found.path.as_str(), found.value);
            match found.key.name {
                "tcp" => {
                    let port = self.integer(path, value, 1, 65_535);
                    targets.extend(port.and_then(|n| u16::try_from(n).ok()).map(ProbeTarget::Tcp));
                }
                "http" => {
                    let read = self.text(path, value).map(|text| http(&text));
                    let target = read.and_then(|read| self.checked(path, value, read));
                    targets.extend(target);
                }
                "interval" => probe.interval = self.duration(path, value),
                "timeout" => probe.timeout = self.duration(path, value),
                "start_period" => probe.start_period = self.duration(path, value),
                "retries" => {
                    let retries = self.integer(path, value, 1, 1000);
                    probe.retries = retries.and_then(|retries| u32::try_from(retries).ok());
                }
                _ => self.leave(&found),
            }
        }
        let mut targets = targets.into_iter();
        match (targets.next(), targets.next()) {
            (Some(target), None) => Some(Probe { target, ..probe }),
            (Some(_), Some(_)) => {
                self.problem(Some(node.at), path, "a probe has one of `http` and `tcp`");
                None
            }
            (None, _) => {
                if node.get("http").is_none() && node.get("tcp").is_none() {
                    self.problem(Some(node.at), path, "a probe has `http` or `tcp`");
                }
                None
            }
        }
    }

    fn choice<T: Copy>(&mut self, found: &Found<'_>, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(&found.path, found.value)?;
        let chosen = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if chosen.is_none() {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("`{name}`")).collect();
            let message = format!("`{text}` is none of {}", names.join(", "));
            self.problem(Some(found.value.at), &found.path, message);
        }
        chosen
    }
}

/// `wait`, `wait 10m` or `fail`.
fn registry_loss(text: &str) -> Result<RegistryLoss, String> {
    match text.split_once(' ') {
        None if text == "wait" => Ok(RegistryLoss::Wait(None)),
        None if text == "fail" => Ok(RegistryLoss::Fail),
        Some(("wait", limit)) => duration::parse(limit)
            .map(|limit| RegistryLoss::Wait(Some(limit)))
            .map_err(|error| error.to_string()),
        _ => Err(format!("`{text}` is none of `wait`, `wait 10m`, `fail`")),
    }
}

/// `8080/healthy`, `8080` or `:8080/healthy`.
fn http(text: &str) -> Result<ProbeTarget, String> {
    let rest = text.strip_prefix(':').unwrap_or(text);
    let (port, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/" } else { path };
    let is_path = path.bytes().all(|b| b.is_ascii_graphic());
    match port.parse::<u16>() {
        Ok(port) if port > 0 && is_path => Ok(ProbeTarget::Http { port, path: path.to_owned() }),
        _ => Err(format!("`{text}` is no port and path, such as `8080/healthy`")),
    }
}
