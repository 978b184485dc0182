//! Layers on a real mount: equal to their unpacked form, added and released, refused cleanly, gone when stopped.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use supervisor::fuse::{Feature, LazyUnavailable, Stop};
use supervisor::image::{Compression, Digest};
use supervisor::registry::BlobSource;
use supervisor::sys::mount;
use supervisor::unpack::{self, UnpackInput};

use crate::support::lazy_host::{LazyHost, TestLayer, noise};
use crate::support::registry::{Fault, FaultRegistry};
use crate::support::tar::TarBuilder;
use crate::support::{eventually, in_mount_namespace};

/// What one name of a tree is, as far as the format keeps it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    size: u64,
    mtime: i64,
    rdev: u64,
    nlink: u64,
    target: Option<PathBuf>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Option<Digest>,
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

fn walk(root: &Path, below: &Path, seen: &mut BTreeMap<PathBuf, Seen>) {
    let path = root.join(below);
    let metadata = path.symlink_metadata().unwrap();
    let kind = metadata.file_type();
    seen.insert(
        below.to_owned(),
        Seen {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            size: if kind.is_dir() { 0 } else { metadata.size() },
            mtime: metadata.mtime(),
            rdev: if kind.is_char_device() || kind.is_block_device() { metadata.rdev() } else { 0 },
            nlink: if kind.is_dir() { 0 } else { metadata.nlink() },
            target: kind.is_symlink().then(|| std::fs::read_link(&path).unwrap()),
            xattrs: xattrs(&path),
            content: kind.is_file().then(|| Digest::of(&std::fs::read(&path).unwrap())),
        },
    );
    if kind.is_dir() {
        for entry in std::fs::read_dir(&path).unwrap() {
            walk(root, &below.join(entry.unwrap().file_name()), seen);
        }
    }
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    walk(root, Path::new(""), &mut seen);
    seen
}

fn assert_equals_unpacked(host: &LazyHost, layer: &TestLayer, compression: Compression) {
    let lazy = tree(&host.mount_local(layer));
    let full = tempfile::tempdir().unwrap();
    let input = UnpackInput {
        compression,
        digest: layer.digest,
        size: layer.blob.len() as u64,
        diff_id: None,
    };
    let into = std::fs::File::open(full.path()).unwrap();
    unpack::unpack_layer(&layer.blob[..], &input, std::os::fd::AsFd::as_fd(&into)).unwrap();
    let full = tree(full.path());
    let (lazy_names, full_names): (Vec<_>, Vec<_>) = (lazy.keys().collect(), full.keys().collect());
    assert_eq!(lazy_names, full_names, "{}", layer.digest);
    for (path, expected) in &full {
        // A root that the layer does not describe is nobody's to compare.
        if path.as_os_str().is_empty() && lazy[path].mtime == 0 {
            continue;
        }
        assert_eq!(&lazy[path], expected, "{} {}", layer.digest, path.display());
    }
}

#[test]
fn layers_of_another_tool_equal_their_unpacked_form() {
    let host = LazyHost::start();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs-fixtures/golden");
    let mut compared = 0;
    for image in std::fs::read_dir(&golden).unwrap().map(|entry| entry.unwrap().path()) {
        let Ok(blobs) = std::fs::read_dir(image.join("blobs/sha256")) else { continue };
        for blob in blobs.map(|entry| std::fs::read(entry.unwrap().path()).unwrap()) {
            let compression = match blob.get(..4) {
                Some([0x1f, 0x8b, ..]) => Compression::Gzip,
                Some([0x28, 0xb5, 0x2f, 0xfd]) => Compression::Zstd,
                _ => continue,
            };
            let Some(layer) = TestLayer::of(blob) else { continue };
            assert_equals_unpacked(&host, &layer, compression);
            compared += 1;
        }
    }
    assert!(compared >= 4, "{compared} layers");
}

#[test]
fn our_own_layers_equal_their_unpacked_form() {
    let host = LazyHost::start();
    let tar = TarBuilder::default()
        .directory("d")
        .file("d/small", b"hello")
        .file("d/empty", b"")
        .file("d/large", noise(1, 700_000))
        .symlink("d/link", "small")
        .hard_link("twin", "d/small")
        .file("d/.wh.gone", b"")
        .directory("opaque")
        .file("opaque/.wh..wh..opq", b"")
        .finish();
    assert_equals_unpacked(&host, &TestLayer::pack(tar, 64 << 10), Compression::Gzip);
}

fn one_file(content: &[u8]) -> TestLayer {
    TestLayer::pack(TarBuilder::default().file("f", content).finish(), 64 << 10)
}

#[test]
fn layers_come_and_go_and_a_slot_is_never_used_twice() {
    let host = LazyHost::start();
    let (one, two) = (one_file(b"one"), one_file(b"two"));
    let first = host.mount_local(&one);
    assert_eq!(std::fs::read(first.join("f")).unwrap(), b"one");
    let second_name = format!("2-{}", &two.digest.hex()[..12]);
    // Looked for before it exists: that must not be remembered.
    assert!(!first.with_file_name(&second_name).exists());
    let second = host.mount_local(&two);
    assert_eq!(second.file_name().unwrap().to_str().unwrap(), second_name);
    assert_eq!(std::fs::read(second.join("f")).unwrap(), b"two");
    assert_eq!(host.mount_local(&two), second, "mounting is idempotent");
    let listed = || std::fs::read_dir(host.lazy().mount_point()).unwrap().count();
    assert_eq!((listed(), listed()), (2, 2));

    host.runtime.block_on(host.lazy().release(one.digest)).unwrap();
    host.runtime.block_on(host.lazy().release(one.digest)).unwrap();
    assert!(!first.exists());
    assert_eq!(listed(), 1, "a listing that the kernel keeps is dropped");
    let third = host.mount_local(&one);
    assert!(third.file_name().unwrap().to_str().unwrap().starts_with("3-"));
    assert_eq!(std::fs::read(third.join("f")).unwrap(), b"one");
    assert_eq!(listed(), 2);
}

#[test]
fn the_mount_is_read_only_and_closed_to_others() {
    let host = LazyHost::start();
    let directory = host.mount_local(&one_file(b"x"));
    let error = std::fs::write(directory.join("f"), b"y").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(30));
    let folder = host.run.path().join("lazy").metadata().unwrap();
    assert_eq!(folder.mode() & 0o777, 0o700);
}

#[test]
fn the_worker_has_lost_its_rights() {
    let host = LazyHost::start();
    let worker = host.worker();
    let text = std::fs::read_to_string(format!("/proc/{}/status", worker.pid)).unwrap();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("NoNewPrivs:"), "1");
    // CAP_SYS_ADMIN is number 21.
    assert_eq!(u64::from_str_radix(&field("CapEff:"), 16).unwrap(), 1 << 21);
    assert_eq!(host.status().worker.unwrap().gaps, Vec::<String>::new());
}

#[test]
fn status_prefetch_and_background_reach_the_layer() {
    let host = LazyHost::start();
    let layer = one_file(&noise(3, 300_000));
    let directory = host.mount_local(&layer);
    let status = |host: &LazyHost| host.status().layers[0].clone();
    assert_eq!(status(&host).total_bytes, 300_000);
    assert!(!status(&host).is_complete);
    host.runtime.block_on(host.lazy().prefetch(layer.digest)).unwrap();
    host.runtime.block_on(host.lazy().background(layer.digest)).unwrap();
    eventually("the layer is complete", || status(&host).is_complete);
    assert_eq!(status(&host).local_bytes, 300_000);
    assert_eq!(directory.file_name().unwrap().to_str().unwrap(), status(&host).name);
}

#[test]
fn a_corrupt_chunk_is_an_error_of_that_read_and_an_event() {
    let host = LazyHost::start();
    let registry = FaultRegistry::start();
    let layer = one_file(&noise(4, 100_000));
    registry.put_blob(&layer.blob);
    let mut events = host.lazy().events();
    // The events of the worker come over a socket; a first one shows that it is connected.
    let source = BlobSource::Registry { host: registry.host(), repository: "app".to_owned() };
    let directory = host.mount(&layer, source);
    registry.fault("blobs", 1000, Fault::WrongByte(1000));
    let error = std::fs::read(directory.join("f")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5));
    crate::support::lazy_host::wait_for(&host.runtime, &mut events, |event| {
        matches!(event, supervisor::fuse::ConnectionEvent::Content { .. })
    });
}

#[test]
fn stopping_leaves_no_mount_no_process_and_no_control_group() {
    let host = LazyHost::start();
    let group = host.options().cgroup.unwrap();
    let directory = host.mount_local(&one_file(b"x"));
    let worker = host.worker();
    let keeper = host.status().keeper.process;
    let open = std::fs::File::open(directory.join("f")).unwrap();
    let busy = host.runtime.block_on(host.lazy().stop(Stop::IfUnused)).unwrap_err();
    assert!(busy.to_string().contains("open"), "{busy}");
    drop(open);
    eventually("the file is released", || host.status().worker.unwrap().open_files == 0);
    host.runtime.block_on(host.lazy().stop(Stop::IfUnused)).unwrap();
    assert!(!host.is_mounted());
    assert!(worker.open().is_none() && keeper.open().is_none());
    assert!(supervisor::sys::cgroup::processes(&group).unwrap().is_empty());
    for hierarchy in supervisor::sys::cgroup::hierarchies().unwrap() {
        assert!(!hierarchy.mount_point.join(group.trim_start_matches('/')).exists());
    }
}

#[test]
fn two_run_directories_do_not_disturb_each_other() {
    let (one, two) = (LazyHost::start(), LazyHost::start());
    let layer = one_file(b"shared");
    let (first, second) = (one.mount_local(&layer), two.mount_local(&layer));
    assert_eq!(std::fs::read(first.join("f")).unwrap(), b"shared");
    drop(one);
    assert_eq!(std::fs::read(second.join("f")).unwrap(), b"shared");
    assert!(two.is_mounted());
}

#[test]
fn a_host_that_cannot_do_it_says_why_and_keeps_nothing() {
    let mut host = LazyHost::idle();
    let mut options = host.options();
    options.fuse = Feature::Off;
    assert!(matches!(host.ensure(options), Err(LazyUnavailable::Off)));

    // Something else at our place stays there.
    let place = host.run.path().join("lazy/layers");
    std::fs::create_dir_all(&place).unwrap();
    let foreign = mount::FsContext::open("tmpfs").unwrap();
    let foreign = foreign.mount(rustix::mount::MountAttrFlags::empty()).unwrap();
    mount::attach(std::os::fd::AsFd::as_fd(&foreign), &place).unwrap();
    let error = host.ensure(host.options()).unwrap_err();
    assert!(matches!(error, LazyUnavailable::MountRefused { .. }), "{error}");
    assert!(host.is_mounted());
    mount::detach(&place).unwrap();

    // A worker that cannot use its store.
    std::fs::remove_dir_all(host.state.path().join("layers")).unwrap();
    let error = host.ensure(host.options()).unwrap_err();
    assert!(matches!(error, LazyUnavailable::Worker { .. }), "{error}");
    assert!(!host.is_mounted());
    let group = host.options().cgroup.unwrap();
    assert!(supervisor::sys::cgroup::processes(&group).unwrap().is_empty());
}

#[test]
fn mounts_reach_other_namespaces_and_leave_them_again() {
    in_mount_namespace(|| {
        rustix::mount::mount_change(
            "/",
            rustix::mount::MountPropagationFlags::SHARED
                | rustix::mount::MountPropagationFlags::REC,
        )
        .unwrap();
        let host = LazyHost::idle();
        let place = host.run.path().canonicalize().unwrap().join("lazy/layers");
        let (ask, asked) = std::sync::mpsc::channel::<()>();
        let (answer, answers) = std::sync::mpsc::channel();
        let watched = place.clone();
        // As a monitor is: a slave of this namespace, made before the mount.
        let monitor = std::thread::spawn(move || {
            mount::enter_private_namespace().unwrap();
            answer.send(false).unwrap();
            while asked.recv().is_ok() {
                let mounts = mount::mounts().unwrap();
                answer.send(mounts.iter().any(|mount| mount.mount_point == watched)).unwrap();
            }
        });
        answers.recv().unwrap();
        let sees = || {
            ask.send(()).unwrap();
            answers.recv().unwrap()
        };
        let mut host = host;
        host.ensure(host.options()).unwrap();
        assert!(sees());
        let directory = host.mount_local(&one_file(b"x"));
        assert_eq!(std::fs::read(directory.join("f")).unwrap(), b"x");
        drop(host);
        assert!(!sees());
        drop(ask);
        monitor.join().unwrap();
    });
}
