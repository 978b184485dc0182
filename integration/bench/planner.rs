//! Micro benchmarks of the planner and of the services file: 500 services, each tenth of them one that others wait for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use divan::Bencher;
use divan::counter::ItemsCount;
use supervisor::image::Digest;
use supervisor::reconcile::{
    Container, ContainerKey, ContainerState, Content, Goal, Health, ImageState, Moment, Monitor,
    Observed, Run, ServiceKey, ServiceRecord, WritableLayer, plan,
};
use supervisor::spec::{Desired, ParseInput, ProjectChoice, ProjectName, parse};

const SERVICES: usize = 500;
const IMAGES: usize = 20;

fn file() -> String {
    let mut text = "services:\n".to_owned();
    for n in 0..SERVICES {
        let (image, base) = (n % IMAGES, n / 10 * 10);
        write!(
            text,
            "  s{n:03}:\n    image: registry.example/shop/i{image}:1\n    restart: always\n    \
             environment: {{NUMBER: {n}, MODE: production}}\n    \
             volumes: [\"data{n}:/data\", \"./conf:/etc/conf:ro\"]\n"
        )
        .unwrap();
        if n != base {
            writeln!(text, "    depends_on: [s{base:03}]").unwrap();
        } else {
            text.push_str("    healthcheck: {test: [CMD, check], interval: 5s}\n");
        }
    }
    text.push_str("volumes:\n");
    (0..SERVICES).for_each(|n| writeln!(text, "  data{n}:").unwrap());
    text
}

fn desired(text: &str) -> Desired {
    let environment = BTreeMap::new();
    let input = ParseInput {
        file: "services.yaml",
        project: project(),
        project_choice: ProjectChoice::Explicit,
        base_dir: Path::new("/srv/shop"),
        environment: &environment,
    };
    parse(text, &input).unwrap()
}

fn project() -> ProjectName {
    "shop".parse().unwrap()
}

/// A host on which everything runs as it is wanted, or nothing is but the images.
fn host(desired: &Desired, is_running: bool) -> Observed {
    let mut observed = Observed {
        instance: "ours".to_owned(),
        images: BTreeMap::new(),
        containers: BTreeMap::new(),
        records: BTreeMap::new(),
    };
    for (serial, (name, service)) in desired.services.iter().enumerate() {
        let manifest = Digest::of(service.image.to_string().as_bytes());
        observed.images.insert(service.image.clone(), ImageState::Ready { manifest });
        let key = ServiceKey { project: project(), service: name.clone() };
        observed.records.insert(key.clone(), ServiceRecord { request: 1, ..Default::default() });
        if !is_running {
            continue;
        }
        let container = Container {
            instance: "ours".to_owned(),
            service: key,
            serial: serial as u64,
            fingerprint: service.fingerprint(),
            manifest,
            mounted: BTreeMap::new(),
            state: ContainerState::Running { since: 1000 },
            monitor: Monitor::Alive,
            writable: WritableLayer::Usable,
            content: Content::Usable,
            run: Run { request: 1, restarts: 0, streak: 0 },
            health: if service.healthcheck.is_some() { Health::Healthy } else { Health::Unchecked },
            stamp: Some(1000),
            with: BTreeMap::new(),
            failed: None,
        };
        observed.containers.insert(ContainerKey::new(format!("c{serial}")), container);
    }
    observed
}

fn planned(bencher: Bencher<'_, '_>, is_running: bool) {
    let desired = desired(&file());
    let observed = host(&desired, is_running);
    let goals = BTreeMap::from([(project(), Goal::Up(Arc::new(desired)))]);
    let moment = Moment { now: 1_000_000, jitter_seed: 7 };
    let steps = plan(&goals, &observed, moment).steps.len();
    assert!(if is_running { steps == 0 } else { steps >= SERVICES / 5 }, "{steps} steps");
    bencher
        .counter(ItemsCount::new(SERVICES))
        .bench(|| plan(divan::black_box(&goals), &observed, moment));
}

#[divan::bench(sample_count = 50)]
fn plan_where_nothing_is_to_do(bencher: Bencher<'_, '_>) {
    planned(bencher, true);
}

#[divan::bench(sample_count = 50)]
fn plan_where_everything_is(bencher: Bencher<'_, '_>) {
    planned(bencher, false);
}

#[divan::bench(sample_count = 10)]
fn services_file(bencher: Bencher<'_, '_>) {
    let text = file();
    bencher.counter(ItemsCount::new(SERVICES)).bench(|| desired(divan::black_box(&text)));
}
