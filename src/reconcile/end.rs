//! The end of one container: stopped, removed, and when neither can be begun now.

use super::Phase;
use super::action::{Action, Cause, StepNo};
use super::gate::Gate;
use super::observed::{Container, ContainerKey, ContainerState, Monitor, Operation};
use super::service::{Blocked, Decider};

impl Decider<'_> {
    /// Stops and removes a container; gives the last step.
    pub(super) fn teardown(
        &mut self,
        key: &ContainerKey,
        container: &Container,
        cause: &Cause,
    ) -> Result<StepNo, Blocked> {
        let operations = [Operation::Adopt, Operation::Stop, Operation::Remove];
        self.check(key, container, &operations)?;
        let ended = self.end(key, container, cause)?;
        let action = Action::Remove { service: self.key.clone(), container: key.clone() };
        Ok(self.step(action, cause.clone(), ended.into_iter().collect()))
    }

    /// Stops a container; gives the step, or nothing if it does not run.
    pub(super) fn end(
        &mut self,
        key: &ContainerKey,
        container: &Container,
        cause: &Cause,
    ) -> Result<Option<StepNo>, Blocked> {
        self.check(key, container, &[Operation::Adopt, Operation::Stop])?;
        if !matches!(container.state, ContainerState::Running { .. }) {
            return Ok(None);
        }
        if self.around.dependent_ends {
            return Err(Blocked(Phase::Stopping));
        }
        let mut requires = Vec::new();
        if container.monitor == Monitor::Lost {
            // The monitor is the one who can stop it, and who sees how it ended.
            let action = Action::AdoptMonitor { service: self.key.clone(), container: key.clone() };
            requires.push(self.step(action, Cause::MonitorLost, Vec::new()));
        }
        let grace = self.record.grace.filter(|_| cause.is_asked_for());
        let action = Action::Stop { service: self.key.clone(), container: key.clone(), grace };
        Ok(Some(self.step(action, cause.clone(), requires)))
    }

    /// Whether `operations` can be begun on a container now.
    pub(super) fn check(
        &mut self,
        key: &ContainerKey,
        container: &Container,
        operations: &[Operation],
    ) -> Result<(), Blocked> {
        if let ContainerState::Busy(operation) = container.state {
            return Err(Blocked(Phase::of(operation)));
        }
        if container.monitor == Monitor::Adopting {
            return Err(Blocked(Phase::Stopping));
        }
        match Gate::of(self.moment, key, container, operations) {
            Gate::Shut(phase, at) => {
                self.wake(at);
                Err(Blocked(phase))
            }
            Gate::Open | Gate::Retry(_) => Ok(()),
        }
    }
}
