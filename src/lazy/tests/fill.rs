//! Prefetch and background fill.

use super::*;

/// Two files in front of the landmark, two behind.
pub(super) fn marked() -> BuiltLayer {
    LayerBuilder::new()
        .file("first", &content(9000, 1), 4096)
        .file("second", b"needed too", 100)
        .landmark()
        .file("third", &content(9000, 2), 4096)
        .file("fourth", b"not needed", 100)
        .build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefetch_brings_what_stands_before_the_landmark_in_one_range() {
    let (bed, layer) = (Bed::new(), marked());
    let source = source(&layer);
    let mut running = bed.engine();
    let opened = running.open(&layer, &source);
    opened.prefetched().await;
    assert!(source.requests().is_empty(), "nothing by itself");
    assert!(opened.start_prefetch());
    opened.prefetched().await;
    assert_eq!(source.requests().len(), 1);
    assert_eq!(opened.local_bytes(), 9010);
    assert_eq!(complete_content(&opened, entry(&opened, "first")).await, content(9000, 1));
    assert_eq!(complete_content(&opened, entry(&opened, "second")).await, b"needed too");
    assert_eq!(source.requests().len(), 1);
    running.event(|event| matches!(event, LazyEvent::PrefetchDone { .. })).await;
    assert!(!opened.is_complete());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_landmark_there_is_no_prefetch_but_of_named_files() {
    let (bed, (_, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let running = bed.engine();
    let opened = running.open(&layer, &source);
    assert!(!opened.start_prefetch());
    let small = entry(&opened, "etc/small");
    opened.start_prefetch_of(&[small, EntryNo::ROOT]);
    opened.prefetched().await;
    assert!(matches!(opened.open_local(small).unwrap(), Some(Opened::Complete(_))));
    assert_eq!(opened.local_bytes(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn named_files_and_folders_are_fetched_together() {
    let bed = Bed::new();
    let layer = LayerBuilder::new()
        .file("usr/bin/web", &content(5000, 1), 4096)
        .file("usr/share/doc", &content(90_000, 2), 1 << 20)
        .file("usr/lib/app/a", b"a", 10)
        .file("usr/lib/app/sub/b", b"b", 10)
        .build();
    let source = source(&layer);
    let running = bed.engine();
    let opened = running.open(&layer, &source);
    assert!(!opened.prefetch_paths(&["/bin/none", "usr/lib/app/a/none", "../none"]));
    assert!(!opened.is_prefetching());
    assert!(opened.prefetch_paths(&["/usr/bin/../bin/web", "/usr/lib//app/", "/none"]));
    opened.prefetched().await;
    assert_eq!(opened.local_bytes(), 5002);
    assert_eq!(source.requests().len(), 2);
    assert!(opened.prefetch_paths(&["/"]));
    opened.prefetched().await;
    assert!(opened.is_complete());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefetch_that_fails_ends_and_can_be_started_again() {
    let (bed, layer) = (Bed::new(), marked());
    let source = source(&layer);
    let running = bed.engine();
    let opened = running.open(&layer, &source);
    source.otherwise(Answer::Unreachable);
    assert!(opened.start_prefetch());
    opened.prefetched().await;
    assert_eq!(opened.local_bytes(), 0);
    source.otherwise(Answer::Right);
    eventually("a prefetch succeeds", || {
        opened.start_prefetch();
        opened.local_bytes() == 9010
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_background_fill_completes_the_layer_in_few_ranges() {
    let (bed, layer) = (Bed::new(), marked());
    let source = source(&layer);
    let mut running = bed.engine();
    let opened = running.open(&layer, &source);
    opened.start_background();
    running.event(|event| matches!(event, LazyEvent::LayerComplete { .. })).await;
    assert!(opened.is_complete());
    assert_eq!(opened.local_bytes(), opened.total_bytes());
    assert_eq!(source.requests().len(), 1);
    // Completeness, and trust in the content, last over an unclean boot.
    let running = bed.engine_with("another boot", limits());
    let opened = running.open(&layer, &source);
    assert!(opened.is_complete());
    let third = entry(&opened, "third");
    eventually("content is published", || {
        matches!(opened.open_local(third), Ok(Some(Opened::Complete(_))))
    })
    .await;
    assert_eq!(source.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_background_fill_begins_by_itself_when_all_is_quiet() {
    let (bed, layer) = (Bed::new(), marked());
    let source = source(&layer);
    let limits = Limits {
        background_after: Some(Duration::from_millis(20)),
        background_quiet: Duration::from_millis(10),
        ..limits()
    };
    let running = bed.engine_with("boot", limits);
    let opened = running.open(&layer, &source);
    eventually("the layer is complete", || opened.is_complete()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_background_fill_gives_way_to_reads() {
    let (bed, layer) = (Bed::new(), marked());
    let source = source(&layer);
    let limits = Limits { extent_bytes: 1, ..limits() };
    let running = bed.engine_with("boot", limits);
    let opened = running.open(&layer, &source);
    let fourth = entry(&opened, "fourth");
    source.hold();
    let reader = tokio::spawn({
        let opened = Arc::clone(&opened);
        async move { opened.read(fourth, 0, 100).await }
    });
    source.wait_for_requests(1).await;
    opened.start_background();
    let first = opened.index().chunk(fourth, 0).unwrap().member;
    // Nothing can be waited for where nothing is to happen; the fill has had its chance when the read is over.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(source.requests(), [first]);
    source.release();
    assert_eq!(reader.await.unwrap().unwrap(), b"not needed"[..]);
    eventually("the layer is complete", || opened.is_complete()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_fill_fetches_nothing_until_it_is_started() {
    let (bed, layer) = (Bed::new(), marked());
    let source = source(&layer);
    let limits = Limits {
        background_after: Some(Duration::ZERO),
        background_quiet: Duration::ZERO,
        extent_bytes: 1,
        ..limits()
    };
    let running = bed.engine_with("boot", limits);
    source.hold();
    let opened = running.open(&layer, &source);
    source.wait_for_requests(1).await;
    opened.pause_background();
    source.release();
    eventually("what was on its way has landed", || opened.local_bytes() > 0).await;
    assert!(!opened.is_complete());
    opened.start_background();
    eventually("the layer is complete", || opened.is_complete()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fill_finds_what_an_earlier_process_left() {
    let (bed, layer) = (Bed::new(), marked());
    let source = source(&layer);
    {
        // Killed: what was noted on the way is all that is known.
        let running = bed.engine();
        let opened = running.open(&layer, &source);
        opened.open(entry(&opened, "second")).await.unwrap();
        opened.read(entry(&opened, "third"), 4096, 1).await.unwrap();
    }
    let mut running = bed.engine();
    let opened = running.open(&layer, &source);
    assert!(opened.local_bytes() < opened.total_bytes());
    let limits = opened.index().chunk(entry(&opened, "third"), 1).unwrap().member;
    opened.start_background();
    running.event(|event| matches!(event, LazyEvent::LayerComplete { .. })).await;
    let again = source.requests()[2..].iter().filter(|range| **range == limits).count();
    assert_eq!(again, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fill_waits_out_an_outage() {
    let (bed, layer) = (Bed::new(), marked());
    let source = source(&layer);
    let mut running = bed.engine();
    let opened = running.open(&layer, &source);
    source.script([Answer::Unreachable]);
    opened.start_background();
    running.event(|event| matches!(event, LazyEvent::SourceLost { .. })).await;
    running.event(|event| matches!(event, LazyEvent::LayerComplete { .. })).await;
}
