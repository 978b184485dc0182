//! How runs ended, and what they said last, is known after the container and control are gone.

use rustix::process::Signal;
use serde_json::Value;

use super::{file, service};
use crate::support::program::{Program, runs, signal};

fn exits(program: &Program) -> Vec<Value> {
    let found: Vec<Value> = serde_json::from_str(&program.ok(["inspect", "web"])).unwrap();
    found[0]["exits"].as_array().unwrap().clone()
}

fn end_control(program: &Program) {
    let control = program.until("a control runs", || program.background_control());
    signal(control, Signal::KILL);
    program.until("control is dead", || (!runs(control)).then_some(()));
}

#[test]
fn ends_outlive_the_container_and_control_and_what_cannot_be_read_is_set_aside() {
    let program = Program::new();
    let loops = service("web", "echo last words of $N >&2; exit 3").key("restart: always");
    let numbered = |number: &str| loops.clone().key(&format!("environment: {{N: {number}}}"));
    program.services(&file(&[numbered("one")]));
    program.ok(["up", "-d", "--no-wait"]);
    program.until("it has ended twice", || (exits(&program).len() >= 2).then_some(()));
    let first = exits(&program).remove(0);
    assert_eq!((&first["outcome"]["code"], &first["oom_killed"]), (&3.into(), &false.into()));
    assert_eq!(first["log"], serde_json::json!(["last words of one"]));
    assert!(first["ran_ms"].as_u64().is_some(), "{first}");
    let table = program.until("it has been restarted", || {
        Some(program.ok(["ps"])).filter(|table| table.contains("(exit 3, "))
    });
    assert!(table.contains("RESTARTS"), "{table}");
    let events = program.ok(["events", "--json", "--since", "1h", "--no-follow"]);
    let told = events.lines().find(|line| line.contains("container-exited")).unwrap();
    let told: Value = serde_json::from_str(told).unwrap();
    assert_eq!(told["attributes"]["code"], "3", "{told}");

    end_control(&program);
    program.services(&file(&[numbered("two")]));
    program.ok(["up", "-d", "--no-wait"]);
    let last = program.until("another container has ended", || {
        exits(&program).pop().filter(|exit| exit["log"][0] == "last words of two")
    });
    assert_ne!(last["id"], first["id"]);
    assert!(exits(&program).contains(&first), "an end of the container before is kept");
    assert_eq!(program.service("web").unwrap()["LastExit"]["code"], 3);
    program.ok(["stop"]);

    end_control(&program);
    let state = program.folder().join("state");
    let logs = std::fs::read_dir(state.join("logs")).unwrap().next().unwrap().unwrap().path();
    for name in ["exits", "exits.prev"] {
        std::fs::write(logs.join("web").join(name), b"garbage").unwrap();
    }
    // The container that is there still knows its own.
    let last = exits(&program).pop().unwrap();
    assert_eq!(last["log"][0], "last words of two", "{last}");
    assert!(!exits(&program).contains(&first));
    assert_eq!(supervisor::store::set_aside_below(&state).len(), 2);
    program.ok(["down"]);
}
