//! Removing a container for good: what its last run left, its writable layer, its records. Its log is not ours.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::record::{self, RunRecord};
use super::writable::WritableLayer;
use super::{ContainerId, Launch, RunPaths, finish};
use crate::boundary::Boundary;

/// How long a monitor whose container has ended is waited for.
const LEAVING: Duration = Duration::from_secs(3);

/// Why a container was not removed, or not completely.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// It has a living monitor.
    #[error("container `{0}` has a living monitor; stop it first")]
    Alive(ContainerId),
    /// Its monitor is dead and it still runs.
    #[error("container `{0}` still runs; attach to it and stop it first")]
    StillRuns(ContainerId),
    /// Something could not be read or removed.
    #[error("could not remove `{path}` of container `{id}`")]
    Io {
        /// Which container.
        id: ContainerId,
        /// What was touched.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The clean-up of its last run, repeated here, left something.
    #[error("container `{id}` left something behind: {}", left.join("; "))]
    LeftBehind {
        /// Which container.
        id: ContainerId,
        /// In words.
        left: Vec<String>,
    },
}

/// Removes everything of container `id`, which does not run. Blocks for as long as it takes to remove what the
/// container has written. One that is not known is no error.
///
/// # Errors
/// See [`RemoveError`]; what could be removed is.
pub fn remove(run_dir: &Path, id: &ContainerId) -> Result<(), RemoveError> {
    let paths = RunPaths::new(run_dir, id);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RemoveError::Io { id: id.clone(), path, source }
    };
    if !paths.dir.exists() {
        return Ok(());
    }
    let _lock = lock(&paths, id)?;
    let run: Option<RunRecord> = record::read_json(&paths.process).ok().flatten();
    if run.is_some_and(|run| run.process.open().is_some()) {
        return Err(RemoveError::StillRuns(id.clone()));
    }
    let launch: Option<Launch> = record::read_json(&paths.launch).map_err(failed(&paths.launch))?;
    if let Some(launch) = launch {
        let finished = finish::finish(&launch);
        if !finished.left_behind.is_empty() {
            return Err(RemoveError::LeftBehind { id: id.clone(), left: finished.left_behind });
        }
        WritableLayer::of(&launch.state_dir).remove().map_err(failed(&launch.state_dir))?;
        Boundary::WRITABLE_REMOVED.reach(run_dir);
        let copy = launch.state_dir.join("exit.json");
        match fs::remove_file(&copy) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&copy)(error));
            }
            _ => {}
        }
        // Holds the log too where nothing else was asked for, and stays then.
        let _ = fs::remove_dir(&launch.state_dir);
        finish::remove_parent_groups_if_alone(&launch, &paths);
    }
    fs::remove_dir_all(&paths.dir).map_err(failed(&paths.dir))
}

fn lock(paths: &RunPaths, id: &ContainerId) -> Result<File, RemoveError> {
    let opened = File::options().write(true).create(true).truncate(false).open(&paths.lock);
    let lock = opened.map_err(|source| RemoveError::Io {
        id: id.clone(),
        path: paths.lock.clone(),
        source,
    })?;
    let until = Instant::now() + LEAVING;
    while rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if !paths.exit.exists() || Instant::now() > until {
            return Err(RemoveError::Alive(id.clone()));
        }
        finish::wait_ms(5);
    }
    Ok(lock)
}
