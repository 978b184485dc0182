//! What is told of services when a plan finds them in another state than the one before.

use super::driver::Driver;
use super::events::Subject;
use super::report::EventLevel;
use crate::container::{HealthState, HealthStatus};
use crate::logs::{LogReader, ReadOptions};
use crate::reconcile::{ContainerKey, Phase, Plan};
use crate::spec::{ProjectName, ServiceName};

/// Lines of its output that are shown of a service whose failure keeps others from starting.
const LAST_LINES: usize = 5;

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
            for line in self.last_lines(&key.project, on) {
                message.push_str(&format!("\n  {on}  | {line}"));
            }
            let subject = Subject::Service(key.project.as_str(), key.service.as_str());
            let attributes = [("dependency", on.to_string())];
            self.events.emit(subject, EventLevel::Error, "dependency-failed", message, attributes);
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

    /// The last lines that a service has written.
    pub(super) fn last_lines(&self, project: &ProjectName, service: &ServiceName) -> Vec<String> {
        let path = self.host.log_path(project.as_str(), service.as_str());
        let options = ReadOptions { tail: Some(LAST_LINES), ..ReadOptions::default() };
        let Ok(mut reader) = LogReader::open(&path, options) else { return Vec::new() };
        let mut lines = Vec::new();
        while let Ok(Some(entry)) = reader.next_entry() {
            lines.push(entry.text().trim_end().to_owned());
        }
        lines
    }
}
