//! Tens of thousands of small files, as a layer of packages for node has them.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::eventually;
use crate::support::lazy_host::{LazyHost, TestLayer, noise};
use crate::support::tar::TarBuilder;

/// Text whose length is distributed as in a folder of packages: half of the files below 400 bytes, the mean 2 KiB.
fn text(n: u64) -> Vec<u8> {
    // Octaves are distributed normally, 96 pips each.
    let pips: u64 = noise(n + 1, 12).iter().map(|byte| u64::from(*byte)).sum();
    let octaves = (365 * (96 + pips % 96) / 96) << (pips / 96);
    let length = (octaves >> 16) as usize + 1;
    let mut text = String::with_capacity(length + 16);
    for word in noise(n + 1_000_000, length / 4 + 1) {
        let _ = write!(text, "word{word:x} ");
    }
    text.truncate(length);
    text.into_bytes()
}

fn name(n: u64) -> String {
    format!("package{}/file{n}.js", n / 50)
}

fn occupied(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let stat = entry.metadata().unwrap();
            stat.blocks() * 512 + if stat.is_dir() { occupied(&entry.path()) } else { 0 }
        })
        .sum()
}

/// Processor time of a process so far.
fn processor(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

fn read_all(directory: &Path, files: u64) -> (Duration, u64) {
    let began = Instant::now();
    let read = (0..files).map(|n| fs::read(directory.join(name(n))).unwrap().len() as u64).sum();
    (began.elapsed(), read)
}

/// What small files cost: `TMPDIR=… cargo test --test integration -- --ignored --nocapture many_small_files`, on a file
/// system with a journal. It drops the page cache of the machine.
#[test]
#[ignore = "measures; run it alone"]
fn what_many_small_files_cost() {
    const FILES: u64 = 70_000;
    let layer = {
        let mut tar = TarBuilder::default();
        for n in 0..FILES {
            tar = tar.file(name(n), text(n));
        }
        TestLayer::pack(tar.finish(), 4 << 20)
    };
    let drop_caches = || {
        rustix::fs::sync();
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    };
    let host = LazyHost::with(|options| options.log_level = "warn".to_owned());
    let directory = host.mount_local(&layer);
    let worker = host.worker().pid;
    let (began, before) = (Instant::now(), processor(worker));
    host.runtime.block_on(host.lazy().background(layer.digest)).unwrap();
    eventually("it is complete", || host.status().layers[0].is_complete);
    let (filled, cpu) = (began.elapsed(), processor(worker).saturating_sub(before));
    let disk = occupied(&host.state.path().join("files"));
    eprintln!("fill {filled:?}, processor {cpu:?}, on disk {} MB", disk / 1_000_000);
    drop_caches();
    for when in ["from disk", "again, all cached"] {
        let before = processor(worker);
        let (took, read) = read_all(&directory, FILES);
        let cpu = processor(worker).saturating_sub(before);
        eprintln!(
            "lazy, {when}: {took:?}, {} MB, processor of the worker {cpu:?}",
            read / 1_000_000
        );
    }
    let native = host.state.path().join("native");
    let began = Instant::now();
    for n in 0..FILES {
        let path = native.join(name(n));
        if n % 50 == 0 {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        fs::write(path, text(n)).unwrap();
    }
    eprintln!(
        "native, written: {:?}, on disk {} MB",
        began.elapsed(),
        occupied(&native) / 1_000_000
    );
    drop_caches();
    for when in ["from disk", "again, all cached"] {
        eprintln!("native, {when}: {:?}", read_all(&native, FILES).0);
    }
}

/// Files of 100 to 30,000 bytes: 4 MB.
fn packages() -> (Vec<(String, Vec<u8>)>, TestLayer) {
    let files: Vec<_> = (0..300).map(|n| (name(n), noise(n + 1, 100 + n as usize * 100))).collect();
    let mut tar = TarBuilder::default();
    for (name, content) in &files {
        tar = tar.file(name, content);
    }
    (files, TestLayer::pack(tar.finish(), 4 << 20))
}

fn compare(directory: &Path, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        let mut file = File::open(directory.join(name)).unwrap();
        let mut found = Vec::new();
        file.read_to_end(&mut found).unwrap();
        assert!(found == *content, "{name}");
        // Or the next reader would be served by the page cache.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
}

/// Names of segments.
fn segments(host: &LazyHost) -> Vec<String> {
    let entries = fs::read_dir(host.state.path().join("files/partial")).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.contains('.')).collect()
}

#[test]
fn small_files_are_packed_and_outlive_the_worker_that_serves_them() {
    let host = LazyHost::start();
    let (files, layer) = packages();
    let directory = host.mount_local(&layer);
    let (name, content) = &files[123];
    let held = File::open(directory.join(name)).unwrap();
    compare(&directory, &files);
    assert_eq!(segments(&host).len(), 2);
    let mut whole = fs::read_dir(host.state.path().join("files/sha256")).unwrap();
    assert!(whole.next().is_none(), "none has a file of its own");
    for _ in 0..2 {
        host.replace_worker();
        let mut found = vec![0; content.len()];
        held.read_exact_at(&mut found, 0).unwrap();
        assert!(found == *content);
        // Opening it again agrees with the mode of the handle that is open.
        compare(&directory, &files);
    }
    eventually("all is known to be here", || host.status().layers[0].is_complete);
}

#[test]
fn a_small_file_that_is_open_keeps_its_segment_from_eviction() {
    let host = LazyHost::with(|options| options.cache_bytes = Some(1 << 20));
    let (files, layer) = packages();
    let directory = host.mount_local(&layer);
    let held = File::open(directory.join(&files[299].0)).unwrap();
    compare(&directory, &files[299..]);
    let partial = host.state.path().join("files/partial");
    // The last one is small; neighbours were fetched along.
    let paths = segments(&host).into_iter().map(|name| partial.join(name));
    // Others may be evicted at the moment.
    let sized = paths.filter_map(|path| Some((fs::metadata(&path).ok()?.len(), path)));
    let (_, path) = sized.min().unwrap();
    // Inode numbers are used again.
    let identity = || {
        let stat = fs::metadata(&path).ok()?;
        Some((stat.ino(), stat.ctime(), stat.ctime_nsec()))
    };
    compare(&directory, &files);
    let first = identity();
    assert!(first.is_some());
    for round in 0..2 {
        compare(&directory, &files);
        assert_eq!(identity(), first, "round {round}");
        host.replace_worker();
    }
    let mut found = vec![0; 30_000];
    held.read_exact_at(&mut found, 0).unwrap();
    assert!(found == files[299].1);
    drop(held);
    eventually("it is evicted once the file is closed", || {
        compare(&directory, &files);
        identity() != first
    });
}
