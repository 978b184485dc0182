//! A service from `up` to `down`, seen through every command.

use std::io::Write as _;
use std::process::Stdio;

use rustix::process::Signal;

use super::image::{READ_ALL, Readable};
use super::{IDLE, TICK, file, service, shell_image};
use crate::support::program::{Program, runs, signal};
use crate::support::registry::FaultRegistry;

#[test]
fn a_service_is_listed_as_compose_lists_it_and_down_leaves_only_images() {
    let program = Program::new();
    program.services(&file(&[service("web", TICK)]));
    let up = program.up();
    let pid = program.running("web");
    program.said("web-1  | tick 2");
    let shown = program.service("web").unwrap();
    for key in [
        "ID",
        "Name",
        "Names",
        "Project",
        "Service",
        "Image",
        "Command",
        "State",
        "Status",
        "Health",
        "ExitCode",
        "CreatedAt",
        "RunningFor",
        "Publishers",
        "Ports",
        "Labels",
        "Mounts",
        "Networks",
        "Pid",
        "ImageLocal",
    ] {
        assert!(shown.get(key).is_some(), "`{key}` is missing in {shown}");
    }
    let local = shown["ImageLocal"].as_f64().unwrap();
    assert!(local > 0.0 && local <= 1.0, "{shown}");
    assert_eq!((&shown["Lazy"], &shown["Restarts"]), (&true.into(), &0.into()), "{shown}");
    assert_eq!(shown["Image"], shell_image().as_str());
    let table = program.ok(["ps"]);
    assert!(table.contains("SERVICE") && table.contains(&pid.to_string()), "{table}");

    let down = program.run(["down"]);
    assert!(down.status.success(), "{down:?}");
    assert!(!runs(pid), "the process is gone when `down` returns");
    assert_eq!(program.ps(), Vec::<serde_json::Value>::new());
    let containers = program.folder().join("state/containers");
    assert_eq!(std::fs::read_dir(containers).unwrap().count(), 0);
    let images = program.ok(["images", "--format", "json"]);
    assert!(images.contains("small-esgz"), "{images}");
    program.interrupt(up);
    assert_eq!(program.run(["down"]).status.code(), Some(0), "a second `down` has nothing to do");
}

#[test]
fn logs_shows_the_last_lines_and_follows() {
    let program = Program::new();
    let script = "trap 'exit 0' TERM; for n in 1 2 3 4 5; do echo line $n; done; \
        while ! [ -e /go ]; do sleep 0.05; done; echo late; while :; do sleep 0.1; done";
    program.services(&file(&[service("web", script), service("other", IDLE)]));
    let up = program.up();
    program.wrote("web", "line 5");
    program.wrote("other", "ready");
    assert_eq!(program.ok(["logs", "-n", "2", "web"]), "web-1  | line 4\nweb-1  | line 5\n");
    let all = program.ok(["logs"]);
    assert_eq!(all.lines().count(), 6, "{all}");
    assert!(all.lines().any(|line| line.ends_with("| ready")), "{all}");

    let path = program.folder().join("follow.log");
    let output = std::fs::File::create(&path).unwrap();
    let mut follow =
        program.command(["logs", "-f", "-n", "1", "web"]).stdout(output).spawn().unwrap();
    let followed = |text: &str| {
        program.until(&format!("`logs -f` shows `{text}`"), || {
            std::fs::read_to_string(&path).unwrap().contains(text).then_some(())
        });
    };
    followed("line 5");
    program.make_file("web", "/go");
    followed("late");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "web-1  | line 5\nweb-1  | late\n");
    follow.kill().unwrap();
    follow.wait().unwrap();
    let missing = program.run(["logs", "nothing"]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    program.interrupt(up);
}

#[test]
fn exec_passes_streams_and_exit_codes_through() {
    let program = Program::new();
    program
        .services(&file(&[service("web", IDLE), service("done", "exit 0").key("restart: \"no\"")]));
    let up = program.up();
    program.running("web");
    let code = |arguments: &[&str]| program.run(arguments).status.code();
    assert_eq!(code(&["exec", "web", "--", "sh", "-c", "exit 7"]), Some(7));
    assert_eq!(code(&["exec", "web", "--", "true"]), Some(0));
    assert_eq!(code(&["exec", "web", "--", "sh", "-c", "kill -9 $$"]), Some(137));
    assert_eq!(code(&["exec", "web", "--", "/etc/hostname"]), Some(126));
    assert_eq!(code(&["exec", "web", "--", "no-such-program"]), Some(127));
    assert_eq!(code(&["exec", "nothing", "--", "true"]), Some(125));
    assert_eq!(code(&["exec", "web"]), Some(2), "a command is missing");
    program.state("done", "exited");
    assert_eq!(code(&["exec", "done", "--", "true"]), Some(125));

    let mut cat = program
        .command(["exec", "web", "--", "sh", "-c", "cat; echo end >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    cat.stdin.take().unwrap().write_all(b"through and through").unwrap();
    let output = cat.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"through and through");
    assert_eq!(output.stderr, b"end\n");
    program.interrupt(up);
}

#[test]
fn ctrl_c_stops_gracefully() {
    let program = Program::new();
    let script = "trap 'echo goodbye; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    program.services(&file(&[service("web", script).key("restart: always")]));
    let up = program.up();
    let pid = program.running("web");
    program.said("ready");
    assert_eq!(program.interrupt(up), Some(0));
    assert!(!runs(pid));
    assert!(program.log().contains("| goodbye"), "its last words are shown: {}", program.log());
    // Stopped by the user: the policy does not start it again, and what it ended with is shown.
    let shown = program.service("web").unwrap();
    assert_eq!((&shown["State"], &shown["ExitCode"]), (&"exited".into(), &3.into()), "{shown}");
}

#[test]
fn a_terminated_up_stops_gracefully_too() {
    let program = Program::new();
    let script = "trap 'echo goodbye; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    program.services(&file(&[service("web", script).key("restart: always")]));
    let mut up = program.up();
    let pid = program.running("web");
    program.said("ready");
    signal(rustix::process::Pid::from_child(&up), Signal::TERM);
    assert_eq!(program.ended(&mut up).code(), Some(0));
    assert!(!runs(pid));
    assert!(program.log().contains("| goodbye"), "its last words are shown: {}", program.log());
    let shown = program.service("web").unwrap();
    assert_eq!((&shown["State"], &shown["ExitCode"]), (&"exited".into(), &3.into()), "{shown}");
}

#[test]
fn a_second_ctrl_c_kills() {
    let program = Program::new();
    let script = "trap 'echo ignored' TERM; echo ready; while :; do sleep 0.1; done";
    program.services(&file(&[service("web", script).key("stop_grace_period: 10m")]));
    let mut up = program.up();
    let pid = program.running("web");
    program.said("ready");
    signal(rustix::process::Pid::from_child(&up), Signal::INT);
    program.said("Ctrl-C again kills");
    program.said("| ignored");
    assert!(up.try_wait().unwrap().is_none() && runs(pid));
    signal(rustix::process::Pid::from_child(&up), Signal::INT);
    assert_eq!(program.ended(&mut up).code(), Some(0));
    program.until("it is dead", || (!runs(pid)).then_some(()));
    assert_eq!(program.service("web").unwrap()["ExitCode"], 137);
}

#[test]
fn a_complete_image_needs_no_network() {
    let program = Program::new();
    let image = Readable::pack(&program, 1, 12);
    let registry = FaultRegistry::start();
    registry.put_layout("app", &image.layout);
    let reference = format!("{}/app:v1", registry.host());
    program.services(&file(&[service("web", READ_ALL).image(reference.as_str())]));
    let up = program.up();
    program.wrote("web", "end");
    assert_eq!(program.output("web")[..12], image.sums[..]);
    program.ok(["pull", "--full", &reference]);
    assert_eq!(program.service("web").unwrap()["ImageLocal"], 1.0);
    program.interrupt(up);
    program.ok(["down"]);
    program.end_controls();
    program
        .until("nothing runs and nothing is mounted", || program.traces().is_empty().then_some(()));
    drop(registry);

    let up = program.up();
    program.until("the service has read everything again", || {
        let output = program.output("web");
        (output.iter().filter(|line| *line == "end").count() == 2).then_some(())
    });
    let output = program.output("web");
    assert_eq!(output[13..25], image.sums[..], "after a restart of everything, without a registry");
    assert_eq!(program.service("web").unwrap()["ImageLocal"], 1.0);
    program.interrupt(up);
}
