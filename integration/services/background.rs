//! `up -d` and `daemon`: projects that run without a terminal.

use std::process::Stdio;

use rustix::process::{Pid, Signal};

use super::{IDLE, file, service};
use crate::support::program::{Program, runs, signal};

/// What `up -d` with these arguments said on standard error, and its exit code.
fn up(program: &Program, arguments: &[&str]) -> (Option<i32>, String) {
    let output = program.run(["up", "-d"].iter().chain(arguments));
    assert!(output.stdout.is_empty(), "progress is on standard error: {output:?}");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_detached_up_returns_when_services_run_and_single_runs_have_ended_well() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE), service("migrate", "echo migrated")]));
    let (code, said) = up(&program, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains(" ✔ web      running") && said.contains(" ✔ migrate  exited (0)"),
        "{said}"
    );
    let pid = program.running("web");
    assert_eq!(program.service("migrate").unwrap()["State"], "exited");
    // Again: nothing is started anew.
    let (code, said) = up(&program, &["--wait-timeout", &u64::MAX.to_string(), "web"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(program.running("web"), pid);
    program.ok(["down"]);
    assert!(!runs(pid));
}

#[test]
fn a_service_that_fails_is_told_with_its_last_lines_and_what_to_do() {
    let program = Program::new();
    let script = "echo cannot find my settings >&2; exit 3";
    program.services(&file(&[service("web", IDLE), service("bad", script)]));
    let (code, said) = up(&program, &[]);
    assert_eq!(code, Some(1), "{said}");
    for part in [
        "error: service `bad`: exited (3)",
        "  bad-1  | cannot find my settings",
        "hint: the project is left as it is; `supervisor logs -p ",
    ] {
        assert!(said.contains(part), "`{part}` is missing in {said}");
    }
    assert!(!said.contains("✔ bad"), "it was never up: {said}");
    program.running("web");
    program.ok(["down"]);
}

#[test]
fn a_service_that_does_not_come_up_in_time_is_told_and_goes_on_trying() {
    let program = Program::new();
    program.services(&file(&[service("loop", "echo again; exit 1").key("restart: always")]));
    let (code, said) = up(&program, &["--wait-timeout", "1"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error: service `loop`: not up after 1 s: "), "{said}");
    assert!(said.contains("  loop-1  | again"), "{said}");
    let restarts = program.service("loop").unwrap()["Restarts"].as_u64().unwrap();
    program.until("it is tried again", || {
        (program.service("loop").unwrap()["Restarts"].as_u64().unwrap() > restarts).then_some(())
    });
    program.ok(["down"]);
}

#[test]
fn an_interrupted_wait_leaves_the_project_as_it_is() {
    let program = Program::new();
    program
        .services(&file(&[service("web", IDLE), service("loop", "exit 1").key("restart: always")]));
    let waiting =
        program.command(["up", "-d"]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let pid = program.running("web");
    signal(Pid::from_child(&waiting), Signal::INT);
    let output = waiting.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("goes on in the background"), "{said}");
    assert_eq!(program.running("web"), pid);
    program.ok(["down"]);
}

#[test]
fn an_up_that_does_not_wait_returns_at_once_and_wrong_uses_are_told() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE)]));
    let (code, said) = up(&program, &["--no-wait"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("starts in the background"), "{said}");
    program.running("web");
    program.ok(["down"]);
    let output = program.run(["up", "--wait-timeout", "3"]);
    assert!(!output.status.success(), "{output:?}");
    let output = program.run(["up", "-d", "--no-wait", "--wait-timeout", "3"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn a_daemon_takes_over_from_one_that_a_command_started_and_leaves_services_running() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE)]));
    program.ok(["up", "-d"]);
    let pid = program.running("web");

    let start = || {
        let log = std::fs::File::create(program.folder().join("daemon.log")).unwrap();
        let daemon = program.command(["daemon"]).stderr(log).spawn().unwrap();
        program.until("the daemon is ready", || {
            let said = std::fs::read_to_string(program.folder().join("daemon.log")).unwrap();
            said.contains(" is ready at `").then_some(())
        });
        daemon
    };
    let mut daemon = start();
    assert_eq!(program.running("web"), pid, "it was adopted");
    // One that is meant to stay does not make way.
    let second = program.run(["daemon"]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("process {} is the supervisor here", daemon.id())), "{said}");

    signal(Pid::from_child(&daemon), Signal::HUP);
    assert_eq!(program.running("web"), pid);
    signal(Pid::from_child(&daemon), Signal::TERM);
    assert_eq!(program.ended(&mut daemon).code(), Some(0));
    assert!(runs(pid));

    // The next one knows what should run, also without the services file.
    std::fs::remove_file(program.folder().join("services.yaml")).unwrap();
    let mut daemon = start();
    assert_eq!(program.running("web"), pid);
    signal(Pid::from_child(&daemon), Signal::INT);
    assert_eq!(program.ended(&mut daemon).code(), Some(0));
    assert!(runs(pid));
    program.ok(["down"]);
    assert!(!runs(pid));
}

#[test]
fn an_interrupted_up_of_some_services_stops_only_those_that_it_started() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE), service("tool", IDLE)]));
    program.ok(["up", "-d", "web"]);
    let web = program.running("web");
    let up = program.up_with(&["tool"]);
    let tool = program.running("tool");
    assert_eq!(program.interrupt(up), Some(0), "{}", program.log());
    assert!(!runs(tool) && runs(web), "{}", program.log());
    assert_eq!(program.running("web"), web);

    let up = program.up_with(&["tool", "web"]);
    let tool = program.running("tool");
    assert_eq!(program.interrupt(up), Some(0), "{}", program.log());
    program.until("all of it is stopped", || (!runs(tool) && !runs(web)).then_some(()));
    program.ok(["down"]);
}
