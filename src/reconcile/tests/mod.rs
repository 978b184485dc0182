//! Single situations in words, then the laws over random hosts, goals and faults.

mod changes;
mod depend;
mod properties;
mod wishes;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::simulator::{Host, Outcome};
use super::*;
use crate::image::{Digest, ImageRef};
use crate::spec::{Desired, ParseInput, ProjectChoice, ProjectName};

type Goals = BTreeMap<ProjectName, Goal>;

fn desired(project: &str, services: &str) -> Desired {
    let environment = BTreeMap::new();
    let input = ParseInput {
        file: "services.yaml",
        project: project.parse().unwrap(),
        project_choice: ProjectChoice::Explicit,
        base_dir: Path::new("/"),
        environment: &environment,
    };
    crate::spec::parse(&format!("services: {services}"), &input).unwrap()
}

fn up(services: &str) -> Goals {
    BTreeMap::from([("p".parse().unwrap(), Goal::Up(desired("p", services).into()))])
}

/// A project of which nothing is known but its containers.
fn nothing() -> Arc<Desired> {
    let services = BTreeMap::new();
    Arc::new(Desired { project: "p".parse().unwrap(), services })
}

fn goal(goal: Goal) -> Goals {
    BTreeMap::from([("p".parse().unwrap(), goal)])
}

fn image(name: &str) -> ImageRef {
    name.parse().unwrap()
}

fn host() -> Host {
    let observed = Observed {
        instance: "ours".into(),
        images: BTreeMap::new(),
        containers: BTreeMap::new(),
        records: BTreeMap::new(),
    };
    let registry = ["i", "j"].map(|name| (image(name), Digest::of(name.as_bytes())));
    Host::new(observed, registry.into())
}

fn key(service: &str) -> ServiceKey {
    ServiceKey { project: "p".parse().unwrap(), service: service.parse().unwrap() }
}

/// Plans and applies without faults until there is nothing to do now.
fn run(host: &mut Host, goals: &Goals) {
    host.know(goals);
    for _ in 0..10 {
        let plan = host.plan(goals);
        if plan.is_empty() {
            return;
        }
        host.apply(&plan, |_| false);
    }
    panic!("no end: {}", host.plan(goals));
}

/// A host on which `goals` hold.
fn running(goals: &Goals) -> Host {
    let mut host = host();
    run(&mut host, goals);
    host
}

fn only(host: &Host) -> ContainerKey {
    let keys = host.keys(|_| true);
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys.into_iter().next().unwrap()
}

fn phase(host: &Host, goals: &Goals, service: &str) -> String {
    host.plan(goals).services[&key(service)].phase.render(host.now)
}

/// The steps with their causes, one a line, with container ids as they are.
fn steps(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|step| format!("{}: {}", step.action, step.cause)).collect()
}

#[test]
fn a_service_is_pulled_then_created_and_started_and_then_left_alone() {
    let goals = up("{web: {image: i}, api: {image: i}}");
    let mut host = host();
    let first = host.plan(&goals);
    insta::assert_snapshot!(first);
    host.apply(&first, |_| false);
    let second = host.plan(&goals);
    insta::assert_snapshot!(second);
    host.apply(&second, |_| false);
    let third = host.plan(&goals);
    assert!(third.is_empty() && third.wake_at.is_none(), "{third}");
    assert_eq!(phase(&host, &goals, "web"), "running");
}

#[test]
fn a_changed_service_is_recreated_in_order_and_the_others_are_not_touched() {
    let mut host = running(&up("{web: {image: i}, api: {image: i}, old: {image: i}}"));
    let goals =
        up("{web: {image: i, environment: {A: 1}, user: x}, api: {image: i}, new: {image: i}}");
    let plan = host.plan(&goals);
    insta::assert_snapshot!(plan);
    let stop_old = plan.steps.iter().position(|s| s.cause == Cause::ServiceRemoved).unwrap();
    for step in &plan.steps {
        if matches!(step.action, Action::Create { .. } | Action::Start { .. }) {
            assert_eq!(step.after, [stop_old], "a renamed service waits for its old self");
        }
    }
    host.apply(&plan, |_| false);
    assert!(host.plan(&goals).is_empty());
}

#[test]
fn the_old_container_runs_until_the_new_image_is_here() {
    let mut host = running(&up("{web: {image: i}}"));
    let goals = up("{web: {image: j}}");
    let plan = host.plan(&goals);
    assert_eq!(steps(&plan), ["pull docker.io/library/j:latest for p/web: the image is not here"]);
    let status = &plan.services[&key("web")];
    assert!(matches!(status.phase, Phase::Running { .. }));
    assert_eq!(status.pending, Some(Cause::FieldsChanged(vec!["image".into()])));
    // While it waits, the old one is still kept running by its policy.
    host.apply(&plan, |_| true);
    let old = only(&host);
    assert!(host.plan(&goals).is_empty() && host.plan(&goals).wake_at.is_some());
    host.now += LONGEST_DELAY;
    run(&mut host, &goals);
    assert_ne!(only(&host), old);
}

#[test]
fn an_image_that_the_user_pulled_again_recreates_and_a_default_does_not() {
    let goals = up("{web: {image: i}}");
    let mut host = running(&goals);
    let manifest = Digest::of(b"newer");
    host.observed.images.insert(image("i"), ImageState::Pulling { percent: None });
    assert!(host.plan(&goals).is_empty(), "a pull under way touches nothing");
    host.observed.images.insert(image("i"), ImageState::Ready { manifest });
    let plan = host.plan(&goals);
    assert!(
        matches!(plan.steps[0].cause, Cause::ImageChanged { to, .. } if to == manifest),
        "{plan}"
    );
    host.apply(&plan, |_| false);
    assert!(host.plan(&goals).is_empty());
    host.observed.images.clear();
    assert!(host.plan(&goals).is_empty(), "what runs needs no image record");
}

#[test]
fn a_crashed_container_is_started_again_in_place_with_growing_delays() {
    let goals = up("{web: {image: i, restart: always}}");
    let mut host = running(&goals);
    let container = only(&host);
    for (streak, full) in [(1, 1_000), (2, 2_000), (3, 4_000), (4, 8_000)] {
        host.exit(&container, ExitStatus::Code(1));
        let plan = host.plan(&goals);
        assert!(plan.is_empty(), "{plan}");
        let delay = plan.wake_at.unwrap() - host.now;
        assert!((full * 4 / 5..=full).contains(&delay), "{delay}");
        let begin = if streak < CRASH_LOOP { "backing off (" } else { "crash-looping (" };
        assert!(phase(&host, &goals, "web").starts_with(begin), "{streak}");
        host.now = plan.wake_at.unwrap();
        let plan = host.plan(&goals);
        assert_eq!(steps(&plan), [format!("start p/web (container {container}): it exited (1)")]);
        host.apply(&plan, |_| false);
        assert_eq!(host.container(&container).run, Run { request: 0, restarts: streak, streak });
    }
    host.now += HEALTHY_RUN;
    host.exit(&container, ExitStatus::Code(0));
    let delay = host.plan(&goals).wake_at.unwrap() - host.now;
    assert!(delay <= 1_000, "a healthy run ends the row: {delay}");
}

#[test]
fn a_job_runs_once_for_each_request() {
    let goals = up("{job: {image: i}}");
    let mut host = running(&goals);
    let container = only(&host);
    host.exit(&container, ExitStatus::Code(0));
    assert!(host.plan(&goals).is_empty());
    assert_eq!(phase(&host, &goals, "job"), "exited (0)");
    host.observed.records.entry(key("job")).or_default().request += 1;
    let plan = host.plan(&goals);
    assert_eq!(steps(&plan), [format!("start p/job (container {container}): asked for")]);
    host.apply(&plan, |_| false);
    host.exit(&container, ExitStatus::Code(3));
    assert!(host.plan(&goals).is_empty());
    assert_eq!(phase(&host, &goals, "job"), "exited (3)");
}

#[test]
fn a_new_container_that_is_asked_for_is_made_once() {
    let goals = up("{web: {image: i}, job: {image: i}}");
    let mut host = running(&goals);
    let of_job = |host: &Host| host.keys(|c| c.service == key("job")).pop_first().unwrap();
    let job = of_job(&host);
    host.exit(&job, ExitStatus::Code(0));
    for service in ["web", "job"] {
        let record = host.observed.records.entry(key(service)).or_default();
        record.request += 1;
        record.recreate = record.request;
    }
    run(&mut host, &goals);
    assert_ne!(of_job(&host), job);
    assert!(host.plan(&goals).is_empty());
}

#[test]
fn a_limit_of_restarts_holds_until_the_user_asks_again() {
    let goals = up("{web: {image: i, restart: 'on-failure:2'}}");
    let mut host = running(&goals);
    let container = only(&host);
    for _ in 0..2 {
        host.exit(&container, ExitStatus::Code(1));
        host.now += LONGEST_DELAY;
        run(&mut host, &goals);
    }
    host.exit(&container, ExitStatus::Code(1));
    let plan = host.plan(&goals);
    assert!(plan.is_empty() && plan.wake_at.is_none());
    assert_eq!(phase(&host, &goals, "web"), "exited (1) after 2 restarts");
    host.observed.records.entry(key("web")).or_default().request += 1;
    run(&mut host, &goals);
    assert_eq!(host.container(&container).run, Run { request: 1, restarts: 0, streak: 0 });
}

#[test]
fn a_manual_stop_holds_and_keeps_the_container() {
    let goals = up("{web: {image: i, restart: always}}");
    let mut host = running(&goals);
    let container = only(&host);
    host.observed.records.entry(key("web")).or_default().stopped = Some(ManualStop::Keep);
    run(&mut host, &goals);
    assert_eq!(only(&host), container);
    assert_eq!(phase(&host, &goals, "web"), "stopped (manual)");
    assert!(host.plan(&goals).wake_at.is_none());
    let record = host.observed.records.get_mut(&key("web")).unwrap();
    *record = ServiceRecord { request: record.request + 1, ..ServiceRecord::default() };
    run(&mut host, &goals);
    assert_eq!(only(&host), container);
    assert_eq!(phase(&host, &goals, "web"), "running");
}

#[test]
fn a_project_is_stopped_with_its_containers_kept_and_taken_down_without() {
    let mut host = running(&up("{web: {image: i}, api: {image: j}}"));
    run(&mut host, &goal(Goal::Stop(nothing())));
    assert_eq!(host.keys(|c| matches!(c.state, ContainerState::Exited(_))).len(), 2);
    assert_eq!(phase(&host, &goal(Goal::Stop(nothing())), "web"), "stopped (manual)");
    run(&mut host, &goal(Goal::Down(nothing())));
    assert!(host.keys(|_| true).is_empty());
    assert!(host.plan(&goal(Goal::Down(nothing()))).services.is_empty());
}

#[test]
fn a_dead_monitor_is_replaced_and_stands_in_before_a_stop() {
    let goals = up("{web: {image: i}}");
    let mut host = running(&goals);
    let container = only(&host);
    host.container(&container).monitor = Monitor::Lost;
    let plan = host.plan(&goals);
    assert_eq!(steps(&plan), [format!("adopt p/web (container {container}): its monitor died")]);
    let down = host.plan(&goal(Goal::Down(nothing())));
    assert!(matches!(down.steps[0].action, Action::AdoptMonitor { .. }));
    assert_eq!((&down.steps[1].requires, &down.steps[2].requires), (&vec![0], &vec![1]));
    host.apply(&plan, |_| true);
    let plan = host.plan(&goals);
    assert!(plan.is_empty() && plan.wake_at.is_some(), "a failed adoption waits: {plan}");
    host.container(&container).monitor = Monitor::Adopting;
    assert!(host.plan(&goals).is_empty());
    assert!(host.plan(&goal(Goal::Down(nothing()))).is_empty());
}

#[test]
fn nothing_starts_after_a_failed_stop_until_a_later_stop_succeeds() {
    let mut host = running(&up("{web: {image: i}}"));
    let goals = up("{web: {image: i, user: x}}");
    let plan = host.plan(&goals);
    let outcomes = host.apply(&plan, |action| matches!(action, Action::Stop { .. }));
    assert_eq!(outcomes, [Outcome::Failed, Outcome::Skipped, Outcome::Skipped, Outcome::Skipped]);
    let plan = host.plan(&goals);
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(phase(&host, &goals, "web"), "failed, retry in 1 s: stop: injected");
    assert!(
        host.plan(&up("{web: {image: i}}")).is_empty(),
        "wanted again as it is, it is simply running"
    );
    host.now = plan.wake_at.unwrap();
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "running");
}

#[test]
fn a_failed_creation_waits_unless_something_changed() {
    let goals = up("{web: {image: i}}");
    let mut host = host();
    host.apply(&host.plan(&goals), |_| false);
    host.apply(&host.plan(&goals), |action| matches!(action, Action::Create { .. }));
    let plan = host.plan(&goals);
    assert!(plan.is_empty() && plan.wake_at.is_some());
    assert_eq!(phase(&host, &goals, "web"), "failed, retry in 1 s: create: injected");
    assert!(!host.plan(&up("{web: {image: i, user: x}}")).is_empty());
    host.now = plan.wake_at.unwrap();
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "running");
}

#[test]
fn a_start_that_the_host_failed_is_tried_again_whatever_the_policy() {
    let goals = up("{job: {image: i}}");
    let mut host = host();
    host.apply(&host.plan(&goals), |_| false);
    host.apply(&host.plan(&goals), |action| matches!(action, Action::Start { .. }));
    assert_eq!(phase(&host, &goals, "job"), "failed, retry in 1 s: start: injected");
    host.now = host.plan(&goals).wake_at.unwrap();
    let plan = host.plan(&goals);
    assert_eq!(plan.steps[0].cause, Cause::Retry(Operation::Start, 1));
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "job"), "running");
}

#[test]
fn a_command_that_does_not_exist_is_an_exit_under_the_policy() {
    let goals = up("{job: {image: i}}");
    let mut host = running(&goals);
    let container = only(&host);
    let reason = "`nope` not found in PATH".to_owned();
    host.exit(&container, ExitStatus::NotStarted { code: 127, reason });
    assert!(host.plan(&goals).is_empty());
    assert_eq!(phase(&host, &goals, "job"), "failed (127): `nope` not found in PATH");
}

#[test]
fn a_registry_that_is_away_is_asked_again_with_growing_delays() {
    let goals = up("{web: {image: i}}");
    let mut host = host();
    for full in [1_000, 2_000, 4_000] {
        let plan = host.plan(&goals);
        host.apply(&plan, |_| true);
        let plan = host.plan(&goals);
        assert!(plan.is_empty());
        assert!(phase(&host, &goals, "web").starts_with("waiting for registry, retry in"));
        let delay = plan.wake_at.unwrap() - host.now;
        assert!((full * 4 / 5..=full).contains(&delay), "{delay}");
        host.now = plan.wake_at.unwrap();
    }
    let failure = Failure { reason: "not found".into(), at: host.now, attempts: 1 };
    let state = ImageState::Failed { failure, fault: PullFault::Refused };
    host.observed.images.insert(image("i"), state);
    assert_eq!(host.plan(&goals).wake_at, Some(host.now + LONGEST_DELAY));
    assert_eq!(phase(&host, &goals, "web"), "failed, retry in 60 s: not found");
}

#[test]
fn a_container_that_lost_its_content_is_started_again_and_that_counts_as_no_crash() {
    let goals = up("{web: {image: i}}");
    let mut host = running(&goals);
    let key = host.keys(|_| true).pop_first().unwrap();
    host.container(&key).content = Content::Lost;
    let plan = host.plan(&goals);
    assert_eq!(plan.steps.len(), 2, "{plan}");
    assert!(plan.steps.iter().all(|step| step.cause == Cause::ContentLost), "{plan}");
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "running");
    assert_eq!(host.container(&key).run.restarts, 0);

    // It failed of that before anybody looked, and its policy is never to start it again.
    host.exit(&key, ExitStatus::Code(3));
    host.container(&key).content = Content::Lost;
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "running");
    assert_eq!((host.container(&key).run.restarts, host.container(&key).run.streak), (0, 0));
}

#[test]
fn after_the_hosts_end_what_lost_its_files_is_recreated_and_jobs_stay_done() {
    let goals = up("{web: {image: i, restart: always}, job: {image: i}}");
    let mut host = running(&goals);
    for key in host.keys(|_| true) {
        host.exit(&key, ExitStatus::Unknown);
        host.container(&key).writable = WritableLayer::Lost;
        let ContainerState::Exited(exit) = &mut host.container(&key).state else { panic!() };
        exit.at = 0;
    }
    host.now = 5_000;
    let plan = host.plan(&goals);
    assert_eq!(plan.steps[0].cause, Cause::WritableLayerLost, "{plan}");
    assert!(plan.steps.iter().all(|step| step.action.service() == Some(&key("web"))), "{plan}");
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "running");
    assert_eq!(phase(&host, &goals, "job"), "exited (unknown)");
}
