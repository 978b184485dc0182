//! `healthcheck` of a service: how its health is found out.

use std::time::Duration;

use super::field::Checker;
use super::keys;
use super::raw::{Node, Value};

/// What the user wrote under `healthcheck:`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// How it is checked. `None`: as the image says.
    pub test: Option<HealthTest>,
    /// From one check to the next.
    pub interval: Option<Duration>,
    /// How long one check may take.
    pub timeout: Option<Duration>,
    /// How long failures do not count after the start.
    pub start_period: Option<Duration>,
    /// From one check to the next, while it starts.
    pub start_interval: Option<Duration>,
    /// Failures in a row that make it unhealthy.
    pub retries: Option<u32>,
}

/// How health is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthTest {
    /// Not at all.
    Disabled,
    /// By a program and its arguments.
    Command(Vec<String>),
    /// By a text for the container's shell.
    Shell(String),
}

impl Checker<'_> {
    pub(super) fn healthcheck(&mut self, path: &str, node: &Node) -> Option<Healthcheck> {
        if node.value == Value::Null {
            return None;
        }
        let mut check = Healthcheck::default();
        let mut disabled = None;
        for found in self.entries(path, node, keys::HEALTHCHECK) {
            let (path, value) = (found.path.as_str(), found.value);
            match found.key.name {
                "test" => check.test = self.health_test(path, value),
                "interval" => check.interval = self.duration(path, value),
                "timeout" => check.timeout = self.duration(path, value),
                "start_period" => check.start_period = self.duration(path, value),
                "start_interval" => check.start_interval = self.duration(path, value),
                "retries" => {
                    let retries = self.integer(path, value, 0, i64::from(u32::MAX));
                    check.retries = retries.and_then(|retries| u32::try_from(retries).ok());
                }
                "disable" => disabled = self.boolean(path, value),
                _ => self.leave(&found),
            }
        }
        if disabled == Some(true) {
            check.test = Some(HealthTest::Disabled);
        }
        Some(check)
    }

    fn health_test(&mut self, path: &str, node: &Node) -> Option<HealthTest> {
        let Value::List(items) = &node.value else {
            return self.text(path, node).map(HealthTest::Shell);
        };
        let words = self.words(path, node)?;
        let Some((kind, rest)) = words.split_first() else {
            self.problem(Some(node.at), path, "the test is empty; `[NONE]` disables it");
            return None;
        };
        let message = match (kind.as_str(), rest) {
            ("NONE", []) => return Some(HealthTest::Disabled),
            ("CMD", [_, ..]) => return Some(HealthTest::Command(rest.to_vec())),
            ("CMD-SHELL", [text]) => return Some(HealthTest::Shell(text.clone())),
            ("CMD-SHELL", _) => "`CMD-SHELL` is followed by one text".to_owned(),
            ("CMD", []) => "`CMD` is followed by a command".to_owned(),
            _ => format!("a test begins with `CMD`, `CMD-SHELL` or `NONE`, not with `{kind}`"),
        };
        self.problem(items.first().map(|item| item.at), path, message);
        None
    }
}
