//! Layers with extended attributes or opaque directories beside layers without: each on a connection of its kind, and
//! what a container sees is right whatever dies, is replaced or begins anew. On one machine with the whole program.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use supervisor::fuse::{FailureKind, LazyError, Side, Xattrs};
use supervisor::registry::BlobSource;
use supervisor::version::{Versions, versions};

use crate::services::{IDLE, file, service};
use crate::support::image::{Image, Layer};
use crate::support::lazy_host::{LazyHost, TestLayer};
use crate::support::program::{Program, crash, install, runs, signal};
use crate::support::tar::TarBuilder;

fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 4096];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

fn plain() -> TarBuilder {
    TarBuilder::default().directory("d").file("d/below", "below").file("d/both", "below")
}

fn opaque() -> TarBuilder {
    TarBuilder::default().directory("d").file("d/.wh..wh..opq", "").file("d/both", "above")
}

fn attributed() -> TarBuilder {
    let tar = TarBuilder::default().directory("e");
    tar.pax(b'x', &[("SCHILY.xattr.user.mark", b"x")]).file("e/marked", "content")
}

#[test]
fn a_connection_without_attributes_is_asked_once_and_refuses_layers_that_have_some() {
    let host = LazyHost::with(|options| options.xattrs = Xattrs::Absent);
    let pack = |tar: TarBuilder| TestLayer::pack(tar.finish(), 4096);
    let directory = host.mount_local(&pack(plain()));
    let has_none = |file: &str| {
        let path = directory.join("d").join(file);
        assert_eq!(xattr(&path, "user.mark"), Err(Errno::OPNOTSUPP));
        assert_eq!(xattr(&path, "trusted.overlay.metacopy"), Err(Errno::OPNOTSUPP));
        // As in a file that has none.
        assert_eq!(rustix::fs::llistxattr(&path, &mut [0_u8; 64][..]), Ok(0));
    };
    let refuses = || {
        for tar in [opaque(), attributed()] {
            let layout = BlobSource::Layout { path: host.state.path().join("layout") };
            let layer = pack(tar);
            let blob = host.state.path().join("layout/blobs/sha256").join(layer.digest.hex());
            fs::write(blob, &layer.blob).unwrap();
            let refused = host.try_mount(&layer, layout);
            let kind = matches!(refused, Err(LazyError::Refused { kind: FailureKind::Xattrs, .. }));
            assert!(kind, "{refused:?}");
        }
    };
    has_none("below");
    refuses();
    // What a build does not know that was made before there were such connections.
    let session = fs::read(host.run.path().join("lazy/session")).unwrap();
    assert_eq!(session[8..16], 2_u64.to_le_bytes(), "the layout");
    host.replace_worker();
    has_none("both");
    refuses();
    assert_eq!(host.status().layers.len(), 1);
}

/// A service above a layer without attributes, an opaque directory and a file with an attribute, and one whose image
/// has nothing of these.
fn both_kinds(program: &Program) -> PathBuf {
    let layout = program.folder().join("marked");
    let image = [plain(), opaque(), attributed()]
        .into_iter()
        .fold(Image::shell(), |image, tar| image.and(Layer::lazy(tar.finish())));
    image.write(&layout);
    let web = service("web", IDLE).image(format!("oci:{}:v1", layout.display()));
    program.services(&file(&[web, service("plain", IDLE)]))
}

/// What the container of `web` sees, past every cache of names that another container may have filled.
fn sees_what_is_right(program: &Program, web: Pid) {
    assert!(runs(web));
    let root = PathBuf::from(format!("/proc/{}/root", web.as_raw_nonzero()));
    let names: BTreeSet<_> =
        fs::read_dir(root.join("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, BTreeSet::from(["both".into()]), "the directory is opaque");
    assert!(!root.join("d/below").exists());
    assert_eq!(fs::read(root.join("d/both")).unwrap(), b"above");
    assert_eq!(xattr(&root.join("e/marked"), "user.mark").unwrap(), b"x");
    assert_eq!(program.ok(["exec", "web", "--", "cat", "/e/marked"]), "content");
}

fn role(program: &Program, side: Side, role: &str) -> Pid {
    program.until(role, || program.role_in(side.directory(), role))
}

fn slots(program: &Program, side: Side) -> usize {
    fs::read_dir(program.run_dir().join(side.directory()).join("layers")).unwrap().count()
}

#[test]
fn layers_with_attributes_are_served_beside_the_others_and_only_when_there_are_some() {
    let program = Program::new();
    program.services(&file(&[service("plain", IDLE)]));
    program.ok(["up", "-d"]);
    let alone = program.running("plain");
    assert!(!Side::Marked.is_there(&program.run_dir()), "nothing needs it");

    both_kinds(&program);
    program.ok(["up", "-d"]);
    let web = program.running("web");
    sees_what_is_right(&program, web);
    assert_eq!((slots(&program, Side::Main), slots(&program, Side::Marked)), (3, 2));
    let asked = PathBuf::from(format!("/proc/{}/root/etc/passwd", web.as_raw_nonzero()));
    assert_eq!(xattr(&asked, "user.mark"), Err(Errno::OPNOTSUPP), "nobody was asked");
    let checks = String::from_utf8(program.run(["doctor", "--json"]).stdout).unwrap();
    let check = checks.lines().find(|check| check.contains("\"lazy-xattr-mount\"")).unwrap();
    assert!(check.contains("serve (0 restarts)"), "{check}");

    // Each death alone is not noticed.
    for side in Side::ALL {
        let (keeper, worker) = (role(&program, side, "keeper"), role(&program, side, "worker"));
        for doomed in [worker, keeper] {
            signal(doomed, Signal::KILL);
            program.until("it is gone", || (!runs(doomed)).then_some(()));
            sees_what_is_right(&program, web);
        }
    }
    assert_eq!(program.running("plain"), alone);
    assert_eq!(program.running("web"), web);
    program.ok(["down"]);
    program.until("nothing is left", || program.mounts().is_empty().then_some(()));
    assert!(!Side::ALL.iter().any(|side| side.is_there(&program.run_dir())));
}

#[test]
fn the_loss_of_one_connection_costs_only_what_it_served() {
    let program = Program::new();
    both_kinds(&program);
    let up = program.up();
    let (web, plain) = (program.running("web"), program.running("plain"));
    let marked = ["keeper", "worker"].map(|name| role(&program, Side::Marked, name));
    // Nobody sees the end of another, and control, which holds the connection too, goes with them.
    signal(Pid::from_child(&up), Signal::STOP);
    marked.iter().for_each(|process| signal(*process, Signal::STOP));
    marked.iter().for_each(|process| signal(*process, Signal::KILL));
    crash(up);
    let up = program.up();
    let next = program.until("it runs again", || {
        let next = program.running("web");
        (next != web).then_some(next)
    });
    sees_what_is_right(&program, next);
    assert_eq!(program.running("plain"), plain, "what the other connection serves goes on");
    assert_eq!(program.interrupt(up), Some(0));
}

#[test]
fn both_connections_go_through_upgrades_and_begin_anew_after_a_reboot() {
    let own = versions();
    let next = Versions { build: "9.0.0", ..own };
    let mut program = Program::new();
    let binary = program.folder().join("supervisor");
    install(&binary, &own);
    program.use_binary(&binary);
    both_kinds(&program);
    let mut up = program.up();
    let web = program.running("web");
    sees_what_is_right(&program, web);
    for build in [&next, &own] {
        let before = Side::ALL.map(|side| role(&program, side, "worker"));
        crash(up);
        install(&binary, build);
        up = program.up();
        for (side, worker) in Side::ALL.into_iter().zip(before) {
            program.until("a worker of the other build serves", || {
                let other = program.role_in(side.directory(), "worker")?;
                (other != worker && !runs(worker)).then_some(())
            });
        }
        assert_eq!(program.running("web"), web);
        sees_what_is_right(&program, web);
    }
    crash(up);
    program.lose_power();
    let up = program.up();
    let after = program.running("web");
    sees_what_is_right(&program, after);
    assert!(File::open(program.run_dir().join("lazy-xattr/session")).is_ok());
    assert_eq!(program.interrupt(up), Some(0));
}
