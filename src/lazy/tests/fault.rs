//! Wrong bytes, lost sources, full disks.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_chunk_is_fetched_again_once() {
    let (bed, (expected, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let running = bed.engine();
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "bin/large");
    source.script([Answer::Wrong, Answer::Right]);
    assert_eq!(opened.read(file, 0, 100).await.unwrap(), expected[..100]);
    assert_eq!(source.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_stays_corrupt_fails_and_is_remembered() {
    let (bed, (expected, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let mut running = bed.engine();
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "bin/large");
    source.script([Answer::Wrong, Answer::Wrong]);
    for _ in 0..5 {
        let error = opened.read(file, 5000, 100).await.unwrap_err();
        let ReadError::Corrupt { path, offset, .. } = &error else { panic!("{error}") };
        assert_eq!((&**path, *offset), ("bin/large", 4096));
    }
    assert_eq!(source.requests().len(), 2, "no endless retry");
    let event = running.event(|event| matches!(event, LazyEvent::ChunkCorrupt { .. })).await;
    assert!(matches!(event, LazyEvent::ChunkCorrupt { path, .. } if path == "bin/large"));
    assert_eq!(opened.read(file, 0, 100).await.unwrap(), expected[..100], "others are served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_member_does_not_spoil_its_neighbours() {
    let (bed, (expected, mut layer)) = (Bed::new(), large());
    let (start, file_chunks) = {
        let opened = bed.engine().open(&layer, &source(&layer));
        let file = entry(&opened, "bin/large");
        (opened.index().chunk(file, 1).unwrap().member.start, opened.index().chunk_count(file))
    };
    let broken = usize::try_from(start).unwrap() + 100;
    layer.blob[broken] ^= 0xff;
    let source = source(&layer);
    let running = bed.engine();
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "bin/large");
    opened.start_background();
    let all_but_one = opened.total_bytes() - 4096;
    eventually("the rest is here", || opened.local_bytes() == all_but_one).await;
    assert!(opened.read(file, 4096, 1).await.is_err());
    assert_eq!(opened.read(file, 8192, 4096).await.unwrap(), expected[8192..12_288]);
    assert_eq!(file_chunks, 10);
    assert_eq!(source.requests().len(), 2, "one range and the bad member again");
    assert!(!opened.is_complete());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn during_an_outage_reads_wait_and_then_succeed() {
    let (bed, (expected, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let mut running = bed.engine();
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "bin/large");
    source.otherwise(Answer::Unreachable);
    let reader = tokio::spawn({
        let opened = Arc::clone(&opened);
        async move { opened.read(file, 0, 20_000).await }
    });
    running.event(|event| matches!(event, LazyEvent::SourceLost { .. })).await;
    source.wait_for_requests(4).await;
    assert!(opened.is_source_lost());
    source.otherwise(Answer::Right);
    assert_eq!(reader.await.unwrap().unwrap(), expected[..20_000]);
    running.event(|event| matches!(event, LazyEvent::SourceBack { .. })).await;
    assert!(!opened.is_source_lost());
    while let Ok(event) = running.events.try_recv() {
        assert!(!matches!(event, LazyEvent::SourceLost { .. }), "one event each");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_waits_no_longer_than_the_limit() {
    let (bed, (expected, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let limits = Limits { wait_limit: Some(Duration::from_millis(50)), ..limits() };
    let running = bed.engine_with("boot", limits);
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "bin/large");
    source.otherwise(Answer::Unreachable);
    let error = opened.read(file, 0, 1).await.unwrap_err();
    assert!(matches!(error, ReadError::Unavailable { .. }), "{error}");
    source.otherwise(Answer::Right);
    // On a loaded machine it may take longer than that to be found back.
    let wait = async {
        loop {
            match opened.read(file, 0, 1).await {
                Err(ReadError::Unavailable { .. }) => {}
                read => return read,
            }
        }
    };
    let read = tokio::time::timeout(PATIENCE, wait).await.expect("it is found back");
    assert_eq!(read.unwrap(), expected[..1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_refuses_fails_the_read_and_is_not_asked_for_every_one() {
    let (bed, (expected, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let limits = Limits { retry_max: Duration::from_millis(300), ..limits() };
    let running = bed.engine_with("boot", limits);
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "bin/large");
    for (answer, elsewhere) in [(Answer::Refused, 8192), (Answer::Short, 16_384)] {
        let before = source.requests().len();
        source.script([answer]);
        for _ in 0..5 {
            let error = opened.read(file, 0, 1).await.unwrap_err();
            assert!(matches!(error, ReadError::Refused { .. }), "{error}");
        }
        assert_eq!(source.requests().len(), before + 1);
        let wait = async {
            while opened.read(file, elsewhere, 1).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("it is asked again after a while");
    }
    assert_eq!(opened.read(file, 0, 10).await.unwrap(), expected[..10]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_no_read() {
    let (bed, (expected, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let mut running = bed.engine();
    let opened = running.open(&layer, &source);
    let (file, small) = (entry(&opened, "bin/large"), entry(&opened, "etc/small"));
    running.engine.pretend_full_disk(true);
    assert!(matches!(opened.open(small).await.unwrap(), Opened::Partial));
    assert_eq!(opened.read(small, 0, 10).await.unwrap(), b"small"[..]);
    for offset in (0..4096).step_by(64) {
        let at = usize::try_from(offset).unwrap();
        assert_eq!(opened.read(file, offset, 64).await.unwrap(), expected[at..at + 64]);
    }
    assert_eq!(source.requests().len(), 2, "kept in memory in the meantime");
    running.event(|event| matches!(event, LazyEvent::CacheDegraded { .. })).await;
    assert_eq!(opened.local_bytes(), 0);
    running.engine.pretend_full_disk(false);
    opened.start_background();
    running.event(|event| matches!(event, LazyEvent::CacheRestored)).await;
    running.event(|event| matches!(event, LazyEvent::LayerComplete { .. })).await;
    assert_eq!(complete_content(&opened, small).await, b"small");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_a_power_cut_damaged_is_fetched_again() {
    use std::os::unix::fs::FileExt as _;
    let (bed, (expected, layer)) = (Bed::new(), large());
    let source = source(&layer);
    {
        let running = bed.engine();
        let opened = running.open(&layer, &source);
        opened.open(entry(&opened, "etc/small")).await.unwrap();
        opened.read(entry(&opened, "bin/large"), 0, 5000).await.unwrap();
        opened.close();
    }
    let mut damaged = 0;
    for dir in ["sha256/**", "partial"] {
        let dir = bed.path().join(dir.trim_end_matches("/**"));
        for file in files_below(&dir).into_iter().filter(|f| f.extension().is_none()) {
            let stamp = std::fs::metadata(&file).unwrap().modified().unwrap();
            let file = std::fs::File::options().write(true).open(file).unwrap();
            file.write_all_at(&[0; 4], 0).unwrap();
            file.set_modified(stamp).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 2);
    let mut running = bed.engine_with("after the power cut", limits());
    let opened = running.open(&layer, &source);
    let before = source.requests().len();
    assert_eq!(complete_content(&opened, entry(&opened, "etc/small")).await, b"small");
    let file = entry(&opened, "bin/large");
    assert_eq!(opened.read(file, 0, 5000).await.unwrap(), expected[..5000]);
    assert_eq!(source.requests().len(), before + 2, "the sound chunk is not fetched again");
    running.event(|event| matches!(event, LazyEvent::CacheRepaired { .. })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_contents_that_lies_about_a_file_poisons_nobody() {
    let bed = Bed::new();
    let (evil, good) = (content(9000, 1), content(9000, 2));
    let lying = LayerBuilder::new().file_with_digest("f", &evil, 4096, Digest::of(&good)).build();
    let honest = LayerBuilder::new().file("f", &good, 4096).build();
    let (lying_source, honest_source) = (source(&lying), source(&honest));
    let mut running = bed.engine();
    let opened = running.open(&lying, &lying_source);
    let file = entry(&opened, "f");
    assert_eq!(opened.read(file, 0, 9000).await.unwrap(), evil);
    running.event(|event| matches!(event, LazyEvent::FileMismatch { .. })).await;
    assert_eq!(complete_content(&opened, file).await, evil);
    let opened = running.open(&honest, &honest_source);
    assert_eq!(opened.read(entry(&opened, "f"), 0, 9000).await.unwrap(), good);
}

fn files_below(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            files.extend(files_below(&entry));
        } else {
            files.push(entry);
        }
    }
    files
}
