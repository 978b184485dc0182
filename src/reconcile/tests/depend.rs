//! `depends_on` and health in single situations.

use super::*;

fn on(condition: &str, more: &str) -> String {
    format!(
        "{{web: {{image: i, depends_on: {{db: {{condition: {condition}{more}}}}}}}, \
         db: {{image: i, healthcheck: {{test: x}}}}}}"
    )
}

fn healthy(more: &str) -> Goals {
    up(&on("service_healthy", more))
}

/// The container of a service.
fn of(host: &Host, service: &str) -> ContainerKey {
    let keys = host.keys(|c| c.service == key(service));
    assert_eq!(keys.len(), 1, "{service}: {keys:?}");
    keys.into_iter().next().unwrap()
}

/// Plans, applies and lets checks succeed until nothing changes.
fn settle(host: &mut Host, goals: &Goals) {
    run(host, goals);
    while host.tick() {
        run(host, goals);
    }
}

/// A host on which `goals` hold and every check has succeeded.
fn settled(goals: &Goals) -> Host {
    let mut host = host();
    settle(&mut host, goals);
    host
}

fn unhealthy(host: &mut Host, service: &str, was_healthy_since: Option<Millis>) {
    let (key, since) = (of(host, service), host.now);
    host.container(&key).health =
        Health::Unhealthy(Unhealthy { since, was_healthy_since, reason: "exit 1".into() });
}

fn order(plan: &Plan) -> Vec<String> {
    let word = |action: &Action| match action {
        Action::Stop { .. } => "stop",
        Action::Remove { .. } => "remove",
        Action::Create { .. } => "create",
        Action::Start { .. } => "start",
        Action::AdoptMonitor { .. } => "adopt",
        Action::Pull { .. } => "pull",
    };
    let step = |step: &Step| {
        let service = step.action.service().map_or(String::new(), |key| key.service.to_string());
        format!("{} {service}", word(&step.action))
    };
    plan.steps.iter().map(step).collect()
}

#[test]
fn a_service_starts_when_the_one_before_it_is_healthy() {
    let goals = healthy("");
    let mut host = host();
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "db"), "starting");
    assert_eq!(phase(&host, &goals, "web"), "blocked on db (not healthy yet)");
    let plan = host.plan(&goals);
    let later =
        "later, when db is ready (not healthy yet): create and start p/web: it has no container";
    assert_eq!(plan.to_string().trim(), later);
    assert!(host.tick());
    assert_eq!(order(&host.plan(&goals)), ["create web", "start web"]);
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "db"), "healthy");
    assert_eq!(phase(&host, &goals, "web"), "running");
}

#[test]
fn a_pull_waits_for_nobody() {
    let goals = up("{web: {image: j, depends_on: [db]}, db: {image: i}}");
    let plan = host().plan(&goals);
    assert_eq!(plan.steps.len(), 2, "{plan}");
    assert!(plan.steps.iter().all(|step| matches!(step.action, Action::Pull { .. })), "{plan}");
}

#[test]
fn a_job_comes_to_its_end_before_what_needs_it_and_its_failure_is_told_at_once() {
    let goals = up(&on("service_completed_successfully", ""));
    let mut host = host();
    host.apply(&host.plan(&goals), |_| false);
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "blocked on db (running)");
    let db = of(&host, "db");
    host.exit(&db, ExitStatus::Code(3));
    assert!(host.plan(&goals).is_empty());
    assert_eq!(phase(&host, &goals, "web"), "failed: `db` exited (3)");
    host.observed.records.entry(key("db")).or_default().request += 1;
    run(&mut host, &goals);
    host.exit(&db, ExitStatus::Code(0));
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "running");
}

#[test]
fn one_that_is_not_required_is_waited_for_while_there_is_hope() {
    let goals = healthy(", required: false");
    let mut host = host();
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "blocked on db (not healthy yet)");
    unhealthy(&mut host, "db", None);
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "running");
    assert_eq!(phase(&host, &goals, "db"), "degraded: exit 1");
}

#[test]
fn what_was_never_healthy_or_has_no_checks_fails_those_that_wait_and_is_not_looped() {
    let goals = healthy("");
    let mut host = host();
    run(&mut host, &goals);
    unhealthy(&mut host, "db", None);
    host.now += 3_600_000;
    let plan = host.plan(&goals);
    assert!(plan.is_empty() && plan.wake_at.is_none(), "{plan}");
    assert_eq!(phase(&host, &goals, "web"), "failed: `db` is unhealthy: exit 1");
    let db = of(&host, "db");
    host.container(&db).health = Health::Unchecked;
    let reason = "failed: `db` has no health check, so it never becomes healthy";
    assert_eq!(phase(&host, &goals, "web"), reason);
    host.container(&db).health = Health::Healthy;
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "running");
}

#[test]
fn one_that_was_stopped_by_hand_is_waited_for_by_nobody() {
    let goals = up("{web: {image: i, depends_on: [db]}, db: {image: i}}");
    let mut host = host();
    host.observed.records.entry(key("db")).or_default().stopped = Some(ManualStop::Keep);
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "failed: `db` is stopped (manual)");
    host.observed.records.entry(key("db")).or_default().stopped = None;
    settle(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "running");
}

#[test]
fn conditions_hold_after_a_crash_and_after_the_end_of_the_host() {
    let text = "{web: {image: i, restart: always, depends_on: {db: {condition: service_healthy}}}, \
         db: {image: i, restart: always, healthcheck: {test: x}}}";
    let goals = up(text);
    let mut host = settled(&goals);
    for service in ["db", "web"] {
        let container = of(&host, service);
        host.exit(&container, ExitStatus::Unknown);
    }
    host.now += LONGEST_DELAY;
    assert_eq!(order(&host.plan(&goals)), ["start db"]);
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "blocked on db (not healthy yet)");
    host.tick();
    assert_eq!(order(&host.plan(&goals)), ["start web"]);
    // What runs goes on while the other one is down.
    run(&mut host, &goals);
    let db = of(&host, "db");
    host.exit(&db, ExitStatus::Code(1));
    assert!(host.plan(&goals).is_empty());
    assert_eq!(phase(&host, &goals, "web"), "running");
}

#[test]
fn what_is_changed_together_ends_in_reverse_and_begins_in_order() {
    let mut host = settled(&healthy(""));
    let goals = up("{web: {image: i, user: x, depends_on: {db: {condition: service_healthy}}}, \
        db: {image: i, user: x, healthcheck: {test: x}}}");
    host.know(&goals);
    let plan = host.plan(&goals);
    assert_eq!(order(&plan), ["stop web", "stop db", "remove db", "create db", "start db"]);
    assert_eq!(plan.steps[1].after, [0]);
    // The first stop is under way when the next plan is made.
    let web = of(&host, "web");
    let before = host.container(&web).state.clone();
    host.container(&web).state = ContainerState::Busy(Operation::Stop);
    assert!(host.plan(&goals).is_empty(), "{}", host.plan(&goals));
    host.container(&web).state = before;
    host.apply(&plan, |_| false);
    assert_eq!(phase(&host, &goals, "web"), "blocked on db (not healthy yet)");
    settle(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "running");
}

#[test]
fn what_runs_is_replaced_only_when_its_successor_could_start() {
    let mut host = settled(&healthy(""));
    unhealthy(&mut host, "db", None);
    let goals = up("{web: {image: i, user: x, depends_on: {db: {condition: service_healthy}}}, \
        db: {image: i, healthcheck: {test: x}}}");
    let plan = host.plan(&goals);
    assert!(plan.is_empty(), "{plan}");
    let status = &plan.services[&key("web")];
    assert_eq!(status.pending, Some(Cause::FieldsChanged(vec!["user".into()])));
    assert!(matches!(status.phase, Phase::Running { .. }));
}

#[test]
fn ends_of_a_project_are_in_reverse_whatever_the_names() {
    let goals =
        up("{a: {image: i, depends_on: [b]}, b: {image: i, depends_on: [c]}, c: {image: i}}");
    let mut host = settled(&goals);
    let described = described(&goals);
    let stop = goal(Goal::Stop(Arc::clone(&described)));
    let plan = host.plan(&stop);
    assert_eq!(order(&plan), ["stop a", "stop b", "stop c"]);
    assert_eq!((&plan.steps[1].after, &plan.steps[2].after), (&vec![0], &vec![1]));
    let down = host.plan(&goal(Goal::Down(Arc::clone(&described))));
    assert_eq!(order(&down)[..3], ["stop a", "stop b", "stop c"]);
    let a = of(&host, "a");
    host.container(&a).state = ContainerState::Busy(Operation::Stop);
    assert!(host.plan(&stop).is_empty(), "b waits for a, and c for b");
}

#[test]
fn one_that_is_restarted_with_another_follows_every_new_run_of_it_once() {
    let goals =
        up("{web: {image: i, depends_on: {db: {condition: service_healthy, restart: true}}}, \
        db: {image: i, restart: always, healthcheck: {test: x}}}");
    let mut host = settled(&goals);
    let (web, db) = (of(&host, "web"), of(&host, "db"));
    host.exit(&db, ExitStatus::Code(1));
    host.now += LONGEST_DELAY;
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "running", "not before the other one is ready");
    host.tick();
    let plan = host.plan(&goals);
    assert_eq!(order(&plan), ["stop web", "start web"]);
    assert_eq!(plan.steps[0].cause, Cause::DependencyRestarted("db".parse().unwrap()));
    // Control dies between the two.
    let mut half = plan;
    half.steps.truncate(1);
    host.apply(&half, |_| false);
    assert_eq!(order(&host.plan(&goals)), ["start web"]);
    run(&mut host, &goals);
    assert_eq!((of(&host, "web"), host.container(&web).run.restarts), (web, 0));
    assert!(host.plan(&goals).is_empty());
}

#[test]
fn what_becomes_unhealthy_is_restarted_with_growing_delays_whatever_its_policy() {
    let goals = up("{db: {image: i, healthcheck: {test: x}}}");
    let mut host = settled(&goals);
    let db = of(&host, "db");
    for (streak, full) in [(1, 1_000), (2, 2_000), (3, 4_000)] {
        let since = host.now;
        unhealthy(&mut host, "db", Some(since - 59_000));
        let plan = host.plan(&goals);
        assert!(plan.is_empty(), "{plan}");
        assert!(phase(&host, &goals, "db").starts_with("unhealthy, restarting in"));
        let delay = plan.wake_at.unwrap() - host.now;
        assert!((full * 4 / 5..=full).contains(&delay), "{delay}");
        host.now = plan.wake_at.unwrap();
        let mut plan = host.plan(&goals);
        assert_eq!(order(&plan), ["stop db", "start db"]);
        plan.steps.truncate(1);
        host.apply(&plan, |_| false);
        settle(&mut host, &goals);
        assert_eq!(host.container(&db).run, Run { request: 0, restarts: streak, streak });
    }
    let since = host.now;
    unhealthy(&mut host, "db", Some(since - 60_000));
    assert!(host.plan(&goals).wake_at.unwrap() - host.now <= 1_000, "it was well for a minute");
}

#[test]
fn what_happens_to_the_unhealthy_is_for_the_file_to_say() {
    let text = |action: &str| {
        up(&format!(
            "{{db: {{image: i, restart: always, healthcheck: {{test: x}}, \
             x-supervisor: {{on_unhealthy: {action}}}}}}}"
        ))
    };
    let mut host = settled(&text("none"));
    unhealthy(&mut host, "db", Some(0));
    assert!(host.plan(&text("none")).is_empty());
    assert_eq!(phase(&host, &text("none"), "db"), "degraded: exit 1");
    run(&mut host, &text("stop"));
    assert_eq!(phase(&host, &text("stop"), "db"), "stopped (unhealthy)");
    assert!(host.plan(&text("stop")).wake_at.is_none());
    host.observed.records.entry(key("db")).or_default().request += 1;
    run(&mut host, &text("stop"));
    assert_eq!(phase(&host, &text("stop"), "db"), "starting");
}

#[test]
fn a_long_chain_is_put_in_order_without_running_out_of_stack() {
    let services: Vec<String> = (0..3_000)
        .map(|n| match n {
            0 => "s0: {image: i}".to_owned(),
            n => format!("s{n}: {{image: i, depends_on: [s{}]}}", n - 1),
        })
        .collect();
    let goals = up(&format!("{{{}}}", services.join(", ")));
    let mut host = host();
    host.apply(&host.plan(&goals), |_| false);
    assert_eq!(order(&host.plan(&goals)), ["create s0", "start s0"]);
}

fn described(goals: &Goals) -> Arc<Desired> {
    let Some(Goal::Up(described)) = goals.values().next() else { panic!() };
    Arc::clone(described)
}

/// web needs a job, which needs db.
fn chain() -> Goals {
    up("{web: {image: i, depends_on: {migrate: {condition: service_completed_successfully}}}, \
         migrate: {image: i, depends_on: [db]}, db: {image: i}}")
}

/// A host on which the job of the chain has ended and the others run.
fn chained() -> Host {
    let (host, goals) = (settled(&chain()), chain());
    assert_eq!(phase(&host, &goals, "migrate"), "exited (0)");
    assert_eq!(phase(&host, &goals, "web"), "running");
    host
}

#[test]
fn what_a_service_needs_through_a_job_that_has_ended_outlives_it_too() {
    let (host, goals) = (chained(), chain());
    let plan = host.plan(&goal(Goal::Stop(described(&goals))));
    assert_eq!(order(&plan), ["stop web", "stop db"]);
    assert_eq!(plan.steps[1].after, [0], "{plan}");
}

#[test]
fn nothing_ends_before_a_dependent_whose_start_or_monitor_is_under_way() {
    let (mut host, goals) = (chained(), chain());
    let down = goal(Goal::Down(described(&goals)));
    let (web, db) = (of(&host, "web"), of(&host, "db"));
    host.container(&web).state = ContainerState::Busy(Operation::Start);
    let touched = |plan: &Plan| plan.steps.iter().any(|step| step.action.container() == Some(&db));
    assert!(!touched(&host.plan(&down)));
    let running = host.container(&db).state.clone();
    host.container(&web).state = running;
    host.container(&web).monitor = Monitor::Adopting;
    assert!(!touched(&host.plan(&down)));
    host.container(&web).monitor = Monitor::Alive;
    assert!(touched(&host.plan(&down)));
}

#[test]
fn a_job_that_was_stopped_has_not_completed_whatever_it_answered() {
    let (mut host, goals) = (host(), chain());
    run(&mut host, &goals);
    let job = of(&host, "migrate");
    host.exit(&job, ExitStatus::Code(0));
    let ContainerState::Exited(exit) = &mut host.container(&job).state else { panic!() };
    exit.asked = true;
    assert!(host.plan(&goals).is_empty());
    assert_eq!(phase(&host, &goals, "web"), "failed: `migrate` was stopped before its end");
}

#[test]
fn health_that_nobody_checks_while_a_monitor_is_replaced_is_waited_for() {
    let goals = healthy("");
    let mut host = host();
    run(&mut host, &goals);
    let db = of(&host, "db");
    host.container(&db).health = Health::Unchecked;
    host.container(&db).monitor = Monitor::Adopting;
    assert_eq!(phase(&host, &goals, "web"), "blocked on db (its monitor is being replaced)");
}
