//! Which version the content of the state directory has as a whole, so that a program that is too old leaves it alone.
//!
//! Every record has a version of its own besides, and one that is too new is only left out. That is enough where a
//! program that does not know of something does no harm; this version is raised where it would.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::aside::Findings;
use super::{Record, StoreError, record};
use crate::telemetry::Chain;
use crate::version::versions;

/// The record, in the state directory itself.
const NAME: &str = "version";
/// What a directory without the record has: one that is new, or older than the record is.
const FIRST: u32 = 1;

/// The record. A program of any age has to read it, so fields may come and never go, and [`Record::VERSION`] stays.
#[derive(Debug, Serialize, Deserialize)]
struct StateVersion {
    state: u32,
    /// The first program that wrote this version here: one that can read it for sure.
    #[serde(default)]
    build: String,
}

impl Record for StateVersion {
    const KIND: &'static str = "state-version";
    const VERSION: u32 = 1;
}

/// A newer program has used the state directory, and what it left there this one would misread.
#[derive(Debug, thiserror::Error)]
#[error(
    "the state directory `{}` has version {found}, of supervisor {build}; this is supervisor {}, which knows version {known} \
     at most: start supervisor {build} or a later one, or give this one another state directory",
    path.display(),
    versions().build
)]
pub struct NewerState {
    /// The state directory.
    pub path: PathBuf,
    /// The version of its content.
    pub found: u32,
    /// The first program that wrote that version here.
    pub build: String,
    /// The last version that this program knows.
    pub known: u32,
}

/// Looks whether this program may use a state directory, and changes nothing. One that is not there may be used.
///
/// # Errors
/// When a newer program has used it.
pub fn check_version(state_dir: &Path) -> Result<(), NewerState> {
    check(state_dir, record::peek(&state_dir.join(NAME)).as_ref())
}

fn check(state_dir: &Path, found: Option<&StateVersion>) -> Result<(), NewerState> {
    let known = versions().state;
    match found {
        Some(found) if found.state > known => Err(NewerState {
            path: state_dir.to_owned(),
            found: found.state,
            build: found.build.clone(),
            known,
        }),
        Some(_) | None => Ok(()),
    }
}

/// Checks the version of a directory that this process owns, and writes its own before anything of its own.
pub(super) fn settle(state_dir: &Path, findings: &Findings) -> Result<(), StoreError> {
    check_version(state_dir)?;
    let path = state_dir.join(NAME);
    // A record that cannot be read at all is told, and is no reason to stop.
    let found: Option<StateVersion> = super::load(&path, findings).unwrap_or_default();
    let own = StateVersion { state: versions().state, build: versions().build.to_owned() };
    let raised = found.as_ref().map_or(FIRST, |found| found.state) < own.state;
    if found.is_some() && !raised {
        return Ok(());
    }
    // Twice, so that the previous copy never lets in a program that is too old.
    match record::save(&path, &own).and_then(|()| record::save(&path, &own)) {
        Ok(()) => Ok(()),
        Err(error) if raised => Err(error.into()),
        // Every program may use this version.
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "the version of the state directory was not written");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    fn written(state_dir: &Path) -> u32 {
        record::peek::<StateVersion>(&state_dir.join(NAME)).unwrap().state
    }

    #[test]
    fn a_directory_without_a_version_gets_ours_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path()).unwrap());
        assert_eq!(written(dir.path()), versions().state);
        let before = std::fs::metadata(dir.path().join(NAME)).unwrap().modified().unwrap();
        drop(Store::open(dir.path()).unwrap());
        let after = std::fs::metadata(dir.path().join(NAME)).unwrap().modified().unwrap();
        assert_eq!(before, after, "it is not written again");
    }

    #[test]
    fn a_newer_directory_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let newer = StateVersion { state: versions().state + 1, build: "9.0.0".to_owned() };
        record::save(&dir.path().join(NAME), &newer).unwrap();
        let error = check_version(dir.path()).unwrap_err();
        assert_eq!((error.found, error.known), (versions().state + 1, versions().state));
        let text = error.to_string();
        let path = dir.path().display().to_string();
        for part in [path.as_str(), "version 2", "supervisor 9.0.0", "version 1", "another state"] {
            assert!(text.contains(part), "`{part}` is missing: {text}");
        }
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Newer(_))));
        assert!(!dir.path().join("layers").exists());
    }

    #[test]
    fn an_older_version_is_raised_in_both_copies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        record::save(&path, &StateVersion { state: 0, build: "0.0.1".to_owned() }).unwrap();
        drop(Store::open(dir.path()).unwrap());
        assert_eq!(written(dir.path()), versions().state);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(written(dir.path()), versions().state);
    }

    #[test]
    fn a_damaged_version_is_set_aside_and_the_previous_copy_still_refuses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        drop(Store::open(dir.path()).unwrap());
        std::fs::write(&path, b"garbage").unwrap();
        let store = Store::open(dir.path()).unwrap();
        let findings = store.take_findings();
        assert!(findings.len() == 1 && findings[0].recovered, "{findings:?}");
        assert_eq!(written(dir.path()), versions().state);
        drop(store);

        let newer = StateVersion { state: 99, build: "9.0.0".to_owned() };
        record::save_with_copy(&path, &newer).unwrap();
        record::save_with_copy(&path, &newer).unwrap();
        std::fs::write(&path, b"garbage").unwrap();
        assert!(check_version(dir.path()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"garbage", "nothing is moved");
    }

    #[test]
    fn a_version_that_is_lost_with_both_copies_prevents_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        std::fs::create_dir_all(path.join("with/something")).unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.take_findings().len(), 1);
        assert_eq!(written(dir.path()), versions().state);
    }
}
