//! The death of control at every boundary of a run's life: whoever asked for it sees it run once, and how it ended.

use std::process::Stdio;

use rustix::process::Signal;
use supervisor::boundary::Boundary;

use super::hold::{arm, release, waiting};
use crate::services::{IDLE, file, service};
use crate::support::program::{Program, signal};

/// Kills control while somebody is at each of `boundaries` on behalf of a run.
fn survives(boundaries: &[Boundary]) {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE)]));
    program.ok(["up", "-d"]);
    program.running("web");
    for boundary in boundaries {
        let control = program.until("control runs", || program.background_control());
        arm(&program, *boundary);
        let script = "echo ran; exit 5";
        let arguments = ["run", "--rm", "-T", "--name", "mine", "web", "sh", "-c", script];
        let mut run = program.command(arguments);
        let mut run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        program
            .until(&format!("somebody is at {}", boundary.name()), || waiting(&program, *boundary));
        signal(control, Signal::KILL);
        release(&program);
        program.ended(&mut run);
        let output = run.wait_with_output().unwrap();
        assert_eq!(output.stdout, b"ran\n", "{}: {output:?}", boundary.name());
        assert_eq!(output.status.code(), Some(5), "{}: {output:?}", boundary.name());
        program.until("it is removed", || {
            let folder = std::fs::read_dir(program.folder().join("state/containers")).unwrap();
            (folder.count() == 1).then_some(())
        });
    }
    program.ok(["down", "-t", "0"]);
}

#[test]
fn a_run_whose_control_dies_while_it_is_made_runs_once() {
    survives(&[
        Boundary::FOLDER_MADE,
        Boundary::CREATED,
        Boundary::LAYERS_MOUNTED,
        Boundary::START_RECORDED,
        Boundary::LAUNCH_WRITTEN,
        Boundary::LAUNCH_TAKEN,
        Boundary::MONITOR_READY,
        Boundary::LAUNCHED,
    ]);
}

#[test]
fn a_run_whose_control_dies_while_it_starts_runs_once() {
    survives(&[
        Boundary::ROOT_MOUNTED,
        Boundary::GROUP_ENTERED,
        Boundary::CONFIGURED,
        Boundary::PROCESS_MADE,
        Boundary::PROCESS_RECORDED,
        Boundary::RELEASED,
        Boundary::EXECUTED,
        Boundary::RUNNING,
    ]);
}

#[test]
fn a_run_whose_control_dies_while_it_ends_is_not_run_again() {
    survives(&[
        Boundary::END_NOTED,
        Boundary::ALL_DEAD,
        Boundary::ROOT_UNMOUNTED,
        Boundary::GROUP_REMOVED,
        Boundary::FINISHED,
        Boundary::EXIT_COPIED,
        Boundary::EXIT_RECORDED,
        Boundary::RUN_FORGOTTEN,
    ]);
}
