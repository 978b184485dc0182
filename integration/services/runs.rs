//! `run` and `cp`: containers beside a service, and files in and out of one.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use rustix::process::Signal;

use super::{IDLE, file, service};
use crate::support::program::{Program, runs, signal};

fn containers(program: &Program) -> Vec<String> {
    let folder = std::fs::read_dir(program.folder().join("state/containers")).unwrap();
    folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_run_has_the_streams_of_its_caller_and_hands_its_code_on() {
    let program = Program::new();
    let web = service("web", IDLE).key("environment: {A: one}").key("restart: always");
    program.services(&file(&[web]));
    program.ok(["up", "-d"]);
    let web = program.running("web");
    let mut run = program
        .command(["run", "--rm", "-T", "web", "sh", "-c", "cat; echo $A $B >&2; exit 7"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    run.stdin.take().unwrap().write_all(b"through and through").unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"through and through", "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr).trim(), "one");
    assert_eq!(output.status.code(), Some(7));
    let arguments = ["run", "--rm", "-e", "B=two", "-w", "/tmp", "-u", "33", "web", "sh", "-c"];
    let shown = program.ok(arguments.iter().chain(&["echo $A $B; pwd; id -u"]));
    assert_eq!(shown, "one two\n/tmp\n33\n");
    let entry = program.ok(["run", "--rm", "--entrypoint", "echo 'a b'", "web", "c"]);
    assert_eq!(entry, "a b c\n");
    let code = |arguments: &[&str]| program.run(arguments).status.code();
    assert_eq!(code(&["run", "--rm", "web", "no-such-program"]), Some(127));
    assert_eq!(code(&["run", "--rm", "nothing", "true"]), Some(125));
    assert_eq!(code(&["run", "--rm", "web", "sh", "-c", "kill -9 $$; exit 3"]), Some(3));
    program.until("only the service has a container", || {
        (containers(&program).len() == 1).then_some(())
    });
    assert_eq!(program.running("web"), web, "it is none of the service");
    assert_eq!(program.service("web").unwrap()["Restarts"], 0);
    program.ok(["down", "-t", "0"]);
}

#[test]
fn a_run_outlives_control_and_ends_with_its_project() {
    let program = Program::new();
    let web = service("web", IDLE).key("depends_on: [db]");
    program.services(&file(&[web, service("db", IDLE)]));
    // Without those that it depends on, and beside no service that runs.
    assert_eq!(program.ok(["run", "--rm", "--no-deps", "web", "echo", "alone"]), "alone\n");
    assert!(program.service("db").is_none());
    let wait = "echo begun; while ! [ -e /go ]; do sleep 0.05; done; exit 5";
    let name = program.ok(["run", "-d", "--name", "mine", "web", "sh", "-c", wait]);
    assert_eq!(name, "mine\n");
    program.running("db");
    let twice = program.run(["run", "-d", "--no-deps", "--name", "mine", "web", "true"]);
    assert_eq!(twice.status.code(), Some(125), "{twice:?}");

    let mut attached = program.command(["run", "--rm", "-T", "--no-deps", "web", "sh", "-c", wait]);
    let mut attached = attached.stdout(Stdio::piped()).spawn().unwrap();
    let container = program.until("another one runs", || {
        let name = containers(&program).into_iter().find(|name| name.contains("-web-run-"))?;
        let record =
            supervisor::container::running_process(&program.run_dir(), &name.parse().ok()?);
        Some((name, rustix::process::Pid::from_raw(record.ok()??.pid)?))
    });
    let control = program.until("a control runs", || program.background_control());
    signal(control, Signal::KILL);
    program.until("control is dead", || (!runs(control)).then_some(()));
    // Who waits for it starts another one.
    program.until("another control runs", || program.background_control());
    assert!(runs(container.1));
    std::fs::write(format!("/proc/{}/root/go", container.1.as_raw_nonzero()), "").unwrap();
    assert_eq!(program.ended(&mut attached).code(), Some(5));
    program.until("it is removed", || (!containers(&program).contains(&container.0)).then_some(()));
    assert!(containers(&program).contains(&"mine".to_owned()));
    program.ok(["stop", "-t", "0"]);
    assert!(containers(&program).contains(&"mine".to_owned()));
    program.ok(["down", "-t", "0"]);
    assert_eq!(containers(&program), Vec::<String>::new());
}

#[test]
fn a_name_is_free_again_and_down_ends_who_waits() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE)]));
    for code in [3, 4] {
        let script = format!("exit {code}");
        let ran = program.run(["run", "--rm", "--name", "mine", "web", "sh", "-c", &script]);
        assert_eq!(ran.status.code(), Some(code), "{ran:?}");
    }
    program.ok(["up", "-d"]);
    let arguments = ["run", "--name", "mine", "web", "sh", "-c", "echo begun; sleep 1000"];
    let mut run = program.command(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(run.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "begun\n");
    program.ok(["down", "-t", "0"]);
    assert_eq!(program.ended(&mut run).code(), Some(128 + 9));
    assert_eq!(containers(&program), Vec::<String>::new());
}

#[test]
fn files_are_copied_in_and_out_as_cp_does() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE)]));
    program.ok(["up", "-d"]);
    program.running("web");
    let here = program.folder();
    let shown = |script: &str| program.ok(["exec", "web", "--", "sh", "-c", script]);
    std::fs::create_dir_all(here.join("site/deep")).unwrap();
    std::fs::write(here.join("site/deep/page"), "page").unwrap();
    program.ok(["cp", "site", "web:/copied"]);
    assert_eq!(shown("cat /copied/deep/page"), "page");
    program.ok(["cp", "site/.", "web:/tmp"]);
    assert_eq!(shown("cat /tmp/deep/page"), "page");
    program.ok(["cp", "site/deep/page", "web:/tmp/"]);
    shown("echo changed >> /tmp/page; ln -s /etc/hostname /tmp/link; ln -s / /tmp/root");
    program.ok(["cp", "web:/tmp/page", "out"]);
    assert_eq!(std::fs::read_to_string(here.join("out")).unwrap(), "pagechanged\n");
    program.ok(["cp", "web:/tmp/link", "link"]);
    assert!(here.join("link").is_symlink());
    // A link leads to what is in the container, whatever is there on the host.
    std::fs::remove_file(here.join("link")).unwrap();
    program.ok(["cp", "-L", "web:/tmp/root/tmp/deep/page", "through"]);
    assert_eq!(std::fs::read_to_string(here.join("through")).unwrap(), "page");

    let archive = program.run(["cp", "web:/tmp/deep", "-"]).stdout;
    let mut read = tar::Archive::new(archive.as_slice());
    let names: Vec<_> =
        read.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
    assert!(names.iter().any(|name| name.ends_with("deep/page")), "{names:?}");
    let mut unpack = program.command(["cp", "-", "web:/copied"]);
    let mut unpack = unpack.stdin(Stdio::piped()).spawn().unwrap();
    unpack.stdin.take().unwrap().write_all(&archive).unwrap();
    assert!(unpack.wait().unwrap().success());
    assert_eq!(shown("cat /copied/deep/page"), "page");
    for (arguments, why) in [
        (
            ["cp", "web:/nothing", "x"],
            "could not copy from service `web`: could not open `/nothing`",
        ),
        (["cp", "nothing:/etc", "x"], "no such service"),
        (["cp", "one", "two"], "one of the two is SERVICE:PATH"),
        (["cp", "site", "web:/etc/hostname"], "is a folder and"),
        (["cp", "one", "web:/nowhere/one"], "`/nowhere` is no folder of service `web`"),
    ] {
        let refused = program.run(arguments);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(why), "{said}");
    }
    program.ok(["down", "-t", "0"]);
}
