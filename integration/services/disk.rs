//! What is on the disk: shown, removed when nothing needs it, and kept when something does.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::image::{READ_ALL, Readable};
use super::{IDLE, file, service};
use crate::support::program::Program;

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The row of `system df` with this type.
fn disk(program: &Program, kind: &str) -> Value {
    let rows = lines(&program.ok(["system", "df", "--format", "json"]));
    rows.into_iter().find(|row| row["Type"] == kind).unwrap()
}

fn prune(program: &Program, arguments: &[&str]) -> Vec<Value> {
    lines(&program.ok(["prune", "--format", "json"].iter().chain(arguments)))
}

fn has(removed: &[Value], kind: &str, why: &str) -> bool {
    removed.iter().any(|one| one["Kind"] == kind && one["Why"] == why)
}

fn images(program: &Program) -> Vec<Value> {
    lines(&program.ok(["images", "--format", "json"]))
}

/// Files with content of lazy layers.
fn content(program: &Program) -> usize {
    let files = program.folder().join("state/files");
    let count = |folder: &Path| fs::read_dir(folder).map_or(0, Iterator::count);
    let folders = fs::read_dir(files.join("sha256")).into_iter().flatten().flatten();
    folders.map(|folder| count(&folder.path())).sum::<usize>() + count(&files.join("partial"))
}

#[test]
fn what_nothing_needs_goes_and_what_is_in_use_or_pinned_stays() {
    let program = Program::new();
    let (used, spare) = (Readable::pack(&program, 1, 5), Readable::pack(&program, 2, 5));
    program.ok(["pull", "-q", &spare.local()]);
    program.services(&file(&[service("web", READ_ALL).image(used.local())]));
    program.ok(["up", "-d"]);
    program.wrote("web", "end");
    let pid = program.running("web");
    let layers = disk(&program, "Layers");
    assert_eq!((&layers["TotalCount"], &layers["Active"]), (&2.into(), &1.into()), "{layers}");
    assert!(disk(&program, "Lazy Content")["Size"].as_u64().unwrap() > 500_000);
    assert!(program.ok(["system", "df"]).contains("RECLAIMABLE"));

    assert_eq!(prune(&program, &[]), Vec::<Value>::new(), "an image that was pulled is kept");
    program.ok(["image", "pin", &spare.local()]);
    let removed = prune(&program, &["--all"]);
    assert!(!has(&removed, "image", "unused-image"), "{removed:?}");
    let refused = program.run(["image", "rm", &spare.local()]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("is pinned") && said.contains("image unpin"), "{said}");

    program.ok(["image", "unpin", &spare.local()]);
    let expected = prune(&program, &["--all", "--dry-run"]);
    for kind in ["image", "layer", "blob"] {
        assert!(has(&expected, kind, "unused-image"), "{kind}: {expected:?}");
    }
    assert_eq!(images(&program).len(), 2, "nothing was removed");
    let removed = prune(&program, &["--all"]);
    assert!(has(&removed, "layer", "unused-image"), "{removed:?}");
    assert_eq!(images(&program).len(), 1);
    assert_eq!(disk(&program, "Layers")["TotalCount"], 1);

    let refused = program.run(["image", "rm", &used.local()]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains("is in use by service") && said.contains("/web`"), "{said}");
    let read = program.ok(["exec", "web", "--", "sha256sum", "/data/0003"]);
    assert_eq!(read.trim(), used.sums[3]);
    assert_eq!(program.running("web"), pid, "nobody has noticed");

    program.ok(["down", "-t", "0"]);
    assert!(content(&program) > 0);
    program.ok(["image", "rm", &used.local()]);
    assert_eq!(content(&program), 0, "content goes with the last layer that has it");
    let count = |folder: &str| fs::read_dir(program.folder().join(folder)).unwrap().count();
    assert_eq!((count("state/layers"), count("state/blobs/sha256")), (0, 0));
    let again = program.run(["image", "rm", &used.local()]);
    assert!(String::from_utf8(again.stderr).unwrap().contains("is not here"));
}

#[test]
fn idle_content_goes_and_is_fetched_again_when_it_is_read() {
    let program = Program::new();
    let (idle, busy) = (Readable::pack(&program, 3, 4), Readable::pack(&program, 4, 4));
    let once = "for f in /data/*; do sha256sum $f; done";
    let services =
        [service("once", once).image(idle.local()), service("busy", READ_ALL).image(busy.local())];
    program.services(&file(&services));
    program.ok(["up", "-d"]);
    program.wrote("busy", "end");
    program.state("once", "exited");
    // Both have containers, so nothing of them goes, also not content.
    let removed = prune(&program, &["--all"]);
    assert!(removed.is_empty(), "{removed:?}");
    program.services(&file(&services[1..]));
    program.ok(["up", "-d"]);
    program.until("the container is gone", || program.service("once").is_none().then_some(()));
    program.ok(["image", "pin", &idle.local()]);
    let before = content(&program);
    let removed = prune(&program, &["--all"]);
    assert!(has(&removed, "content", "idle-content"), "{removed:?}");
    assert!(!has(&removed, "layer", "unused-image"), "{removed:?}");
    let after = content(&program);
    assert!(after < before && after > 0, "{before} files, then {after}");
    program.ok(["exec", "busy", "--", "sha256sum", "/data/0001"]);

    program.services(&file(&services));
    program.ok(["up", "-d", "once"]);
    program.until("it is read again", || (content(&program) > after).then_some(()));
    program.state("once", "exited");
    assert!(program.output("once").iter().filter(|line| **line == idle.sums[2]).count() >= 2);
    program.ok(["down", "-t", "0"]);
}

#[test]
fn a_reference_that_stands_for_another_image_now_keeps_the_one_before_as_long_as_it_is_in_use() {
    let program = Program::new();
    let sources = [10, 11, 12].map(|seed| Readable::pack(&program, seed, 1));
    // One tag, three images after each other.
    let layout = program.folder().join("tagged");
    let tagged = format!("oci:{}:v1", layout.display());
    let publish = |source: &Readable| {
        let _ = fs::remove_dir_all(&layout);
        let copied =
            std::process::Command::new("cp").arg("-r").args([&source.layout, &layout]).status();
        assert!(copied.unwrap().success());
        program.ok(["pull", "--full", "-q", &tagged]);
    };
    publish(&sources[0]);
    program.services(&file(&[service("web", IDLE).image(&*tagged)]));
    program.ok(["up", "-d"]);
    program.ok(["down", "-t", "0"]);
    publish(&sources[1]);
    publish(&sources[2]);
    // Not pinned and not in use: only what it stands for now is kept.
    let removed = prune(&program, &["--dry-run"]);
    let old = removed.iter().filter(|one| one["Kind"] == "layer" && one["Why"] == "old-generation");
    assert_eq!(old.count(), 2, "{removed:?}");
    program.ok(["up", "-d"]);
    let removed = prune(&program, &[]);
    let old = removed.iter().filter(|one| one["Kind"] == "layer" && one["Why"] == "old-generation");
    assert_eq!(old.count(), 1, "the one before is kept: {removed:?}");
    assert_eq!(disk(&program, "Layers")["TotalCount"], 2);
    program.running("web");
    program.ok(["down", "-t", "0"]);
}
