//! A byte budget: what is read stays right, what is counted stays true, and the fill does not fight it.

use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::Ordering;

use super::*;

const BUDGET: u64 = 96 << 10;

/// Twelve files of four chunks and twelve of one: 576 KiB.
fn wide() -> (Vec<(String, Vec<u8>)>, BuiltLayer) {
    let mut builder = LayerBuilder::new();
    let mut files = Vec::new();
    for n in 0..12 {
        let (large, small) = (content(32 << 10, n), content(16 << 10, n + 100));
        builder = builder.file(&format!("large{n}"), &large, 8 << 10);
        builder = builder.file(&format!("small{n}"), &small, 64 << 10);
        files.push((format!("large{n}"), large));
        files.push((format!("small{n}"), small));
    }
    (files, builder.build())
}

fn bounded(bytes: u64) -> Limits {
    Limits { cache_bytes: Some(bytes), extent_bytes: 32 << 10, ..limits() }
}

/// What the files of the cache occupy.
fn occupied(dir: &Path) -> u64 {
    let mut total = 0;
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        // Something may be evicted at the moment.
        let Ok(stat) = entry.metadata() else { continue };
        if stat.is_dir() {
            total += occupied(&entry.path());
        } else {
            total += stat.blocks() * 512;
        }
    }
    total
}

fn content_on_disk(bed: &Bed) -> u64 {
    occupied(&bed.path().join("sha256")) + occupied(&bed.path().join("partial"))
}

async fn read_all(opened: &LazyLayer, files: &[(String, Vec<u8>)]) {
    for (name, bytes) in files {
        let len = u32::try_from(bytes.len()).unwrap();
        let read = opened.read(entry(opened, name), 0, len);
        let read = tokio::time::timeout(PATIENCE, read).await.expect("a read in time");
        assert_eq!(read.unwrap(), *bytes, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_everything_stays_near_the_budget_and_gives_what_went_in() {
    let (bed, (files, layer)) = (Bed::new(), wide());
    let source = source(&layer);
    let running = bed.engine_with("boot", bounded(BUDGET));
    let opened = running.open(&layer, &source);
    for _ in 0..3 {
        read_all(&opened, &files).await;
        // A file may be open at the moment, and an eviction under way.
        assert!(content_on_disk(&bed) <= BUDGET * 2, "{}", content_on_disk(&bed));
    }
    eventually("it settles", || content_on_disk(&bed) <= BUDGET).await;
    eventually("and is counted", || opened.local_bytes() <= BUDGET).await;
    assert!(!opened.is_complete());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_readers_with_a_source_that_fails_and_engines_that_are_killed() {
    let (bed, (files, layer)) = (Bed::new(), wide());
    let files = Arc::new(files);
    let source = source(&layer);
    for round in 0..4_u32 {
        let running = bed.engine_with("boot", bounded(BUDGET));
        let opened = running.open(&layer, &source);
        opened.start_background();
        source.script((0..40).map(|n| match (n + round) % 5 {
            0 => Answer::Unreachable,
            1 => Answer::Breaks(5000),
            _ => Answer::Right,
        }));
        let readers: Vec<_> = (0..6_usize)
            .map(|reader| {
                let (opened, files) = (Arc::clone(&opened), Arc::clone(&files));
                tokio::spawn(async move {
                    for n in 0..60_usize {
                        let (name, bytes) = &files[(n * 7 + reader * 5) % files.len()];
                        let file = entry(&opened, name);
                        let at = (n * 3001 + reader * 977) % bytes.len();
                        if n % 3 == 0
                            && let Opened::Complete(file) = opened.open(file).await.unwrap()
                        {
                            use std::os::unix::fs::FileExt as _;
                            let mut found = vec![0; bytes.len() + 1];
                            tokio::task::yield_now().await;
                            assert_eq!(file.read_at(&mut found, 0).unwrap(), bytes.len());
                            assert_eq!(&found[..bytes.len()], bytes, "{name}");
                        }
                        let end = bytes.len().min(at + 9000);
                        let read = opened.read(file, at as u64, 9000).await.unwrap();
                        assert_eq!(read, bytes[at..end], "{name} at {at}");
                    }
                })
            })
            .collect();
        for reader in readers {
            tokio::time::timeout(PATIENCE, reader).await.expect("readers end in time").unwrap();
        }
        // Neither closed nor asked to end, as if killed.
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_is_opened_during_an_eviction_counts_nothing_that_is_gone() {
    let (bed, (files, layer)) = (Bed::new(), wide());
    let source = source(&layer);
    let running = bed.engine_with("boot", limits());
    let opened = running.open(&layer, &source);
    read_all(&opened, &files[1..]).await;
    let noted = opened.local_bytes();
    opened.close();
    drop(opened);

    let (began, mut has_begun) = mpsc::channel(1);
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    let may_go_on = std::sync::Mutex::new(may_go_on);
    running.engine.protect(move |_| {
        let _ = began.try_send(());
        let _ = may_go_on.lock().unwrap().recv();
    });
    running.engine.set_cache_budget(Some(BUDGET));
    has_begun.recv().await.expect("it evicts");
    let opened = running.open(&layer, &source);
    assert_eq!(opened.local_bytes(), noted, "what the note says");
    drop(go_on);
    eventually("content is evicted", || content_on_disk(&bed) <= BUDGET).await;
    eventually("what is counted is what is there", || {
        opened.local_bytes() == content_on_disk(&bed)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_loses_content_is_not_complete_until_it_is_back() {
    let (bed, (files, layer)) = (Bed::new(), wide());
    let source = source(&layer);
    let mut running = bed.engine_with("boot", limits());
    let opened = running.open(&layer, &source);
    opened.start_background();
    running.event(|event| matches!(event, LazyEvent::LayerComplete { .. })).await;
    let total = opened.total_bytes();
    eventually("every file is published", || {
        files.iter().all(|(name, _)| {
            matches!(opened.open_local(entry(&opened, name)), Ok(Some(Opened::Complete(_))))
        })
    })
    .await;

    running.engine.set_cache_budget(Some(BUDGET));
    eventually("content is evicted", || opened.local_bytes() <= BUDGET).await;
    assert!(!opened.is_complete());
    eventually("what is counted is what is there", || {
        opened.local_bytes() == content_on_disk(&bed)
    })
    .await;
    let fetched = source.requests().len();
    opened.start_background();
    running.event(|event| matches!(event, LazyEvent::CacheFull { budget: BUDGET })).await;

    running.engine.set_cache_budget(None);
    running.event(|event| matches!(event, LazyEvent::LayerComplete { .. })).await;
    assert!(source.requests().len() > fetched);
    assert_eq!(opened.local_bytes(), total);
    let fetched = source.requests().len();
    read_all(&opened, &files).await;
    assert_eq!(source.requests().len(), fetched, "a complete layer needs no network");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_next_engine_counts_is_not_more_than_what_is_there() {
    let (bed, (files, layer)) = (Bed::new(), wide());
    let source = source(&layer);
    {
        let running = bed.engine();
        let opened = running.open(&layer, &source);
        read_all(&opened, &files).await;
        eventually("it is complete", || opened.is_complete()).await;
        opened.close();
    }
    // Its tasks may still have it.
    let lock = std::fs::File::open(bed.path().join("lock")).unwrap();
    eventually("the engine is gone", || lock.try_lock().is_ok()).await;
    drop(lock);
    {
        // Another layer makes it go while this one is not open.
        let other = LayerBuilder::new().file("other", &content(20 << 10, 77), 64 << 10).build();
        let other_source = super::source(&other);
        let running = bed.engine_with("boot", bounded(BUDGET));
        let opened = running.open(&other, &other_source);
        complete_content(&opened, entry(&opened, "other")).await;
        eventually("it is evicted", || content_on_disk(&bed) <= BUDGET).await;
    }
    let running = bed.engine_with("boot", bounded(BUDGET));
    let opened = running.open(&layer, &source);
    assert!(!opened.is_complete());
    assert!(opened.local_bytes() <= content_on_disk(&bed));
    opened.start_background();
    eventually("what is left is counted", || {
        opened.local_bytes() + (24 << 10) >= content_on_disk(&bed)
    })
    .await;
    read_all(&opened, &files).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_background_fill_ends_at_the_budget_and_evicts_nothing() {
    let (bed, (files, layer)) = (Bed::new(), wide());
    let source = source(&layer);
    let mut running = bed.engine_with("boot", bounded(BUDGET));
    let opened = running.open(&layer, &source);
    complete_content(&opened, entry(&opened, &files[23].0)).await;
    opened.start_background();
    running.event(|event| matches!(event, LazyEvent::CacheFull { budget: BUDGET })).await;
    let used = content_on_disk(&bed);
    assert!(used <= BUDGET, "{used}");
    let last = opened.open_local(entry(&opened, &files[23].0)).unwrap();
    assert!(matches!(last, Some(Opened::Complete(_))), "what was read is still there");
    let fetched = source.requests().len();
    // What reads evict is not brought back by the fill.
    read_all(&opened, &files).await;
    assert!(source.requests().len() > fetched);
    while let Ok(event) = running.events.try_recv() {
        assert!(!matches!(event, LazyEvent::CacheFull { .. }), "told once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_somebody_has_open_are_not_evicted() {
    let (bed, (files, layer)) = (Bed::new(), wide());
    let source = source(&layer);
    let running = bed.engine_with("boot", bounded(BUDGET));
    let opened = running.open(&layer, &source);
    let (held, known) = (entry(&opened, &files[1].0), entry(&opened, &files[3].0));
    let digest = layer.digest;
    running.engine.protect(move |found| found(digest, known));
    let Opened::Complete(file) = opened.open(held).await.unwrap() else { panic!() };
    drop(opened.open(known).await.unwrap());
    let name = |n: usize| {
        let hex = Digest::of(&files[n].1).hex();
        bed.path().join(format!("sha256/{}/{hex}", &hex[..2]))
    };
    assert!(name(1).exists() && name(3).exists());
    for _ in 0..3 {
        read_all(&opened, &files[4..]).await;
    }
    assert!(name(1).exists(), "a file that was handed out");
    assert!(name(3).exists(), "a file that the engine was told of");
    drop(file);
    running.engine.protect(|_| {});
    read_all(&opened, &files[4..]).await;
    eventually("both are evicted", || !name(1).exists() && !name(3).exists()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_spared_goes_when_it_is_closed_though_nothing_is_written_any_more() {
    let (bed, (files, layer)) = (Bed::new(), wide());
    let source = source(&layer);
    let running = bed.engine_with("boot", bounded(BUDGET));
    let opened = running.open(&layer, &source);
    let (digest, all) = (layer.digest, files.iter().map(|file| entry(&opened, &file.0)));
    let held: std::sync::Arc<std::sync::Mutex<Vec<_>>> =
        std::sync::Arc::new(std::sync::Mutex::new(all.collect()));
    let open_files = std::sync::Arc::clone(&held);
    running.engine.protect(move |found| {
        for entry in open_files.lock().unwrap().iter() {
            found(digest, *entry);
        }
    });
    read_all(&opened, &files).await;
    running.engine.wait_for_eviction();
    assert!(running.engine.cache_bytes().unwrap() > BUDGET, "all of it is open");
    while let Some(entry) = { held.lock().unwrap().pop() } {
        opened.closed(entry);
    }
    eventually("the budget is kept", || running.engine.cache_bytes().unwrap() <= BUDGET).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_what_was_spared_evicts_when_it_gives_enough_back() {
    const LARGE: u64 = 288 << 10;
    let mut builder = LayerBuilder::new();
    for n in 0..24 {
        builder = builder.file(&format!("file{n}"), &content(16 << 10, n), 64 << 10);
    }
    let (bed, layer) = (Bed::new(), builder.build());
    let source = source(&layer);
    let running = bed.engine_with("boot", bounded(LARGE));
    let opened = running.open(&layer, &source);
    let (digest, all) = (layer.digest, (0..24).map(|n| entry(&opened, &format!("file{n}"))));
    let held: Arc<std::sync::Mutex<Vec<_>>> = Arc::new(std::sync::Mutex::new(all.collect()));
    let open_files = Arc::clone(&held);
    running.engine.protect(move |found| {
        for entry in open_files.lock().unwrap().iter() {
            found(digest, *entry);
        }
    });
    for n in 0..24 {
        opened.read(entry(&opened, &format!("file{n}")), 0, 1).await.unwrap();
    }
    eventually("everything is counted", || opened.is_complete()).await;
    let shared = running.engine.shared();
    let begun = || shared.eviction.begun_for_tests.load(Ordering::Acquire);
    let ended = || shared.eviction.ended_for_tests.load(Ordering::Acquire);
    eventually("what was begun by what was written has ended", || begun() == ended()).await;
    // What was written while an eviction counted may be counted twice until the next one.
    shared.evict();
    assert_eq!(running.engine.cache_bytes(), Some(LARGE + (96 << 10)));
    let before = begun();
    let close = |name: &str| {
        let entry = entry(&opened, name);
        held.lock().unwrap().retain(|other| *other != entry);
        opened.closed(entry);
    };
    close("file3");
    assert_eq!(begun(), before, "16 KiB are not worth a look at every file");
    close("file3");
    assert_eq!(begun(), before, "nor is a file that was closed before");
    close("file7");
    assert_eq!(begun(), before + 1, "a sixteenth of the budget is");
    eventually("both go", || running.engine.cache_bytes() == Some(LARGE + (64 << 10))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_may_not_evict_closes_nothing() {
    let (bed, (files, layer)) = (Bed::new(), wide());
    let source = source(&layer);
    let host = bed.engine_with("boot", limits());
    let guest = bed.engine_with("boot", bounded(1));
    let opened = guest.open(&layer, &source);
    let (file, len) = (entry(&opened, "small1"), 16 << 10);
    assert_eq!(opened.read(file, 0, len).await.unwrap(), files[3].1);
    assert!(opened.read_local(file, 0, len).unwrap().is_some());
    let key = (opened.lane, file.0);
    assert!(guest.engine.shared().table.get(key).is_some());
    guest.engine.shared().evict();
    assert!(guest.engine.shared().table.get(key).is_some(), "it stays open");
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_lets_go_of_what_its_host_has_evicted() {
    let (files, layer) = wide();
    for (limits, whole) in
        [(limits(), 24), (Limits { packed_file_bytes: 16 << 10, ..limits() }, 12)]
    {
        let (bed, source) = (Bed::new(), source(&layer));
        let host = bed.engine_with("boot", limits.clone());
        let guest = bed.engine_with("boot", limits);
        let opened = guest.open(&layer, &source);
        read_all(&opened, &files).await;
        let published = || {
            let folders = std::fs::read_dir(bed.path().join("sha256")).unwrap().flatten();
            folders.map(|folder| std::fs::read_dir(folder.path()).unwrap().count()).sum::<usize>()
        };
        eventually("all is written", || opened.is_complete() && published() == whole).await;
        host.engine.set_cache_budget(Some(0));
        eventually("all is evicted", || content_on_disk(&bed) == 0).await;
        let fetched = source.requests().len();
        for (name, _) in &files {
            assert_eq!(opened.read_local(entry(&opened, name), 0, 100).unwrap(), None, "{name}");
        }
        host.engine.set_cache_budget(None);
        read_all(&opened, &files).await;
        assert!(source.requests().len() > fetched);
        assert!(content_on_disk(&bed) > 0, "what it brings has names again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_guest_brings_keeps_to_the_budget_though_its_host_writes_nothing() {
    let (bed, (files, layer)) = (Bed::new(), wide());
    let source = source(&layer);
    let host = bed.engine_with("boot", bounded(BUDGET));
    let guest = bed.engine_with("boot", bounded(BUDGET));
    let opened = guest.open(&layer, &source);
    for _ in 0..2 {
        read_all(&opened, &files).await;
        eventually("the host evicts", || content_on_disk(&bed) <= BUDGET).await;
    }
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_host_and_guest_bring_together_keeps_to_the_budget() {
    const HALF: usize = 6;
    let (bed, (files, layer)) = (Bed::new(), wide());
    let (one, other) = (source(&layer), source(&layer));
    let total: usize = files[..HALF].iter().map(|(_, bytes)| bytes.len()).sum();
    // Either half is below it.
    let budget = u64::try_from(total).unwrap() + (64 << 10);
    let host = bed.engine_with("boot", bounded(budget));
    let guest = bed.engine_with("boot", bounded(budget));
    let (of_host, of_guest) = (host.open(&layer, &one), guest.open(&layer, &other));
    read_all(&of_host, &files[..HALF]).await;
    read_all(&of_guest, &files[HALF..HALF * 2]).await;
    eventually("the host evicts", || content_on_disk(&bed) <= budget).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_counts_anew_what_its_host_has_evicted() {
    let (bed, (files, layer)) = (Bed::new(), wide());
    let source = source(&layer);
    let host = bed.engine_with("boot", limits());
    let guest = bed.engine_with("boot", limits());
    let opened = guest.open(&layer, &source);
    read_all(&opened, &files).await;
    eventually("all is here", || opened.is_complete()).await;
    guest.engine.notice_evictions();
    assert!(opened.is_complete(), "nothing has gone");
    host.engine.set_cache_budget(Some(BUDGET));
    eventually("content is evicted", || content_on_disk(&bed) <= BUDGET).await;
    host.engine.set_cache_budget(None);
    eventually("what is counted is what is there", || {
        guest.engine.notice_evictions();
        opened.local_bytes() == content_on_disk(&bed)
    })
    .await;
    assert!(!opened.is_complete());
    opened.close();
    drop((opened, guest));
    let next = bed.engine_with("boot", limits());
    let opened = next.open(&layer, &source);
    assert!(opened.local_bytes() <= content_on_disk(&bed), "what is noted");
    let fetched = source.requests().len();
    opened.start_background();
    eventually("what has gone is fetched again", || opened.is_complete()).await;
    assert!(source.requests().len() > fetched);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_closed_below_the_budget_is_not_kept_account_of() {
    let (bed, (files, layer)) = (Bed::new(), wide());
    let source = source(&layer);
    let running = bed.engine_with("boot", bounded(BUDGET));
    let opened = running.open(&layer, &source);
    let (digest, held) = (layer.digest, entry(&opened, &files[1].0));
    running.engine.protect(move |found| found(digest, held));
    read_all(&opened, &files).await;
    running.engine.set_cache_budget(None);
    let shared = running.engine.shared();
    shared.evict();
    shared.eviction.is_sparing.store(true, Ordering::Release);
    running.engine.set_cache_budget(Some(BUDGET * 100));
    eventually("there is no reason to look at what is closed", || {
        !shared.eviction.is_sparing.load(Ordering::Acquire)
    })
    .await;
}
