//! Control dies, and the next one finds everything as it was.

use rustix::process::{Pid, Signal};

use super::{IDLE, TICK, file, service};
use crate::support::program::{Program, crash, runs, signal};

/// Runs two services under an `up` that is then killed.
fn abandoned(program: &Program) -> [Pid; 2] {
    program.services(&file(&[service("web", TICK), service("other", IDLE)]));
    let up = program.up_with(&["--log-level", "debug"]);
    let pids = ["web", "other"].map(|name| program.running(name));
    // What the tests below look for in vain is there in a first start.
    program.said("action=");
    program.said("started");
    crash(up);
    goes_on(program);
    pids
}

/// Waits until `web` has written more.
fn goes_on(program: &Program) {
    let ticks = program.output("web").len();
    program.until("`web` goes on", || (program.output("web").len() > ticks + 5).then_some(()));
}

/// No line of `web` was lost or said twice.
fn assert_unbroken(program: &Program) {
    for (number, line) in program.output("web").iter().enumerate() {
        assert_eq!(*line, format!("tick {number}"));
    }
}

#[test]
fn up_adopts_what_a_killed_up_left_and_does_nothing_to_it() {
    let program = Program::new();
    let pids = abandoned(&program);
    let up = program.up_with(&["--log-level", "debug"]);
    program.said("web-1");
    assert_eq!(["web", "other"].map(|name| program.running(name)), pids);
    goes_on(&program);
    let log = program.log();
    assert!(!log.contains("action="), "the first plan is empty: {log}");
    assert!(!log.contains(" ✔ "), "nothing happened to a container: {log}");
    for name in ["web", "other"] {
        assert_eq!(program.service(name).unwrap()["Restarts"], 0);
    }
    assert_unbroken(&program);
    // The one who adopted is the one who stops.
    assert_eq!(program.interrupt(up), Some(0));
    assert!(pids.iter().all(|pid| !runs(*pid)));
    assert_eq!(program.service("web").unwrap()["ExitCode"], 0);
}

#[test]
fn ps_starts_a_control_that_adopts() {
    let program = Program::new();
    let pids = abandoned(&program);
    assert_eq!(program.background_control(), None);
    assert_eq!(["web", "other"].map(|name| program.running(name)), pids);
    let control = program.background_control().expect("`ps` started one");
    goes_on(&program);
    let log = std::fs::read_to_string(program.run_dir().join("control.log")).unwrap();
    assert!(!log.contains("container-"), "nothing happened to a container: {log}");
    assert_eq!(program.ok(["exec", "web", "--", "echo", "adopted"]), "adopted\n");
    // It supervises, too, and so does the next one.
    signal(control, Signal::KILL);
    program.until("the control is dead", || (!runs(control)).then_some(()));
    assert_eq!(["web", "other"].map(|name| program.running(name)), pids);
    assert_ne!(program.background_control(), Some(control));
    let tail = program.ok(["logs", "-n", "1", "web"]);
    assert!(tail.contains("| tick "), "{tail}");
    assert_unbroken(&program);
}

#[test]
fn an_edit_that_nobody_watched_is_applied_at_the_next_up() {
    let program = Program::new();
    let pids = abandoned(&program);
    program.services(&file(&[
        service("web", TICK),
        service("other", IDLE).key("read_only: true"),
        service("new", IDLE),
    ]));
    let up = program.up();
    program.running("new");
    program.until("`other` is recreated", || {
        Some(program.running("other")).filter(|pid| *pid != pids[1])
    });
    assert_eq!(program.running("web"), pids[0]);
    assert_unbroken(&program);
    program.interrupt(up);
}

#[test]
fn a_container_that_dies_while_nobody_watches_is_started_again() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE).key("restart: always"), service("other", IDLE)]));
    let up = program.up();
    let pids = ["web", "other"].map(|name| program.running(name));
    crash(up);
    for pid in pids {
        signal(pid, Signal::KILL);
        program.until("it is dead", || (!runs(pid)).then_some(()));
    }
    let shown = program.state("other", "exited");
    assert_eq!(shown["ExitCode"], 137, "the monitor saw it: {shown}");
    assert_ne!(program.running("web"), pids[0]);
    assert_eq!(program.service("web").unwrap()["Restarts"], 1);
}

#[test]
fn hanging_up_detaches() {
    let program = Program::new();
    program.services(&file(&[service("web", TICK)]));
    let mut up = program.up();
    let pid = program.running("web");
    signal(Pid::from_child(&up), Signal::HUP);
    assert_eq!(program.ended(&mut up).code(), Some(0));
    assert_eq!(program.running("web"), pid);
    assert!(program.background_control().is_some());
    goes_on(&program);
    // An `up` beside a control that runs already follows it, and its Ctrl-C stops the services.
    let up = program.up();
    program.said("| tick ");
    assert_eq!(program.interrupt(up), Some(0));
    assert!(!runs(pid));
}
