//! Jobs run once for what the file says of them; a service that ends again and again is said to do that.

use rustix::process::Signal;

use super::{IDLE, file, service};
use crate::support::program::{Program, runs, signal};

#[test]
fn a_job_runs_once_until_it_changes_or_somebody_asks() {
    let program = Program::new();
    let job = |number: &str| {
        let job =
            service("migrate", "echo migrated $N").key(&format!("environment: {{N: {number}}}"));
        let completed = "depends_on: {migrate: {condition: service_completed_successfully}}";
        file(&[job, service("web", IDLE).key(completed)])
    };
    let times = |count: usize| {
        program.until(&format!("it has run {count} times"), || {
            (program.output("migrate").len() == count).then_some(())
        });
        let shown = program.state("migrate", "exited");
        assert_eq!(shown["ExitCode"], 0, "{shown}");
    };
    program.services(&job("one"));
    program.ok(["up", "-d"]);
    program.ok(["up", "-d"]);
    program.ok(["up", "-d", "migrate"]);
    times(1);
    let plan = program.ok(["plan"]);
    assert_eq!(plan, "nothing to do\n");
    // Nobody who comes later does it again.
    let control = program.until("a control runs", || program.background_control());
    signal(control, Signal::KILL);
    program.until("control is dead", || (!runs(control)).then_some(()));
    program.ok(["up", "-d"]);
    program.ok(["stop"]);
    program.ok(["up", "-d"]);
    times(1);
    program.ok(["start", "migrate"]);
    times(2);
    program.services(&job("two"));
    program.ok(["up", "-d"]);
    times(3);
    assert_eq!(program.output("migrate")[2], "migrated two");
    program.ok(["up", "-d", "--force-recreate", "migrate"]);
    times(4);
    let web = program.running("web");
    program.ok(["up", "-d", "--force-recreate", "--no-deps", "web"]);
    assert_ne!(program.running("web"), web);
    times(4);
    program.ok(["down"]);
    // Nothing is left that could say that it has run.
    program.ok(["up", "-d"]);
    times(5);
    program.ok(["down"]);
}

#[test]
fn a_job_that_has_failed_or_was_stopped_is_not_done() {
    let program = Program::new();
    let fails = service("fails", "echo tried; exit 1");
    let long = service(
        "long",
        "trap 'echo cut short; exit 0' TERM; echo begun; while :; do sleep 0.1; done",
    );
    program.services(&file(&[fails, long]));
    program.run(["up", "-d"]);
    program.wrote("long", "begun");
    program.ok(["stop", "long"]);
    program.run(["up", "-d"]);
    program.until("both ran again", || {
        (program.output("fails").len() == 2 && program.output("long").len() == 3).then_some(())
    });
    program.ok(["down"]);
}

#[test]
fn a_service_that_ends_again_and_again_is_crash_looping_whatever_it_does_at_the_moment() {
    let program = Program::new();
    let script = "if [ -e /shared/well ]; then while :; do sleep 0.1; done; fi; exit 4";
    let web = service("web", script).key("restart: always").key("volumes: [\"./shared:/shared\"]");
    let shared = program.folder().join("shared");
    std::fs::create_dir(&shared).unwrap();
    program.services(&file(&[web]));
    program.ok(["up", "-d", "--no-wait"]);
    let status = |part: &str| {
        program.until(&format!("it is crash-looping, and `{part}`"), || {
            let shown = program.service("web")?;
            let status = shown["Status"].as_str()?;
            (status.starts_with("crash-looping (") && status.contains(part)).then_some(shown)
        })
    };
    let waits = status("next start in ");
    assert!(waits["Status"].as_str().unwrap().ends_with(" s): exit 4"), "{waits}");
    std::fs::write(shared.join("well"), "").unwrap();
    let runs = status("runs again for ");
    assert_eq!(runs["State"], "running", "{runs}");
    program.ok(["down", "-t", "0"]);
}
