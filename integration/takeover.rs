//! Killing those who serve the mount while somebody reads: nobody notices.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use supervisor::fuse::{ConnectionEvent, Feature, WorkerState};
use supervisor::registry::BlobSource;
use supervisor::sys::MappedFile;

use crate::support::eventually;
use crate::support::lazy_host::{LazyHost, TestLayer, kill, noise, wait_for};
use crate::support::registry::{Fault, FaultRegistry};
use crate::support::tar::TarBuilder;

const LARGE: usize = 600_000;
const MEDIUM: usize = 50_000;

/// A file of several chunks, one of a single chunk, and two that are small enough to be packed.
fn layer() -> TestLayer {
    let tar = TarBuilder::default()
        .file("large", noise(1, LARGE))
        .file("medium", noise(4, MEDIUM))
        .file("small", noise(2, 5000))
        .file("other", noise(3, 5000))
        .finish();
    TestLayer::pack(tar, 64 << 10)
}

fn remote(registry: &FaultRegistry, layer: &TestLayer) -> BlobSource {
    registry.put_blob(&layer.blob);
    BlobSource::Registry { host: registry.host(), repository: "app".to_owned() }
}

/// Makes the registry hang up on everybody, until it heals.
fn outage(registry: &FaultRegistry) {
    registry.fault("blobs", 1_000_000, Fault::Hangup);
}

/// Waits until the registry was asked again: somebody waits for it.
fn wait_for_request(registry: &FaultRegistry) {
    let before = registry.seen("blobs").len();
    eventually("the registry is asked", || registry.seen("blobs").len() > before);
}

#[test]
fn a_worker_killed_in_the_middle_of_a_read_is_not_noticed() {
    // `medium` waits in open(2), the others in read(2). Each has a layer of its own: what is read whole brings its neighbours.
    let contents =
        [("large", noise(1, LARGE)), ("medium", noise(4, MEDIUM)), ("small", noise(2, 5000))];
    for (name, content) in contents {
        let (host, registry) = (LazyHost::start(), FaultRegistry::start());
        let layer =
            TestLayer::pack(TarBuilder::default().file(name, content.clone()).finish(), 64 << 10);
        let directory = host.mount(&layer, remote(&registry, &layer));
        outage(&registry);
        let path = directory.join(name);
        let reader = std::thread::spawn(move || std::fs::read(path));
        wait_for_request(&registry);
        host.replace_worker();
        wait_for_request(&registry);
        host.replace_worker();
        assert!(!reader.is_finished());
        registry.heal();
        assert!(reader.join().unwrap().unwrap() == content, "{name}");
    }
}

#[test]
fn a_worker_killed_in_the_middle_of_a_page_fault_is_not_noticed() {
    let (host, registry) = (LazyHost::start(), FaultRegistry::start());
    let layer = layer();
    let directory = host.mount(&layer, remote(&registry, &layer));
    let file = File::open(directory.join("large")).unwrap();
    let mapped = MappedFile::open(&file).unwrap();
    outage(&registry);
    let reader = std::thread::spawn(move || mapped.as_ref()[LARGE - 1]);
    wait_for_request(&registry);
    host.replace_worker();
    wait_for_request(&registry);
    assert!(!reader.is_finished());
    registry.heal();
    assert_eq!(reader.join().unwrap(), noise(1, LARGE)[LARGE - 1]);
}

#[test]
fn the_next_keeper_takes_the_connection_from_the_worker() {
    let host = LazyHost::start();
    let mut events = host.lazy().events();
    let directory = host.mount_local(&layer());
    let worker = host.worker();
    let keeper = host.status().keeper.process;
    let open = File::open(directory.join("large")).unwrap();
    kill(&keeper);
    assert_eq!(std::fs::read(directory.join("small")).unwrap(), noise(2, 5000));
    wait_for(&host.runtime, &mut events, |event| *event == ConnectionEvent::KeeperReplaced);
    assert_ne!(host.status().keeper.process, keeper);
    assert_eq!(host.worker(), worker, "the worker went on");

    // And the worker of that keeper, which is not its child.
    host.replace_worker();
    let mut content = Vec::new();
    (&open).read_to_end(&mut content).unwrap();
    assert!(content == noise(1, LARGE));
    assert_eq!(std::fs::read(directory.join("other")).unwrap(), noise(3, 5000));
}

#[test]
fn control_that_comes_back_finds_everything_as_it_was() {
    let mut host = LazyHost::start();
    let layer = layer();
    let directory = host.mount_local(&layer);
    let (worker, keeper) = (host.worker(), host.status().keeper.process);
    host.forget();
    host.ensure(host.options()).unwrap();
    assert_eq!((host.worker(), host.status().keeper.process), (worker, keeper));
    assert_eq!(host.mount_local(&layer), directory);

    // The keeper dies while nobody watches, then the worker after the next keeper came.
    host.forget();
    kill(&host_keeper(&host));
    host.ensure(host.options()).unwrap();
    host.replace_worker();
    assert_eq!(std::fs::read(directory.join("small")).unwrap(), noise(2, 5000));
}

#[test]
fn a_kept_descriptor_carries_the_connection_over_the_death_of_everybody() {
    let mut host = LazyHost::start();
    let directory = host.mount_local(&layer());
    let open = File::open(directory.join("large")).unwrap();
    let (worker, keeper) = (host.worker(), host.status().keeper.process);
    let kept = host.runtime.block_on(host.lazy().descriptor()).unwrap();
    host.forget();
    kill(&keeper);
    kill(&worker);
    eventually("both are gone", || keeper.open().is_none() && worker.open().is_none());
    let reader = std::thread::spawn(move || read_at(&open, 0, LARGE));
    host.ensure_with(host.options(), Some(kept)).unwrap();
    assert!(reader.join().unwrap() == noise(1, LARGE));
}

#[test]
fn without_anybody_left_the_old_mount_goes_and_layers_keep_their_names() {
    let mut host = LazyHost::start();
    let layer = layer();
    let directory = host.mount_local(&layer);
    let (worker, keeper) = (host.worker(), host.status().keeper.process);
    host.forget();
    kill(&keeper);
    kill(&worker);
    eventually("both are gone", || keeper.open().is_none() && worker.open().is_none());
    assert!(std::fs::read(directory.join("small")).is_err());
    host.ensure(host.options()).unwrap();
    assert_eq!(host.mount_local(&layer), directory);
    assert_eq!(std::fs::read(directory.join("small")).unwrap(), noise(2, 5000));
}

fn host_keeper(host: &LazyHost) -> supervisor::sys::process::ProcessIdentity {
    listener_of(host, "keeper.sock")
}

/// Whoever listens on a socket of the lazy directory.
fn listener_of(host: &LazyHost, name: &str) -> supervisor::sys::process::ProcessIdentity {
    let directory = File::open(host.run.path().join("lazy")).unwrap();
    let socket =
        supervisor::sys::socket::connect(std::os::fd::AsFd::as_fd(&directory), name).unwrap();
    let pid = supervisor::sys::socket::peer(&socket).unwrap().pid;
    supervisor::sys::process::ProcessIdentity::of(pid).unwrap()
}

fn read_at(file: &File, offset: usize, length: usize) -> Vec<u8> {
    let mut content = vec![0; length];
    file.read_exact_at(&mut content, offset as u64).unwrap();
    content
}

#[test]
fn handles_of_both_kinds_live_through_take_overs_in_both_directions() {
    let host = LazyHost::start();
    let layer = layer();
    let directory = host.mount_local(&layer);
    // Not local yet, several chunks: cached. One chunk: fetched, then passed through. Small: always cached.
    let cached = File::open(directory.join("large")).unwrap();
    let passed = File::open(directory.join("medium")).unwrap();
    let packed = File::open(directory.join("small")).unwrap();
    assert!(host.status().worker.unwrap().passthrough, "this kernel has passthrough");
    assert_eq!(read_at(&cached, 0, 10), noise(1, LARGE)[..10]);
    assert_eq!(read_at(&passed, 0, 10), noise(4, MEDIUM)[..10]);
    assert_eq!(read_at(&packed, 0, 10), noise(2, 5000)[..10]);

    // The large file becomes complete while its cached handle is open.
    host.runtime.block_on(host.lazy().background(layer.digest)).unwrap();
    eventually("the layer is complete", || host.status().layers[0].is_complete);
    let again = File::open(directory.join("large")).unwrap();
    assert!(read_at(&again, 0, LARGE) == noise(1, LARGE), "stays cached while open");

    for _ in 0..3 {
        host.replace_worker();
        let (large, medium, small) = (noise(1, LARGE), noise(4, MEDIUM), noise(2, 5000));
        assert_eq!(read_at(&cached, LARGE - 10, 10), large[LARGE - 10..]);
        assert_eq!(read_at(&passed, 4000, MEDIUM - 4000), medium[4000..]);
        assert_eq!(read_at(&packed, 4000, 1000), small[4000..]);
        // New handles beside the old ones, in their modes.
        let more = (
            File::open(directory.join("large")).unwrap(),
            File::open(directory.join("medium")).unwrap(),
            File::open(directory.join("small")).unwrap(),
        );
        assert!(read_at(&more.0, 0, LARGE) == large);
        assert!(read_at(&more.1, 0, MEDIUM) == medium);
        assert_eq!(read_at(&more.2, 0, 5000), small);
    }
    drop((cached, again, passed, packed));
    eventually("all handles are released", || host.status().worker.unwrap().open_files == 0);

    // Now complete and closed, it is opened the other way, across another take-over.
    let passed = File::open(directory.join("large")).unwrap();
    host.replace_worker();
    let again = File::open(directory.join("large")).unwrap();
    assert!(read_at(&passed, 0, LARGE) == noise(1, LARGE));
    assert!(read_at(&again, 0, LARGE) == noise(1, LARGE));
}

#[test]
fn without_passthrough_everything_is_read_through_the_worker() {
    let host = LazyHost::with(|options| options.passthrough = Feature::Off);
    let directory = host.mount_local(&layer());
    let small = File::open(directory.join("small")).unwrap();
    assert!(!host.status().worker.unwrap().passthrough);
    host.replace_worker();
    assert_eq!(read_at(&small, 0, 5000), noise(2, 5000));
}

#[test]
fn without_resend_the_death_of_the_worker_costs_the_connection_and_says_so() {
    let host = LazyHost::with(|options| options.resend = Feature::Off);
    let mut events = host.lazy().events();
    let layer = layer();
    let directory = host.mount_local(&layer);
    let open = File::open(directory.join("large")).unwrap();
    kill(&host.worker());
    wait_for(&host.runtime, &mut events, |event| {
        matches!(event, ConnectionEvent::ConnectionLost { .. })
    });
    assert!(open.read_exact_at(&mut [0; 10], 0).is_err(), "not blocked");
    // The layer is served again under its name.
    host.worker();
    assert_eq!(host.mount_local(&layer), directory);
    assert_eq!(std::fs::read(directory.join("small")).unwrap(), noise(2, 5000));
}

#[test]
fn a_worker_that_cannot_start_is_a_state_and_an_event_and_recovers() {
    let host = LazyHost::start();
    let mut events = host.lazy().events();
    let directory = host.mount_local(&layer());
    let session = host.run.path().join("lazy/session");
    let aside = session.with_extension("aside");
    std::fs::rename(&session, &aside).unwrap();
    kill(&host.worker());
    wait_for(&host.runtime, &mut events, |event| {
        matches!(event, ConnectionEvent::WorkerFailing { attempts: 3, .. })
    });
    let state = host.status().keeper.worker;
    assert!(
        matches!(&state, WorkerState::Failing { reason, .. } if reason.contains("session")),
        "{state:?}"
    );
    let path = directory.join("small");
    let reader = std::thread::spawn(move || std::fs::read(path));
    std::fs::rename(&aside, &session).unwrap();
    assert_eq!(reader.join().unwrap().unwrap(), noise(2, 5000));
}

#[test]
fn a_layer_whose_index_is_gone_fails_alone() {
    let host = LazyHost::start();
    let (good, bad) =
        (layer(), TestLayer::pack(TarBuilder::default().file("f", b"x").finish(), 4096));
    let (good_at, bad_at) = (host.mount_local(&good), host.mount_local(&bad));
    std::fs::remove_file(host.store.layer(bad.digest).index_path()).unwrap();
    host.replace_worker();
    assert_eq!(std::fs::read(good_at.join("small")).unwrap(), noise(2, 5000));
    assert_eq!(std::fs::read(bad_at.join("f")).unwrap_err().raw_os_error(), Some(5));
    let layers = host.status().layers;
    assert_eq!(layers.iter().filter(|layer| layer.error.is_some()).count(), 1);
    // Mounting it again is a new slot.
    let again = host.mount_local(&bad);
    assert_ne!(again, bad_at);
    assert_eq!(std::fs::read(again.join("f")).unwrap(), b"x");
}

#[test]
fn reads_go_on_while_workers_and_keepers_are_killed_again_and_again() {
    let host = LazyHost::start();
    let directory = host.mount_local(&layer());
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = ["large", "small", "other"]
        .into_iter()
        .enumerate()
        .map(|(n, name)| {
            let (path, stop) = (directory.join(name), std::sync::Arc::clone(&stop));
            let expected = noise(n as u64 + 1, if n == 0 { LARGE } else { 5000 });
            std::thread::spawn(move || {
                let mut reads = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    drop_cache(&path);
                    assert!(std::fs::read(&path).unwrap() == expected);
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    for round in 0..15 {
        if round % 5 == 4 {
            let keeper = host.status().keeper.process;
            kill(&keeper);
            eventually("another keeper", || host.status().keeper.process != keeper);
        }
        host.replace_worker();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
    eventually("nothing stays open", || host.status().worker.unwrap().open_files == 0);
}

/// So that the next read asks the worker.
fn drop_cache(path: &Path) {
    let file = File::open(path).unwrap();
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
}

#[test]
fn stopping_by_force_frees_a_reader_that_waits() {
    let (host, registry) = (LazyHost::start(), FaultRegistry::start());
    let layer = layer();
    let directory = host.mount(&layer, remote(&registry, &layer));
    outage(&registry);
    let path = directory.join("large");
    let reader = std::thread::spawn(move || std::fs::read(path));
    wait_for_request(&registry);
    drop(host);
    assert!(reader.join().unwrap().is_err());
}
