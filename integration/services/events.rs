//! What happened, asked for later.

use serde_json::Value;

use super::{IDLE, file, service};
use crate::support::program::Program;

fn kept(program: &Program, arguments: &[&str]) -> Vec<Value> {
    let all = ["events", "--json", "--no-follow"].iter().chain(arguments);
    let text = program.ok(all);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["kind"].as_str().unwrap()).collect()
}

#[test]
fn events_are_kept_over_restarts_of_control_and_asked_for_by_time_and_service() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE), service("other", IDLE)]));
    program.ok(["up", "-d"]);
    let first = kept(&program, &["web"]);
    assert!(kinds(&first).contains(&"container-started"), "{first:?}");
    assert!(first.iter().all(|event| event["service"] == "web"), "{first:?}");
    program.end_controls();
    program.ok(["down"]);

    let all = kept(&program, &["--since", "10m"]);
    let numbers: Vec<u64> = all.iter().map(|event| event["sequence"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=u64::try_from(all.len()).unwrap()).collect::<Vec<_>>());
    assert!(
        kinds(&all).contains(&"project-up") && kinds(&all).contains(&"project-down"),
        "{all:?}"
    );
    let last = all.last().unwrap()["time"].as_str().unwrap();
    let late = kept(&program, &["--since", last]);
    assert!(!late.is_empty() && late.len() < all.len(), "{late:?}");
    assert_eq!(kept(&program, &["--until", "2001-01-01"]), Vec::<Value>::new());
    assert_eq!(kept(&program, &["-p", "nobody", "none"]), Vec::<Value>::new());

    let text = program.ok(["events", "--no-follow", "--since", "10m", "web"]);
    assert!(text.lines().all(|line| line.contains("  info     ")), "{text}");
    assert!(text.contains("/web  ") && text.contains(" started\n"), "{text}");
    let wrong = program.run(["events", "--since", "yesterday"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}

#[test]
fn a_follower_goes_on_with_the_next_control_and_misses_nothing() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE)]));
    program.ok(["up", "-d"]);
    let path = program.folder().join("events.log");
    let log = std::fs::File::create(&path).unwrap();
    let arguments = ["events", "--json", "--since", "10m", "web"];
    let mut follower = program.command(arguments).stdout(log).spawn().unwrap();
    let seen = || std::fs::read_to_string(&path).unwrap();
    program.until("the past was told", || seen().contains("container-started").then_some(()));
    program.end_controls();
    program.ok(["down"]);
    program.until("the end was told", || seen().contains("container-removed").then_some(()));
    let text = seen();
    let numbers: Vec<u64> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["sequence"].as_u64().unwrap())
        .collect();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "in order and once: {text}");
    follower.kill().unwrap();
    follower.wait().unwrap();
}
