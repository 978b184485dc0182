//! `plan` says what `up` would do, with the cause of each action, and does none of it.

use serde_json::Value;

use super::{IDLE, file, service};
use crate::support::program::Program;

#[test]
fn a_plan_names_what_would_change_and_touches_nothing() {
    let program = Program::new();
    let web = service("web", IDLE);
    program.services(&file(&[web.clone(), service("db", IDLE)]));
    let fresh = program.run(["plan", "--detailed-exitcode"]);
    assert_eq!(fresh.status.code(), Some(2), "{fresh:?}");
    assert!(program.ps().is_empty());
    program.ok(["up", "-d"]);
    let (pid, db) = (program.running("web"), program.running("db"));
    let nothing = program.run(["plan", "--detailed-exitcode"]);
    assert_eq!(nothing.status.code(), Some(0), "{nothing:?}");
    assert_eq!(String::from_utf8_lossy(&nothing.stdout), "nothing to do\n");

    // The file is watched; what is asked about is another one.
    let changed = web.key("environment: {COLOUR: blue}").key("depends_on: [db]");
    std::fs::write(program.folder().join("other.yaml"), file(&[changed, service("db", IDLE)]))
        .unwrap();
    let project = program.service("web").unwrap()["Project"].as_str().unwrap().to_owned();
    let arguments = ["plan", "-f", "other.yaml", "-p", &project, "--format", "json"];
    let plan: Value = serde_json::from_str(&program.ok(arguments)).unwrap();
    let actions: Vec<&str> =
        plan["steps"].as_array().unwrap().iter().map(|s| s["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["stop", "remove", "create", "start"], "{plan}");
    for step in plan["steps"].as_array().unwrap() {
        assert_eq!(step["fields"], serde_json::json!(["environment.COLOUR"]), "{plan}");
        assert_eq!(step["services"], serde_json::json!(["web"]), "{plan}");
    }
    assert_eq!(plan["steps"][0]["downtime"]["starts_again"], true, "{plan}");
    assert_eq!((program.running("web"), program.running("db")), (pid, db));
    std::fs::write(program.folder().join("other.yaml"), "services: {web: {}}").unwrap();
    let wrong = program.run(["plan", "-f", "other.yaml", "--detailed-exitcode"]);
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    program.ok(["down"]);
}
