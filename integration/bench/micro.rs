//! Micro benchmarks of the lazy path: parsing a table of contents, opening an index, decoding and reading chunks; and of the
//! planner ([`planner`]).
//! `cargo bench --features testing`; processor and page cache only, no network, no FUSE.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run ends")]

mod planner;

use std::sync::{Arc, OnceLock};

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use supervisor::estargz::{EntryNo, Flavour, Index, IndexInput, chunk, index};
use supervisor::image::Digest;
use supervisor::lazy::{Engine, EngineOptions, EventSink, LayerSpec, LazyLayer, Limits};
use supervisor::testing::{BuiltLayer, LayerBuilder, ScriptedSource};
use tokio::runtime::Runtime;

/// Files of the large table of contents, as an application with a `node_modules` has them.
const FILES: u32 = 100_000;
const INPUT: IndexInput =
    IndexInput { blob_size: 1 << 30, toc_offset: 1 << 29, flavour: Flavour::Gzip };

fn main() {
    divan::main();
}

fn toc() -> &'static str {
    static TOC: OnceLock<String> = OnceLock::new();
    TOC.get_or_init(|| {
        let entry = |n: u32| {
            let digest = Digest::of(&n.to_le_bytes());
            let (directory, offset) = (n / 50, n + 1);
            format!(
                r#"{{"name":"usr/lib/directory{directory}/file{n}","type":"reg","size":10,"modtime":"2024-01-01T00:00:00Z","mode":420,"offset":{offset},"digest":"{digest}","chunkDigest":"{digest}"}}"#
            )
        };
        let entries: Vec<_> = (0..FILES).map(entry).collect();
        format!(r#"{{"version":1,"entries":[{}]}}"#, entries.join(","))
    })
}

/// Text that compresses about as well as a program's sources.
fn content(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b"etaoin shrdlu(){}"[(state >> 24) as usize % 17]
    };
    (0..length).map(|_| next()).collect()
}

#[divan::bench(sample_count = 10)]
fn toc_to_index(bencher: Bencher<'_, '_>) {
    let json = toc().as_bytes();
    bencher
        .counter(ItemsCount::new(FILES))
        .bench(|| index::build(divan::black_box(json), &INPUT).unwrap());
}

#[divan::bench(sample_count = 50)]
fn index_open(bencher: Bencher<'_, '_>) {
    let bytes = index::build(toc().as_bytes(), &INPUT).unwrap();
    bencher
        .counter(ItemsCount::new(FILES))
        .bench(|| Index::open(divan::black_box(bytes.as_slice())).unwrap().len());
}

#[divan::bench]
fn index_lookup(bencher: Bencher<'_, '_>) {
    let index = Index::open(index::build(toc().as_bytes(), &INPUT).unwrap()).unwrap();
    bencher.bench(|| index.find(divan::black_box(b"usr/lib/directory1234/file61700")).unwrap());
}

/// Inflates and verifies one chunk.
#[divan::bench(args = [4 << 10, 64 << 10, 4 << 20])]
fn chunk_decode(bencher: Bencher<'_, '_>, size: usize) {
    let content = content(size);
    let layer = LayerBuilder::new().file("file", &content, size).build();
    let index = Index::open(layer.index.as_slice()).unwrap();
    let chunk = index.chunk(index.find(b"file").unwrap(), 0).unwrap();
    let place = |at: u64| usize::try_from(at).unwrap();
    let member = &layer.blob[place(chunk.member.start)..place(chunk.member.end)];
    bencher.counter(BytesCount::new(size)).bench(|| {
        chunk::decode(Flavour::Gzip, member, chunk.inner_offset, chunk.size, chunk.digest).unwrap()
    });
}

/// Reads of a file of many chunks that are all here.
#[divan::bench(args = [4 << 10, 128 << 10])]
fn chunk_read_local(bencher: Bencher<'_, '_>, size: u32) {
    const LENGTH: usize = 8 << 20;
    let layer = LayerBuilder::new().file("file", &content(LENGTH), 1 << 20).build();
    let bed = Bed::new(&layer);
    let file = bed.layer.index().find(b"file").unwrap();
    // Not the last chunk: a file that is complete is served by the kernel and not by this.
    let most = u64::try_from(LENGTH - (1 << 20)).unwrap() - u64::from(size);
    bed.read(file, 0, u32::try_from(most).unwrap());
    let mut offset = 0;
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        offset = (offset + 257 * 4096) % most;
        bed.read(file, offset, size)
    });
}

/// An engine on a source that answers at once.
struct Bed {
    runtime: Runtime,
    layer: Arc<LazyLayer>,
    _folder: tempfile::TempDir,
}

impl Bed {
    fn new(layer: &BuiltLayer) -> Self {
        let runtime = Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut limits = Limits::default();
        limits.background_after = None;
        let options = EngineOptions {
            files_dir: folder.path().to_owned(),
            boot_id: "boot".to_owned(),
            limits,
            events: EventSink::none(),
        };
        let engine = Engine::open(options, runtime.handle().clone()).unwrap();
        let spec = LayerSpec { digest: layer.digest, index: layer.mapped_index() };
        let source = Arc::new(ScriptedSource::new(layer.blob.clone()));
        let layer = runtime.block_on(async { engine.open_layer(spec, source) }).unwrap();
        Self { runtime, layer, _folder: folder }
    }

    fn read(&self, entry: EntryNo, offset: u64, length: u32) -> usize {
        self.runtime.block_on(self.layer.read(entry, offset, length)).unwrap().len()
    }
}
