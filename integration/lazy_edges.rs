//! The lazy mount at its edges: another index for a mounted layer, long listings across a take-over, many open files.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use supervisor::fuse::{FailureKind, LayerMount, LazyError};
use supervisor::registry::BlobSource;

use crate::support::lazy_host::{LazyHost, TestLayer, noise};
use crate::support::registry::{Fault, FaultRegistry};
use crate::support::tar::TarBuilder;

#[test]
fn a_mounted_layer_is_not_given_to_who_has_another_index_for_it() {
    let host = LazyHost::start();
    let layer = TestLayer::pack(TarBuilder::default().file("one", "1").finish(), 4096);
    let other = TestLayer::pack(TarBuilder::default().file("other", "2").finish(), 4096);
    let directory = host.mount_local(&layer);
    host.mount_local(&other);
    // What an image could bring about that names a foreign layer and a table of contents of its own.
    let mount = |index: &TestLayer| LayerMount {
        digest: layer.digest,
        blob_size: layer.blob.len() as u64,
        index: host.store.layer(index.digest).index_path(),
        source: BlobSource::Layout { path: host.state.path().join("layout") },
    };
    let refused = host.runtime.block_on(host.lazy().mount_layer(mount(&other)));
    assert!(
        matches!(refused, Err(LazyError::Refused { kind: FailureKind::Index, .. })),
        "{refused:?}"
    );
    let again = host.runtime.block_on(host.lazy().mount_layer(mount(&layer))).unwrap();
    assert_eq!(again.directory, directory);
    assert_eq!(std::fs::read(directory.join("one")).unwrap(), b"1");
}

#[test]
fn a_long_listing_goes_on_across_take_overs_and_new_layers() {
    let host = LazyHost::start();
    let mut tar = TarBuilder::default();
    let names: BTreeSet<String> =
        (0..5000).map(|n| format!("{n}-{}", "x".repeat(n % 40))).collect();
    for name in &names {
        tar = tar.file(format!("many/{name}"), "");
    }
    let directory = host.mount_local(&TestLayer::pack(tar.finish(), 4096));
    let mut seen = Vec::new();
    for (n, entry) in std::fs::read_dir(directory.join("many")).unwrap().enumerate() {
        let entry = entry.unwrap();
        assert!(entry.metadata().unwrap().is_file());
        seen.push(entry.file_name().into_string().unwrap());
        match n {
            700 | 2500 => host.replace_worker(),
            1200 => {
                let tar = TarBuilder::default().file("late", "late").finish();
                let late = host.mount_local(&TestLayer::pack(tar, 4096));
                assert_eq!(std::fs::read(late.join("late")).unwrap(), b"late");
            }
            _ => {}
        }
    }
    assert_eq!(seen.len(), names.len(), "each name once");
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), names);
}

#[test]
fn more_files_are_open_than_the_worker_has_descriptors() {
    let host = LazyHost::start();
    let content = noise(3, 12_288);
    let mut tar = TarBuilder::default();
    for n in 0..400 {
        tar = tar.file(format!("{n}"), &content[n..n + 10_000]);
    }
    let directory = host.mount_local(&TestLayer::pack(tar.finish(), 4096));
    let worker = host.worker();
    let status = std::process::Command::new("prlimit")
        .args([&format!("--pid={}", worker.pid), "--nofile=200:200"])
        .status()
        .unwrap();
    assert!(status.success());
    let files: Vec<File> =
        (0..400).map(|n| File::open(directory.join(n.to_string())).unwrap()).collect();
    let mut bytes = [0; 5000];
    for part in [0, 5000] {
        for (n, file) in files.iter().enumerate() {
            file.read_exact_at(&mut bytes, part as u64).unwrap();
            assert_eq!(bytes, content[n + part..n + part + 5000], "file {n}");
        }
    }
    assert_eq!(host.worker(), worker, "it did not fall over");
}

/// The worker gives up the rest of the file system; what its hosts' settings are stays readable.
#[test]
fn a_chunk_that_one_mirror_has_wrong_comes_from_the_next() {
    let [wrong, right] = std::array::from_fn(|_| FaultRegistry::start());
    let tree = tempfile::tempdir().unwrap();
    let folder = tree.path().join("registry.invalid");
    std::fs::create_dir(&folder).unwrap();
    let mirrors = [&wrong, &right].map(|mirror| format!("[host.\"http://{}\"]\n", mirror.host()));
    std::fs::write(folder.join("hosts.toml"), mirrors.concat()).unwrap();
    let host = LazyHost::with(|options| {
        options.registry.host_trees = vec![tree.path().to_owned()];
    });
    let content = noise(9, 300_000);
    let layer = TestLayer::pack(TarBuilder::default().file("one", &content).finish(), 64 << 10);
    for mirror in [&wrong, &right] {
        mirror.put_blob(&layer.blob);
    }
    wrong.fault("/blobs/", 1000, Fault::WrongByte(5000));
    let repository = "app".to_owned();
    let source = BlobSource::Registry { host: "registry.invalid".to_owned(), repository };
    let directory = host.mount(&layer, source);
    assert!(std::fs::read(directory.join("one")).unwrap() == content);
    assert!(!wrong.seen("/blobs/").is_empty() && !right.seen("/blobs/").is_empty());
}
