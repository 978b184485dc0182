//! Completion scripts and manual pages, as the tools that use them see them.

use std::fs;
use std::process::Command;

use crate::support::program::Program;

#[test]
fn the_completion_of_bash_is_a_script_that_completes() {
    let program = Program::new();
    let path = program.folder().join("completion.bash");
    fs::write(&path, program.ok(["completion", "bash"])).unwrap();
    let parsed = Command::new("bash").arg("-n").arg(&path).output().unwrap();
    assert!(parsed.status.success(), "{parsed:?}");
    let ask = "source $0; COMP_WORDS=(supervisor logs); COMP_CWORD=1; \
        _supervisor_or_services supervisor logs supervisor; echo ${COMPREPLY[@]}";
    let asked = Command::new("bash").args(["-c", ask]).arg(&path).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&asked.stdout).trim(), "logs", "{asked:?}");
    // Nothing runs here: there are no services, and asking starts nothing.
    assert_eq!(program.ok(["completion", "--services"]), "");
    assert!(!program.run_dir().join("api.sock").exists());
    assert_eq!(program.run(["completion", "tcsh"]).status.code(), Some(2));
}

#[test]
fn manual_pages_are_written_for_every_command() {
    let program = Program::new();
    let dir = program.folder().join("man1");
    program.ok(["man", "--dir", dir.to_str().unwrap()]);
    let logs = fs::read_to_string(dir.join("supervisor-logs.1")).unwrap();
    assert!(logs.contains(".TH supervisor") && logs.contains("Examples"), "{logs}");
    assert!(dir.join("supervisor.1").exists() && dir.join("supervisor-image-pack.1").exists());
}
