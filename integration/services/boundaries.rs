//! Deaths in the middle of an action: whoever comes next finishes it, and nothing is done twice.

use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::{IDLE, file, service};
use crate::support::program::{Program, crash, runs, signal};

/// Exactly one container runs, and it is whole.
fn is_whole(program: &Program) -> Pid {
    let pid = is_single(program);
    assert_eq!(program.ok(["exec", "web", "--", "cat", "/proc/1/comm"]), "sh\n");
    pid
}

/// Exactly one container runs.
fn is_single(program: &Program) -> Pid {
    let pid = program.running("web");
    let count = |folder: &str| std::fs::read_dir(program.folder().join(folder)).unwrap().count();
    program.until("one container is left", || (count("state/containers") == 1).then_some(()));
    assert_eq!(count("run/containers"), 1);
    assert_eq!(program.ps().len(), 1);
    pid
}

#[test]
fn control_that_dies_at_a_step_of_a_start_is_succeeded_at_that_step() {
    for step in ["pulling", "is here", " created", " started"] {
        let program = Program::new();
        program.services(&file(&[service("web", IDLE)]));
        let up = program.up();
        program.said(step);
        crash(up);
        let up = program.up();
        let pid = is_whole(&program);
        assert_eq!(program.interrupt(up), Some(0), "after `{step}`");
        assert!(!runs(pid));
    }
}

#[test]
fn a_folder_that_a_dead_control_made_for_a_container_is_removed() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE)]));
    let up = program.up();
    let pid = program.running("web");
    crash(up);
    // What is left when control dies between making the folder and writing the record into it.
    let containers = program.folder().join("state/containers");
    std::fs::create_dir(containers.join("site-web-1-abcdef")).unwrap();
    let up = program.up();
    assert_eq!(is_whole(&program), pid);
    program.interrupt(up);
}

#[test]
fn control_that_dies_while_a_service_stops_is_succeeded() {
    let program = Program::new();
    let script = "trap 'echo stopping; sleep 1; echo stopped; exit 4' TERM; echo ready; \
        while :; do sleep 0.1; done";
    program.services(&file(&[service("web", script)]));
    let up = program.up();
    let pid = program.running("web");
    program.wrote("web", "ready");
    signal(Pid::from_child(&up), Signal::INT);
    program.wrote("web", "stopping");
    crash(up);
    // What the user asked for is kept: the next control does not start it again.
    let shown = program.state("web", "exited");
    assert_eq!(shown["ExitCode"], 4, "{shown}");
    assert!(program.output("web").contains(&"stopped".to_owned()), "it had the time it asked for");
    assert!(!runs(pid));
    program.ok(["down"]);
    assert!(program.ps().is_empty());
}

#[test]
fn a_monitor_that_dies_during_a_start_is_replaced_and_the_service_runs() {
    let mut early = 0;
    for attempt in 0..4 {
        let program = Program::new();
        program.services(&file(&[service("web", IDLE).key("restart: always")]));
        let up = program.up();
        let monitor = program.until("there is a monitor", || program.role("monitor", "web"));
        // Each attempt a little later: before, during and after the making of the container.
        std::thread::park_timeout(Duration::from_millis(attempt * 20));
        signal(monitor, Signal::KILL);
        early += usize::from(!program.log().contains(" started"));
        program.until("somebody else is the monitor", || {
            program.role("monitor", "web").filter(|next| *next != monitor)
        });
        let pid = is_single(&program);
        program.wrote("web", "ready");
        assert_eq!(program.interrupt(up), Some(0));
        assert!(!runs(pid));
    }
    assert!(early > 0, "no monitor was killed before the container had started");
}

#[test]
fn a_monitor_that_dies_while_its_service_stops_is_replaced_and_the_service_stops() {
    let program = Program::new();
    let script = "trap 'echo stopping; sleep 1; exit 4' TERM; echo ready; \
        while :; do sleep 0.1; done";
    program.services(&file(&[service("web", script)]));
    let up = program.up();
    let pid = program.running("web");
    program.wrote("web", "ready");
    let monitor = program.role("monitor", "web").unwrap();
    signal(Pid::from_child(&up), Signal::INT);
    program.wrote("web", "stopping");
    signal(monitor, Signal::KILL);
    let mut up = up;
    assert_eq!(program.ended(&mut up).code(), Some(0));
    assert!(!runs(pid));
}
