//! What a user asks of single services, with controls that die in between.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::{IDLE, file, service};
use crate::support::program::{Program, crash, runs, signal};

/// Says so when it is asked to end, and takes a while for it.
const SLOW_END: &str = "trap 'echo stopping; sleep 0.7; echo stopped; exit 4' TERM; touch /mark; \
    echo ready; while :; do sleep 0.1; done";

fn status(program: &Program, service: &str) -> String {
    program.service(service).unwrap()["Status"].as_str().unwrap().to_owned()
}

/// How often a service has said something.
fn said(program: &Program, service: &str, line: &str) -> usize {
    program.output(service).iter().filter(|written| *written == line).count()
}

/// Brings the services up, so that the control of the background has them.
fn up_in_background(program: &Program, services: &[&str]) {
    let up = program.up();
    for service in services {
        program.running(service);
    }
    crash(up);
}

/// What is kept of the only project.
fn project_record(program: &Program) -> Option<String> {
    let projects = program.folder().join("state/services");
    let project = std::fs::read_dir(projects).ok()?.flatten().next()?.path().join("project");
    std::fs::read_to_string(project).ok()
}

/// Kills the control in the background.
fn kill_control(program: &Program) {
    let control = program.until("a control runs", || program.background_control());
    signal(control, Signal::KILL);
    program.until("control is dead", || (!runs(control)).then_some(()));
}

#[test]
fn a_stop_by_hand_keeps_the_container_and_holds_until_a_start() {
    let program = Program::new();
    let restart = "restart: always";
    program.services(&file(&[
        service("web", SLOW_END).key(restart),
        service("other", IDLE).key(restart),
    ]));
    let up = program.up();
    let (web, other) = (program.running("web"), program.running("other"));
    program.wrote("web", "ready");
    let container = program.service("web").unwrap()["Name"].clone();
    program.ok(["stop", "web"]);
    assert!(!runs(web), "it has stopped when `stop` returns");
    assert_eq!(said(&program, "web", "stopped"), 1, "it had its time");
    assert_eq!(status(&program, "web"), "stopped (manual)");
    assert_eq!(program.service("web").unwrap()["ExitCode"], 4);
    assert_eq!(program.running("other"), other);

    // The next control keeps to it, and so does an `up` of something else.
    crash(up);
    assert_eq!(status(&program, "web"), "stopped (manual)");
    let up = program.up_with(&["other"]);
    assert_eq!(status(&program, "web"), "stopped (manual)");
    program.ok(["start", "web"]);
    let shown = program.service("web").unwrap();
    assert_eq!((&shown["State"], &shown["Name"]), (&"running".into(), &container), "{shown}");
    program.ok(["exec", "web", "--", "ls", "/mark"]);
    assert_eq!(program.running("other"), other, "nothing else was touched");

    // All of them, and one of them again.
    program.ok(["stop", "-t", "0"]);
    assert_eq!(said(&program, "web", "stopped"), 1, "it had no time");
    assert_eq!(program.service("web").unwrap()["ExitCode"], 137);
    program.ok(["start", "other"]);
    assert_eq!(status(&program, "web"), "stopped (manual)");
    program.running("other");
    // A plain `up` wants all.
    crash(up);
    let up = program.up();
    program.running("web");
    assert_eq!(program.interrupt(up), Some(0));
}

#[test]
fn a_restart_keeps_the_container_and_starts_what_had_ended() {
    let program = Program::new();
    program.services(&file(&[service("web", SLOW_END), service("job", "echo done; exit 3")]));
    let up = program.up();
    let web = program.running("web");
    program.wrote("web", "ready");
    let container = program.service("web").unwrap()["Name"].clone();
    program.state("job", "exited");
    program.ok(["restart"]);
    let again = program.running("web");
    assert!(again != web && !runs(web));
    let shown = program.service("web").unwrap();
    assert_eq!((&shown["Name"], &shown["Restarts"]), (&container, &0.into()), "{shown}");
    program.until("the job has run twice", || (said(&program, "job", "done") == 2).then_some(()));
    assert_eq!(said(&program, "web", "stopped"), 1);

    // Asked for again while it runs, a job does not run twice.
    program.ok(["start", "web"]);
    assert_eq!(program.running("web"), again);
    let wrong = program.run(["restart", "nothing"]);
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    assert_eq!(program.interrupt(up), Some(0));
}

#[test]
fn a_restart_is_completed_by_the_next_control_wherever_the_first_died() {
    let program = Program::new();
    program.services(&file(&[service("web", SLOW_END).key("stop_grace_period: 5s")]));
    up_in_background(&program, &["web"]);
    let mut before = program.running("web");
    program.wrote("web", "ready");
    let container = program.service("web").unwrap()["Name"].clone();
    // From before the signal until after the start.
    for pause in [0, 20, 100, 400, 800, 900, 1_000] {
        let ended = said(&program, "web", "stopped");
        let kept = project_record(&program);
        let mut restart = program.command(["restart", "web"]).spawn().unwrap();
        program
            .until("control has taken it in", || (project_record(&program) != kept).then_some(()));
        std::thread::park_timeout(Duration::from_millis(pause));
        kill_control(&program);
        program.ended(&mut restart);
        let after = program.until("it runs again", || {
            let pid = program.running("web");
            (pid != before && said(&program, "web", "stopped") > ended).then_some(pid)
        });
        assert!(!runs(before), "after {pause} ms");
        assert_eq!(said(&program, "web", "stopped"), ended + 1, "once, after {pause} ms");
        assert_eq!(program.service("web").unwrap()["Name"], container);
        // And it is done: nothing happens any more.
        kill_control(&program);
        assert_eq!(program.running("web"), after);
        before = after;
    }
    program.ok(["down"]);
    assert!(!runs(before));
}

#[test]
fn a_stop_is_completed_by_the_next_control_wherever_the_first_died() {
    let program = Program::new();
    program.services(&file(&[service("web", SLOW_END).key("restart: always")]));
    up_in_background(&program, &["web"]);
    // When control has taken it in, when the signal has come, and when the service has ended.
    for (round, moment) in [None, Some("stopping"), Some("stopped")].into_iter().enumerate() {
        let pid = program.running("web");
        program.until("the signal is trapped", || {
            (said(&program, "web", "ready") > round).then_some(())
        });
        let kept = project_record(&program);
        let before = moment.map(|line| said(&program, "web", line));
        let mut stop = program.command(["stop", "web"]).spawn().unwrap();
        program.until(&format!("the stop is at {moment:?}"), || {
            let reached = match moment {
                None => project_record(&program) != kept,
                Some(line) => Some(said(&program, "web", line)) > before,
            };
            reached.then_some(())
        });
        kill_control(&program);
        // Who asked for it asks the next control.
        assert!(program.ended(&mut stop).success(), "at {moment:?}");
        assert_eq!(status(&program, "web"), "stopped (manual)", "at {moment:?}");
        assert!(!runs(pid));
        program.ok(["start", "--wait"]);
    }
    program.ok(["down", "-t", "0"]);
}

#[test]
fn a_service_is_taken_down_alone_and_comes_back_with_a_start() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE), service("other", IDLE)]));
    let up = program.up();
    let (web, other) = (program.running("web"), program.running("other"));
    program.ok(["down", "web"]);
    assert!(!runs(web));
    let containers =
        || std::fs::read_dir(program.folder().join("state/containers")).unwrap().count();
    assert_eq!(containers(), 1);
    assert_eq!(status(&program, "web"), "stopped (manual)");
    crash(up);
    assert_eq!(status(&program, "web"), "stopped (manual)");
    assert_eq!((containers(), program.running("other")), (1, other));
    program.ok(["start", "web"]);
    program.running("web");
    program.ok(["down"]);
    assert_eq!((containers(), program.ps()), (0, Vec::<Value>::new()));
}

#[test]
fn wait_prints_codes_and_exits_with_the_first() {
    let program = Program::new();
    let until = |file: &str, code: u8| {
        format!("trap 'exit 9' TERM; while ! [ -e /{file} ]; do sleep 0.05; done; exit {code}")
    };
    program.services(&file(&[service("one", &until("go", 3)), service("two", &until("go", 5))]));
    let up = program.up();
    program.running("one");
    program.running("two");
    let wait = program.command(["wait"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    program.make_file("two", "/go");
    program.state("two", "exited");
    // It rides over the death of control.
    crash(up);
    program.make_file("one", "/go");
    let output = wait.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("exited with status code 3"), "{text}");
    assert!(text.contains("exited with status code 5"), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
    assert_eq!(output.status.code(), Some(5), "the first end counts");
    // What has ended is not waited for.
    assert_eq!(program.run(["wait", "one"]).status.code(), Some(3));
    let down = program.run(["wait", "one", "--down-project"]);
    assert_eq!(down.status.code(), Some(3), "{down:?}");
    assert_eq!(program.ps(), Vec::<Value>::new());
}

#[test]
fn the_shutdown_of_the_host_stops_all_and_is_not_remembered() {
    let program = Program::new();
    let restart = "restart: unless-stopped";
    program.services(&file(&[
        service("web", SLOW_END).key(restart),
        service("by-hand", IDLE).key(restart),
    ]));
    up_in_background(&program, &["web", "by-hand"]);
    let web = program.running("web");
    program.wrote("web", "ready");
    program.ok(["stop", "by-hand"]);
    program.ok(["shutdown-services"]);
    assert!(!runs(web));
    assert_eq!(said(&program, "web", "stopped"), 1);
    assert_eq!(status(&program, "web"), "stopped (host shutdown)");
    let refused = program.run(["start", "web"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("shutting down"), "{refused:?}");
    // The host goes on after all.
    program.ok(["resume-services"]);
    program.running("web");
    assert_eq!(status(&program, "by-hand"), "stopped (manual)");
    program.ok(["shutdown-services"]);
    // The next control, as after the boot.
    kill_control(&program);
    program.running("web");
    assert_eq!(status(&program, "by-hand"), "stopped (manual)");
    program.ok(["down"]);
}

#[test]
fn the_shutdown_of_the_host_stops_what_depends_on_others_before_them() {
    let program = Program::new();
    program.services(&file(&[
        service("db", SLOW_END),
        service("app", SLOW_END).key("depends_on: [db]"),
        service("web", SLOW_END).key("depends_on: [app]"),
    ]));
    let all = ["db", "app", "web"];
    up_in_background(&program, &all);
    for service in all {
        program.wrote(service, "ready");
    }
    program.ok(["shutdown-services"]);
    let lines = program.ok(["logs", "--format", "json"]);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let time = |service: &str, text: &str| -> jiff::Timestamp {
        let is_it = |line: &&Value| line["service"] == service && line["text"] == text;
        let line = lines.iter().find(is_it).unwrap_or_else(|| panic!("{service}: {lines:?}"));
        line["time"].as_str().unwrap().parse().unwrap()
    };
    // None is asked to end before those that need it have ended.
    assert!(time("web", "stopped") < time("app", "stopping"), "{lines:?}");
    assert!(time("app", "stopped") < time("db", "stopping"), "{lines:?}");
    program.ok(["down"]);
}

#[test]
fn a_start_that_cannot_work_says_why() {
    let program = Program::new();
    let mut broken = service("broken", "");
    "oci:/nowhere".clone_into(&mut broken.image);
    program.services(&file(&[broken, service("web", IDLE)]));
    let up = program.up();
    program.running("web");
    let start = program.run(["start", "broken"]);
    assert_eq!(start.status.code(), Some(1), "{start:?}");
    let said = String::from_utf8_lossy(&start.stderr).into_owned();
    assert!(said.contains("could not be started"), "{said}");
    assert_eq!(program.interrupt(up), Some(0));
}

#[test]
fn inspect_tells_everything_and_ps_the_last_known_process() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE).key("environment: {A: one}")]));
    let up = program.up();
    let web = program.running("web");
    program.wrote("web", "ready");
    program.ok(["restart", "-t", "0"]);
    let web = program.until("it runs again", || {
        let pid = program.running("web");
        (pid != web).then_some(pid)
    });
    let container = program.service("web").unwrap()["Name"].as_str().unwrap().to_owned();
    for arguments in [vec!["inspect"], vec!["inspect", "web"], vec!["inspect", &container]] {
        let found: Vec<Value> = serde_json::from_str(&program.ok(arguments)).unwrap();
        assert_eq!(found.len(), 1);
        let web_now = &found[0];
        assert_eq!(web_now["state"], "running");
        assert_eq!(web_now["pid"], web.as_raw_nonzero().get());
        assert_eq!(web_now["container"], container.as_str());
        assert_eq!(web_now["settings"]["environment"]["A"], "one");
        assert_eq!(web_now["image_content"]["layers"][0]["lazy"], true, "{web_now}");
        assert_eq!(web_now["exits"][0]["outcome"]["signal"], 9, "{web_now}");
        assert!(web_now["cgroup"].as_str().unwrap().ends_with(&container));
        let pids = web_now["pids"].as_array().unwrap();
        assert!(pids.contains(&web.as_raw_nonzero().get().into()), "{web_now}");
        assert!(!web_now["events"].as_array().unwrap().is_empty(), "{web_now}");
        assert!(std::path::Path::new(web_now["log_path"].as_str().unwrap()).exists());
    }
    let missing = program.run(["inspect", "nothing"]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");

    // A control that finds a container without a monitor still knows its process.
    let monitor = program.role("monitor", "web").unwrap();
    crash(up);
    signal(monitor, Signal::KILL);
    program.until("the monitor is dead", || (!runs(monitor)).then_some(()));
    assert_eq!(program.service("web").unwrap()["Pid"], web.as_raw_nonzero().get());
    program.ok(["down", "-t", "0"]);
}
