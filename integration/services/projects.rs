//! Several projects in one control.

use serde_json::Value;

use super::{IDLE, file, service};
use crate::support::program::{Program, runs};

/// The process of `web` in a project, as `ps` without a services file shows it.
fn pid(program: &Program, project: &str) -> Option<rustix::process::Pid> {
    let shown: Vec<Value> = program.ps();
    let web = shown.iter().find(|line| line["Project"] == project && line["Service"] == "web")?;
    rustix::process::Pid::from_raw(i32::try_from(web["Pid"].as_i64()?).unwrap())
}

#[test]
fn two_projects_with_the_same_service_names_do_not_touch_each_other() {
    let program = Program::new();
    for name in ["one", "two"] {
        let text = format!("name: {name}\n{}", file(&[service("web", IDLE)]));
        std::fs::write(program.folder().join(format!("{name}.yaml")), text).unwrap();
        program.ok(["up", "-d", "-f", &format!("{name}.yaml")]);
    }
    // The folder has no services.yaml: all projects are shown.
    let (one, two) = (pid(&program, "one").unwrap(), pid(&program, "two").unwrap());
    assert_ne!(one, two);
    let table = program.ok(["ps"]);
    assert!(table.contains("PROJECT") && table.contains("one") && table.contains("two"), "{table}");
    let table = program.ok(["ps", "-p", "two"]);
    assert!(!table.contains("one") && table.contains("web"), "{table}");

    // Which one is meant has to be said, and is.
    let unclear = program.run(["logs", "web"]);
    let said = String::from_utf8_lossy(&unclear.stderr).into_owned();
    assert_eq!(unclear.status.code(), Some(1), "{said}");
    assert!(said.contains("several projects run (one, two); say which with `-p NAME`"), "{said}");
    program.until("`two` has said that it is ready", || {
        (program.ok(["logs", "-p", "two", "web"]) == "web-1  | ready\n").then_some(())
    });
    program.ok(["exec", "-p", "one", "web", "--", "touch", "/mark"]);
    let other = program.run(["exec", "-p", "two", "web", "--", "test", "-e", "/mark"]);
    assert_eq!(other.status.code(), Some(1), "{other:?}");

    program.ok(["down", "-p", "one"]);
    assert!(!runs(one) && runs(two));
    assert_eq!((pid(&program, "one"), pid(&program, "two")), (None, Some(two)));
    program.ok(["down", "-f", "two.yaml"]);
    assert!(!runs(two));
}
