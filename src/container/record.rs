//! What is known of a container while it runs and after: statuses, the exit record, and their files.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ContainerId, HealthStatus};
use crate::sys::process::{Ended, ProcessIdentity};

/// The version of [`Status`], [`ExitRecord`] and `RunRecord` that this program writes.
pub const RECORD_VERSION: u32 = 1;

/// One container at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// [`RECORD_VERSION`] of the writer.
    pub version: u32,
    /// Which container.
    pub id: ContainerId,
    /// Its monitor.
    pub monitor: ProcessIdentity,
    /// How far it is.
    pub phase: Phase,
    /// What became of its writable layer; `None` until it is mounted.
    #[serde(default)]
    pub writable: Option<WritableState>,
    /// What its checks say; `None` until its program runs, and without checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthStatus>,
}

/// How far a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// Its file system is mounted, its first program looked up. Becomes `Running` or `Ended`.
    Starting,
    /// Its program runs.
    Running {
        /// Its first process.
        process: ProcessIdentity,
        /// When the program was executed.
        started_at: Timestamp,
    },
    /// It was asked to stop and has not ended. Becomes `Ended`.
    Stopping {
        /// Its first process; `None` while it had not started.
        process: Option<ProcessIdentity>,
        /// When the program was executed; `None` while it had not.
        started_at: Option<Timestamp>,
    },
    /// Nothing of it runs any more, and nothing of it is mounted.
    Ended(ExitRecord),
}

impl Phase {
    /// The first process, while there is one.
    #[must_use]
    pub fn process(&self) -> Option<&ProcessIdentity> {
        match self {
            Self::Running { process, .. } => Some(process),
            Self::Stopping { process, .. } => process.as_ref(),
            Self::Starting | Self::Ended(_) => None,
        }
    }
}

/// What a run found as its writable layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum WritableState {
    /// There was none.
    Fresh,
    /// The one of the container's last run.
    Kept,
    /// There was one, and it could not be trusted: it was removed and the container began with an empty one.
    Discarded {
        /// Why.
        reason: String,
    },
}

/// How one run of a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// [`RECORD_VERSION`] of the writer.
    pub version: u32,
    /// Which container.
    pub id: ContainerId,
    /// When its program was executed; `None` when that never happened.
    pub started_at: Option<Timestamp>,
    /// When its first process had ended.
    pub ended_at: Timestamp,
    /// What happened.
    pub outcome: Outcome,
    /// The kernel killed a process of it for want of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// It was asked to stop.
    #[serde(default)]
    pub stop_requested: bool,
    /// What its checks said last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthStatus>,
    /// What could not be cleaned up, in words; empty when nothing is left.
    #[serde(default)]
    pub left_behind: Vec<String>,
}

/// What ended a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// Its first process exited.
    Exited {
        /// Exit code.
        code: i32,
    },
    /// A signal ended its first process.
    Signaled {
        /// The signal.
        signal: i32,
    },
    /// It ended while nobody was there to see how.
    Unknown,
    /// It never ran.
    NotStarted {
        /// Why, for a person.
        reason: String,
        /// What a shell would say: 127 not found, 126 cannot be executed, 125 everything else.
        code: i32,
    },
}

impl Outcome {
    /// The exit code as a shell shows it; `None` when it is not known.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Exited { code } | Self::NotStarted { code, .. } => Some(*code),
            Self::Signaled { signal } => Some(128 + signal),
            Self::Unknown => None,
        }
    }
}

impl From<Ended> for Outcome {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Exited(code) => Self::Exited { code },
            Ended::Signaled(signal) => Self::Signaled { signal },
        }
    }
}

/// What runs, written before its program is executed, for the monitor that replaces a dead one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    pub(crate) version: u32,
    pub(crate) process: ProcessIdentity,
    pub(crate) started_at: Timestamp,
    pub(crate) user: super::user::ResolvedUser,
    pub(crate) writable: WritableState,
    /// How it ended, written before anything is cleaned up: a monitor that dies meanwhile takes it not along.
    #[serde(default)]
    pub(crate) ended: Option<RunEnd>,
    /// It was asked to stop.
    #[serde(default)]
    pub(crate) stop_requested: bool,
    /// What its checks said when that last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) health: Option<HealthStatus>,
}

/// The end of a first process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunEnd {
    pub(crate) outcome: Outcome,
    pub(crate) at: Timestamp,
}

/// Writes `value` so that a reader finds either the old or the new content, and a power cut leaves one of them.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    // In one piece: the serializer writes each bracket by itself, which is 3,000 system calls for a container's
    // configuration.
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(b'\n');
    let fresh = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = File::create(&fresh)?;
    file.write_all(&bytes)?;
    file.sync_data()?;
    fs::rename(&fresh, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_data()?;
    }
    Ok(())
}

/// Reads what [`write_json`] wrote; `None` when there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_a_later_program_is_read_too() {
        let text = r#"{"version":2,"id":"a","started_at":null,"ended_at":"2026-01-02T03:04:05Z",
            "outcome":{"outcome":"exited","code":3},"added_later":true}"#;
        let record: ExitRecord = serde_json::from_str(text).unwrap();
        assert_eq!(record.outcome.code(), Some(3));
        assert!(!record.oom_killed);
    }

    #[test]
    fn records_are_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit.json");
        assert_eq!(read_json::<Vec<u32>>(&path).unwrap(), None);
        write_json(&path, &vec![1, 2]).unwrap();
        write_json(&path, &vec![3]).unwrap();
        assert_eq!(read_json::<Vec<u32>>(&path).unwrap(), Some(vec![3]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn phases_are_tagged_objects() {
        let phase = Phase::Ended(ExitRecord {
            version: RECORD_VERSION,
            id: "a".parse().unwrap(),
            started_at: None,
            ended_at: Timestamp::UNIX_EPOCH,
            outcome: Outcome::NotStarted { reason: "x".to_owned(), code: 127 },
            oom_killed: false,
            stop_requested: false,
            health: None,
            left_behind: Vec::new(),
        });
        let text = serde_json::to_string(&phase).unwrap();
        assert_eq!(serde_json::from_str::<Phase>(&text).unwrap(), phase);
    }
}
