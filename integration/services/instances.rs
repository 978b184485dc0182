//! Instances beside each other, layers beside each other, and images that people look into.

use std::fs;

use rustix::process::Signal;

use super::image::{READ_ALL, Readable};
use super::{IDLE, TICK, file, service, shell_image};
use crate::support::program::{Program, signal};

#[test]
fn two_instances_do_not_disturb_each_other() {
    let (one, two) = (Program::new(), Program::new());
    // The same names in both: only the directories tell them apart.
    let text = format!("name: twin\n{}", file(&[service("web", TICK)]));
    one.services(&text);
    two.services(&text);
    let (up_one, up_two) = (one.up(), two.up());
    let (pid_one, pid_two) = (one.running("web"), two.running("web"));
    assert_ne!(pid_one, pid_two);
    assert_eq!(one.ps().len(), 1);
    signal(one.role("keeper", "").unwrap(), Signal::KILL);
    signal(one.role("worker", "").unwrap(), Signal::KILL);
    one.ok(["down"]);
    one.interrupt(up_one);
    one.end_controls();
    one.until("nothing of the first is left", || one.traces().is_empty().then_some(()));
    let ticks = two.output("web").len();
    two.until("the second goes on", || (two.output("web").len() > ticks + 5).then_some(()));
    assert_eq!(two.running("web"), pid_two);
    assert_eq!(two.ok(["exec", "web", "--", "cat", "/app/run.sh"]).lines().count(), run_lines());
    assert_eq!(two.service("web").unwrap()["Restarts"], 0);
    two.interrupt(up_two);
}

fn run_lines() -> usize {
    let program = Program::new();
    mounted(&program, &[]).lines().count()
}

/// Mounts the shell image, gives its program's text, and unmounts.
fn mounted(program: &Program, options: &[&str]) -> String {
    let directory = program.folder().join("look");
    fs::create_dir_all(&directory).unwrap();
    let place = directory.to_str().unwrap();
    let image = shell_image();
    program.ok([&["image", "mount", &image, place], options].concat());
    let text = fs::read_to_string(directory.join("app/run.sh")).unwrap();
    let error = fs::write(directory.join("new"), b"").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
    program.ok(["image", "umount", place]);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    text
}

#[test]
fn an_image_is_looked_into_without_a_trace() {
    let program = Program::new();
    let lazy = mounted(&program, &[]);
    assert!(lazy.starts_with("#!"), "{lazy}");
    program.end_controls();
    program.until("nothing is left", || program.traces().is_empty().then_some(()));
    assert_eq!(mounted(&program, &["--full"]), lazy);
    let again = program.run(["image", "umount", program.folder().join("look").to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(1), "nothing is mounted there: {again:?}");
}

#[test]
fn a_layer_that_is_added_later_is_visible_to_a_later_container() {
    let program = Program::new();
    let (first, second) = (Readable::pack(&program, 1, 6), Readable::pack(&program, 2, 6));
    let early = service("early", READ_ALL).image(first.local());
    program.services(&file(std::slice::from_ref(&early)));
    let up = program.up();
    let pid = program.running("early");
    program.wrote("early", "end");
    let keeper = program.role("keeper", "");
    let late = service("late", READ_ALL).image(second.local());
    program.services(&file(&[early, late, service("other", IDLE)]));
    program.wrote("late", "end");
    program.wrote("other", "ready");
    assert_eq!(program.output("early")[..6], first.sums[..]);
    assert_eq!(program.output("late")[..6], second.sums[..]);
    assert_eq!(program.running("early"), pid);
    assert_eq!(program.role("keeper", ""), keeper, "one mount serves all layers");
    for name in ["early", "late", "other"] {
        assert_eq!(program.service(name).unwrap()["Lazy"], true, "{name}");
    }
    program.interrupt(up);
}
