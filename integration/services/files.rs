//! A project of several files: what is merged runs, and a change of any of them is noticed.

use super::{IDLE, file, service};
use crate::support::program::Program;

#[test]
fn of_a_project_that_is_right_as_a_whole_a_part_is_printed() {
    let program = Program::new();
    let services = [service("web", IDLE), service("db", IDLE), service("other", IDLE)];
    program.services(&file(&services));
    let text = program.ok(["config", "web"]);
    assert!(text.contains("web:") && !text.contains("other:"), "{text}");
    let names = |arguments: &[&str]| -> Vec<String> {
        let text = program.ok(arguments);
        text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&["config", "--hash", "*", "web", "other"]), ["other", "web"]);
    assert_eq!(names(&["config", "--hash", "db,web"]), ["db", "web"]);
    assert_eq!(program.run(["config", "--hash", "db", "web"]).status.code(), Some(1));

    let [web, db, other] = services;
    program.services(&file(&[web, db, other.key("restart: sometimes")]));
    let refused = program.run(["config", "-q", "web"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("other.restart"), "{refused:?}");
}

#[test]
fn a_change_of_any_file_of_the_project_is_applied() {
    let program = Program::new();
    let write = |name: &str, text: &str| std::fs::write(program.folder().join(name), text).unwrap();
    program.services(&format!(
        "include: [more.yaml]\n{}",
        file(&[service("web", IDLE).key("environment: {COLOUR: \"${COLOUR:-none}\"}")])
    ));
    write("services.override.yaml", "services: {web: {environment: {SIZE: small}}}\n");
    write("more.yaml", &file(&[service("more", IDLE)]));
    let up = program.up_with(&["-f", "services.override.yaml"]);
    let shown =
        |name: &str| program.ok(["exec", "web", "--", "sh", "-c", &format!("echo ${name}")]);
    let (mut web, more) = (program.running("web"), program.running("more"));
    assert_eq!((shown("COLOUR"), shown("SIZE")), ("none\n".to_owned(), "small\n".to_owned()));
    // The first did not even exist when the project was brought up.
    for (name, text, variable, expected) in [
        (".env", "COLOUR=blue\n", "COLOUR", "blue\n"),
        (
            "services.override.yaml",
            "services: {web: {environment: {SIZE: big}}}\n",
            "SIZE",
            "big\n",
        ),
    ] {
        write(name, text);
        web = program
            .until("`web` is recreated", || Some(program.running("web")).filter(|pid| *pid != web));
        assert_eq!(shown(variable), expected);
    }
    assert_eq!(program.running("more"), more, "an unchanged service keeps its process");
    write("more.yaml", "services: {more: {image: a, colour: 1}}\n");
    program.said("last good state is kept");
    assert!(program.log().contains("more.yaml:1:29"), "{}", program.log());
    assert_eq!((program.running("web"), program.running("more")), (web, more));
    program.interrupt(up);
}
