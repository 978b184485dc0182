//! Keeper and worker of lazy layers.

use std::path::Path;

use super::Check;
use crate::fuse::{Inspected, WorkerState, inspect};

const NAME: &str = "lazy-mount";

pub(super) async fn lazy(run_dir: &Path, instance: &str) -> Check {
    let status = match inspect(run_dir, instance).await {
        Ok(Inspected::Nothing) => return Check::ok(NAME, "no layer is mounted lazily"),
        Ok(Inspected::Orphaned { reason }) => {
            let message = format!("layers are mounted and their keeper does not answer: {reason}");
            let remedy = "`supervisor daemon` starts a keeper again; `supervisor down --force` gives the layers up";
            return Check::failed(NAME, message, remedy);
        }
        Err(error) => {
            let message = format!("the mount table cannot be read: {error}");
            return Check::failed(NAME, message, "mount /proc");
        }
        Ok(Inspected::Kept(status)) => status,
    };
    match status.worker {
        WorkerState::Running { process } => {
            let (keeper, restarts) = (status.process.pid, status.restarts);
            let worker = process.pid;
            Check::ok(
                NAME,
                format!("keeper {keeper} and worker {worker} serve ({restarts} restarts)"),
            )
        }
        WorkerState::Failing { attempts, reason } => {
            let message =
                format!("the worker failed {attempts} times in a row, reads wait: {reason}");
            let remedy = "see `lazy/worker.log` in the run directory; `supervisor down --force` gives the layers up";
            Check::failed(NAME, message, remedy)
        }
        other => {
            let message = format!("the worker does not serve yet, reads wait ({other:?})");
            Check::degraded(NAME, message, "look again in a moment")
        }
    }
}
