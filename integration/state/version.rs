//! A program that is too old for what a newer one left in the state directory: it says so and touches nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use supervisor::store::record::{self, Record};
use supervisor::supervise::{Control, ControlError, ControlOptions};
use supervisor::version::{Versions, versions};

use crate::services::{IDLE, file, service};
use crate::support::program::{Program, crash, install, runs};

/// Each file and folder below a folder: which one it is, and when it last changed in whatever way.
fn tree(folder: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            found.extend(tree(&path));
        }
        found.insert(path, (metadata.ino(), metadata.ctime(), metadata.ctime_nsec()));
    }
    found
}

fn end_controls(program: &Program) {
    program.end_controls();
    program.until("no control runs", || program.background_control().is_none().then_some(()));
}

#[test]
fn an_older_build_leaves_the_state_of_a_newer_one_alone() {
    let own = versions();
    let next = Versions { build: "9.0.0", state: own.state + 1, ..own };
    let mut program = Program::new();
    let binary = program.folder().join("supervisor");
    install(&binary, &own);
    program.use_binary(&binary);
    program.services(&file(&[service("web", IDLE)]));
    crash(program.up_running());
    let pid = program.running("web");
    end_controls(&program);

    // The next build takes over what the first one wrote, and makes it its own.
    install(&binary, &next);
    assert_eq!(program.running("web"), pid);
    end_controls(&program);

    install(&binary, &own);
    let state = program.folder().join("state");
    let before = tree(&state);
    let (found, known) = (next.state, own.state);
    let said = [
        format!(
            "the state directory `{}` has version {found}, of supervisor 9.0.0",
            state.display()
        ),
        format!("this is supervisor {}, which knows version {known} at most", own.build),
        "start supervisor 9.0.0 or a later one, or give this one another state directory"
            .to_owned(),
    ];
    for arguments in [&["ps"][..], &["daemon"], &["up"], &["up", "-d"], &["down"]] {
        let output = program.command(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(said.iter().all(|part| errors.contains(part)), "{arguments:?}: {errors}");
    }
    let checked = program.command(["doctor"]).output().unwrap();
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("use supervisor 9.0.0 or a later one"), "{checked}");
    assert_eq!(tree(&state), before, "something was touched");
    assert!(runs(pid));

    install(&binary, &next);
    assert_eq!(program.running("web"), pid);
    program.ok(["down"]);
}

/// The record of a later program.
#[derive(serde::Serialize, serde::Deserialize)]
struct Later {
    state: u32,
    build: String,
    more: Vec<u32>,
}

impl Record for Later {
    const KIND: &'static str = "state-version";
    const VERSION: u32 = 1;
}

#[test]
fn control_does_not_start_on_the_directory_of_a_newer_program() {
    let folder = tempfile::tempdir().unwrap();
    let (state, run) = (folder.path().join("state"), folder.path().join("run"));
    fs::create_dir(&state).unwrap();
    let later = Later { state: 7, build: "9.0.0".to_owned(), more: vec![1] };
    record::save(&state.join("version"), &later).unwrap();
    let before = tree(&state);
    let error = Control::start(ControlOptions::new(state.clone(), run.clone())).unwrap_err();
    assert!(matches!(&error, ControlError::Newer(newer) if newer.found == 7), "{error:?}");
    assert_eq!(tree(&state), before);
    assert!(!run.exists(), "not even the run directory is made");
}
