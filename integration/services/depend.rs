//! `depends_on` with real containers: at `up`, after a crash, at `down`, and when a dependency fails.

use rustix::process::Signal;

use super::{IDLE, Service, file, service};
use crate::support::program::{Program, runs, signal};

/// Ends with code 0 once the test has made a file.
const GATED: &str = "while [ ! -e /shared/go ]; do sleep 0.05; done; exit 0";

/// Notes when it is asked to end.
fn noting(name: &str) -> Service {
    let script = format!(
        "trap 'echo {name} >> /shared/ends; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    );
    service(name, &script).key("volumes: [\"./shared:/shared\"]")
}

#[test]
fn a_service_waits_for_the_end_of_a_job_also_when_it_is_named_alone() {
    let program = Program::new();
    let job = service("job", GATED).key("volumes: [\"./shared:/shared\"]");
    let web =
        service("web", IDLE).key("depends_on: {job: {condition: service_completed_successfully}}");
    program.services(&file(&[web, job, service("other", IDLE)]));
    let up = program.up_with(&["web"]);
    program.until("it waits for the job that runs", || {
        let shown = program.service("web")?;
        (shown["Status"] == "blocked on job (running)" && shown["State"] == "blocked").then_some(())
    });
    std::fs::write(program.folder().join("shared/go"), "").unwrap();
    program.running("web");
    assert_eq!(program.service("job").unwrap()["ExitCode"], 0);
    assert!(program.service("other").is_none(), "nobody needs it");
    program.interrupt(up);
}

#[test]
fn a_failed_job_fails_what_needs_it_at_once_and_shows_its_last_lines() {
    let program = Program::new();
    let web =
        service("web", IDLE).key("depends_on: {job: {condition: service_completed_successfully}}");
    program.services(&file(&[web.clone(), service("job", "echo no luck; exit 3")]));
    let output = program.run(["up", "-d", "web"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("service `web`: failed: `job` exited (3)"), "{said}");
    assert!(said.contains("job  | no luck"), "{said}");
    assert_eq!(program.service("web").unwrap()["State"], "failed");
    program.ok(["up", "-d", "--no-deps", "web"]);
    program.running("web");
    program.services(&file(&[web, service("job", "exit 0")]));
    program.ok(["up", "-d"]);
    program.ok(["down"]);
}

#[test]
fn order_holds_at_the_start_and_the_end_and_one_follows_the_restart_of_another() {
    let program = Program::new();
    std::fs::create_dir(program.folder().join("shared")).unwrap();
    program.services(&file(&[
        noting("a").key("depends_on: {b: {condition: service_started, restart: true}}"),
        noting("b").key("depends_on: [c]").key("restart: always"),
        noting("c"),
    ]));
    program.ok(["up", "-d"]);
    let [a, b, c] = ["a", "b", "c"].map(|name| program.running(name));
    let started = |name: &str| program.service(name).unwrap()["StartedAt"].to_string();
    assert!(started("c") < started("b") && started("b") < started("a"));
    signal(b, Signal::KILL);
    program.until("`a` follows `b`", || {
        (program.running("b") != b && program.running("a") != a).then_some(())
    });
    assert!(!runs(a));
    assert_eq!(program.running("c"), c);
    assert_eq!(program.service("a").unwrap()["Restarts"], 0);
    std::fs::remove_file(program.folder().join("shared/ends")).unwrap();
    program.ok(["down"]);
    let ends = std::fs::read_to_string(program.folder().join("shared/ends")).unwrap();
    assert_eq!(ends, "a\nb\nc\n");
}
