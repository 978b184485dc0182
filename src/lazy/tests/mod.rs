//! Whole layers: what the engine promises, each with the source that makes it hard.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::*;
use crate::estargz::EntryNo;
use crate::image::Digest;
use crate::testing::{Answer, BuiltLayer, LayerBuilder, ScriptedSource};

mod ahead;
mod evict;
mod expect;
mod fault;
mod fill;
mod model;
mod narrow;
mod packed;

const PATIENCE: Duration = Duration::from_secs(30);

struct Bed {
    dir: tempfile::TempDir,
}

/// An engine and its events, on a cache that outlives it.
struct Running {
    engine: Engine,
    events: mpsc::Receiver<LazyEvent>,
}

impl Bed {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn engine(&self) -> Running {
        self.engine_with("boot", limits())
    }

    fn engine_with(&self, boot_id: &str, limits: Limits) -> Running {
        self.engine_on(Handle::current(), boot_id, limits)
    }

    fn engine_on(&self, runtime: Handle, boot_id: &str, limits: Limits) -> Running {
        let (sink, events) = EventSink::channel(64);
        let options = EngineOptions {
            files_dir: self.dir.path().to_owned(),
            boot_id: boot_id.to_owned(),
            limits,
            events: sink,
        };
        Running { engine: Engine::open(options, runtime).unwrap(), events }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Bed {
    /// What an engine still writes on its threads makes a removal fail that has looked before.
    fn drop(&mut self) {
        for _ in 0..100 {
            match std::fs::remove_dir_all(self.dir.path()) {
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
                _ => break,
            }
        }
    }
}

impl Running {
    fn open(&self, layer: &BuiltLayer, source: &Arc<ScriptedSource>) -> Arc<LazyLayer> {
        let spec = LayerSpec { digest: layer.digest, index: layer.mapped_index() };
        self.engine.open_layer(spec, Arc::clone(source) as Arc<dyn RangeSource>).unwrap()
    }

    /// The next event that `wanted` takes.
    async fn event(&mut self, wanted: impl Fn(&LazyEvent) -> bool) -> LazyEvent {
        let next = async {
            loop {
                let event = self.events.recv().await.expect("the engine lives");
                if wanted(&event) {
                    return event;
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("the event comes in time")
    }
}

/// Nothing by itself and nothing along, a file each, and short pauses.
fn limits() -> Limits {
    Limits {
        background_after: None,
        widen_bytes: 0,
        read_ahead_bytes: 0,
        packed_file_bytes: 0,
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(5),
        background_pause: Duration::from_millis(20),
        ..Limits::default()
    }
}

fn source(layer: &BuiltLayer) -> Arc<ScriptedSource> {
    Arc::new(ScriptedSource::new(layer.blob.clone()))
}

fn entry(layer: &LazyLayer, path: &str) -> EntryNo {
    layer.index().find(path.as_bytes()).unwrap()
}

/// Bytes that differ from place to place and do not compress away.
fn content(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what}");
}

/// All of a file, and the engine's word that it is complete. It is that a moment after its last chunk is here, when its
/// digest is verified.
async fn complete_content(layer: &LazyLayer, entry: EntryNo) -> Vec<u8> {
    use std::io::Read as _;
    let open = async {
        loop {
            if let Opened::Complete(file) = layer.open(entry).await.unwrap() {
                return file;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let file = tokio::time::timeout(PATIENCE, open).await.expect("complete");
    let mut bytes = Vec::new();
    (&*file).read_to_end(&mut bytes).unwrap();
    bytes
}

fn large() -> (Vec<u8>, BuiltLayer) {
    let content = content(40_000, 7);
    let layer = LayerBuilder::new()
        .file("bin/large", &content, 4096)
        .file("etc/small", b"small", 100)
        .file("etc/empty", b"", 100)
        .build();
    (content, layer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_one_chunk_is_complete_once_it_is_open() {
    let (bed, (_, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let running = bed.engine();
    let opened = running.open(&layer, &source);
    let small = entry(&opened, "etc/small");
    assert!(opened.open_local(small).unwrap().is_none());
    assert_eq!(complete_content(&opened, small).await, b"small");
    assert!(matches!(opened.open_local(small).unwrap(), Some(Opened::Complete(_))));
    assert_eq!(source.requests().len(), 1);
    let empty = entry(&opened, "etc/empty");
    assert!(matches!(opened.open_local(empty).unwrap(), Some(Opened::Partial)));
    assert_eq!(opened.read_local(empty, 0, 1).unwrap().unwrap(), b""[..]);
    assert_eq!(opened.local_bytes(), 5);
    assert_eq!(opened.total_bytes(), 40_005);
    assert!(matches!(opened.open(EntryNo::ROOT).await, Err(ReadError::NotAFile { .. })));
    assert!(matches!(opened.read(EntryNo(99), 0, 1).await, Err(ReadError::NotAFile { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_fetches_the_chunks_it_needs_and_no_others() {
    let (bed, (expected, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let running = bed.engine();
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "bin/large");
    assert!(matches!(opened.open(file).await.unwrap(), Opened::Partial));
    assert_eq!(opened.read_local(file, 5000, 10).unwrap(), None);
    assert_eq!(opened.read(file, 5000, 10).await.unwrap(), expected[5000..5010]);
    assert_eq!(source.requests().len(), 1);
    assert_eq!(opened.local_bytes(), 4096);
    assert_eq!(opened.read_local(file, 4096, 4096).unwrap().unwrap(), expected[4096..8192]);
    // Neighbours come in one range.
    assert_eq!(opened.read(file, 8000, 9000).await.unwrap(), expected[8000..17_000]);
    assert_eq!(source.requests().len(), 2);
    assert_eq!(opened.read(file, 39_990, 100).await.unwrap(), expected[39_990..]);
    assert_eq!(opened.read(file, 40_000, 100).await.unwrap(), b""[..]);
    assert_eq!(opened.read(file, u64::MAX, u32::MAX).await.unwrap(), b""[..]);
    assert_eq!(opened.read_local(file, 50_000, 1).unwrap().unwrap(), b""[..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_of_one_chunk_cause_one_fetch() {
    let (bed, (expected, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let running = bed.engine();
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "bin/large");
    source.hold();
    let readers: Vec<_> = (0..50_u64)
        .map(|n| {
            let opened = Arc::clone(&opened);
            tokio::spawn(async move { (n, opened.read(file, n * 16, 16).await.unwrap()) })
        })
        .collect();
    source.wait_for_requests(1).await;
    source.release();
    for reader in readers {
        let (n, bytes) = reader.await.unwrap();
        let at = usize::try_from(n).unwrap() * 16;
        assert_eq!(bytes, expected[at..at + 16]);
    }
    assert_eq!(source.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_share_a_member_come_with_one_fetch() {
    let bed = Bed::new();
    let layer = LayerBuilder::new()
        .packed(&[("a", b"content of a"), ("b", b"content of b"), ("c", b"content of c")])
        .build();
    let source = source(&layer);
    let running = bed.engine();
    let opened = running.open(&layer, &source);
    let b = entry(&opened, "b");
    let (one, other) = tokio::join!(complete_content(&opened, b), complete_content(&opened, b));
    assert_eq!((one, other), (b"content of b".to_vec(), b"content of b".to_vec()));
    assert_eq!(complete_content(&opened, entry(&opened, "c")).await, b"content of c");
    assert_eq!(source.requests().len(), 1);
    assert!(opened.is_complete());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_gives_up_does_not_cancel_the_fetch_of_others() {
    let (bed, (expected, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let running = bed.engine();
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "bin/large");
    source.hold();
    let first = tokio::spawn({
        let opened = Arc::clone(&opened);
        async move { opened.read(file, 0, 10).await }
    });
    source.wait_for_requests(1).await;
    let second = tokio::spawn({
        let opened = Arc::clone(&opened);
        async move { opened.read(file, 0, 20).await }
    });
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    source.release();
    assert_eq!(second.await.unwrap().unwrap(), expected[..20]);
    assert_eq!(source.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_engine_fetched_the_next_one_reads_from_disk() {
    let (bed, (expected, layer)) = (Bed::new(), large());
    let source = source(&layer);
    {
        let opened = bed.engine().open(&layer, &source);
        let file = entry(&opened, "bin/large");
        opened.read(file, 0, 40_000).await.unwrap();
        opened.open(entry(&opened, "etc/small")).await.unwrap();
        opened.close();
    }
    let fetched = source.requests().len();
    for boot in ["boot", "another boot"] {
        let running = bed.engine_with(boot, limits());
        let opened = running.open(&layer, &source);
        let file = entry(&opened, "bin/large");
        assert_eq!(opened.read(file, 17, 30_000).await.unwrap(), expected[17..30_017]);
        assert_eq!(complete_content(&opened, entry(&opened, "etc/small")).await, b"small");
    }
    assert_eq!(source.requests().len(), fetched);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_that_share_a_file_share_its_content() {
    let bed = Bed::new();
    let shared = content(10_000, 3);
    let one = LayerBuilder::new().file("usr/lib/shared", &shared, 4096).build();
    let other = LayerBuilder::new()
        .file("another", b"file in front", 100)
        .file("opt/copy", &shared, 4096)
        .build();
    let (one_source, other_source) = (source(&one), source(&other));
    let running = bed.engine();
    let opened = running.open(&one, &one_source);
    opened.read(entry(&opened, "usr/lib/shared"), 0, 10_000).await.unwrap();
    let opened = running.open(&other, &other_source);
    assert_eq!(opened.read(entry(&opened, "opt/copy"), 0, 10_000).await.unwrap(), shared);
    assert!(other_source.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_chunks_is_published_when_its_last_chunk_arrives() {
    let (bed, (expected, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let running = bed.engine();
    let opened = running.open(&layer, &source);
    let file = entry(&opened, "bin/large");
    for offset in (0..40_000).rev().step_by(4096) {
        opened.read(file, offset, 1).await.unwrap();
    }
    assert_eq!(complete_content(&opened, file).await, expected);
    let hex = Digest::of(&expected).hex();
    let published = bed.path().join(format!("sha256/{}/{hex}", &hex[..2]));
    eventually("the file is published", || published.exists()).await;
    assert_eq!(std::fs::read(published).unwrap(), expected);
    assert_eq!(opened.read(file, 0, 40_000).await.unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_is_opened_once_and_only_with_one_index() {
    let (bed, (_, layer)) = (Bed::new(), large());
    let source = source(&layer);
    let running = bed.engine();
    let opened = running.open(&layer, &source);
    assert!(Arc::ptr_eq(&opened, &running.open(&layer, &source)));
    let other = LayerBuilder::new().file("other", b"tree", 10).build();
    let spec = LayerSpec { digest: layer.digest, index: other.mapped_index() };
    let refused = running.engine.open_layer(spec, source.clone());
    assert!(matches!(refused, Err(OpenError::OtherIndex(_))));
    opened.close();
    let closed = opened.read(entry(&opened, "bin/large"), 0, 1).await;
    assert!(matches!(closed, Err(ReadError::Closed(_))));
    assert!(!Arc::ptr_eq(&opened, &running.open(&layer, &source)));
    let spec = LayerSpec { digest: other.digest, index: damaged(&layer) };
    assert!(matches!(running.engine.open_layer(spec, source), Err(OpenError::Index { .. })));
}

fn damaged(layer: &BuiltLayer) -> crate::sys::MappedFile {
    let mut layer = layer.clone();
    let middle = layer.index.len() / 2;
    layer.index[middle] ^= 1;
    layer.mapped_index()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_another_file_brought_counts_as_local() {
    let bed = Bed::new();
    let (large, small) = (content(9000, 5), content(300, 6));
    let layer = LayerBuilder::new()
        .file("one", &large, 4096)
        .file("two", &small, 4096)
        .file("one again", &large, 4096)
        .file("two again", &small, 4096)
        .build();
    let source = source(&layer);
    let mut running = bed.engine();
    let opened = running.open(&layer, &source);
    let _ = opened.read(entry(&opened, "one"), 0, 9000).await.unwrap();
    eventually("the first is published", || {
        matches!(opened.open_local(entry(&opened, "one")), Ok(Some(Opened::Complete(_))))
    })
    .await;
    for path in ["two", "one again", "two again"] {
        assert!(matches!(opened.open(entry(&opened, path)).await, Ok(Opened::Complete(_))));
    }
    assert_eq!(opened.local_bytes(), opened.total_bytes());
    running.event(|event| matches!(event, LazyEvent::LayerComplete { .. })).await;
}
