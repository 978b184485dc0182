//! What is fetched before it is read: neighbours, sequences, the rest of what is read anyway. And what does not wait.

use super::*;

fn wide() -> Limits {
    Limits { widen_bytes: 400 << 10, read_ahead_bytes: 16 << 20, ..limits() }
}

/// `count` files of about 1 KiB in one directory, and one far from them.
fn package(count: u32) -> BuiltLayer {
    let mut builder = LayerBuilder::new();
    for n in 0..count {
        builder = builder.file(&format!("lib/package/m{n:03}.pyc"), &content(1000, n), 4096);
    }
    builder.file("opt/large.bin", &content(600_000, 999), 1 << 20).build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_does_not_wait_for_what_is_fetched_along() {
    let (bed, layer) = (Bed::new(), package(20));
    let source = source(&layer);
    let running = bed.engine_with("boot", wide());
    let opened = running.open(&layer, &source);
    let first = entry(&opened, "lib/package/m000.pyc");
    let member = opened.index().chunk(first, 0).unwrap().member;
    source.script([Answer::Stalls(usize::try_from(member.end - member.start).unwrap())]);
    assert_eq!(complete_content(&opened, first).await, content(1000, 0));
    let [request] = &source.requests()[..] else { panic!("one request") };
    assert!(request.end > member.end, "neighbours were asked for in the same request");
    assert_eq!(opened.local_bytes(), 1000, "and have not come");
    source.release();
    eventually("they come", || opened.local_bytes() > 1000).await;
    assert_eq!(source.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_a_directory_come_in_few_requests() {
    let (bed, layer) = (Bed::new(), package(100));
    let source = source(&layer);
    let running = bed.engine_with("boot", wide());
    let opened = running.open(&layer, &source);
    // In no order.
    for n in (0..100_u32).map(|n| n * 37 % 100) {
        let file = entry(&opened, &format!("lib/package/m{n:03}.pyc"));
        assert_eq!(complete_content(&opened, file).await, content(1000, n));
    }
    assert!(source.requests().len() <= 5, "{:?}", source.requests());
    let large = opened.index().chunk(entry(&opened, "opt/large.bin"), 0).unwrap().member;
    let fetched = source.requests().iter().any(|request| request.end > large.start);
    assert!(!fetched, "a large neighbour is not fetched along");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_never_used_is_fetched_less_and_less() {
    let (bed, mut builder) = (Bed::new(), LayerBuilder::new());
    for n in 0..400_u32 {
        let kind = if n % 40 == 0 { "js" } else { "map" };
        builder = builder.file(&format!("node/p{n:03}/f.{kind}"), &content(8000, n), 1 << 20);
    }
    let layer = builder.build();
    let source = source(&layer);
    let limits = Limits { widen_base: 100_000, widen_share: 0.5, ..wide() };
    let running = bed.engine_with("boot", limits);
    let opened = running.open(&layer, &source);
    let link = &running.engine.shared().link;
    for n in (0..400_u32).step_by(40) {
        // However fast this machine is: on a link that carries next to nothing during a round trip.
        (0..100).for_each(|_| link.reckon(1_000_000, Duration::from_secs(1)));
        let file = entry(&opened, &format!("node/p{n:03}/f.js"));
        assert_eq!(complete_content(&opened, file).await, content(8000, n));
    }
    let asked: u64 = source.requests().iter().map(|range| range.end - range.start).sum();
    let needed = 10 * 8200;
    assert!(asked <= needed + 100_000 + needed / 2 + (400 << 10), "{asked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_was_wasted_a_request_stays_worth_what_the_link_carries_meanwhile() {
    let (bed, mut builder) = (Bed::new(), LayerBuilder::new());
    for n in 0..400_u32 {
        builder = builder.file(&format!("node/f{n:03}.js"), &content(2000, n), 1 << 20);
    }
    let layer = builder.build();
    let source = source(&layer);
    // Nothing may be in vain, and after the first read much was.
    let limits = Limits { widen_base: 0, widen_share: 0.0, ..wide() };
    let running = bed.engine_with("boot", limits);
    let opened = running.open(&layer, &source);
    let link = &running.engine.shared().link;
    let mut lengths = Vec::new();
    for (n, rate) in [(0, 1 << 36), (390, 1_000_000), (250, 1 << 36)] {
        (0..100).for_each(|_| link.reckon(rate, Duration::from_secs(1)));
        let file = entry(&opened, &format!("node/f{n:03}.js"));
        assert_eq!(complete_content(&opened, file).await, content(2000, n));
        lengths.extend(source.requests().last().map(|range| range.end - range.start));
    }
    let [first, alone, along] = lengths[..] else { panic!("{lengths:?}") };
    assert!(first > 20 * 2000 && alone < 2 * 2200 && along > 20 * 2000, "{lengths:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequential_reader_is_run_ahead_of() {
    let bed = Bed::new();
    let bytes = content(8 << 20, 3);
    let layer = LayerBuilder::new()
        .file("before", b"unrelated", 100)
        .file("model", &bytes, 128 << 10)
        .file("behind", &content(600_000, 5), 1 << 20)
        .build();
    let source = source(&layer);
    let running = bed.engine_with("boot", wide());
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "model");
    let step = 64 << 10;
    for offset in (0..3 << 20).step_by(step) {
        let read = opened.read(file, offset as u64, u32::try_from(step).unwrap()).await.unwrap();
        assert_eq!(read, bytes[offset..offset + step]);
    }
    eventually("more than was read comes", || opened.local_bytes() > 7 << 19).await;
    assert!(source.requests().len() <= 12, "{:?}", source.requests());
    // And no further than the file.
    let behind = opened.index().chunk(entry(&opened, "behind"), 0).unwrap().member;
    assert!(source.requests().iter().all(|range| range.end <= behind.start));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_read_one_after_the_other_are_run_ahead_of() {
    let (bed, mut builder) = (Bed::new(), LayerBuilder::new());
    for n in 0..300_u32 {
        builder = builder.file(&format!("d{}/f{n:03}", n / 50), &content(20_000, n), 1 << 20);
    }
    let layer = builder.build();
    let source = source(&layer);
    let running = bed.engine_with("boot", Limits { widen_bytes: 0, ..wide() });
    let opened = running.open(&layer, &source);
    for n in 0..300_u32 {
        let file = entry(&opened, &format!("d{}/f{n:03}", n / 50));
        assert_eq!(complete_content(&opened, file).await, content(20_000, n));
    }
    assert!(source.requests().len() <= 60, "{}", source.requests().len());
    let asked: u64 = source.requests().iter().map(|range| range.end - range.start).sum();
    assert!(asked <= layer.blob.len() as u64, "nothing twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_most_of_a_layer_is_read_the_rest_is_fetched() {
    let (bed, mut builder) = (Bed::new(), LayerBuilder::new());
    for n in 0..100_u32 {
        builder = builder.file(&format!("f{n:03}"), &content(80_000, n), 1 << 20);
    }
    let layer = builder.build();
    let source = source(&layer);
    let running = bed.engine_with("boot", Limits { widen_bytes: 0, ..wide() });
    let opened = running.open(&layer, &source);
    for n in (0..66_u32).map(|n| n * 37 % 100) {
        let file = entry(&opened, &format!("f{n:03}"));
        assert_eq!(complete_content(&opened, file).await, content(80_000, n));
    }
    eventually("the layer is complete", || opened.is_complete()).await;
    assert!(source.requests().len() < 100, "{}", source.requests().len());
}

/// 300 files of 20 kB, 6 MB in all; no two of these have content in common.
fn shelf(number: u32) -> BuiltLayer {
    let files = 0..300_u32;
    let builder = files.fold(LayerBuilder::new(), |builder, n| {
        let path = format!("d{}/f{n:03}", n / 50);
        builder.file(&path, &content(20_000, 1000 * number + n), 1 << 20)
    });
    builder.build()
}

async fn read_files(layer: &LazyLayer, numbers: impl Iterator<Item = u32>) {
    for n in numbers {
        let file = entry(layer, &format!("d{}/f{n:03}", n / 50));
        assert_eq!(complete_content(layer, file).await.len(), 20_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_walks_through_one_layer_is_believed_soon_in_the_next() {
    let (bed, layers) = (Bed::new(), [shelf(1), shelf(2)]);
    let sources = layers.each_ref().map(source);
    let running = bed.engine_with("boot", Limits { widen_bytes: 0, ..wide() });
    let first = running.open(&layers[0], &sources[0]);
    let second = running.open(&layers[1], &sources[1]);
    read_files(&first, 0..80).await;
    assert!(!first.learned.lock().is_bulk, "a fourth could be all");
    read_files(&first, 80..120).await;
    assert!(first.learned.lock().is_bulk);
    read_files(&first, 120..300).await;
    read_files(&second, 0..5).await;
    assert!(!second.learned.lock().is_bulk, "so few may be a coincidence");
    read_files(&second, 5..20).await;
    assert!(second.learned.lock().is_bulk);
    eventually("the layer is complete", || second.is_complete()).await;
    assert!(sources[1].requests().len() <= 30, "{:?}", sources[1].requests());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_here_and_there_walks_nowhere() {
    let (bed, layers) = (Bed::new(), [shelf(1), shelf(2)]);
    let sources = layers.each_ref().map(source);
    let running = bed.engine_with("boot", Limits { widen_bytes: 0, ..wide() });
    let first = running.open(&layers[0], &sources[0]);
    let second = running.open(&layers[1], &sources[1]);
    read_files(&first, (0..150).map(|n| n * 37 % 300)).await;
    read_files(&second, 0..30).await;
    assert!(!second.learned.lock().is_bulk);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_file_that_is_here_is_given_as_a_whole_once() {
    let (bed, layer) = (Bed::new(), package(3));
    let source = source(&layer);
    let running = bed.engine_with("boot", Limits { packed_file_bytes: 32 << 10, ..wide() });
    let opened = running.open(&layer, &source);
    let [first, second] =
        ["lib/package/m000.pyc", "lib/package/m001.pyc"].map(|path| entry(&opened, path));
    assert_eq!(opened.first_content(second), None, "it is not here");
    assert_eq!(opened.read(first, 0, 2000).await.unwrap(), content(1000, 0));
    eventually("its neighbours have come along", || opened.local_bytes() >= 3000).await;
    assert_eq!(opened.first_content(first), None, "it was read");
    assert_eq!(opened.first_content(second).as_deref(), Some(&content(1000, 1)[..]));
    assert_eq!(opened.first_content(second), None, "that counts as a read");
    assert_eq!(opened.read(second, 0, 2000).await.unwrap(), content(1000, 1));
    assert_eq!(opened.first_content(entry(&opened, "opt/large.bin")), None);
    assert_eq!(opened.first_content(entry(&opened, "lib/package")), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_half_of_a_large_file_is_read_the_rest_is_fetched() {
    let bed = Bed::new();
    let bytes = content(1 << 20, 3);
    let layer = LayerBuilder::new().file("model", &bytes, 16 << 10).build();
    let source = source(&layer);
    let running = bed.engine_with("boot", Limits { widen_bytes: 0, ..wide() });
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "model");
    // Backwards: no sequence.
    for n in (0..33_u64).map(|n| 63 - n) {
        opened.read(file, n * (16 << 10), 100).await.unwrap();
    }
    eventually("the file is complete", || opened.is_complete()).await;
    assert!(source.requests().len() <= 36, "{}", source.requests().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_stalls_is_raced_by_a_second_one() {
    let (bed, (expected, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let limits = Limits { stall_min: Duration::from_millis(20), ..limits() };
    let running = bed.engine_with("boot", limits);
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "bin/large");
    source.script([Answer::Stalls(5000)]);
    assert_eq!(opened.read(file, 0, 40_000).await.unwrap(), expected);
    let counters = running.engine.counters();
    assert_eq!((counters.requests, counters.races, counters.races_won), (2, 1, 1));
    let [first, second] = &source.requests()[..] else { panic!("two requests") };
    assert_eq!((first.end, first.start + 5000), (second.end, second.start));
    assert!(!opened.is_source_lost());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_transfer_goes_on_when_the_second_one_fails() {
    let (bed, (expected, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let limits = Limits { stall_min: Duration::from_millis(5), ..limits() };
    let running = bed.engine_with("boot", limits);
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "bin/large");
    source.script([Answer::Stalls(100), Answer::Refused]);
    let reader = tokio::spawn({
        let opened = Arc::clone(&opened);
        async move { opened.read(file, 0, 4096).await }
    });
    source.wait_for_requests(2).await;
    source.release();
    assert_eq!(reader.await.unwrap().unwrap(), expected[..4096]);
    assert_eq!(source.requests().len(), 2);
    assert_eq!(running.engine.counters().races_won, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrived_before_a_transfer_broke_is_not_fetched_again() {
    let (bed, (expected, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let running = bed.engine();
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "bin/large");
    source.script([Answer::Breaks(10_000)]);
    assert_eq!(opened.read(file, 0, 40_000).await.unwrap(), expected);
    let [first, second] = &source.requests()[..] else { panic!("two requests") };
    let third = opened.index().chunk(file, 2).unwrap().member;
    assert_eq!((second.start, second.end), (third.start, first.end));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_layer_stalls_no_other() {
    let bed = Bed::new();
    let (good, bad) = (package(50), large().1);
    let (good_source, bad_source) = (source(&good), source(&bad));
    let running = bed.engine_with("boot", Limits { in_flight_bytes: 50_000, ..wide() });
    bad_source.hold();
    let stalled = running.open(&bad, &bad_source);
    let readers: Vec<_> = (0..30_u64)
        .map(|n| {
            let (stalled, file) = (Arc::clone(&stalled), entry(&stalled, "bin/large"));
            tokio::spawn(async move { stalled.read(file, n * 1000, 10).await })
        })
        .collect();
    stalled.start_background();
    bad_source.wait_for_requests(1).await;
    let opened = running.open(&good, &good_source);
    for n in 0..50_u32 {
        let file = entry(&opened, &format!("lib/package/m{n:03}.pyc"));
        let read = tokio::time::timeout(PATIENCE, complete_content(&opened, file)).await;
        assert_eq!(read.expect("not stalled"), content(1000, n));
    }
    bad_source.release();
    for reader in readers {
        assert!(reader.await.unwrap().is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_is_not_starved_by_the_bulk_of_another_layer() {
    let bed = Bed::new();
    let mut builder = LayerBuilder::new();
    for n in 0..64_u32 {
        builder = builder.file(&format!("f{n:02}"), &content(100_000, n), 1 << 20);
    }
    let (bulky, small) = (builder.build(), package(3));
    let (bulky_source, small_source) = (source(&bulky), source(&small));
    let running = bed.engine_with("boot", Limits { extent_bytes: 150_000, ..wide() });
    bulky_source.hold();
    let all = running.open(&bulky, &bulky_source);
    let files: Vec<_> = (0..64).map(|n| entry(&all, &format!("f{n:02}"))).collect();
    all.start_prefetch_of(&files);
    bulky_source.wait_for_requests(1).await;
    let opened = running.open(&small, &small_source);
    let file = entry(&opened, "lib/package/m001.pyc");
    let read = tokio::time::timeout(PATIENCE, complete_content(&opened, file)).await;
    assert_eq!(read.expect("not starved"), content(1000, 1));
    bulky_source.release();
    all.prefetched().await;
}
