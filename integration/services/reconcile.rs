//! The services file is what runs, and what crashes is started again.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{IDLE, TICK, file, service};
use crate::support::program::{Program, runs, signal};

#[test]
fn an_edit_touches_what_changed_and_nothing_else() {
    let program = Program::new();
    let (same, changed, gone) =
        (service("same", TICK), service("changed", IDLE), service("gone", IDLE));
    program.services(&file(&[same.clone(), changed.clone(), gone]));
    let up = program.up();
    let before = ["same", "changed", "gone"].map(|name| program.running(name));
    let changed = changed.key("environment: {COLOUR: blue}");
    program.services(&file(&[same, changed, service("new", IDLE)]));
    program.running("new");
    let pid = program.until("`changed` is recreated", || {
        Some(program.running("changed")).filter(|pid| *pid != before[1])
    });
    program.until("`gone` is stopped", || (!runs(before[2])).then_some(()));
    assert!(!runs(before[1]));
    assert_eq!(program.running("same"), before[0], "an unchanged service keeps its process");
    assert_eq!(program.service("same").unwrap()["Restarts"], 0);
    assert_eq!(program.ok(["exec", "changed", "--", "sh", "-c", "echo $COLOUR"]), "blue\n");
    program.until("`gone` is not listed", || program.service("gone").is_none().then_some(()));
    // A file that is written again with the same content changes nothing.
    let text = std::fs::read_to_string(program.folder().join("services.yaml")).unwrap();
    program.services(&text);
    let ticks = program.output("same").len();
    program.until("`same` goes on", || (program.output("same").len() > ticks + 10).then_some(()));
    assert_eq!((program.running("same"), program.running("changed")), (before[0], pid));
    program.interrupt(up);
}

#[test]
fn an_invalid_edit_keeps_the_last_good_state_and_a_later_valid_one_applies() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE)]));
    let up = program.up();
    let pid = program.running("web");
    program.services(&file(&[service("web", IDLE).key("colour: blue"), service("new", IDLE)]));
    program.said("last good state is kept");
    program.said("services.yaml:5:5");
    assert!(program.log().contains("colour"), "{}", program.log());
    assert_eq!(program.running("web"), pid);
    assert!(program.service("new").is_none(), "no part of an invalid file is applied");
    std::fs::remove_file(program.folder().join("services.yaml")).unwrap();
    program.said("cannot be read");
    let listed = program.ok(["ps", "-p", &project(&program)]);
    assert!(listed.contains(&pid.to_string()), "a file that is gone stops nothing: {listed}");
    program.services(&file(&[service("web", IDLE), service("new", IDLE)]));
    program.running("new");
    assert_eq!(program.running("web"), pid);
    program.interrupt(up);
}

/// The name of the only project.
fn project(program: &Program) -> String {
    let entry = std::fs::read_dir(program.folder().join("state/services")).unwrap().next().unwrap();
    entry.unwrap().file_name().into_string().unwrap()
}

#[test]
fn what_crashes_is_started_again_after_delays_that_grow() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE).key("restart: always"), service("other", TICK)]));
    let up = program.up();
    let other = program.running("other");
    let mut pid = program.running("web");
    for (crashes, delay) in [(1, 800), (2, 1600)] {
        let start = Instant::now();
        signal(pid, Signal::KILL);
        let next = program.until("`web` is started again", || {
            Some(program.running("web")).filter(|next| *next != pid)
        });
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(delay), "restart {crashes} came after {took:?}");
        assert_eq!(program.service("web").unwrap()["Restarts"], crashes);
        pid = next;
    }
    assert!(program.log().contains("ended by signal 9"), "{}", program.log());
    assert_eq!(program.running("other"), other);
    program.interrupt(up);
}

#[test]
fn restart_policies_decide_on_the_exit_code() {
    let program = Program::new();
    let restart = |name: &str, script: &str, policy: &str| {
        service(name, script).key(&format!("restart: \"{policy}\""))
    };
    program.services(&file(&[
        restart("never", "exit 5", "no"),
        restart("fine", "exit 0", "on-failure"),
        restart("twice", "exit 6", "on-failure:1"),
        restart("killed", IDLE, "no"),
    ]));
    let up = program.up();
    signal(program.running("killed"), Signal::KILL);
    let twice = program.until("`twice` is given up", || {
        program
            .service("twice")
            .filter(|shown| shown["Restarts"] == 1 && shown["State"] == "exited")
    });
    assert_eq!(twice["ExitCode"], 6, "{twice}");
    for (name, code) in [("never", 5), ("fine", 0), ("killed", 137)] {
        let shown = program.state(name, "exited");
        let seen = (&shown["ExitCode"], &shown["Restarts"], &shown["Pid"]);
        assert_eq!(seen, (&code.into(), &0.into(), &0.into()), "{shown}");
    }
    let table = program.ok(["ps"]);
    assert!(table.contains("(5)") || table.contains("code 5"), "the code is shown: {table}");
    // Asked for again, a service that ended runs again.
    program.interrupt(up);
    let up = program.up();
    program.running("killed");
    program.interrupt(up);
}
