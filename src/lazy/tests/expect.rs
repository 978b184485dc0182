//! What is read first, wherever in the image it is.

use super::fill::marked;
use super::*;
use crate::lazy::named::{Lookups, file_in};

/// The layers, the uppermost first, and their sources.
fn open_all(
    running: &Running,
    layers: &[BuiltLayer],
) -> Vec<(Arc<LazyLayer>, Arc<ScriptedSource>)> {
    let open = |layer: &BuiltLayer| {
        let source = source(layer);
        (running.open(layer, &source), source)
    };
    layers.iter().map(open).collect()
}

fn wanted(lists: &[&[&str]]) -> Vec<Vec<String>> {
    lists.iter().map(|list| list.iter().map(|path| (*path).to_owned()).collect()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_expected_are_asked_for_once_and_before_anybody_reads_them() {
    let bed = Bed::new();
    let upper = LayerBuilder::new()
        .file("bin/start", b"#!/usr/bin/env web\n", 1 << 20)
        .file("etc/passwd", b"root:x:0:0::/:\n", 1 << 20)
        .build();
    let lower = LayerBuilder::new()
        .file("etc/passwd", &content(3000, 3), 1 << 20)
        .file("usr/bin/web", &content(5000, 1), 1 << 20)
        .build();
    let sources = [source(&upper), source(&lower)];
    let running = bed.engine();
    let opened = [running.open(&upper, &sources[0]), running.open(&lower, &sources[1])];
    // A folder is no file, and what an upper layer has hides what is below it.
    let reads = wanted(&[&["/etc", "/none", "/bin/start"], &["/etc/passwd"], &["/etc/group"]]);
    LazyLayer::expect(opened.to_vec(), &reads);
    eventually("the interpreter of the script is here", || opened[1].local_bytes() == 5000).await;
    eventually("so are script and users", || opened[0].is_complete()).await;
    assert_eq!(opened[1].local_bytes(), 5000);
    assert_eq!(sources[1].requests().len(), 1);
    LazyLayer::expect(opened.to_vec(), &reads);
    let web = entry(&opened[1], "usr/bin/web");
    assert_eq!(complete_content(&opened[1], web).await, content(5000, 1));
    assert_eq!(sources[1].requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_marked_is_not_expected_besides() {
    let (bed, layer) = (Bed::new(), marked());
    let source = source(&layer);
    let running = bed.engine();
    let opened = running.open(&layer, &source);
    LazyLayer::expect(vec![Arc::clone(&opened)], &wanted(&[&["/third"]]));
    assert!(opened.start_prefetch());
    opened.prefetched().await;
    assert_eq!(source.requests().len(), 1);
    assert_eq!(opened.local_bytes(), 9010);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_is_looked_up_as_the_file_system_above_the_layers_does() {
    let upper = LayerBuilder::new()
        .file("usr/bin/bash", b"upper", 100)
        .file("usr/bin/.wh.old", b"", 1)
        .file("opt/.wh..wh..opq", b"", 1)
        .file("opt/new", b"upper", 100)
        .file("usr/lib/loader", b"upper", 100)
        .link("srv", "usr/bin")
        .file("usr/share", b"in place of a folder", 100)
        .link("etc/up", "../../../bin/./bash")
        .build();
    let empty = LayerBuilder::new().file("other", b"", 1).build();
    let base = LayerBuilder::new()
        .link("bin", "usr/bin")
        .link("lib", "/usr/lib/")
        .file("usr/bin/old", b"base", 100)
        .file("usr/bin/sh", b"base", 100)
        .file("opt/hidden", b"base", 100)
        .file("srv/site", b"base", 100)
        .file("usr/lib/loader", b"base", 100)
        .file("usr/lib/libc", b"base", 100)
        .file("usr/share/doc", b"base", 100)
        .link("loop", "loop")
        .build();
    let bed = Bed::new();
    let running = bed.engine();
    let opened = open_all(&running, &[upper, empty, base]);
    let layers: Vec<&LazyLayer> = opened.iter().map(|(layer, _)| &**layer).collect();
    let layer_of = |path: &str| {
        let (layer, entry) = file_in(&layers, path.as_bytes(), &mut Lookups::default())?;
        let name = layers[layer].index().path(entry);
        Some((layer, String::from_utf8(name).unwrap()))
    };
    for (path, layer, name) in [
        ("/bin/bash", 0, "usr/bin/bash"),
        ("bin//bash", 0, "usr/bin/bash"),
        ("/etc/up", 0, "usr/bin/bash"),
        ("/opt/new", 0, "opt/new"),
        ("/lib/loader", 0, "usr/lib/loader"),
        ("/srv/sh", 2, "usr/bin/sh"),
        ("/srv/../lib/libc", 2, "usr/lib/libc"),
        ("/opt/../usr/lib/libc", 2, "usr/lib/libc"),
    ] {
        assert_eq!(layer_of(path), Some((layer, name.to_owned())), "{path}");
    }
    for path in [
        "/usr/bin/old",
        "/bin/old",
        "/opt/hidden",
        "/srv/site",
        "/usr/share/doc",
        "/loop",
        "/usr/lib",
        "/usr/bin/sh/",
        "/usr/bin/sh/..",
        "/none/../bin/sh",
        "/",
        "",
    ] {
        assert_eq!(layer_of(path), None, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_cost_no_more_than_they_may() {
    let mut builder = LayerBuilder::new().file("d/file", b"", 1);
    for n in 0..39 {
        let target = format!("{}l{}", "d/../".repeat(800), n + 1);
        builder = builder.link(&format!("l{n}"), &target);
    }
    let layer = builder.link("l39", "d/file").build();
    let bed = Bed::new();
    let running = bed.engine();
    let opened = open_all(&running, std::slice::from_ref(&layer));
    let mut lookups = Lookups::default();
    let layers = [&*opened[0].0];
    assert!(file_in(&layers, b"/l30", &mut lookups).is_some(), "{lookups:?}");
    assert!(file_in(&layers, b"/l0", &mut lookups).is_none());
    assert_eq!(lookups.0, 0);
    assert!(file_in(&layers, b"/l39", &mut lookups).is_none(), "of the whole request");
    assert!(layers[0].files_at(b"/l0").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_of_a_path_come_in_their_order_whatever_layer_has_them() {
    let upper = LayerBuilder::new().file("usr/bin/node", &content(300, 1), 1000).build();
    let base = LayerBuilder::new().file("usr/local/bin/node", &content(500, 2), 1000).build();
    let bed = Bed::new();
    let running = bed.engine();
    let opened = open_all(&running, &[upper, base]);
    let layers = opened.iter().map(|(layer, _)| Arc::clone(layer)).collect();
    LazyLayer::expect(layers, &wanted(&[&["/usr/local/bin/node", "/usr/bin/node"]]));
    opened[1].0.prefetched().await;
    eventually("the first one is here", || opened[1].0.local_bytes() == 500).await;
    assert!(opened[0].1.requests().is_empty(), "and no other is asked for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_what_is_fetched_ahead_waits_for_script_interpreter_and_env() {
    let upper = LayerBuilder::new().file("start", b"#!/usr/bin/env -S web\n", 1000).build();
    let base = LayerBuilder::new()
        .file("usr/bin/env", &content(300, 1), 1000)
        .file("usr/bin/web", &content(500, 2), 1000)
        .file("usr/bin/other", &content(700, 3), 1000)
        .build();
    let bed = Bed::new();
    let running = bed.engine();
    let opened = open_all(&running, &[upper, base]);
    opened[0].1.hold();
    let layers = opened.iter().map(|(layer, _)| Arc::clone(layer)).collect();
    LazyLayer::expect(layers, &wanted(&[&["/start"]]));
    assert!(opened[0].0.is_prefetching(), "as soon as it was asked for");
    opened[0].1.release();
    // In this order: one is begun before the other ends.
    opened[0].0.prefetched().await;
    opened[1].0.prefetched().await;
    eventually("the script is here", || opened[0].0.is_complete()).await;
    eventually("and what it needs", || opened[1].0.local_bytes() == 800).await;
}
