//! A cache that is far smaller than what is read through the mount, with a worker that has little memory and is killed, and
//! a registry that fails.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use supervisor::image::Digest;
use supervisor::registry::BlobSource;
use supervisor::sys::cgroup;

use crate::support::eventually;
use crate::support::lazy_host::{LazyHost, TestLayer, noise};
use crate::support::registry::{Fault, FaultRegistry};
use crate::support::tar::TarBuilder;

const BUDGET: u64 = 2 << 20;
/// Worker and keeper together.
const MEMORY: u64 = 48 << 20;
const LARGE: u64 = 8;
const SMALL: u64 = 80;

fn large(n: u64) -> Vec<u8> {
    noise(n + 1, 1_500_000)
}

fn small(n: u64) -> Vec<u8> {
    noise(n + 1000, 40_000)
}

/// 15 MB.
fn layer() -> TestLayer {
    let mut tar = TarBuilder::default();
    for n in 0..LARGE {
        tar = tar.file(format!("large{n}"), large(n));
    }
    for n in 0..SMALL {
        tar = tar.file(format!("small{n}"), small(n));
    }
    TestLayer::pack(tar.finish(), 128 << 10)
}

fn bounded() -> LazyHost {
    LazyHost::with(|options| options.cache_bytes = Some(BUDGET))
}

fn occupied(dir: &Path) -> u64 {
    let mut total = 0;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        // Something may be evicted at the moment.
        let Ok(stat) = entry.metadata() else { continue };
        total += if stat.is_dir() { occupied(&entry.path()) } else { stat.blocks() * 512 };
    }
    total
}

fn content(host: &LazyHost) -> u64 {
    let files = host.state.path().join("files");
    occupied(&files.join("sha256")) + occupied(&files.join("partial"))
}

fn kept(host: &LazyHost, content: &[u8]) -> PathBuf {
    let hex = Digest::of(content).hex();
    host.state.path().join(format!("files/sha256/{}/{hex}", &hex[..2]))
}

/// Bounds the memory of those who serve `host`.
fn bound_memory(host: &LazyHost) {
    let group = host.options().cgroup.unwrap();
    let files = ["memory.limit_in_bytes", "memory.max"];
    let is_bounded = cgroup::hierarchies().unwrap().iter().any(|hierarchy| {
        let folder = hierarchy.mount_point.join(group.trim_start_matches('/'));
        files.iter().any(|file| {
            let file = folder.join(file);
            file.exists() && std::fs::write(file, MEMORY.to_string()).is_ok()
        })
    });
    assert!(is_bounded, "run as root, with a memory controller");
}

/// Everything, in an order of its own, whole and in parts.
fn read_everything(directory: &Path, reader: u64) {
    for n in 0..LARGE + SMALL {
        let n = (n * 13 + reader * 29) % (LARGE + SMALL);
        let (name, expected) = match n.checked_sub(LARGE) {
            None => (format!("large{n}"), large(n)),
            Some(n) => (format!("small{n}"), small(n)),
        };
        let mut file = File::open(directory.join(&name)).unwrap();
        let at = (n * 7919 + reader * 104_729) % (expected.len() as u64 - 5000);
        let mut part = vec![0; 5000];
        file.read_exact_at(&mut part, at).unwrap();
        let at = usize::try_from(at).unwrap();
        assert!(part == expected[at..at + 5000], "{name} at {at}");
        if (n + reader).is_multiple_of(3) {
            let mut whole = Vec::new();
            file.read_to_end(&mut whole).unwrap();
            assert!(whole == expected, "{name}");
        }
        // Or the next reader would be served by the page cache.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
}

#[test]
fn a_layer_far_larger_than_the_cache_reads_as_what_went_in_whatever_happens() {
    let (host, registry) = (bounded(), FaultRegistry::start());
    bound_memory(&host);
    let layer = layer();
    registry.put_blob(&layer.blob);
    let source = BlobSource::Registry { host: registry.host(), repository: "app".to_owned() };
    let directory = host.mount(&layer, source);
    host.runtime.block_on(host.lazy().background(layer.digest)).unwrap();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|reader| {
                let directory = &directory;
                scope.spawn(move || {
                    for round in 0..2 {
                        read_everything(directory, reader + round * 3);
                    }
                })
            })
            .collect();
        let mut trouble = (0_u64..).map(|n| match n % 4 {
            0 => Fault::Hangup,
            1 => Fault::Reset(50_000),
            2 => Fault::ShortRange(1000),
            _ => Fault::Close(7),
        });
        let mut seen = 0;
        while readers.iter().any(|reader| !reader.is_finished()) {
            registry.fault("blobs", 2, trouble.next().unwrap());
            eventually("the registry is asked, or the readers have ended", || {
                registry.seen("blobs").len() > seen + 20
                    || readers.iter().all(|reader| reader.is_finished())
            });
            if seen == 0 || seen > 200 && seen < 260 {
                host.replace_worker();
            }
            seen = registry.seen("blobs").len();
        }
    });
    registry.heal();
    // Far more than the budget: a new worker counts what is there with its first write.
    for n in 0..SMALL {
        assert!(std::fs::read(directory.join(format!("small{n}"))).unwrap() == small(n));
    }
    eventually("the cache is near its budget", || content(&host) <= BUDGET + BUDGET / 8);
    let status = &host.status().layers[0];
    assert!(!status.is_complete && status.local_bytes <= BUDGET + BUDGET / 8, "{status:?}");
}

#[test]
fn files_that_are_open_through_the_mount_outlive_evictions_and_workers() {
    let host = bounded();
    let layer = layer();
    let directory = host.mount_local(&layer);
    let mut held = File::open(directory.join("small7")).unwrap();
    let path = kept(&host, &small(7));
    // Inode numbers are used again.
    let identity = || {
        let stat = std::fs::metadata(&path).ok()?;
        Some((stat.ino(), stat.ctime(), stat.ctime_nsec()))
    };
    let first = identity();
    assert!(first.is_some());
    for round in 0..2 {
        read_everything(&directory, round);
        assert_eq!(identity(), first, "round {round}");
        host.replace_worker();
    }
    let mut whole = Vec::new();
    held.read_to_end(&mut whole).unwrap();
    assert!(whole == small(7));
    // Opening it again agrees with the mode and the file of the handle that is open.
    assert!(std::fs::read(directory.join("small7")).unwrap() == small(7));
    drop(held);
    eventually("it is evicted once it is closed", || {
        read_everything(&directory, 5);
        identity() != first
    });
}
