//! The driver with containers that are only said to exist: what it answers whom, and what it settles.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::bridges::{Bridges, BridgesOptions};
use super::driver::Driver;
use super::events::EventLog;
use super::execute::Host;
use super::handle::{Reply, Request, RequestError, RequestErrorKind, StopOptions};
use super::held::{ContainerRecord, Held, OneOff};
use super::images::Images;
use super::lazy_link::{Generations, Users};
use super::lazy_mounts::LazyMounts;
use super::project::{self, ProjectRecord};
use super::report::{ServiceReport, UpRequest};
use super::{Control, ControlOptions};
use crate::container::{self, ExitRecord, Launch, Mount, MountKind, Outcome as RunOutcome};
use crate::fuse::Side;
use crate::host::Features;
use crate::layer::Layers;
use crate::reconcile::{ContainerKey, Content, Operation};
use crate::registry::Client;
use crate::store::{Store, record};
use crate::sys::process::{SealedExe, boot_id};

const INSTANCE: &str = "00c0ffee";

/// Long enough for anything that comes at all.
const PATIENCE: Duration = Duration::from_secs(60);

fn exited(code: i32) -> ExitRecord {
    let some = r#"{"version":2,"id":"a","started_at":null,"ended_at":"2026-01-02T03:04:05Z",
        "outcome":{"outcome":"unknown"}}"#;
    let outcome = RunOutcome::Exited { code };
    ExitRecord { outcome, ..serde_json::from_str(some).unwrap() }
}

struct Fixture {
    driver: Driver,
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (state_dir, run_dir) = (folder.path().join("state"), folder.path().join("run"));
        let features = Features::assumed();
        let options = ControlOptions::with_features(state_dir.clone(), run_dir.clone(), features);
        let store = Store::open(&state_dir).unwrap();
        let exe = Arc::new(SealedExe::of_current().unwrap());
        let client = Client::new(options.registry.clone()).unwrap();
        let events = EventLog::open(&state_dir.join("events"));
        let layers = Layers::new(store.clone(), client.clone(), Arc::clone(&exe));
        let (own, told) = (Arc::clone(&exe), events.clone());
        let lazy = LazyMounts::new(&options, &run_dir, store.root(), INSTANCE, own, told);
        let images = Arc::new(Images::new(client, layers, lazy, events.clone()));
        let features = options.features;
        let (instance, expecting) = (Arc::from(INSTANCE), Arc::default());
        let bridges = Bridges::start(BridgesOptions {
            store: store.clone(),
            run_dir: run_dir.clone(),
            instance: Arc::clone(&instance),
            exe: Arc::clone(&exe),
            log_level: "warn".to_owned(),
            events: events.clone(),
        });
        let exits = super::exits::Exits::start(store.clone());
        let host =
            Host { store, images, exe, run_dir, instance, features, bridges, exits, expecting };
        let driver = Driver::new(Arc::new(host), events, CancellationToken::new());
        Self { driver, folder }
    }

    /// One turn of the loop.
    fn turn(&mut self) {
        self.driver.pass();
        self.driver.answer_waiters();
    }

    fn ask<T>(&mut self, request: impl FnOnce(Reply<T>) -> Request) -> Answer<T> {
        let (reply, answer) = oneshot::channel();
        self.driver.answer(request(reply));
        self.turn();
        Answer(answer)
    }

    async fn up(&mut self, project: &str) {
        let request = UpRequest {
            project: project.to_owned(),
            file: PathBuf::new(),
            // Nobody is there.
            text: "services: {web: {image: '127.0.0.1:1/web'}}".to_owned(),
            base_dir: PathBuf::from("/"),
            environment: BTreeMap::new(),
            services: Vec::new(),
            independent: Vec::new(),
            recreate: Vec::new(),
            sources: None,
        };
        self.ask(|reply| Request::Up(Box::new(request), reply)).come().await.unwrap();
    }

    /// A container of the only service of a project, which is being stopped for ever.
    fn holds(&mut self, project: &str) -> &mut Held {
        let id: container::ContainerId = format!("{project}-web-1-abcdef").parse().unwrap();
        let record = ContainerRecord::unknown(
            INSTANCE.to_owned(),
            project.parse().unwrap(),
            "web".parse().unwrap(),
            "127.0.0.1:1/web".parse().unwrap(),
            boot_id().ok(),
        );
        let mut held = Held::new(id.clone(), record);
        held.busy = Some(Operation::Stop);
        self.driver.containers.entry(ContainerKey::new(id.as_str())).or_insert(held)
    }

    fn inspect(&mut self, project: Option<&str>, name: &str) -> Answer<Vec<Value>> {
        let (project, names) = (project.map(str::to_owned), vec![name.to_owned()]);
        self.ask(|reply| Request::Inspect { project, names, reply })
    }
}

struct Answer<T>(oneshot::Receiver<Result<T, RequestError>>);

impl<T: std::fmt::Debug> Answer<T> {
    async fn come(self) -> Result<T, RequestError> {
        tokio::time::timeout(PATIENCE, self.0).await.expect("an answer").unwrap()
    }

    #[track_caller]
    fn is_awaited(&mut self) {
        assert!(matches!(self.0.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
    }

    async fn conflict(self) -> String {
        let error = self.come().await.unwrap_err();
        assert_eq!(error.kind, RequestErrorKind::Conflict, "{error}");
        error.message
    }
}

fn stop(project: &str) -> impl FnOnce(Reply<Vec<String>>) -> Request {
    let project = project.to_owned();
    move |reply| Request::Stop { project, options: StopOptions::default(), reply }
}

#[tokio::test]
async fn who_waits_for_an_end_is_told_who_started_the_service_meanwhile() {
    let mut fixture = Fixture::new();
    fixture.up("shop").await;
    fixture.holds("shop");

    let mut stopped = fixture.ask(stop("shop"));
    stopped.is_awaited();
    let (project, services) = ("shop".to_owned(), vec!["web".to_owned()]);
    let _started = fixture.ask(|reply| Request::Start { project, services, reply });
    let message = stopped.conflict().await;
    assert_eq!(message, "service `web` was started meanwhile by `start`");

    let mut removed = fixture.ask(|reply| Request::Down {
        project: "shop".to_owned(),
        options: StopOptions { services: vec!["web".to_owned()], grace: None },
        reply,
    });
    removed.is_awaited();
    fixture.up("shop").await;
    let message = removed.conflict().await;
    assert_eq!(message, "service `web` was started meanwhile by `up`");

    let (project, options) = ("shop".to_owned(), StopOptions::default());
    let mut down = fixture.ask(|reply| Request::Down { project, options, reply });
    down.is_awaited();
    fixture.up("shop").await;
    assert_eq!(down.conflict().await, "project `shop` was brought up meanwhile by `up`");
}

#[tokio::test]
async fn who_waits_for_a_host_that_goes_down_is_told_when_it_does_not() {
    let mut fixture = Fixture::new();
    fixture.up("shop").await;
    fixture.holds("shop");
    let mut down = fixture.ask(|reply| Request::HostShutdown { reply });
    down.is_awaited();
    fixture.ask(|reply| Request::HostResume { reply }).come().await.unwrap();
    assert!(down.conflict().await.contains("started again meanwhile"));
}

#[tokio::test]
async fn a_container_is_found_in_its_own_project_only() {
    let mut fixture = Fixture::new();
    for project in ["shop", "bank"] {
        fixture.up(project).await;
        fixture.holds(project);
    }
    fixture.turn();
    let found = fixture.inspect(Some("bank"), "bank-web-1-abcdef").come().await.unwrap();
    assert_eq!(found[0]["project"], "bank");
    assert!(fixture.inspect(None, "bank-web-1-abcdef").come().await.is_ok());
    let error = fixture.inspect(Some("shop"), "bank-web-1-abcdef").come().await.unwrap_err();
    assert_eq!(error.kind, RequestErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn what_is_in_a_secret_is_never_told() {
    let mut fixture = Fixture::new();
    fixture.up("shop").await;
    let id = fixture.holds("shop").id.clone();
    fixture.turn();
    let run_dir = fixture.driver.host.run_dir.clone();
    let rootfs = container::Rootfs {
        layers: vec![PathBuf::from("/layer")],
        writable: container::Writable::Volatile,
        read_only: false,
        legacy_mount: false,
    };
    let process = container::Process {
        args: vec!["web".to_owned()],
        env: Vec::new(),
        cwd: None,
        user: None,
        groups: Vec::new(),
        no_new_privileges: false,
        first: Default::default(),
        input: Default::default(),
    };
    let state_dir = fixture.folder.path().join("state");
    let mut launch = Launch::new(id, INSTANCE, run_dir, state_dir, rootfs, process);
    let text = Some("hunter2".to_owned());
    let content = container::Content { text, file: None, uid: 0, gid: 0, mode: 0o444 };
    let target = PathBuf::from("/run/secrets/password");
    launch.mounts.push(Mount { target, kind: MountKind::Content(content), read_only: true });
    let path = launch.paths().launch;
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, serde_json::to_vec(&launch).unwrap()).unwrap();

    let told = Value::from(fixture.inspect(None, "web").come().await.unwrap()).to_string();
    assert!(told.contains("/run/secrets/password") && told.contains("(7 bytes)"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
}

#[tokio::test]
async fn a_job_that_failed_before_its_connection_was_known_does_not_run_again_for_its_loss() {
    let mut fixture = Fixture::new();
    let exit = exited(1);
    let ended = fixture.holds("shop");
    ended.busy = None;
    ended.record.set_connections(Generations { main: Some(5), ..Generations::default() });
    ended.note_exit(exit.clone());
    // What is left of it when nobody has ended it in order.
    let session = fixture.driver.host.run_dir.join("lazy/session");
    std::fs::create_dir_all(session.parent().unwrap()).unwrap();
    std::fs::write(&session, "").unwrap();
    let lost = Generations { main: Some(6), ..Generations::default() };
    let clock = fixture.driver.clock.clone();
    let content = |fixture: &Fixture| {
        let held = fixture.driver.containers.values().next().unwrap();
        held.observed(&clock, lost).content
    };
    fixture.driver.connection_changed();
    assert_eq!(content(&fixture), Content::Lost, "nobody knows whether it had it");
    fixture.driver.host.images.lazy.set_generation(Side::Main, 5);
    fixture.driver.connection_changed();
    fixture.driver.host.images.lazy.set_generation(Side::Main, 6);
    fixture.driver.connection_changed();
    assert_eq!(content(&fixture), Content::Usable);

    let mut fixture = Fixture::new();
    let ended = fixture.holds("shop");
    ended.busy = None;
    ended.record.set_connections(Generations { main: Some(5), ..Generations::default() });
    ended.note_exit(exit);
    fixture.driver.connection_changed();
    assert_eq!(content(&fixture), Content::Usable, "it was taken down after the last user");
}

#[tokio::test]
async fn a_job_that_may_have_run_before_a_power_cut_does_not_run_again() {
    let mut fixture = Fixture::new();
    fixture.up("shop").await;
    let web = "web".parse().unwrap();
    let ended = fixture.holds("shop");
    ended.busy = None;
    ended.record.request = 1;
    let (id, kept) = (ended.id.clone(), ended.record.clone());
    let host = Arc::clone(&fixture.driver.host);
    host.store.container_dir(id.as_str()).unwrap();
    record::save(&host.container_record(&id), &kept).unwrap();
    let (project, services) = ("shop".to_owned(), vec!["web".to_owned()]);
    let _started = fixture.ask(|reply| Request::Start { project, services, reply });

    let path = project::record_path(host.store.root(), "shop");
    let asked = host.store.load::<ProjectRecord>(&path).unwrap().unwrap();
    assert_eq!(asked.requests[&web], 2);
    // The next control of this boot does what was asked for.
    fixture.driver.projects.clear();
    fixture.driver.find_what_is_there().await;
    let found = fixture.driver.projects.values_mut().next().unwrap();
    assert_eq!(found.records[&web].request, 2);
    // What holds in any boot is the same for whoever asks once more.
    found.want_now(&web, &Default::default());
    assert_eq!((found.record.in_boot[&web].request, found.record.in_boot[&web].before), (3, 1));

    // Of another boot, it finds the request and not whether it was served: it is none, and the next one is.
    let mut cut = asked;
    cut.in_boot.get_mut(&web).unwrap().boot = "another".to_owned();
    record::save(&path, &cut).unwrap();
    fixture.driver.projects.clear();
    fixture.driver.find_what_is_there().await;
    let found = fixture.driver.projects.values_mut().next().unwrap();
    assert_eq!(found.records[&web].request, 1);
    found.want(&web, &Default::default(), super::service_wish::Asker::Up);
    assert_eq!(found.record.requests[&web], 2);
    assert!(found.record.in_boot.is_empty());

    // Or it finds that it was served, and not the request.
    record::save(&host.container_record(&id), &ContainerRecord { request: 3, ..kept }).unwrap();
    fixture.driver.projects.clear();
    fixture.driver.find_what_is_there().await;
    let projects = &fixture.driver.projects;
    assert_eq!(projects.values().next().unwrap().records[&web].request, 3);
}

#[tokio::test]
async fn services_without_lazy_layers_are_listed_while_lazy_mounts_hang() {
    let mut fixture = Fixture::new();
    fixture.up("shop").await;
    let images = Arc::clone(&fixture.driver.host.images);
    let _hangs = images.lazy.hold().await;
    let listed: Vec<ServiceReport> =
        fixture.ask(|reply| Request::Services { project: None, reply }).come().await.unwrap();
    assert_eq!(listed.len(), 1);
}

#[tokio::test]
async fn a_connection_is_freed_while_its_keeper_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let (state_dir, run_dir) = (folder.path().join("state"), folder.path().join("run"));
    let options = ControlOptions::with_features(state_dir, run_dir, Features::assumed());
    let control = Control::start(options).unwrap();
    let handle = control.handle();
    let hangs = handle.images.lazy.hold().await;
    tokio::time::timeout(PATIENCE, handle.free_lazy("shop")).await.expect("an end").unwrap();
    drop(hangs);
    control.stop().await;
}

#[tokio::test]
async fn whatever_else_runs_or_may_uses_the_connection_too() {
    let mut fixture = Fixture::new();
    fixture.up("shop").await;
    let others = async |fixture: &mut Fixture, project: &str| {
        let project = project.to_owned();
        fixture.ask(|reply| Request::OthersRun { project, reply }).come().await.unwrap()
    };
    assert!(!others(&mut fixture, "bank").await);
    fixture.holds("shop");
    assert!(others(&mut fixture, "bank").await);
    assert!(!others(&mut fixture, "shop").await);

    assert_eq!(Users::of(false, Ok(Vec::new())), Users::OnlyThis);
    assert_eq!(Users::of(true, Ok(Vec::new())), Users::Others);
    assert_eq!(Users::of(false, Ok(vec![PathBuf::from("/mnt")])), Users::Others);
    assert_eq!(Users::of(false, Err(std::io::ErrorKind::Other.into())), Users::Others);
}

#[tokio::test]
async fn slots_are_given_up_after_a_mount_and_nobody_queues_behind_it() {
    let fixture = Fixture::new();
    let images = Arc::clone(&fixture.driver.host.images);
    let mounting = images.mounting.read().await;
    let releasing = images.release_unneeded(|| unreachable!("somebody mounts"));
    tokio::time::timeout(PATIENCE, releasing).await.expect("it does not wait");
    assert!(images.mounting.try_read().is_ok(), "others mount meanwhile");
    drop(mounting);
    // Later, and once.
    assert!(images.release_due.load(std::sync::atomic::Ordering::Acquire));
    fixture.driver.release_due_slots();
    assert!(!images.release_due.load(std::sync::atomic::Ordering::Acquire));
}

#[tokio::test]
async fn what_a_project_or_container_wants_is_unknown_while_its_record_cannot_be_read() {
    let mut fixture = Fixture::new();
    fixture.up("shop").await;
    assert_eq!(fixture.driver.images_wanted().unknown, None);
    let store = fixture.driver.host.store.clone();
    let path = project::record_path(store.root(), "shop");
    for path in [path.clone(), path.with_extension("prev")] {
        std::fs::write(path, b"damaged").unwrap();
    }
    // Also when what was damaged has been set aside.
    for _ in 0..2 {
        fixture.driver.projects.clear();
        fixture.driver.find_what_is_there().await;
        assert!(fixture.driver.projects.is_empty());
        let unknown = fixture.driver.images_wanted().unknown.unwrap();
        assert!(unknown.contains("project `shop`"), "{unknown}");
    }
    fixture.up("shop").await;
    assert_eq!(fixture.driver.images_wanted().unknown, None);

    let images = Arc::clone(&fixture.driver.host.images);
    assert!(images.of_containers().unwrap().is_empty());
    let folder = store.container_dir("shop-web-1-abc").unwrap();
    std::fs::write(folder.join(".tmp-record"), b"in the making").unwrap();
    assert!(images.of_containers().unwrap().is_empty(), "nobody has it yet");
    for name in ["container", "container.prev"] {
        std::fs::write(folder.join(name), b"damaged").unwrap();
    }
    for _ in 0..2 {
        let unknown = images.of_containers().unwrap_err();
        assert!(unknown.contains("container `shop-web-1-abc`"), "{unknown}");
    }
}

#[tokio::test]
async fn a_run_of_an_earlier_control_that_has_ended_is_there_until_who_asked_for_it_asks_again() {
    let mut fixture = Fixture::new();
    let host = Arc::clone(&fixture.driver.host);
    let found = async |fixture: &mut Fixture, key: Option<&str>| {
        let id: container::ContainerId = "shop-job-run-1-abcdef".parse().unwrap();
        let (project, service) = ("shop".parse().unwrap(), "job".parse().unwrap());
        let (image, boot) = ("example.com/job:1".parse().unwrap(), boot_id().ok());
        let mut record =
            ContainerRecord::unknown(INSTANCE.to_owned(), project, service, image, boot);
        record.exit = Some(exited(0));
        let idempotency_key = key.map(str::to_owned);
        record.one_off = Some(OneOff { remove: true, streams: None, idempotency_key });
        host.store.container_dir(id.as_str()).unwrap();
        record::save(&host.container_record(&id), &record).unwrap();
        fixture.driver.containers.clear();
        fixture.driver.find_what_is_there().await;
        fixture.driver.look_after_runs();
        ContainerKey::new(id.as_str())
    };
    let key = found(&mut fixture, Some("key")).await;
    assert_eq!(fixture.driver.containers[&key].busy, None, "somebody may ask for it");
    let end = {
        let (reply, end) = oneshot::channel();
        fixture.driver.wait_run("shop", key.to_string(), reply);
        end.await.unwrap().unwrap()
    };
    assert_eq!(end.code, Some(0));
    fixture.driver.look_after_runs();
    assert_eq!(fixture.driver.containers[&key].busy, Some(Operation::Remove));
    found(&mut fixture, None).await;
    assert_eq!(fixture.driver.containers[&key].busy, Some(Operation::Remove), "nobody can");
}
