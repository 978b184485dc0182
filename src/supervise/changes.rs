//! What is told of services when a plan finds them in another state than the one before.

use std::sync::Arc;

use super::driver::Driver;
use super::events::{EventHistory, Subject};
use super::execute::Host;
use super::report::EventLevel;
use crate::container::{HealthState, HealthStatus};
use crate::logs::{LogReader, ReadOptions};
use crate::reconcile::{ContainerKey, Phase, Plan, ServiceKey};
use crate::spec::{ProjectName, ServiceName};

/// Lines of its output that are shown of a service whose failure keeps others from starting.
const LAST_LINES: usize = 5;

/// The kind of the event.
const DEPENDENCY_FAILED: &str = "dependency-failed";

impl Driver {
    /// Tells what has become of services since the plan `before`.
    pub(super) fn tell_changes(&self, before: &Plan) {
        for (key, status) in &self.plan.services {
            let phase = before.services.get(key).map(|status| &status.phase);
            let Phase::DependencyFailed { on, reason } = &status.phase else { continue };
            if phase == Some(&status.phase) {
                continue;
            }
            let mut message = format!("{} is not started: {reason}", key.service);
            let (key, on, events) = (key.clone(), on.clone(), self.events.clone());
            let host = Arc::clone(&self.host);
            let earlier = (!self.has_planned).then(|| self.events.history());
            // The disk may be slow.
            tokio::task::spawn_blocking(move || {
                if earlier.is_some_and(|earlier| is_told(earlier, &key, &message)) {
                    return;
                }
                for line in host.last_lines(&key.project, &on) {
                    message.push_str(&format!("\n  {on}  | {line}"));
                }
                let subject = Subject::Service(key.project.as_str(), key.service.as_str());
                let attributes = [("dependency", on.to_string())];
                events.emit(subject, EventLevel::Error, DEPENDENCY_FAILED, message, attributes);
            });
        }
    }

    /// Tells that the checks of a container say something else.
    pub(super) fn tell_health(&self, container: &ContainerKey, health: Option<&HealthStatus>) {
        let Some(health) = health else { return };
        let (level, kind, message) = match health.state {
            HealthState::Starting => return,
            HealthState::Healthy => {
                (EventLevel::Info, "container-healthy", format!("{container} is healthy"))
            }
            HealthState::Unhealthy => {
                let message = format!("{container} is unhealthy: {}", health.reason);
                (EventLevel::Warning, "container-unhealthy", message)
            }
        };
        self.emit_for(container, level, kind, message);
    }
}

/// Whether this was the last that was told of the service.
fn is_told(mut earlier: EventHistory, key: &ServiceKey, message: &str) -> bool {
    let past = earlier.read_past();
    let of_service = past.iter().rev().find(|event| {
        event.project == key.project.as_str() && event.service == key.service.as_str()
    });
    of_service.is_some_and(|event| {
        event.kind == DEPENDENCY_FAILED && event.message.lines().next() == Some(message)
    })
}

impl Host {
    /// The last lines that a service has written. Reads the disk.
    pub(super) fn last_lines(&self, project: &ProjectName, service: &ServiceName) -> Vec<String> {
        let path = self.log_path(project.as_str(), service.as_str());
        let options = ReadOptions { tail: Some(LAST_LINES), ..ReadOptions::default() };
        let Ok(mut reader) = LogReader::open(&path, options) else { return Vec::new() };
        let mut lines = Vec::new();
        while let Ok(Some(entry)) = reader.next_entry() {
            lines.push(entry.text().trim_end().to_owned());
        }
        lines
    }
}
