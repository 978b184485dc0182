//! A narrow link: ranges are short, and what nobody waits for gives way.

use super::*;

/// `count` files of 100,000 bytes.
fn files(count: u32) -> BuiltLayer {
    let mut builder = LayerBuilder::new();
    for n in 0..count {
        builder = builder.file(&format!("f{n:03}"), &content(100_000, n), 32 << 10);
    }
    builder.build()
}

/// An engine that knows its link to carry so many bytes a second.
fn running_at(bed: &Bed, rate: u64, limits: Limits) -> Running {
    let running = bed.engine_with("boot", limits);
    running.engine.shared().link.reckon(rate, Duration::from_secs(1));
    running
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_waits_for_comes_in_ranges_as_long_as_the_link_allows() {
    let (bed, layer) = (Bed::new(), files(40));
    let source = source(&layer);
    let running = bed.engine();
    let opened = running.open(&layer, &source);
    assert_eq!(opened.extent_bytes(), 1 << 20, "while nothing is known");
    let link = &running.engine.shared().link;
    for (rate, longest) in [(500_000, 256 << 10), (3_000_000, 600_000), (1 << 30, 4 << 20)] {
        (0..100).for_each(|_| link.reckon(rate, Duration::from_secs(1)));
        let bytes = opened.extent_bytes();
        assert!(bytes <= longest && bytes > longest / 10 * 9, "{bytes} at {rate}");
    }
    opened.start_background();
    eventually("the fill ends", || opened.is_complete()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_fetches_little_in_front_of_what_it_wants() {
    let (bed, layer) = (Bed::new(), files(40));
    let source = source(&layer);
    let wide = Limits { widen_bytes: 400 << 10, ..limits() };
    let running = running_at(&bed, 3_000_000, wide);
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "f020");
    opened.read(file, 0, 100_000).await.unwrap();
    let member = opened.index().chunk(file, 0).unwrap().member;
    let [range] = &source.requests()[..] else { panic!("one request") };
    assert!(member.start - range.start <= 150_000, "{range:?}");
    assert!(range.end - member.start <= 420_000, "{range:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_wants_something_of_a_range_that_gives_way_gets_it() {
    let bed = Bed::new();
    let (first, second) = (files(4), package());
    let (held, free) = (source(&first), source(&second));
    let running = running_at(&bed, 1_000, limits());
    held.hold();
    let urgent = running.open(&first, &held);
    let reader = tokio::spawn({
        let (urgent, file) = (Arc::clone(&urgent), entry(&urgent, "f000"));
        async move { urgent.read(file, 0, 10).await }
    });
    held.wait_for_requests(1).await;
    let opened = running.open(&second, &free);
    assert!(opened.start_prefetch());
    opened.start_background();
    // Whether or not its range is under way by now.
    let file = entry(&opened, "b");
    assert_eq!(complete_content(&opened, file).await, content(5000, 2));
    // And a reader who waits for ever does not hold up the others for ever.
    opened.prefetched().await;
    assert!(opened.local_bytes() >= 10_000);
    held.release();
    reader.await.unwrap().unwrap();
    eventually("the fill goes on", || opened.is_complete()).await;
}

fn package() -> BuiltLayer {
    LayerBuilder::new()
        .file("a", &content(5000, 1), 1 << 20)
        .file("b", &content(5000, 2), 1 << 20)
        .landmark()
        .file("c", &content(5000, 3), 1 << 20)
        .build()
}
