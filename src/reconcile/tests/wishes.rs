//! What the user asks of single services, with a control that may die at any point in between.

use proptest::prelude::*;

use super::properties::{any_host, check_converged, check_plan, goals, is_foreign};
use super::*;

fn record<'a>(host: &'a mut Host, service: &str) -> &'a mut ServiceRecord {
    host.observed.records.entry(key(service)).or_default()
}

fn ask_restart(host: &mut Host, service: &str) {
    let record = record(host, service);
    record.request += 1;
    record.restart = record.request;
    record.stopped = None;
}

#[test]
fn a_restart_stops_and_starts_the_same_container_and_is_done_once() {
    let goals = up("{web: {image: i}, api: {image: i}}");
    let mut host = running(&goals);
    ask_restart(&mut host, "web");
    record(&mut host, "web").grace = Some(3_000);
    let plan = host.plan(&goals);
    let web = host.keys(|c| c.service == key("web")).into_iter().next().unwrap();
    let expected = [
        format!("stop p/web (container {web}): a restart was asked for"),
        format!("start p/web (container {web}): a restart was asked for"),
    ];
    assert_eq!(steps(&plan), expected);
    assert_eq!(plan.steps[1].requires, [0]);
    assert!(matches!(plan.steps[0].action, Action::Stop { grace: Some(3_000), .. }));
    host.apply(&plan, |_| false);
    assert!(host.plan(&goals).is_empty(), "{}", host.plan(&goals));
    assert_eq!(host.container(&web).run, Run { request: 1, ..Run::default() });
    // The grace period of that restart is not for the stop of a recreation.
    let changed = up("{web: {image: i, user: x}, api: {image: i}}");
    let plan = host.plan(&changed);
    assert!(matches!(plan.steps[0].action, Action::Stop { grace: None, .. }), "{plan}");
}

#[test]
fn a_restart_goes_on_where_a_control_that_died_left_it() {
    let goals = up("{web: {image: i}}");
    let mut host = running(&goals);
    ask_restart(&mut host, "web");
    let mut plan = host.plan(&goals);
    plan.steps.truncate(1);
    host.apply(&plan, |_| false);
    let web = only(&host);
    let rest = host.plan(&goals);
    assert_eq!(steps(&rest), [format!("start p/web (container {web}): a restart was asked for")]);
    run(&mut host, &goals);
    assert_eq!((only(&host), phase(&host, &goals, "web")), (web, "running".to_owned()));
}

#[test]
fn a_restart_whose_stop_fails_starts_nothing_and_is_tried_again() {
    let goals = up("{web: {image: i}}");
    let mut host = running(&goals);
    ask_restart(&mut host, "web");
    let plan = host.plan(&goals);
    let outcomes = host.apply(&plan, |action| matches!(action, Action::Stop { .. }));
    assert_eq!(outcomes, [Outcome::Failed, Outcome::Skipped]);
    let plan = host.plan(&goals);
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(phase(&host, &goals, "web"), "failed, retry in 1 s: stop: injected");
    host.now = plan.wake_at.unwrap();
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "running");
    assert_eq!(host.container(&only(&host)).run.request, 1);
}

#[test]
fn a_restart_of_what_does_not_run_starts_it_and_one_below_a_dead_monitor_is_adopted_first() {
    let goals = up("{job: {image: i}}");
    let mut host = running(&goals);
    let job = only(&host);
    host.exit(&job, ExitStatus::Code(0));
    ask_restart(&mut host, "job");
    assert_eq!(host.plan(&goals).steps.len(), 1);
    run(&mut host, &goals);
    host.container(&job).monitor = Monitor::Lost;
    ask_restart(&mut host, "job");
    let plan = host.plan(&goals);
    assert_eq!(plan.steps.len(), 3, "{plan}");
    assert_eq!((&plan.steps[1].requires, &plan.steps[2].requires), (&vec![0], &vec![1]));
    host.container(&job).monitor = Monitor::Adopting;
    assert!(host.plan(&goals).is_empty(), "the monitor that is on its way is waited for");
}

#[test]
fn what_was_taken_down_by_hand_stays_so_and_is_listed() {
    let goals = up("{web: {image: i}, api: {image: i}}");
    let mut host = running(&goals);
    record(&mut host, "web").stopped = Some(ManualStop::Remove);
    run(&mut host, &goals);
    assert_eq!(host.keys(|_| true).len(), 1);
    assert_eq!(phase(&host, &goals, "web"), "stopped (manual)");
    record(&mut host, "web").stopped = None;
    run(&mut host, &goals);
    assert_eq!(phase(&host, &goals, "web"), "running");
}

#[test]
fn ends_are_in_the_opposite_order_of_beginnings() {
    let goals = up("{a: {image: i}, b: {image: i}, c: {image: i}}");
    let mut host = running(&goals);
    let order = |plan: &Plan| -> Vec<String> {
        plan.steps.iter().map(|s| s.action.service().unwrap().service.to_string()).collect()
    };
    assert_eq!(order(&host.plan(&goal(Goal::Shutdown(nothing())))), ["c", "b", "a"]);
    assert_eq!(order(&host.plan(&goal(Goal::Down(nothing())))), ["c", "b", "a", "c", "b", "a"]);
    run(&mut host, &goal(Goal::Shutdown(nothing())));
    assert_eq!(phase(&host, &goal(Goal::Shutdown(nothing())), "a"), "stopped (host shutdown)");
    for service in ["a", "b", "c"] {
        record(&mut host, service).request += 1;
    }
    assert_eq!(order(&host.plan(&goals)), ["a", "b", "c"]);
}

/// What happens to a host over time.
#[derive(Debug, Clone)]
enum Happening {
    Stop(usize, ManualStop),
    Start(usize),
    Restart(usize),
    /// A plan of which so many steps are carried out before control dies; failures by bits.
    Work {
        steps: usize,
        failures: u8,
    },
    /// A program ends.
    Exit(usize),
    Later(Millis),
}

fn happening() -> impl Strategy<Value = Happening> {
    let stop = prop::sample::select(vec![ManualStop::Keep, ManualStop::Remove]);
    prop_oneof![
        2 => (0..3usize, stop).prop_map(|(service, stop)| Happening::Stop(service, stop)),
        2 => (0..3usize).prop_map(Happening::Start),
        3 => (0..3usize).prop_map(Happening::Restart),
        6 => (0..8usize, any::<u8>()).prop_map(|(steps, failures)| Happening::Work { steps, failures }),
        2 => (0..7usize).prop_map(Happening::Exit),
        2 => (0..100_000u64).prop_map(Happening::Later),
    ]
}

/// Carries out the first steps of a plan, after which control dies: what it only had in memory is gone.
fn work_and_die(
    host: &mut Host,
    goals: &Goals,
    steps: usize,
    failures: u8,
) -> Result<(), TestCaseError> {
    let mut plan = host.plan(goals);
    check_plan(host, goals, &plan)?;
    plan.steps.truncate(steps);
    let mut failures = failures;
    let outcomes = host.apply(&plan, |_| {
        failures = failures.rotate_right(1);
        failures.is_multiple_of(3)
    });
    for (number, (step, outcome)) in plan.steps.iter().zip(&outcomes).enumerate() {
        let ended_badly = plan.steps[..number].iter().zip(&outcomes).any(|(before, outcome)| {
            matches!(before.action, Action::Stop { .. })
                && before.action.service() == step.action.service()
                && *outcome != Outcome::Done
        });
        if matches!(step.action, Action::Start { .. }) && ended_badly {
            prop_assert_eq!(*outcome, Outcome::Skipped, "{}", plan);
        }
    }
    for container in host.observed.containers.values_mut() {
        if !is_foreign(container, goals) {
            container.failed = None;
        }
    }
    for record in host.observed.records.values_mut() {
        record.create_failure = None;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn wishes_come_true_whenever_control_dies(
        mut host in any_host(),
        goals in goals(),
        happenings in prop::collection::vec(happening(), 0..24),
    ) {
        let foreign = |host: &Host| -> BTreeMap<_, _> {
            let containers = host.observed.containers.clone().into_iter();
            containers.filter(|(_, c)| is_foreign(c, &goals)).collect()
        };
        host.settle();
        host.know(&goals);
        let before = foreign(&host);
        for happening in happenings {
            match happening {
                Happening::Stop(service, stop) => record(&mut host, ["a", "b", "c"][service]).stopped = Some(stop),
                Happening::Start(service) => {
                    let record = record(&mut host, ["a", "b", "c"][service]);
                    record.request += 1;
                    record.stopped = None;
                }
                Happening::Restart(service) => ask_restart(&mut host, ["a", "b", "c"][service]),
                Happening::Work { steps, failures } => work_and_die(&mut host, &goals, steps, failures)?,
                Happening::Exit(number) => {
                    let runs = host.keys(|c| {
                        matches!(c.state, ContainerState::Running { .. })
                            && c.monitor == Monitor::Alive
                            && !is_foreign(c, &goals)
                    });
                    if let Some(container) = runs.into_iter().nth(number) {
                        host.exit(&container, ExitStatus::Code(1));
                    }
                }
                Happening::Later(span) => host.now += span,
            }
        }
        for round in 0.. {
            let plan = host.plan(&goals);
            check_plan(&host, &goals, &plan)?;
            host.apply(&plan, |_| false);
            match plan.wake_at {
                None if plan.is_empty() && !host.tick() => break,
                Some(at) if plan.is_empty() => host.now = at,
                _ => {}
            }
            prop_assert!(round < 90, "no end: {}", plan);
        }
        check_converged(&host, &goals)?;
        prop_assert_eq!(before, foreign(&host));
        host.now += 3_600_000;
        let later = host.plan(&goals);
        prop_assert!(later.is_empty() && later.wake_at.is_none(), "{}", later);
    }
}
