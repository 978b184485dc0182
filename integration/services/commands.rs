//! Commands about services that run: `kill`, `top`, `stats`, `port`, and `down -v`.

use serde_json::Value;

use super::{IDLE, file, service};
use crate::support::program::{Program, runs};

#[test]
fn a_killed_service_stays_stopped_and_another_signal_is_only_sent() {
    let program = Program::new();
    let script =
        "trap 'echo reloaded' HUP; trap 'exit 7' USR1; echo ready; while :; do sleep 0.1; done";
    program.services(&file(&[service("web", script).key("restart: always")]));
    program.ok(["up", "-d"]);
    let web = program.running("web");
    program.wrote("web", "ready");
    program.ok(["kill", "-s", "SIGHUP", "web"]);
    program.wrote("web", "reloaded");
    assert_eq!(program.running("web"), web);
    let wrong = program.run(["kill", "-s", "NOPE", "web"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    // A signal that ends it is a crash, and its policy starts it again.
    program.ok(["kill", "-s", "USR1"]);
    program.until("it was started again", || (program.running("web") != web).then_some(()));

    let web = program.running("web");
    program.ok(["kill", "web"]);
    assert!(!runs(web));
    let shown = program.state("web", "exited");
    assert_eq!((&shown["ExitCode"], &shown["Status"]), (&137.into(), &"stopped (manual)".into()));
    let refused = program.run(["kill", "-s", "HUP", "web"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("service `web` does not run"), "{said}");
    program.ok(["kill", "-s", "HUP"]);
    program.ok(["start", "web"]);
    program.running("web");
    program.ok(["down", "-t", "0"]);
}

#[test]
fn processes_and_what_they_use_are_shown() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE), service("busy", "while :; do :; done")]));
    program.ok(["up", "-d"]);
    let web = program.running("web").as_raw_nonzero().to_string();
    let top = program.ok(["top", "web"]);
    let mut lines = top.lines();
    let heading: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(heading, ["SERVICE", "UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
    let row = lines.find(|line| line.split_whitespace().nth(2) == Some(&web)).unwrap();
    assert!(row.starts_with("web ") && row.contains("sh -c trap"), "{top}");
    assert!(!top.contains("busy"), "{top}");

    let text = program.ok(["stats", "--no-stream", "--format", "json"]);
    let stats: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let services: Vec<&str> = stats.iter().map(|line| line["Service"].as_str().unwrap()).collect();
    assert_eq!(services, ["busy", "web"], "{text}");
    for key in ["Name", "ID", "Container", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO"] {
        assert!(stats[0][key].is_string(), "{key}: {text}");
    }
    let percent = |line: &Value| line["CPUPerc"].as_str().unwrap().trim_end_matches('%').to_owned();
    let percent = |line: &Value| percent(line).parse::<f64>().unwrap();
    assert!(percent(&stats[0]) > percent(&stats[1]), "{text}");
    assert!(stats[1]["MemoryBytes"].as_u64().unwrap() > 0, "{text}");
    assert!(stats[1]["PIDs"].as_str().unwrap().parse::<u64>().unwrap() >= 1, "{text}");
    assert!(program.ok(["stats", "--no-stream", "web"]).starts_with("NAME "));

    let none = program.run(["port", "web"]);
    assert_eq!(none.status.code(), Some(1));
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(said.contains("service `web` publishes no ports"), "{said}");
    for command in
        [&["stats", "--no-stream", "nothing"][..], &["top", "nothing"], &["port", "nothing"]]
    {
        let missing = program.run(command);
        assert_eq!(missing.status.code(), Some(1), "{missing:?}");
        assert!(String::from_utf8_lossy(&missing.stderr).contains("no such service: `nothing`"));
    }
    program.ok(["down", "-t", "0"]);
}

#[test]
fn down_removes_named_volumes_when_that_is_asked_for_and_only_its_own() {
    let program = Program::new();
    let keeps = |name: &str, volume: &str| {
        service(name, IDLE).key(&format!("volumes: ['{volume}:/data', 'shared:/shared']"))
    };
    let top = "volumes: {mine: {}, other: {}, shared: {name: shared}}\n";
    program.services(&format!("{}{top}", file(&[keeps("web", "mine")])));
    let other = program.folder().join("other.yaml");
    std::fs::write(&other, format!("{}{top}", file(&[keeps("web", "other")]))).unwrap();
    let ps = |project: &str| program.ok(["ps", "-p", project, "--format", "json"]);
    program.ok(["up", "-d", "-p", "one"]);
    program.ok(["up", "-d", "-p", "two", "-f", "other.yaml"]);
    assert!(ps("one").contains("running") && ps("two").contains("running"));
    let volumes = || {
        let folder = std::fs::read_dir(program.folder().join("state/volumes")).unwrap();
        let mut names: Vec<String> =
            folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(volumes(), ["one_mine", "shared", "two_other"]);
    program.ok(["down", "-p", "one"]);
    assert_eq!(volumes(), ["one_mine", "shared", "two_other"]);
    // Of a project that is down the file still tells.
    program.ok(["down", "-v", "-p", "one"]);
    assert_eq!(volumes(), ["shared", "two_other"], "the other project has the shared one");
    let wrong = program.run(["down", "-v", "-p", "two", "web"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    program.ok(["down", "-v", "-p", "two"]);
    assert_eq!(volumes(), Vec::<String>::new());
    program.ok(["down", "-v", "-p", "two"]);
}
