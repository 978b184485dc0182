//! A disk budget that an image does not fit into: what goes for it, what it waits for, and that it comes when there is room.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::image::Readable;
use super::{IDLE, file, service};
use crate::support::program::Program;

/// One of these images has about 3.2 MB packed, for which three times as much is asked for, and 4.1 MB unpacked: one fits
/// into the first budget, and beside it no second one; beside two a third one fits into the second budget, and not
/// beside three.
const ONE: &str = "12m";
const THREE: &str = "16m";
const FILES: usize = 20;

/// Runs a command with a budget that is all for images, since nothing is lazy. Gives its code and what it says.
fn run(program: &Program, budget: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = program.command(arguments);
    let command = command.env("SUPERVISOR_FUSE", "off").env("SUPERVISOR_DISK_BUDGET", budget);
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn an_image_without_room_is_waited_for_and_comes_when_another_one_goes() {
    let program = Program::new();
    let run = |arguments: &[&str]| run(&program, ONE, arguments);
    let images = [1, 2].map(|seed| Readable::pack(&program, seed, FILES).local());
    let (code, said) = run(&["pull", "-q", &images[0]]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(run(&["image", "pin", &images[0]]).0, Some(0));
    let (code, said) = run(&["pull", "-q", &images[1]]);
    assert_eq!(code, Some(1));
    assert!(said.contains("no room for") && said.contains("--disk-budget"), "{said}");

    program.services(&file(&[service("web", IDLE).image(&*images[1])]));
    let (code, said) = run(&["up", "-d", "--no-wait"]);
    assert_eq!(code, Some(0), "{said}");
    program.until("it waits for space", || {
        let status = program.service("web")?["Status"].as_str()?.to_owned();
        status.starts_with("waiting for disk space").then_some(())
    });
    assert_eq!(program.service("web").unwrap()["State"], "waiting");
    program.ok(["image", "unpin", &images[0]]);
    program.ok(["image", "rm", &images[0]]);
    program.running("web");
    program.ok(["down", "-t", "0"]);
}

/// A tag that stands for one image after another.
struct Tag<'a> {
    program: &'a Program,
    layout: std::path::PathBuf,
}

impl Tag<'_> {
    fn name(&self) -> String {
        format!("oci:{}:v1", self.layout.display())
    }

    fn publish(&self, layout: &Path) {
        let _ = fs::remove_dir_all(&self.layout);
        let copied = Command::new("cp").arg("-r").args([layout, &self.layout]).status();
        assert!(copied.unwrap().success());
        let (code, said) = run(self.program, THREE, &["pull", "-q", &self.name()]);
        assert_eq!(code, Some(0), "{said}");
    }
}

#[test]
fn an_update_takes_the_room_of_what_was_before_and_then_of_what_nothing_uses() {
    let program = Program::new();
    let sources = [20, 21, 22, 23].map(|seed| Readable::pack(&program, seed, FILES));
    let images = || program.ok(["images", "--format", "json"]);
    let tag = Tag { program: &program, layout: program.folder().join("tagged") };
    tag.publish(&sources[0].layout);
    program.services(&file(&[service("web", IDLE).image(&*tag.name())]));
    program.ok(["up", "-d"]);
    let container = || Some(program.service("web")?["Name"].as_str()?.to_owned());
    // Three generations never fit: what was before the one that runs goes.
    for source in &sources[1..3] {
        let before = container();
        tag.publish(&source.layout);
        program.until("it has the new one", || (container() != before).then_some(()));
        program.running("web");
    }
    // Something else has no room: all there is is in use, or the way back from it.
    let other = sources[3].local();
    let (code, said) = run(&program, THREE, &["pull", "-q", &other]);
    assert_eq!(code, Some(1));
    assert!(said.contains("no room for"), "{said}");
    assert_eq!(images().lines().count(), 1);

    program.ok(["down", "-t", "0"]);
    let (code, said) = run(&program, THREE, &["pull", "-q", &other]);
    assert_eq!(code, Some(0), "{said}");
    assert!(images().contains(&other), "{}", images());
}

#[test]
fn content_that_can_never_be_here_at_once_is_told_before_it_is_waited_for() {
    let program = Program::new();
    let image = Readable::pack(&program, 30, FILES).local();
    // Half of it is less than the image has.
    let pull = program
        .command(["pull", "-q", "--complete", &image])
        .env("SUPERVISOR_DISK_BUDGET", "4m")
        .output();
    let pull = pull.unwrap();
    let said = String::from_utf8(pull.stderr).unwrap();
    assert_eq!(pull.status.code(), Some(1), "{said}");
    assert!(said.contains("no room for") && said.contains("content of lazy layers"), "{said}");
}
