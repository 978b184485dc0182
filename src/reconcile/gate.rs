//! Waiting after an operation of ours failed: whether it may be tried again, and when.

use super::action::Cause;
use super::observed::{Container, ContainerKey, CreateFailure, Operation, ServiceKey};
use super::plan::Moment;
use super::{Millis, Phase};

/// Whether an operation that may have failed can be begun.
pub(super) enum Gate {
    /// It did not fail.
    Open,
    /// It failed and may be tried again.
    Retry(Cause),
    /// It failed and must wait until this time.
    Shut(Phase, Millis),
}

impl Gate {
    /// Whether one of `operations` failed on `container`, and may be tried again.
    pub(super) fn of(
        moment: Moment,
        key: &ContainerKey,
        container: &Container,
        operations: &[Operation],
    ) -> Self {
        match &container.failed {
            Some((operation, failure)) if operations.contains(operation) => {
                let at = moment.retry_at(key.as_str(), failure.attempts, failure.at);
                Self::until(moment, *operation, failure.attempts, &failure.reason, at)
            }
            _ => Self::Open,
        }
    }

    /// The same for the creation of a container of `service` that failed as `failed` says.
    pub(super) fn of_creation(
        moment: Moment,
        service: &ServiceKey,
        failed: Option<&CreateFailure>,
    ) -> Self {
        let Some(CreateFailure { failure, .. }) = failed else { return Self::Open };
        let at = moment.retry_at(&service.to_string(), failure.attempts, failure.at);
        Self::until(moment, Operation::Create, failure.attempts, &failure.reason, at)
    }

    fn until(
        moment: Moment,
        operation: Operation,
        attempts: u32,
        reason: &str,
        at: Millis,
    ) -> Self {
        if moment.now >= at {
            return Self::Retry(Cause::Retry(operation, attempts));
        }
        let reason = format!("{operation}: {reason}");
        Self::Shut(Phase::Failed { reason, retry_at: Some(at) }, at)
    }
}
