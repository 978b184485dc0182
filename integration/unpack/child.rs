//! The confined child: same result, less power, typed ends.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;

use supervisor::image::Compression;
use supervisor::store::{LayerDir, Store};
use supervisor::sys::process::SealedExe;
use supervisor::unpack::{ChildError, DigestCheck, FailureKind, UnpackInput, blob_pipe, run_child};

use super::snapshot::snapshot;
use super::{input, unpack};
use crate::support::tar::{Header, TarBuilder};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

/// Unpacks through the child and publishes.
fn unpack_in_child(layer: &LayerDir, blob: &[u8], input: &UnpackInput) -> Result<(), ChildError> {
    let exe = SealedExe::of_file(Path::new(env!("CARGO_BIN_EXE_supervisor"))).unwrap();
    let (reader, writer) = blob_pipe().unwrap();
    let child = run_child(&exe, input, DigestCheck::Child, layer.staging().unwrap(), reader)?;
    let outcome = std::thread::scope(|scope| {
        // A child that gives up closes its end; its report says why.
        scope.spawn(move || File::from(writer).write_all(blob));
        child.wait()
    });
    let finished = outcome?;
    // All but landlock is older than any kernel that has what else the product needs.
    let missing = finished.unconfined;
    assert!(missing.iter().all(|what| what.starts_with("landlock: the kernel")), "{missing:?}");
    layer.publish_full(finished.staging).unwrap();
    Ok(())
}

#[test]
fn the_child_unpacks_to_the_same_tree_and_sets_what_it_may_not() {
    let tar = TarBuilder::default()
        .entry(
            &Header { mode: 0o6755, uid: 1000, gid: 1000, ..Header::new(b'0', b"dir/file") },
            vec![5; 1 << 20],
        )
        .hard_link("hard", "dir/file")
        .entry(&Header { device: (1, 3), ..Header::new(b'3', b"null") }, b"")
        .entry(&Header { mode: 0, uid: 7, ..Header::new(b'5', b"closed") }, b"")
        .file("closed/inside", b"x")
        .file("closed/.wh..wh..opq", b"")
        .file(".wh.gone", b"")
        .pax(
            b'x',
            &[(
                "SCHILY.xattr.security.capability",
                &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            )],
        )
        .file("capable", b"x")
        .pax(
            b'x',
            &[("SCHILY.xattr.trusted.kept", b"v"), ("SCHILY.xattr.trusted.overlay.redirect", b"v")],
        )
        .symlink("link", "dir")
        .finish();
    let (place, _) = unpack(&tar).unwrap();
    let (_dir, store) = store();
    let layer = store.layer(supervisor::image::Digest::of(&tar));
    unpack_in_child(&layer, &tar, &input(&tar, Compression::None)).unwrap();
    assert_eq!(snapshot(&layer.full_path()), snapshot(&place.root()));
}

#[test]
fn a_layer_that_cannot_be_unpacked_leaves_no_trace() {
    let (_dir, store) = store();
    let tar = TarBuilder::default().symlink("a", "/").file("a/etc/passwd", b"x").finish();
    let honest = input(&tar, Compression::None);
    let layer = store.layer(honest.digest);
    let error = unpack_in_child(&layer, &tar, &honest).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Malformed, "{error:?}");
    assert!(error.to_string().contains("a/etc/passwd"), "{error}");
    let error = unpack_in_child(&layer, &tar[..512], &honest).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Corrupt, "{error:?}");
    assert!(!layer.is_full());
    assert_eq!(std::fs::read_dir(layer.path()).unwrap().count(), 0);
}

#[test]
fn a_killed_child_is_an_error_and_leaves_no_trace() {
    let (_dir, store) = store();
    let exe = SealedExe::of_file(Path::new(env!("CARGO_BIN_EXE_supervisor"))).unwrap();
    let tar = TarBuilder::default().file("file", b"x").finish();
    let input = input(&tar, Compression::None);
    let layer = store.layer(input.digest);
    let start = |reader: OwnedFd| {
        run_child(&exe, &input, DigestCheck::Child, layer.staging().unwrap(), reader).unwrap()
    };
    let (reader, writer) = blob_pipe().unwrap();
    let child = start(reader);
    child.kill().unwrap();
    assert!(matches!(child.wait(), Err(ChildError::Ended(_))));
    drop(writer);
    let (reader, writer) = blob_pipe().unwrap();
    drop(start(reader));
    drop(writer);
    assert_eq!(std::fs::read_dir(layer.path()).unwrap().count(), 0);
}

#[test]
fn the_child_is_confined() {
    let (_dir, store) = store();
    let exe = SealedExe::of_file(Path::new(env!("CARGO_BIN_EXE_supervisor"))).unwrap();
    let tar = TarBuilder::default().file("file", vec![1; 2 << 20]).finish();
    let input = input(&tar, Compression::None);
    let layer = store.layer(input.digest);
    let (reader, writer) = blob_pipe().unwrap();
    let child =
        run_child(&exe, &input, DigestCheck::Child, layer.staging().unwrap(), reader).unwrap();
    let mut writer = File::from(writer);
    writer.write_all(&tar[..1 << 20]).unwrap();
    // It creates its first file only after it was confined.
    let created = || {
        std::fs::read_dir(layer.path())
            .unwrap()
            .flatten()
            .any(|staging| staging.path().join("file").exists())
    };
    crate::support::eventually("the child creates a file", created);
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.pid())).unwrap();
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD, SETFCAP.
    assert_eq!(u64::from_str_radix(&field("CapEff:"), 16).unwrap(), 0x8800_001b);
    assert_eq!(field("CapPrm:"), field("CapEff:"));
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", child.pid())).unwrap();
    let staging = mounts.lines().find(|line| line.contains("/.tmp-")).expect(&mounts);
    assert!(staging.contains("nosuid,nodev,noexec"), "{staging}");
    writer.write_all(&tar[1 << 20..]).unwrap();
    drop(writer);
    child.wait().unwrap();
}

#[test]
fn a_full_disk_is_reported_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let tar = TarBuilder::default().file("large", vec![1; 6 << 20]).finish();
    let at = dir.path().to_owned();
    crate::support::in_mount_namespace(move || {
        rustix::mount::mount(
            "tmpfs",
            &at,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            Some(c"size=2m"),
        )
        .unwrap();
        let store = Store::open(&at).unwrap();
        let input = input(&tar, Compression::None);
        let layer = store.layer(input.digest);
        let error = unpack_in_child(&layer, &tar, &input).unwrap_err();
        assert_eq!(error.kind(), FailureKind::DiskFull, "{error:?}");
        assert_eq!(std::fs::read_dir(layer.path()).unwrap().count(), 0);
        // The rest of the store goes on: what does not fit is refused as a full disk, and passes.
        let blob = store.write_blob(&vec![9; 3 << 20]).unwrap_err();
        assert!(blob.is_disk_full(), "{blob:?}");
        store.write_blob(b"small").unwrap();
        assert_eq!(store.blobs().unwrap().len(), 1);
        let left = std::fs::read_dir(at.join("blobs/sha256")).unwrap().count();
        assert_eq!(left, 1, "nothing temporary stays");
    });
}
