//! Health checks of real containers: what follows from their outcomes, and that they go on whoever dies.

use rustix::process::Signal;
use serde_json::Value;

use super::{IDLE, Service, file, service};
use crate::support::program::{Program, runs, signal};

/// Well as long as the test leaves a file where it is.
fn gated(name: &str, more: &str) -> Service {
    let check = format!(
        "healthcheck: {{test: 'test -e /shared/well || {{ echo not well; exit 1; }}', interval: 200ms, \
         timeout: 30s, retries: 2{more}}}"
    );
    service(name, IDLE).key("volumes: [\"./shared:/shared\"]").key(&check)
}

fn shared(program: &Program) -> std::path::PathBuf {
    let folder = program.folder().join("shared");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join("well")
}

fn shown(program: &Program, service: &str, health: &str) -> Value {
    program.until(&format!("`{service}` is {health}"), || {
        program.service(service).filter(|shown| shown["Health"] == health)
    })
}

#[test]
fn a_service_starts_when_the_other_is_healthy_and_that_one_is_restarted_when_it_is_no_more() {
    let program = Program::new();
    let well = shared(&program);
    let web = service("web", IDLE).key("depends_on: {db: {condition: service_healthy}}");
    program.services(&file(&[web, gated("db", "")]));
    let up = program.up();
    assert_eq!(shown(&program, "db", "starting")["Status"], "starting");
    assert_eq!(program.state("web", "blocked")["Status"], "blocked on db (not healthy yet)");
    std::fs::write(&well, "").unwrap();
    let web = program.running("web");
    assert_eq!(shown(&program, "db", "healthy")["Status"], "healthy");
    let db = program.running("db");
    std::fs::remove_file(&well).unwrap();
    program.until("`db` is started again", || (program.running("db") != db).then_some(()));
    assert!(!runs(db));
    assert_eq!(program.running("web"), web);
    program.said("not well");
    std::fs::write(&well, "").unwrap();
    assert_eq!(shown(&program, "db", "healthy")["Restarts"], 1);
    program.interrupt(up);
}

#[test]
fn what_was_never_healthy_is_degraded_and_left_alone() {
    let program = Program::new();
    shared(&program);
    let web = service("web", IDLE).key("depends_on: {db: {condition: service_healthy}}");
    program.services(&file(&[web, gated("db", "")]));
    let output = program.run(["up", "-d"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("service `db`: degraded: the check ended with code 1: not well"),
        "{said}"
    );
    assert!(said.contains("service `web`: failed: `db` is unhealthy"), "{said}");
    let shown = shown(&program, "db", "unhealthy");
    assert_eq!((&shown["State"], &shown["Restarts"]), (&"running".into(), &0.into()), "{shown}");
    program.ok(["down"]);
}

#[test]
fn health_is_known_to_whoever_comes_after_the_death_of_control_or_monitor() {
    let program = Program::new();
    let well = shared(&program);
    std::fs::write(&well, "").unwrap();
    program.services(&file(&[gated("db", "").key("x-supervisor: {on_unhealthy: none}")]));
    program.ok(["up", "-d"]);
    let db = program.running("db");
    signal(program.role("monitor", "db").unwrap(), Signal::KILL);
    std::fs::remove_file(&well).unwrap();
    // One that had never been healthy would say the same, but this one has.
    shown(&program, "db", "unhealthy");
    let control = program.until("a control runs", || program.background_control());
    signal(control, Signal::KILL);
    program.until("control is dead", || (!runs(control)).then_some(()));
    shown(&program, "db", "unhealthy");
    std::fs::write(&well, "").unwrap();
    shown(&program, "db", "healthy");
    assert_eq!(program.running("db"), db);
    program.ok(["down"]);
}

#[test]
fn a_port_is_probed_in_the_network_of_the_container() {
    let program = Program::new();
    let serve = "mkdir /www; echo ok > /www/well; exec httpd -f -p 127.0.0.1:8080 -h /www";
    let probed = |name: &str, path: &str| {
        let probe = format!(
            "x-supervisor: {{probe: {{http: '8080/{path}', interval: 200ms, retries: 2}}}}"
        );
        service(name, serve).key("network_mode: none").key("stop_signal: KILL").key(&probe)
    };
    let closed = service("closed", IDLE)
        .key("network_mode: none")
        .key("x-supervisor: {probe: {tcp: 8080, interval: 200ms, retries: 2}}");
    program.services(&file(&[probed("well", "well"), probed("lost", "lost"), closed]));
    let up = program.up();
    shown(&program, "well", "healthy");
    let lost = shown(&program, "lost", "unhealthy");
    assert!(lost["Status"].as_str().unwrap().contains("404"), "{lost}");
    let closed = shown(&program, "closed", "unhealthy");
    assert!(closed["Status"].as_str().unwrap().contains("port 8080"), "{closed}");
    program.interrupt(up);
}
