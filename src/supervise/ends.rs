//! What follows from the end of a run.

use super::driver::Driver;
use super::held::is_host_fault;
use super::monitors;
use super::report::{EventLevel, LastExit};
use crate::container::ExitRecord;
use crate::reconcile::{ContainerKey, Failure, Operation};

impl Driver {
    /// A run of a container has ended.
    pub(super) fn ended(&mut self, container: &ContainerKey, exit: ExitRecord) {
        let at = self.clock.now();
        let Some(held) = self.containers.get_mut(container) else { return };
        let words = monitors::describe(&exit.outcome);
        let level = match exit.outcome.code() {
            Some(0) => EventLevel::Info,
            _ if exit.stop_requested => EventLevel::Info,
            _ => EventLevel::Warning,
        };
        if is_host_fault(&exit) {
            let attempts = match &held.failed {
                Some((Operation::Start, failure)) => failure.attempts + 1,
                _ => 1,
            };
            held.failed = Some((Operation::Start, Failure { reason: words.clone(), at, attempts }));
        }
        let is_run = held.record.one_off.is_some();
        if !is_run {
            self.host.exits.keep(held.record.key(), vec![exit.clone()]);
        }
        let last = LastExit::of_record(&exit);
        held.note_exit(exit);
        let connections = self.host.images.lazy.generations();
        held.settle(|side, its| connections.of(side) == Some(its));
        self.save_container(container);
        if is_run {
            self.run_ended(container);
        } else {
            self.tell_exit(container);
        }
        let oom = if last.oom_killed { " (out of memory)" } else { "" };
        let code = last.code.map(|code| ("code", code.to_string()));
        let signal = last.signal.map(|signal| ("signal", signal.to_string()));
        let attributes = [
            ("container", container.to_string()),
            ("oom_killed", last.oom_killed.to_string()),
            ("ran_ms", last.ran_ms.to_string()),
        ];
        let attributes = attributes.into_iter().chain(code).chain(signal);
        self.emit_with(
            container,
            level,
            "container-exited",
            format!("{container} {words}{oom}"),
            attributes,
        );
    }

    /// There is another connection, or the one that is there has only now been found: runs that it served and that
    /// ended while nobody knew it had their content to the end. So had all if there is none any more: one is taken
    /// down when nothing uses it.
    pub(super) fn connection_changed(&mut self) {
        let lazy = &self.host.images.lazy;
        let connections = lazy.generations();
        let outlived = |side, its| match connections.of(side) {
            Some(now) => now == its,
            None => !lazy.is_there(side),
        };
        let settled: Vec<ContainerKey> = self
            .containers
            .iter_mut()
            .filter(|(_, held)| held.record.instance == *self.host.instance)
            .filter_map(|(key, held)| held.settle(outlived).then(|| key.clone()))
            .collect();
        for container in settled {
            self.save_container(&container);
        }
    }
}
