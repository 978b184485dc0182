//! A disk budget that an image does not fit into: told, waited for, and used when there is room again.

use super::image::Readable;
use super::{IDLE, file, service};
use crate::support::program::Program;

/// Half of it is for images. One of these has about 3.2 MB packed, for which three times as much is asked for, and 4.1 MB
/// unpacked: the first fits, and beside it no second one.
const BUDGET: &str = "24m";
const FILES: usize = 20;

#[test]
fn an_image_without_room_is_waited_for_and_comes_when_another_one_goes() {
    let program = Program::new();
    let run = |arguments: &[&str]| {
        let mut command = program.command(arguments);
        // Nothing is lazy, so images occupy what they have.
        let output = command.env("SUPERVISOR_FUSE", "off").env("SUPERVISOR_DISK_BUDGET", BUDGET);
        let output = output.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let images = [1, 2].map(|seed| Readable::pack(&program, seed, FILES).local());
    let (code, said) = run(&["pull", "-q", &images[0]]);
    assert_eq!(code, Some(0), "{said}");
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
    program.ok(["image", "rm", &images[0]]);
    program.running("web");
    program.ok(["down", "-t", "0"]);
}
