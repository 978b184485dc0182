//! A newer build takes over from an older one while files are open and read: keeper first, then worker.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use supervisor::fuse::{ConnectionEvent, Feature, WorkerState};

use crate::support::eventually;
use crate::support::lazy_host::{LazyHost, TestLayer, noise, wait_for};
use crate::support::tar::TarBuilder;

const LARGE: usize = 600_000;

fn layer() -> TestLayer {
    let tar =
        TarBuilder::default().file("large", noise(1, LARGE)).file("small", noise(2, 5000)).finish();
    TestLayer::pack(tar, 64 << 10)
}

/// What the next control does, being of another build.
fn upgrade(host: &mut LazyHost, build: &str) {
    host.forget();
    let mut options = host.options();
    build.clone_into(&mut options.build);
    host.ensure(options).unwrap();
}

#[test]
fn keeper_and_worker_of_another_build_are_replaced_and_no_read_fails() {
    let mut host = LazyHost::start();
    let layer = layer();
    let directory = host.mount_local(&layer);
    let open = File::open(directory.join("small")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (path, stopped) = (directory.join("large"), Arc::clone(&stop));
    let reader = std::thread::spawn(move || {
        let mut reads = 0_u32;
        while !stopped.load(Ordering::Relaxed) {
            let file = File::open(&path).unwrap();
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
            let mut content = vec![0; LARGE];
            file.read_exact_at(&mut content, 0).unwrap();
            assert!(content == noise(1, LARGE));
            reads += 1;
        }
        reads
    });
    for build in ["2.0.0", "3.0.0", "2.0.0"] {
        let (keeper, worker) = (host.status().keeper, host.worker());
        upgrade(&mut host, build);
        eventually("the worker is of the new build", || {
            host.status().keeper.worker_build.as_deref() == Some(build)
        });
        assert_ne!(host.worker(), worker);
        let after = host.status().keeper;
        assert_ne!(after.process, keeper.process);
        assert_eq!((after.build.as_str(), after.generation), (build, keeper.generation));
        assert!(keeper.process.open().is_none() && worker.open().is_none());
        assert_eq!(host.mount_local(&layer), directory);
    }
    stop.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap() > 0);
    let mut content = vec![0; 5000];
    open.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(content, noise(2, 5000));
}

#[test]
fn a_worker_that_cannot_read_an_index_leaves_the_other_in_its_place() {
    let mut host = LazyHost::start();
    let layer = layer();
    let directory = host.mount_local(&layer);
    let worker = host.worker();
    // Another file under the name, so that the worker's own stays as it is; the version is its third word.
    let index = host.store.layer(layer.digest).index_path();
    let mut bytes = std::fs::read(&index).unwrap();
    bytes[8] = 99;
    std::fs::remove_file(&index).unwrap();
    std::fs::write(&index, &bytes).unwrap();

    upgrade(&mut host, "1.9.0");
    eventually("it says why", || host.status().keeper.worker_kept.is_some());
    let status = host.status().keeper;
    assert!(status.worker_kept.as_ref().unwrap().contains("version `99`"), "{status:?}");
    assert_eq!(host.worker(), worker);
    assert_ne!(status.worker_build.as_deref(), Some("1.9.0"));
    assert_eq!(std::fs::read(directory.join("small")).unwrap(), noise(2, 5000));

    // With an index that can be read it goes.
    bytes[8] = 1;
    std::fs::write(&index, &bytes).unwrap();
    host.runtime.block_on(host.lazy().retry()).unwrap();
    eventually("the worker is replaced", || host.worker() != worker);
    assert_eq!(host.status().keeper.worker_kept, None);
    assert!(std::fs::read(directory.join("large")).unwrap() == noise(1, LARGE));
}

#[test]
fn a_keeper_that_cannot_read_the_state_leaves_the_other_in_its_place() {
    let mut host = LazyHost::start();
    let directory = host.mount_local(&layer());
    let before = (host.status().keeper.process, host.worker());
    let session = File::options().write(true).open(host.run.path().join("lazy/session")).unwrap();
    // The layout of the file, as a newer build would have it.
    session.write_all_at(&99_u64.to_le_bytes(), 8).unwrap();
    upgrade(&mut host, "1.9.0");
    let reason = host.lazy().kept_keeper().unwrap();
    assert!(reason.contains("layout 99"), "{reason}");
    session.write_all_at(&1_u64.to_le_bytes(), 8).unwrap();
    assert_eq!((host.status().keeper.process, host.worker()), before);
    assert_eq!(std::fs::read(directory.join("small")).unwrap(), noise(2, 5000));
}

#[test]
fn without_resend_only_the_keeper_is_replaced() {
    let mut host = LazyHost::with(|options| options.resend = Feature::Off);
    let directory = host.mount_local(&layer());
    let (keeper, worker) = (host.status().keeper.process, host.worker());
    assert!(host.lazy().held_copy().is_none(), "nobody could go on with it");
    upgrade(&mut host, "2.0.0");
    assert_eq!(host.status().keeper.build, "2.0.0");
    assert_ne!(host.status().keeper.process, keeper);
    assert_eq!(host.worker(), worker);
    assert!(host.status().keeper.worker_kept.unwrap().contains("6.9"));
    assert_eq!(std::fs::read(directory.join("small")).unwrap(), noise(2, 5000));
}

#[test]
fn a_worker_that_cannot_start_is_tried_at_once_when_somebody_asks() {
    let mut host = LazyHost::start();
    let directory = host.mount_local(&layer());
    let mut events = host.lazy().events();
    let session = host.run.path().join("lazy/session");
    let aside = session.with_extension("aside");
    std::fs::rename(&session, &aside).unwrap();
    crate::support::lazy_host::kill(&host.worker());
    wait_for(&host.runtime, &mut events, |event| {
        matches!(event, ConnectionEvent::WorkerFailing { .. })
    });
    // By itself, with pauses of up to five seconds, it comes to a third of that while anything is waited for here.
    eventually("it is tried forty times when it is asked for", || {
        host.forget();
        host.ensure(host.options()).unwrap();
        matches!(host.status().keeper.worker, WorkerState::Failing { attempts: 40.., .. })
    });
    std::fs::rename(&aside, &session).unwrap();
    host.forget();
    host.ensure(host.options()).unwrap();
    host.worker();
    assert_eq!(std::fs::read(directory.join("small")).unwrap(), noise(2, 5000));
}
