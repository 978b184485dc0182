//! Random layers, reads and faults against the content that went in.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Read {
        file: usize,
        offset: u64,
        len: u32,
    },
    Open(usize),
    Background,
    Prefetch,
    Pause,
    DiskFull(bool),
    /// In blocks.
    Budget(Option<u64>),
    /// Another engine; with the flag, after an unclean boot.
    Restart(bool),
}

#[derive(Debug, Clone)]
struct Case {
    /// Length and chunk size; those of length below 200 may share members.
    files: Vec<(usize, usize)>,
    packed: usize,
    landmark: usize,
    /// Up to which size files are packed into segments, and how large these are.
    small: (u32, u32),
    /// Bytes that are fetched along and ahead.
    ahead: u64,
    steps: Vec<Step>,
    faults: Vec<Answer>,
}

fn case() -> impl Strategy<Value = Case> {
    let step = prop_oneof![
        12 => (any::<prop::sample::Index>(), 0_u64..6000, 0_u32..6000)
            .prop_map(|(file, offset, len)| Step::Read { file: file.index(64), offset, len }),
        4 => (0_usize..64).prop_map(Step::Open),
        1 => Just(Step::Background),
        1 => Just(Step::Prefetch),
        1 => Just(Step::Pause),
        1 => any::<bool>().prop_map(Step::DiskFull),
        2 => prop::option::weighted(0.8, 0_u64..8).prop_map(Step::Budget),
        2 => any::<bool>().prop_map(Step::Restart),
    ];
    // Never two wrong answers in a row: that is a corrupt layer, which has tests of its own.
    let fault = prop_oneof![
        4 => Just(vec![Answer::Right]),
        1 => Just(vec![Answer::Unreachable]),
        1 => Just(vec![Answer::Unreachable, Answer::Unreachable]),
    ];
    (
        prop::collection::vec((0_usize..5000, 100_usize..2000), 1..8),
        0_usize..5,
        0_usize..8,
        (prop_oneof![Just(0), Just(90), Just(4000)], prop_oneof![Just(0), Just(5000)]),
        prop_oneof![Just(0), Just(1000), Just(1 << 20)],
        prop::collection::vec(step, 1..25),
        prop::collection::vec(fault, 0..20),
    )
        .prop_map(|(files, packed, landmark, small, ahead, steps, faults)| Case {
            files,
            packed,
            landmark,
            small,
            ahead,
            steps,
            faults: faults.concat(),
        })
}

struct Model {
    layer: BuiltLayer,
    files: Vec<(String, Vec<u8>)>,
}

fn model(case: &Case) -> Model {
    let mut builder = LayerBuilder::new();
    let mut files = Vec::new();
    for (n, (len, chunk)) in (0_u32..).zip(&case.files) {
        if n as usize == case.landmark {
            builder = builder.landmark();
        }
        // Every third has the content of the first of its length: shared content.
        let bytes = content(*len, n % 3);
        let name = format!("dir{}/file{n}", n % 2);
        builder = builder.file(&name, &bytes, *chunk);
        files.push((name, bytes));
    }
    let small: Vec<_> =
        (0..case.packed).map(|n| (format!("small{n}"), content(50 + n, 40))).collect();
    if !small.is_empty() {
        let packed: Vec<_> = small.iter().map(|(name, bytes)| (&**name, &**bytes)).collect();
        builder = builder.packed(&packed);
    }
    files.extend(small);
    Model { layer: builder.build(), files }
}

/// What an engine runs on: one of its own, so that it can be ended between any two of its steps.
fn life() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// As `kill -9` does it, but for a step that is under way, whose end is waited for.
async fn kill(life: tokio::runtime::Runtime) {
    tokio::task::spawn_blocking(|| life.shutdown_timeout(PATIENCE)).await.unwrap();
}

async fn run(case: Case) {
    let (bed, model) = (Bed::new(), model(&case));
    let source = source(&model.layer);
    source.script(case.faults.iter().copied());
    let (mut boot, mut budget) = (0, None);
    let limits = || Limits {
        extent_bytes: 3000,
        open_files: 4,
        packed_file_bytes: case.small.0,
        segment_bytes: case.small.1,
        widen_bytes: case.ahead,
        read_ahead_bytes: case.ahead,
        ..limits()
    };
    let mut life_of_engine = life();
    let mut running = bed.engine_on(life_of_engine.handle().clone(), "0", limits());
    let mut opened = running.open(&model.layer, &source);
    for step in case.steps {
        match step {
            Step::Read { file, offset, len } => {
                let (name, bytes) = &model.files[file % model.files.len()];
                let start = bytes.len().min(usize::try_from(offset).unwrap());
                let end = bytes.len().min(start + len as usize);
                let read = opened.read(entry(&opened, name), offset, len);
                let read = tokio::time::timeout(PATIENCE, read).await.expect("a read in time");
                assert_eq!(read.unwrap(), bytes[start..end], "{name} {offset} {len}");
            }
            Step::Open(file) => {
                use std::os::unix::fs::FileExt as _;
                let (name, bytes) = &model.files[file % model.files.len()];
                let open = opened.open(entry(&opened, name));
                let open = tokio::time::timeout(PATIENCE, open).await.expect("an open in time");
                if let Opened::Complete(file) = open.unwrap() {
                    let mut found = vec![0; bytes.len() + 1];
                    assert_eq!(file.read_at(&mut found, 0).unwrap(), bytes.len());
                    assert_eq!(&found[..bytes.len()], bytes);
                }
            }
            Step::Background => opened.start_background(),
            Step::Prefetch => drop(opened.start_prefetch()),
            Step::Pause => opened.pause_background(),
            Step::DiskFull(full) => running.engine.pretend_full_disk(full),
            Step::Budget(blocks) => {
                budget = blocks.map(|blocks| blocks * 4096);
                running.engine.set_cache_budget(budget);
            }
            Step::Restart(rebooted) => {
                boot += u32::from(rebooted);
                kill(std::mem::replace(&mut life_of_engine, life())).await;
                let runtime = life_of_engine.handle().clone();
                // Nothing is left of the old one, which closes nothing.
                drop((opened, running));
                running = bed.engine_on(runtime, &boot.to_string(), limits());
                running.engine.set_cache_budget(budget);
                opened = running.open(&model.layer, &source);
            }
        }
    }
    running.engine.pretend_full_disk(false);
    running.engine.set_cache_budget(None);
    running.engine.wait_for_eviction();
    opened.start_background();
    eventually("the layer gets complete", || opened.is_complete()).await;
    let fetched = source.requests().len();
    for (name, bytes) in &model.files {
        let len = u32::try_from(bytes.len()).unwrap();
        assert_eq!(opened.read(entry(&opened, name), 0, len).await.unwrap(), *bytes);
    }
    assert_eq!(source.requests().len(), fetched, "a complete layer needs no network");
    kill(life_of_engine).await;
}

#[test]
fn whatever_happens_reads_give_what_went_in() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() };
    let tested = TestRunner::new(config).run(&case(), |case| {
        runtime.block_on(run(case));
        Ok(())
    });
    if let Err(error) = tested {
        panic!("{error}");
    }
}
