//! The lazy engine where it needs privileges: a cache on a disk that is really full.

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use rustix::mount::MountAttrFlags;
use supervisor::lazy::{
    Engine, EngineOptions, EventSink, LayerSpec, LazyEvent, Limits, Opened, RangeSource,
};
use supervisor::registry::Blob;
use supervisor::sys::mount::FsContext;
use supervisor::testing::LayerBuilder;

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_no_read_of_a_lazy_layer() {
    // Never attached anywhere: it goes with its descriptor.
    let disk = FsContext::open("tmpfs").unwrap();
    disk.set("size", "1m").unwrap();
    let disk = disk.mount(MountAttrFlags::empty()).expect("mounting a tmpfs needs root");
    let files_dir = format!("/proc/self/fd/{}", disk.as_raw_fd()).into();

    let content = noise(3 << 20);
    let (large, small) = (&content[..2 << 20], &content[2 << 20..]);
    let mut builder = LayerBuilder::new().file("large", large, 256 << 10);
    let names: Vec<String> = (0..16).map(|n| format!("small{n}")).collect();
    for (name, bytes) in names.iter().zip(small.chunks(64 << 10)) {
        builder = builder.file(name, bytes, 1 << 20);
    }
    let layer = builder.build();
    let mut blob = tempfile::tempfile().unwrap();
    blob.write_all(&layer.blob).unwrap();
    let blob = Blob::from_file(blob, layer.digest, layer.blob.len() as u64);
    let source: Arc<dyn RangeSource> = Arc::new(blob);

    let (events, mut told) = EventSink::channel(64);
    let mut limits = Limits::default();
    limits.background_after = None;
    let options = EngineOptions { files_dir, boot_id: "boot".to_owned(), limits, events };
    let engine = Engine::open(options, tokio::runtime::Handle::current()).unwrap();
    let spec = LayerSpec { digest: layer.digest, index: layer.mapped_index() };
    let opened = engine.open_layer(spec, source).unwrap();

    for round in 0..2 {
        let file = opened.index().find(b"large").unwrap();
        for offset in (0..large.len()).step_by(128 << 10) {
            let read = opened.read(file, offset as u64, 128 << 10).await.unwrap();
            assert_eq!(read, large[offset..offset + (128 << 10)], "round {round}, at {offset}");
        }
        for (name, bytes) in names.iter().zip(small.chunks(64 << 10)) {
            let file = opened.index().find(name.as_bytes()).unwrap();
            let complete = matches!(opened.open(file).await.unwrap(), Opened::Complete(_));
            let read = opened.read(file, 0, 1 << 20).await.unwrap();
            assert_eq!(read, bytes, "round {round}, {name}, complete: {complete}");
        }
    }
    assert!(!opened.is_complete());
    assert!(opened.local_bytes() > 0 && opened.local_bytes() < 1 << 20);
    let mut degraded = false;
    while let Ok(event) = told.try_recv() {
        degraded |= matches!(event, LazyEvent::CacheDegraded { .. });
    }
    assert!(degraded);
    opened.close();
    drop(engine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_starts_on_a_full_disk_serves() {
    let disk = FsContext::open("tmpfs").unwrap();
    disk.set("size", "1m").unwrap();
    let disk = disk.mount(MountAttrFlags::empty()).expect("mounting a tmpfs needs root");
    let files_dir = std::path::PathBuf::from(format!("/proc/self/fd/{}", disk.as_raw_fd()));
    let content = noise(64 << 10);
    let layer = LayerBuilder::new().file("kept", &content, 1 << 20).file("new", b"new", 9).build();
    let mut blob = tempfile::tempfile().unwrap();
    blob.write_all(&layer.blob).unwrap();
    let blob = Blob::from_file(blob, layer.digest, layer.blob.len() as u64);
    let source: Arc<dyn RangeSource> = Arc::new(blob);
    for round in 0..2 {
        let mut limits = Limits::default();
        limits.background_after = None;
        let options = EngineOptions {
            files_dir: files_dir.clone(),
            boot_id: "boot".to_owned(),
            limits,
            events: EventSink::none(),
        };
        let engine = Engine::open(options, tokio::runtime::Handle::current()).unwrap();
        let spec = LayerSpec { digest: layer.digest, index: layer.mapped_index() };
        let opened = engine.open_layer(spec, Arc::clone(&source)).unwrap();
        let kept = opened.index().find(b"kept").unwrap();
        if round == 1 {
            assert!(matches!(opened.open_local(kept), Ok(Some(Opened::Complete(_)))));
            let new = opened.index().find(b"new").unwrap();
            assert_eq!(opened.read(new, 0, 3).await.unwrap(), "new");
        }
        assert_eq!(opened.read(kept, 0, 64 << 10).await.unwrap(), content);
        let _ = std::fs::write(files_dir.join("fill"), noise(1 << 20));
    }
}
