//! The API socket for a group: what its members can do, and everybody else cannot.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use super::{IDLE, file, service};
use crate::support::program::Program;

/// A user and a group that own nothing and need not have names.
const USER: u32 = 61_234;
const GROUP: u32 = 61_235;

/// A copy of the program that everybody may execute, wherever this tree is.
fn executable(program: &Program) -> PathBuf {
    let path = program.folder().join("supervisor");
    std::fs::copy(env!("CARGO_BIN_EXE_supervisor"), &path).unwrap();
    path
}

fn run_as(program: &Program, executable: &Path, group: u32, arguments: &[&str]) -> Output {
    std::process::Command::new(executable)
        .args(arguments)
        .current_dir("/")
        .env("SUPERVISOR_STATE_DIR", program.folder().join("state"))
        .env("SUPERVISOR_RUN_DIR", program.run_dir())
        .env("HOME", "/")
        .uid(USER)
        .gid(group)
        .output()
        .unwrap()
}

#[test]
fn members_of_the_group_use_the_api_and_nothing_else_and_others_are_told_why_not() {
    let program = Program::new();
    std::fs::set_permissions(program.folder(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let executable = executable(&program);
    program.services(&file(&[service("web", IDLE)]));
    program.ok(["up", "-d", "--socket-group", &GROUP.to_string()]);
    program.running("web");

    let run = program.run_dir();
    let socket = run.join("api.sock").metadata().unwrap();
    assert_eq!((socket.mode() & 0o7777, socket.uid(), socket.gid()), (0o660, 0, GROUP));
    assert_eq!(run.metadata().unwrap().mode() & 0o7777, 0o710);
    for entry in std::fs::read_dir(&run).unwrap().flatten() {
        if entry.file_name() != "api.sock" {
            let mode = entry.metadata().unwrap().mode() & 0o077;
            assert_eq!(mode, 0, "{} is root's alone", entry.path().display());
        }
    }

    let member = |arguments: &[&str]| run_as(&program, &executable, GROUP, arguments);
    let listed = member(&["ps"]);
    assert!(listed.status.success(), "{listed:?}");
    assert!(String::from_utf8_lossy(&listed.stdout).contains("running"), "{listed:?}");
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let exec = member(&["exec", "web", "--", "true"]);
    assert_eq!(exec.status.code(), Some(125), "{exec:?}");
    assert!(said(&exec).contains("run it as root: `exec`"), "{exec:?}");

    let other = run_as(&program, &executable, GROUP + 1, &["ps"]);
    assert_eq!(other.status.code(), Some(1), "{other:?}");
    assert!(said(&other).contains("api.sock`: Permission denied"), "{other:?}");
    assert!(
        said(&other).contains("hint: run it as root, or as a member of the group"),
        "{other:?}"
    );

    let down = member(&["down"]);
    assert!(down.status.success(), "{down:?}");
    program.end_controls();
    // The next control has no group.
    program.ok(["ps"]);
    let listed = member(&["ps"]);
    assert_eq!(listed.status.code(), Some(1), "{listed:?}");
    let unknown = program.run(["--socket-group", "no-such-group", "ps"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
}
