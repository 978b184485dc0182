//! Who holds the connection's descriptor after which deaths: a test for each row of the table in `src/fuse/mod.rs`.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use supervisor::fuse::{ConnectionEvent, RoleHealth, Side, WorkerState, abort, examine};
use supervisor::sys::process::{ProcessIdentity, send_signal};

use crate::support::eventually;
use crate::support::lazy_host::{LazyHost, TestLayer, kill, noise, wait_for};
use crate::support::tar::TarBuilder;

const LARGE: usize = 600_000;

struct Reading {
    host: LazyHost,
    directory: PathBuf,
    /// Open since before the deaths, as in a container that runs.
    open: File,
}

impl Reading {
    fn start() -> Self {
        Self::on(LazyHost::start())
    }

    fn on(host: LazyHost) -> Self {
        let tar = TarBuilder::default()
            .file("large", noise(1, LARGE))
            .file("small", noise(2, 5000))
            .finish();
        let directory = host.mount_local(&TestLayer::pack(tar, 64 << 10));
        let open = File::open(directory.join("large")).unwrap();
        Self { host, directory, open }
    }

    /// Reads what was open, past the page cache, and opens something that was not.
    fn goes_on(&self) {
        let _ = rustix::fs::fadvise(&self.open, 0, None, rustix::fs::Advice::DontNeed);
        let mut content = vec![0; LARGE];
        self.open.read_exact_at(&mut content, 0).unwrap();
        assert!(content == noise(1, LARGE));
        assert_eq!(std::fs::read(self.directory.join("small")).unwrap(), noise(2, 5000));
    }

    fn keeper(&self) -> ProcessIdentity {
        self.host.status().keeper.process
    }

    fn generation(&self) -> u64 {
        self.host.status().keeper.generation
    }
}

fn end(processes: &[&ProcessIdentity]) {
    // Nobody may replace the first before the last is gone, so they are stopped before.
    for process in processes {
        send_signal(std::os::fd::AsFd::as_fd(&process.open().unwrap()), 19).unwrap();
    }
    processes.iter().for_each(|process| kill(process));
    eventually("they are gone", || processes.iter().all(|process| process.open().is_none()));
}

#[test]
fn when_the_worker_dies_the_keeper_holds() {
    let reading = Reading::start();
    reading.host.replace_worker();
    reading.goes_on();
}

#[test]
fn when_the_keeper_dies_the_worker_holds() {
    let reading = Reading::start();
    let (keeper, worker) = (reading.keeper(), reading.host.worker());
    end(&[&keeper]);
    reading.goes_on();
    eventually("another keeper", || reading.keeper() != keeper);
    assert_eq!(reading.host.worker(), worker);
    reading.goes_on();
}

#[test]
fn when_control_dies_keeper_and_worker_hold() {
    let mut reading = Reading::start();
    let before = (reading.keeper(), reading.host.worker(), reading.generation());
    reading.host.forget();
    reading.goes_on();
    reading.host.ensure(reading.host.options()).unwrap();
    assert_eq!((reading.keeper(), reading.host.worker(), reading.generation()), before);
    reading.goes_on();
}

#[test]
fn when_the_keeper_dies_and_then_the_worker_the_next_keeper_holds() {
    let reading = Reading::start();
    let (keeper, worker) = (reading.keeper(), reading.host.worker());
    end(&[&keeper]);
    eventually("another keeper", || reading.keeper() != keeper);
    end(&[&worker]);
    eventually("another worker", || reading.host.worker() != worker);
    reading.goes_on();
}

#[test]
fn when_keeper_and_control_die_the_worker_holds() {
    let mut reading = Reading::start();
    let (keeper, worker) = (reading.keeper(), reading.host.worker());
    reading.host.forget();
    end(&[&keeper]);
    reading.goes_on();
    reading.host.ensure(reading.host.options()).unwrap();
    assert_eq!(reading.host.worker(), worker);
    reading.goes_on();
}

#[test]
fn when_worker_and_control_die_the_keeper_holds() {
    let mut reading = Reading::start();
    let (keeper, worker, before) = (reading.keeper(), reading.host.worker(), reading.generation());
    reading.host.forget();
    end(&[&worker]);
    // The keeper starts the next worker by itself.
    reading.goes_on();
    reading.host.ensure(reading.host.options()).unwrap();
    assert_eq!((reading.keeper(), reading.generation()), (keeper, before));
    assert_ne!(reading.host.worker(), worker);
    reading.goes_on();
}

#[test]
fn when_keeper_and_worker_die_control_holds() {
    let reading = Reading::start();
    let mut events = reading.host.lazy().events();
    let (keeper, worker, before) = (reading.keeper(), reading.host.worker(), reading.generation());
    end(&[&keeper, &worker]);
    // It waits for the next worker.
    reading.goes_on();
    wait_for(&reading.host.runtime, &mut events, |event| *event == ConnectionEvent::KeeperReplaced);
    assert_eq!(reading.generation(), before, "the same connection");

    // And then nobody depends on control.
    reading.host.replace_worker();
    reading.goes_on();
    let (keeper, worker) = (reading.keeper(), reading.host.worker());
    end(&[&worker, &keeper]);
    reading.goes_on();
}

#[test]
fn when_all_die_at_once_the_descriptor_store_holds() {
    let mut reading = Reading::start();
    let (keeper, worker, before) = (reading.keeper(), reading.host.worker(), reading.generation());
    let stored = reading.host.lazy().held_copy().unwrap();
    reading.host.forget();
    end(&[&keeper, &worker]);
    let open = reading.open.try_clone().unwrap();
    let _ = rustix::fs::fadvise(&open, 0, None, rustix::fs::Advice::DontNeed);
    let reader = std::thread::spawn(move || {
        let mut content = vec![0; LARGE];
        open.read_exact_at(&mut content, 0).map(|()| content)
    });
    reading.host.ensure_with(reading.host.options(), Some(stored)).unwrap();
    assert!(reader.join().unwrap().unwrap() == noise(1, LARGE));
    assert_eq!(reading.generation(), before);
    reading.goes_on();
}

#[test]
fn when_all_die_at_once_and_nobody_holds_the_connection_is_lost() {
    let mut reading = Reading::start();
    let (keeper, worker, before) = (reading.keeper(), reading.host.worker(), reading.generation());
    reading.host.forget();
    end(&[&keeper, &worker]);
    assert!(reading.open.read_exact_at(&mut [0; 10], 300_000).is_err(), "not blocked");
    reading.host.ensure(reading.host.options()).unwrap();
    assert_ne!(reading.generation(), before, "containers on the old one can be told");
    assert!(reading.open.read_exact_at(&mut [0; 10], 300_000).is_err());
    // New mounts of the layer have their names again.
    eventually("it is served", || std::fs::read(reading.directory.join("small")).is_ok());
}

#[test]
fn a_descriptor_of_another_connection_is_not_used() {
    let other = Reading::start();
    let stored = other.host.lazy().held_copy().unwrap();
    let mut reading = Reading::start();
    let (keeper, worker, before) = (reading.keeper(), reading.host.worker(), reading.generation());
    reading.host.forget();
    end(&[&keeper, &worker]);
    reading.host.ensure_with(reading.host.options(), Some(stored)).unwrap();
    assert_ne!(reading.generation(), before);
    eventually("it is served", || std::fs::read(reading.directory.join("small")).is_ok());
    other.goes_on();

    // One whose connection has ended.
    let dead: OwnedFd = reading.host.lazy().held_copy().unwrap();
    let (keeper, worker, before) = (reading.keeper(), reading.host.worker(), reading.generation());
    reading.host.forget();
    abort_connection(&reading.host);
    assert!(keeper.open().is_none() && worker.open().is_none());
    reading.host.ensure_with(reading.host.options(), Some(dead)).unwrap();
    assert_ne!(reading.generation(), before);
}

#[test]
fn a_worker_that_is_stopped_is_replaced_and_its_readers_go_on() {
    let host = LazyHost::with(|options| options.worker_patience = Duration::from_millis(400));
    let reading = Reading::on(host);
    let mut events = reading.host.lazy().events();
    let worker = reading.host.worker();
    send_signal(std::os::fd::AsFd::as_fd(&worker.open().unwrap()), 19).unwrap();
    reading.goes_on();
    wait_for(
        &reading.host.runtime,
        &mut events,
        |event| matches!(event, ConnectionEvent::WorkerEnded { reason } if reason.contains("answer")),
    );
    assert_ne!(reading.host.worker(), worker);
}

#[test]
fn a_worker_that_waits_for_its_registry_is_not_replaced() {
    use crate::support::registry::{Fault, FaultRegistry};
    let host = LazyHost::with(|options| options.worker_patience = Duration::from_millis(200));
    let registry = FaultRegistry::start();
    let layer = TestLayer::pack(TarBuilder::default().file("f", noise(7, LARGE)).finish(), 65_536);
    registry.put_blob(&layer.blob);
    let source = supervisor::registry::BlobSource::Registry {
        host: registry.host(),
        repository: "app".to_owned(),
    };
    let path = host.mount(&layer, source).join("f");
    let worker = host.worker();
    registry.fault("blobs", 1_000_000, Fault::Hangup);
    let reader = std::thread::spawn(move || std::fs::read(path));
    // Far longer than the patience, in requests that the registry sees.
    let before = registry.seen("blobs").len();
    eventually("it tries again and again", || registry.seen("blobs").len() > before + 5);
    let health =
        examine(host.run.path(), &instance(&host), Side::Main, Duration::from_secs(5)).unwrap();
    assert!(health.waiting.unwrap() > 0 && !health.is_wedged(), "{health:?}");
    registry.heal();
    assert!(reader.join().unwrap().unwrap() == noise(7, LARGE));
    assert_eq!(host.worker(), worker);
}

fn instance(host: &LazyHost) -> String {
    host.options().instance
}

fn abort_connection(host: &LazyHost) {
    let group = host.options().cgroup;
    abort(host.run.path(), &instance(host), Side::Main, group.as_deref()).unwrap();
}

#[test]
fn a_connection_whose_keeper_and_worker_are_stopped_is_wedged_and_can_be_ended() {
    let mut reading = Reading::start();
    let (keeper, worker) = (reading.keeper(), reading.host.worker());
    for process in [&keeper, &worker] {
        send_signal(std::os::fd::AsFd::as_fd(&process.open().unwrap()), 19).unwrap();
    }
    let open = reading.open.try_clone().unwrap();
    let _ = rustix::fs::fadvise(&open, 0, None, rustix::fs::Advice::DontNeed);
    let reader = std::thread::spawn(move || open.read_exact_at(&mut [0; 10], 500_000));
    let look = || {
        examine(
            reading.host.run.path(),
            &instance(&reading.host),
            Side::Main,
            Duration::from_millis(100),
        )
        .unwrap()
    };
    eventually("somebody waits", || look().waiting.is_some_and(|waiting| waiting > 0));
    let health = look();
    assert!(health.is_wedged(), "{health:?}");
    assert_eq!(health.keeper, RoleHealth::Silent(keeper.clone()));
    assert!(!reader.is_finished());

    reading.host.lazy().abandon();
    abort_connection(&reading.host);
    assert!(reader.join().unwrap().is_err());
    assert!(!reading.host.is_mounted());
    assert!(keeper.open().is_none() && worker.open().is_none());
    assert_eq!(look().connection, None);
    reading.host.forget();
    // And the next one is as any.
    reading.host.ensure(reading.host.options()).unwrap();
    assert!(matches!(reading.host.status().keeper.worker, WorkerState::Running { .. }));
}

/// How long a read takes over the death of the worker: `cargo test --test integration -- --ignored --nocapture stalls`.
#[test]
#[ignore = "measures; run it alone"]
fn stalls_of_reads_over_the_death_of_the_worker() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    const KILLS: usize = 200;
    let host = LazyHost::with(|options| options.passthrough = supervisor::fuse::Feature::Off);
    let reading = Reading::on(host);
    let (stop, longest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&longest));
    let open = reading.open.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let _ = rustix::fs::fadvise(&open, 0, None, rustix::fs::Advice::DontNeed);
            let start = std::time::Instant::now();
            open.read_exact_at(&mut [0; 4096], 300_000).unwrap();
            seen.fetch_max(start.elapsed().as_micros() as u64, Ordering::Relaxed);
        }
    });
    let mut stalls: Vec<u64> = (0..KILLS)
        .map(|_| {
            longest.store(0, Ordering::Relaxed);
            reading.host.replace_worker();
            eventually("a read has ended", || longest.load(Ordering::Relaxed) > 0);
            longest.load(Ordering::Relaxed)
        })
        .collect();
    stop.store(true, Ordering::Relaxed);
    reader.join().unwrap();
    stalls.sort_unstable();
    let at = |percent: usize| stalls[(KILLS * percent / 100).min(KILLS - 1)] as f64 / 1000.0;
    eprintln!("{KILLS} kills: median {} ms, 99th {} ms, longest {} ms", at(50), at(99), at(100));
}
