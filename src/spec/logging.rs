//! `logging:` of a service: where its output is kept, and how much of it. What Docker's drivers know and this
//! version does not is an error with its reason.

use std::collections::BTreeSet;

use super::field::Checker;
use super::raw::{Entry, Node, Value};
use super::size::{self, Base};

/// Most files of one log; more would make reading them back slow and are surely a mistake.
const MAX_FILES: u32 = 100;
/// Smallest size of a log file: below it a few lines would be all that is kept.
const MIN_SIZE: u64 = 1000;

/// What the user wrote under `logging:`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logging {
    /// How output is kept. `None`: as JSON lines.
    pub driver: Option<LogDriver>,
    /// Bytes of one file; zero is no limit. `None`: the default.
    pub max_size: Option<u64>,
    /// Files of one log, the current one included. `None`: the default.
    pub max_files: Option<u32>,
    /// What happens when the log cannot keep up. `None`: the container waits.
    pub mode: Option<LogMode>,
    /// Bytes that may wait to be written before lines are dropped; of [`LogMode::NonBlocking`] only.
    pub max_buffer_size: Option<u64>,
    /// Variables of the container whose values every line carries.
    pub env: BTreeSet<String>,
    /// Template of the tag that every line carries; holds only placeholders that [`Logging::tag`] fills.
    pub tag: Option<String>,
}

/// How output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogDriver {
    /// As JSON lines that every scraper of Docker's files reads.
    JsonFile,
    /// The same: Docker stores it in a form of its own, and nothing but Docker can read that.
    Local,
    /// Not at all.
    None,
}

/// What happens to a container whose output comes faster than it can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogMode {
    /// It waits.
    Blocking,
    /// Lines are dropped and counted.
    NonBlocking,
}

impl LogDriver {
    fn name(self) -> &'static str {
        match self {
            Self::JsonFile => "json-file",
            Self::Local => "local",
            Self::None => "none",
        }
    }
}

impl Logging {
    /// The tag of a container of this name and image.
    #[must_use]
    pub fn tag(&self, container: &str, image: &str) -> Option<String> {
        let tag = self.tag.as_ref()?;
        Some(
            pieces(tag)
                .map(|piece| match piece {
                    Piece::Text(text) => text,
                    Piece::Placeholder("Name" | "ID" | "FullID") => container,
                    Piece::Placeholder("ImageName") => image,
                    Piece::Placeholder(_) => "",
                })
                .collect(),
        )
    }

    /// What the user wrote, in an order of its own; for the fingerprint.
    pub(super) fn written(&self) -> serde_json::Value {
        let mode = self.mode.map(|mode| mode == LogMode::NonBlocking);
        serde_json::json!({
            "driver": self.driver.map(LogDriver::name), "max-size": self.max_size, "max-file": self.max_files,
            "non-blocking": mode, "max-buffer-size": self.max_buffer_size, "env": self.env, "tag": self.tag,
        })
    }
}

enum Piece<'a> {
    Text(&'a str),
    Placeholder(&'a str),
}

/// A template cut at its `{{.Name}}`s.
fn pieces(template: &str) -> impl Iterator<Item = Piece<'_>> {
    template.split("{{").enumerate().flat_map(|(number, part)| match part.split_once("}}") {
        Some((inside, after)) if number > 0 => {
            let name = inside.trim();
            [Piece::Placeholder(name.strip_prefix('.').unwrap_or(name)), Piece::Text(after)]
        }
        _ => [Piece::Text(part), Piece::Text("")],
    })
}

impl Checker<'_> {
    pub(super) fn logging(&mut self, path: &str, node: &Node) -> Option<Logging> {
        let entries = match &node.value {
            Value::Null => return None,
            Value::Map(entries) => entries,
            other => {
                let message = format!(
                    "expected a mapping with `driver:` and `options:`, found {}",
                    other.kind()
                );
                self.problem(Some(node.at), path, message);
                return None;
            }
        };
        let mut logging = Logging::default();
        let mut options = None;
        for Entry { key, at, value } in entries {
            let path = format!("{path}.{key}");
            match key.as_str() {
                _ if value.value == Value::Null => {}
                "driver" => logging.driver = self.log_driver(&path, value),
                "options" => options = Some((path, value)),
                _ if key.starts_with("x-") => {}
                _ => self.problem(
                    Some(*at),
                    &path,
                    format!("unknown key `{key}`; `logging` has `driver` and `options`"),
                ),
            }
        }
        if let Some((path, value)) = options {
            self.log_options(&path, value, &mut logging);
        }
        Some(logging)
    }

    fn log_driver(&mut self, path: &str, node: &Node) -> Option<LogDriver> {
        let text = self.text(path, node)?;
        let reason = match text.as_str() {
            "json-file" => return Some(LogDriver::JsonFile),
            "local" => return Some(LogDriver::Local),
            "none" => return Some(LogDriver::None),
            "journald" | "syslog" | "gelf" | "fluentd" | "awslogs" | "splunk" | "gcplogs"
            | "etwlogs" | "logentries" => {
                format!(
                    "logging driver `{text}` is not supported: output is kept in files of this host that a \
                     scraper can send on; use `json-file`, `local` or `none`"
                )
            }
            _ => format!("unknown logging driver `{text}`; use `json-file`, `local` or `none`"),
        };
        self.problem(Some(node.at), path, reason);
        None
    }

    fn log_options(&mut self, path: &str, node: &Node, logging: &mut Logging) {
        let Value::Map(entries) = &node.value else {
            let message = format!("expected a mapping, found {}", node.value.kind());
            self.problem(Some(node.at), path, message);
            return;
        };
        for Entry { key, at, value } in entries {
            let path = &format!("{path}.{key}");
            // A value of nothing counts as left out.
            if value.value == Value::Null || key.starts_with("x-") {
                continue;
            }
            let Some(text) = self.text(path, value) else { continue };
            let result = option(key, &text, logging);
            if let Err((place, message)) = result {
                let at = if place == Place::Key { *at } else { value.at };
                self.problem(Some(at), path, message);
            }
            if key == "max-buffer-size" && !is_non_blocking(entries) {
                let message = "`max-buffer-size` has no meaning without `mode: non-blocking`";
                self.problem(Some(*at), path, message);
            }
            if logging.driver == Some(LogDriver::None) {
                let message = "logging driver `none` keeps nothing, so it has no options";
                self.problem(Some(*at), path, message);
            }
        }
    }
}

fn is_non_blocking(entries: &[Entry]) -> bool {
    entries.iter().any(|entry| {
        entry.key == "mode"
            && matches!(&entry.value.value, Value::Text(text) if text == "non-blocking")
    })
}

/// What is wrong: the option or its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Key,
    Value,
}

/// Takes one option over.
fn option(key: &str, text: &str, logging: &mut Logging) -> Result<(), (Place, String)> {
    let wrong = |message: String| Err((Place::Value, message));
    let unsupported =
        |why: &str| Err((Place::Key, format!("logging option `{key}` is not supported: {why}")));
    match key {
        // As under Docker: no limit.
        "max-size" if text == "-1" => logging.max_size = Some(0),
        "max-size" => match size::parse(text, Base::Decimal) {
            Ok(size) if size >= MIN_SIZE => logging.max_size = Some(size),
            Ok(_) => {
                return wrong(format!(
                    "`{text}` is too small for a log file; write for example `10m`, or `-1` for no limit"
                ));
            }
            Err(error) => return wrong(error.to_string()),
        },
        "max-file" => match text.parse::<u32>() {
            Ok(files @ 1..=MAX_FILES) => logging.max_files = Some(files),
            _ => return wrong(format!("`{text}` is not a number of files from 1 to {MAX_FILES}")),
        },
        "mode" => match text {
            "blocking" => logging.mode = Some(LogMode::Blocking),
            "non-blocking" => logging.mode = Some(LogMode::NonBlocking),
            _ => return wrong(format!("unknown mode `{text}`; use `blocking` or `non-blocking`")),
        },
        "max-buffer-size" => match size::parse(text, Base::Binary) {
            Ok(size @ 1..) => logging.max_buffer_size = Some(size),
            Ok(_) => return wrong("the buffer must hold at least a byte".to_owned()),
            Err(error) => return wrong(error.to_string()),
        },
        "env" => logging.env.extend(
            text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned),
        ),
        "tag" => {
            let known = ["Name", "ID", "FullID", "ImageName"];
            let unknown = pieces(text).find_map(|piece| match piece {
                Piece::Placeholder(name) if !known.contains(&name) => Some(name.to_owned()),
                _ => None,
            });
            if let Some(name) = unknown {
                return wrong(format!(
                    "`{{{{.{name}}}}}` is not supported in a tag; use {{{{.Name}}}}, {{{{.ID}}}}, {{{{.FullID}}}} or {{{{.ImageName}}}}"
                ));
            }
            logging.tag = Some(text.to_owned());
        }
        "compress" if text == "false" => {}
        "compress" => {
            return unsupported(
                "older files stay as they are, so that scrapers can read them; leave it out",
            );
        }
        "labels" | "labels-regex" => return unsupported("services have no labels in this version"),
        "env-regex" => return unsupported("name the variables in `env`"),
        _ => {
            let known = "`max-size`, `max-file`, `mode`, `max-buffer-size`, `env`, `tag`";
            return Err((Place::Key, format!("unknown logging option `{key}`; there are {known}")));
        }
    }
    Ok(())
}
