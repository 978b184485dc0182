//! What is asked of monitors and heard from them, beside the steps of a plan.

use std::time::Duration;

use super::execute::{Outcome, Outcomes};
use crate::container::{Link, MonitorHandle, Outcome as RunOutcome, Phase, Signal};
use crate::reconcile::ContainerKey;
use crate::store::record;
use crate::telemetry::Chain;

/// Syncs the record of a start when that is over. Not beside it: a sync keeps whoever changes the same file system
/// waiting, and the start changes the container's folder.
pub(super) async fn sync_after_start(mut monitor: MonitorHandle, saved: record::Unsynced) {
    let mut seen = monitor.seen();
    while seen.link == Link::Alive && seen.status.phase == Phase::Starting {
        seen = monitor.changed().await;
    }
    let synced = tokio::task::spawn_blocking(move || saved.sync()).await;
    if let Ok(Err(error)) = synced {
        tracing::warn!(error = %Chain(&error), "a start may be forgotten");
    }
}

/// Waits until a container that was asked to has ended.
pub(super) async fn wait_ended(monitor: &MonitorHandle) -> Result<(), String> {
    match monitor.ended().await {
        Some(record) if record.left_behind.is_empty() => Ok(()),
        Some(record) => {
            tracing::warn!(container = %record.id, left = ?record.left_behind, "not everything could be cleaned up");
            Ok(())
        }
        // The next plan has it adopted and stopped.
        None => Ok(()),
    }
}

/// Whoever gives no time gets no warning; else it is the signal that the container was launched with.
pub(super) fn signal_for(grace: Option<Duration>) -> Option<Signal> {
    grace.is_some_and(|grace| grace.is_zero()).then_some(Signal::KILL)
}

/// Asks a container to end, also one that is still starting or has been asked before; what follows is reported by its
/// monitor.
pub(super) async fn hasten(monitor: MonitorHandle, grace: Option<Duration>) {
    let _ = monitor.stop(signal_for(grace), grace).await;
}

/// Reports every change that a monitor tells, until it has no more to say.
pub(super) async fn watch(mut monitor: MonitorHandle, container: ContainerKey, outcomes: Outcomes) {
    let mut seen = monitor.seen();
    loop {
        let last = seen.link == Link::Closed;
        if outcomes.send(Outcome::Reported { container: container.clone(), seen }).await.is_err()
            || last
        {
            return;
        }
        seen = monitor.changed().await;
    }
}

/// What a person reads about the end of a run.
pub(super) fn describe(outcome: &RunOutcome) -> String {
    match outcome {
        RunOutcome::Exited { code } => format!("exited with code {code}"),
        RunOutcome::Signaled { signal } => format!("was ended by signal {signal}"),
        RunOutcome::Unknown => "ended, nobody saw how".to_owned(),
        RunOutcome::NotStarted { reason, .. } => format!("could not start: {reason}"),
    }
}
