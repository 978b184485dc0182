//! Small files in segments: what is read is what went in, over processes, boots, evictions and other versions.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const SMALL: u32 = 24;

/// Files of 0 to 1150 bytes with larger ones between them.
fn tree(salt: u32) -> (Vec<(String, Vec<u8>)>, BuiltLayer) {
    let (mut builder, mut files) = (LayerBuilder::new(), Vec::new());
    for n in 0..SMALL {
        let bytes = content(n as usize * 50, n + salt);
        builder = builder.file(&format!("small{n}"), &bytes, 4096);
        files.push((format!("small{n}"), bytes));
        if n % 5 == 0 {
            let bytes = content(9000, n + 1000);
            builder = builder.file(&format!("large{n}"), &bytes, 1 << 20);
            files.push((format!("large{n}"), bytes));
        }
    }
    (files, builder.build())
}

/// Segments of about six files, of which three need an eviction.
fn packing() -> Limits {
    Limits { packed_file_bytes: 4096, segment_bytes: 4096, ..limits() }
}

fn segments(bed: &Bed) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(bed.path().join("partial")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_none()).collect()
}

fn whole_files(bed: &Bed) -> usize {
    let folders = std::fs::read_dir(bed.path().join("sha256")).unwrap().flatten();
    folders.map(|folder| std::fs::read_dir(folder.path()).unwrap().count()).sum()
}

async fn read_all(opened: &LazyLayer, files: &[(String, Vec<u8>)]) {
    for (name, bytes) in files {
        let len = u32::try_from(bytes.len()).unwrap() + 1;
        let read = opened.read(entry(opened, name), 0, len);
        let read = tokio::time::timeout(PATIENCE, read).await.expect("a read in time").unwrap();
        assert_eq!(read, *bytes, "{name}");
        let from = bytes.len() / 3;
        let part = opened.read(entry(opened, name), from as u64, 100).await.unwrap();
        assert_eq!(part, bytes[from..bytes.len().min(from + 100)], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_files_have_no_files_of_their_own() {
    let (bed, (files, layer)) = (Bed::new(), tree(0));
    let source = source(&layer);
    {
        let running = bed.engine_with("boot", packing());
        let opened = running.open(&layer, &source);
        let small = entry(&opened, "small7");
        assert!(matches!(opened.open_local(small), Ok(Some(Opened::Partial))));
        assert!(matches!(opened.open(small).await, Ok(Opened::Partial)));
        assert_eq!(opened.read_local(small, 0, 10).unwrap(), None);
        assert!(source.requests().is_empty(), "opening needs nothing");
        assert_eq!(opened.read(small, 0, 350).await.unwrap(), content(350, 7));
        assert_eq!(opened.read_local(small, 0, 10).unwrap().unwrap(), content(350, 7)[..10]);
        assert_eq!((source.requests().len(), opened.local_bytes()), (1, 350));
        opened.start_background();
        eventually("the layer is complete", || opened.is_complete()).await;
        read_all(&opened, &files).await;
        assert_eq!(whole_files(&bed), 5, "the larger ones");
        assert!((3..=5).contains(&segments(&bed).len()));
        opened.close();
    }
    let fetched = source.requests().len();
    for boot in ["boot", "another", "another"] {
        let running = bed.engine_with(boot, packing());
        let opened = running.open(&layer, &source);
        read_all(&opened, &files).await;
        assert_eq!(opened.local_bytes(), opened.total_bytes());
    }
    assert_eq!(source.requests().len(), fetched, "all of it was here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_share_segments_only_with_the_same_content() {
    let (bed, (files, layer)) = (Bed::new(), tree(0));
    let (other_files, other) = tree(1);
    // The same files in another blob.
    let mut again = LayerBuilder::new().file("in front", &content(5000, 99), 4096);
    for (name, bytes) in &files {
        again = again.file(name, bytes, 1 << 20);
    }
    let again = again.build();
    let running = bed.engine_with("boot", packing());
    for (files, layer) in [(&files, &layer), (&other_files, &other)] {
        let opened = running.open(layer, &source(layer));
        read_all(&opened, files).await;
        eventually("it is complete", || opened.is_complete()).await;
    }
    let source = source(&again);
    let opened = running.open(&again, &source);
    read_all(&opened, &files).await;
    assert!(source.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_power_cut_damaged_in_a_segment_is_fetched_again() {
    let (bed, (files, layer)) = (Bed::new(), tree(0));
    let source = source(&layer);
    {
        let running = bed.engine_with("boot", packing());
        let opened = running.open(&layer, &source);
        read_all(&opened, &files).await;
    }
    let fetched = source.requests().len();
    for path in segments(&bed) {
        let segment = std::fs::File::options().write(true).open(path).unwrap();
        segment.write_all_at(&[0; 300], 100).unwrap();
    }
    let running = bed.engine_with("another", packing());
    let opened = running.open(&layer, &source);
    read_all(&opened, &files).await;
    let again = source.requests().len() - fetched;
    assert!((1..files.len() / 2).contains(&again), "only what is damaged: {again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_an_earlier_version_left_are_found() {
    let (bed, (files, layer)) = (Bed::new(), tree(0));
    let source = source(&layer);
    {
        let running = bed.engine_with("boot", limits());
        let opened = running.open(&layer, &source);
        read_all(&opened, &files).await;
        assert!(whole_files(&bed) > 20);
        opened.close();
    }
    let fetched = source.requests().len();
    for boot in ["boot", "another"] {
        let running = bed.engine_with(boot, packing());
        let opened = running.open(&layer, &source);
        let small = entry(&opened, "small7");
        assert!(matches!(opened.open_local(small), Ok(Some(Opened::Partial))));
        read_all(&opened, &files).await;
        eventually("all is counted", || opened.is_complete()).await;
        opened.close();
    }
    assert_eq!(source.requests().len(), fetched);
    // And gone, they come back packed. Who evicts must be alone; tasks may still have the cache.
    let lock = std::fs::File::open(bed.path().join("lock")).unwrap();
    eventually("the engine is gone", || lock.try_lock().is_ok()).await;
    drop(lock);
    let running = bed.engine_with("another", packing());
    let opened = running.open(&layer, &source);
    running.engine.set_cache_budget(Some(0));
    eventually("all is evicted", || whole_files(&bed) == 0 && opened.local_bytes() == 0).await;
    running.engine.set_cache_budget(None);
    read_all(&opened, &files).await;
    assert_eq!(whole_files(&bed), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_are_evicted_whole_except_those_of_open_files() {
    let (bed, (files, layer)) = (Bed::new(), tree(0));
    let source = source(&layer);
    let running = bed.engine_with("boot", packing());
    let opened = running.open(&layer, &source);
    opened.start_background();
    eventually("the layer is complete", || opened.is_complete()).await;
    let held = entry(&opened, "small7");
    let digest = layer.digest;
    let is_held = Arc::new(AtomicBool::new(true));
    let known = Arc::clone(&is_held);
    running.engine.protect(move |found| {
        if known.load(Ordering::Acquire) {
            found(digest, held);
        }
    });
    running.engine.set_cache_budget(Some(1));
    eventually("all but one segment is evicted", || segments(&bed).len() == 1).await;
    eventually("and is not counted", || opened.local_bytes() <= 4096).await;
    assert!(opened.local_bytes() > 350, "what lies beside it stays with it");
    let fetched = source.requests().len();
    assert_eq!(opened.read(held, 0, 350).await.unwrap(), content(350, 7));
    assert_eq!(source.requests().len(), fetched);
    is_held.store(false, Ordering::Release);
    opened.closed(held);
    eventually("the last one goes when the file is closed", || segments(&bed).is_empty()).await;
    running.engine.set_cache_budget(None);
    read_all(&opened, &files).await;
    eventually("everything is back", || opened.is_complete()).await;
    assert!(source.requests().len() > fetched);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_files_are_read_while_the_disk_is_full() {
    let (bed, (files, layer)) = (Bed::new(), tree(0));
    let source = source(&layer);
    let running = bed.engine_with("boot", packing());
    let opened = running.open(&layer, &source);
    running.engine.pretend_full_disk(true);
    read_all(&opened, &files).await;
    assert_eq!(opened.local_bytes(), 0);
    running.engine.pretend_full_disk(false);
    opened.start_background();
    eventually("the layer is complete", || opened.is_complete()).await;
}
