//! Keepers and workers of lazy layers.

use std::path::Path;
use std::time::Duration;

use super::Check;
use crate::fuse::{
    self, ConnectionHealth, Inspected, KeeperStatus, RoleHealth, Side, WorkerState, inspect,
};
use crate::sys::process::ProcessIdentity;

/// What the check of a connection is called.
fn name(side: Side) -> &'static str {
    match side {
        Side::Main => "lazy-mount",
        Side::Marked => "lazy-xattr-mount",
    }
}

/// How long a role may take to answer; it never waits for content before.
const PATIENCE: Duration = Duration::from_secs(3);

/// The main connection always, the other one if it is there.
pub(super) async fn lazy(run_dir: &Path, instance: &str) -> Vec<Check> {
    let mut checks = vec![connection(run_dir, instance, Side::Main).await];
    if Side::Marked.is_there(run_dir) {
        checks.push(connection(run_dir, instance, Side::Marked).await);
    }
    checks
}

async fn connection(run_dir: &Path, instance: &str, side: Side) -> Check {
    let inspected = match inspect(run_dir, instance, side).await {
        Ok(nothing @ Inspected::Nothing) => return judge(side, &nothing, None),
        Ok(inspected) => inspected,
        Err(error) => {
            let message = format!("the mount table cannot be read: {error}");
            return Check::failed(name(side), message, "mount /proc");
        }
    };
    let (run_dir, instance) = (run_dir.to_owned(), instance.to_owned());
    // The keeper believes that its worker serves until the worker was silent for long; so it is asked as well.
    let asked = tokio::task::spawn_blocking(move || {
        fuse::examine(&run_dir, &instance, side, PATIENCE).ok()
    });
    judge(side, &inspected, asked.await.ok().flatten().as_ref())
}

fn judge(side: Side, inspected: &Inspected, health: Option<&ConnectionHealth>) -> Check {
    match inspected {
        Inspected::Nothing => Check::ok(name(side), "no layer is mounted lazily"),
        Inspected::Orphaned { reason } => orphaned(side, reason, health),
        Inspected::Kept(status) => match &status.worker {
            WorkerState::Running { process } => serving(side, status, process, health),
            WorkerState::Failing { attempts, reason } => {
                let message =
                    format!("the worker failed {attempts} times in a row, reads wait: {reason}");
                let remedy = format!(
                    "see `{}/worker.log` in the run directory; `supervisor down --force` gives the layers up",
                    side.directory()
                );
                Check::failed(name(side), message, remedy)
            }
            WorkerState::Starting => {
                let message = "the worker is being started, reads wait";
                Check::degraded(name(side), message, "look again in a moment")
            }
        },
    }
}

/// A mount whose keeper does not answer.
fn orphaned(side: Side, reason: &str, health: Option<&ConnectionHealth>) -> Check {
    let message = match health {
        Some(health) if health.is_wedged() => {
            format!("{} for a worker that does not serve", waiting(health))
        }
        Some(ConnectionHealth { worker: RoleHealth::Answers(worker), .. }) => {
            format!("worker {} serves, and nobody would replace it", worker.pid)
        }
        _ => "layers are mounted and nobody serves them".to_owned(),
    };
    let message = format!("{message}; their keeper does not answer: {reason}");
    let remedy =
        "`supervisor daemon` starts a keeper again; `supervisor down --force` gives the layers up";
    Check::failed(name(side), message, remedy)
}

/// A worker that serves as far as its keeper knows.
fn serving(
    side: Side,
    status: &KeeperStatus,
    process: &ProcessIdentity,
    health: Option<&ConnectionHealth>,
) -> Check {
    let (keeper, worker, restarts) = (status.process.pid, process.pid, status.restarts);
    let Some(health) = health.filter(|health| !matches!(health.worker, RoleHealth::Answers(_)))
    else {
        let message = format!("keeper {keeper} and worker {worker} serve ({restarts} restarts)");
        return Check::ok(name(side), message);
    };
    let remedy =
        "the keeper replaces it after 20 s; if not, `supervisor down --force` gives the layers up";
    if health.is_wedged() {
        let message = format!("{} for worker {worker}, which does not answer", waiting(health));
        Check::failed(name(side), message, remedy)
    } else {
        let message = format!("worker {worker} does not answer; nobody waits for it yet");
        Check::degraded(name(side), message, remedy)
    }
}

fn waiting(health: &ConnectionHealth) -> String {
    match health.waiting {
        None => "reads wait".to_owned(),
        Some(1) => "1 read waits".to_owned(),
        Some(count) => format!("{count} reads wait"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    fn kept(worker: WorkerState) -> Inspected {
        Inspected::Kept(KeeperStatus {
            process: ProcessIdentity::current().unwrap(),
            worker,
            restarts: 2,
            connection: 40,
            generation: 1,
            build: String::new(),
            worker_build: None,
            worker_kept: None,
        })
    }

    fn health(waiting: u64, worker: RoleHealth) -> ConnectionHealth {
        ConnectionHealth {
            connection: Some(40),
            waiting: Some(waiting),
            keeper: RoleHealth::Gone,
            worker,
        }
    }

    #[track_caller]
    fn says(check: &Check, health: Health, text: &str, remedy: &str) {
        assert_eq!(check.health, health, "{check:?}");
        assert!(check.message.contains(text), "{check:?}");
        assert!(check.remedy.as_deref().unwrap_or_default().contains(remedy), "{check:?}");
    }

    #[test]
    fn a_worker_that_its_keeper_takes_for_well_is_asked_itself() {
        let process = ProcessIdentity::current().unwrap();
        let kept = kept(WorkerState::Running { process: process.clone() });
        let answers = RoleHealth::Answers(process.clone());
        says(&judge(Side::Main, &kept, None), Health::Ok, "serve (2 restarts)", "");
        says(&judge(Side::Main, &kept, Some(&health(9, answers))), Health::Ok, "serve", "");
        let silent = |waiting| health(waiting, RoleHealth::Silent(process.clone()));
        says(&judge(Side::Main, &kept, Some(&silent(0))), Health::Degraded, "nobody waits", "20 s");
        says(
            &judge(Side::Main, &kept, Some(&silent(1))),
            Health::Failed,
            "1 read waits for",
            "down --force",
        );
        says(
            &judge(Side::Main, &kept, Some(&silent(7))),
            Health::Failed,
            "7 reads wait for",
            "down --force",
        );
    }

    #[test]
    fn a_worker_that_does_not_start_is_told_with_its_reason() {
        let state = WorkerState::Failing { attempts: 3, reason: "no space left".to_owned() };
        let check = judge(Side::Main, &kept(state), None);
        says(&check, Health::Failed, "3 times in a row, reads wait: no space left", "worker.log");
        let starting = judge(Side::Main, &kept(WorkerState::Starting), None);
        says(&starting, Health::Degraded, "is being started", "moment");
    }

    #[test]
    fn layers_without_a_keeper_fail_whether_or_not_they_are_served() {
        let orphaned = Inspected::Orphaned { reason: "refused".to_owned() };
        let answers = RoleHealth::Answers(ProcessIdentity::current().unwrap());
        for (health, text) in [
            (health(3, RoleHealth::Gone), "3 reads wait for a worker that does not serve"),
            (health(0, RoleHealth::Gone), "nobody serves them"),
            (health(3, answers), "nobody would replace it"),
        ] {
            let check = judge(Side::Main, &orphaned, Some(&health));
            says(&check, Health::Failed, text, "down --force");
            assert!(check.message.ends_with("does not answer: refused"), "{check:?}");
        }
    }
}
