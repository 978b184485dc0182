//! The laws of the planner over random hosts, goals, faults and clocks.

use proptest::prelude::*;

use super::*;
use crate::spec::RestartPolicy;

/// Few names, so that everything meets everything.
const SERVICES: [&str; 3] = ["a", "b", "c"];
const PROJECTS: [&str; 3] = ["p", "q", "foreign"];
const POLICIES: [&str; 4] = ["'no'", "always", "on-failure:2", "unless-stopped"];

fn service_text() -> impl Strategy<Value = String> {
    (0..2usize, 0..2, 0..4usize, any::<bool>()).prop_map(|(image, variant, policy, checked)| {
        let (image, policy) = (["i", "j"][image], POLICIES[policy]);
        let check = if checked { "healthcheck: {test: x}, " } else { "" };
        format!("{{{check}image: {image}, restart: {policy}, environment: {{V: {variant} }} }}")
    })
}

/// What one service has of another: condition, `required`, `restart`.
fn dependency() -> impl Strategy<Value = Option<String>> {
    let conditions = ["service_started", "service_healthy", "service_completed_successfully"];
    let dependency = (prop::sample::select(conditions.to_vec()), any::<bool>(), any::<bool>());
    let text = dependency.prop_map(|(condition, required, restart)| {
        format!("{{condition: {condition}, required: {required}, restart: {restart}}}")
    });
    prop::option::weighted(0.5, text)
}

/// Whose dependencies they are and on whom, in either direction of the names.
fn dependencies() -> impl Strategy<Value = Vec<(usize, usize, Option<String>)>> {
    (any::<bool>(), [dependency(), dependency(), dependency()]).prop_map(|(turned, texts)| {
        let pairs = [(1, 0), (2, 0), (2, 1)].into_iter().zip(texts);
        let turn = |n: usize| if turned { 2 - n } else { n };
        pairs.map(|((one, other), text)| (turn(one), turn(other), text)).collect()
    })
}

fn project(name: &'static str) -> impl Strategy<Value = Goal> {
    let services =
        prop::collection::btree_map(prop::sample::select(&SERVICES[..]), service_text(), 1..4);
    let up = (services, dependencies()).prop_map(move |(services, dependencies)| {
        let body = services.iter().map(|(name, text)| {
            let needs = dependencies.iter().filter_map(|(one, other, text)| {
                let text = text.as_ref().filter(|_| services.contains_key(SERVICES[*other]))?;
                (SERVICES[*one] == *name).then(|| format!("{}: {text}", SERVICES[*other]))
            });
            let needs: Vec<_> = needs.collect();
            let text = text.trim_end_matches('}');
            format!("{name}: {text}, depends_on: {{{}}}}}", needs.join(", "))
        });
        let body: Vec<_> = body.collect();
        Goal::Up(desired(name, &format!("{{{}}}", body.join(", "))).into())
    });
    prop_oneof![6 => up, 1 => Just(Goal::Stop(nothing())), 1 => Just(Goal::Down(nothing())), 1 => Just(Goal::Shutdown(nothing()))]
}

pub(super) fn goals() -> impl Strategy<Value = Goals> {
    (project("p"), prop::option::of(project("q"))).prop_map(|(p, q)| {
        let mut goals = goal(p);
        goals.extend(q.map(|q| ("q".parse().unwrap(), q)));
        goals
    })
}

fn failure() -> impl Strategy<Value = Failure> {
    (0..1_100_000u64, 1..9u32).prop_map(|(at, attempts)| Failure {
        reason: "before".into(),
        at,
        attempts,
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::{Adopt, Create, Remove, Start, Stop};
    prop::sample::select(vec![Create, Start, Stop, Remove, Adopt])
}

fn state() -> impl Strategy<Value = ContainerState> {
    let exit = (0..3u8, 0..1_100_000u64, 0..20_000u64).prop_map(|(code, at, ran_for)| {
        ContainerState::Exited(Exit {
            status: ExitStatus::Code(code),
            at,
            ran_for,
            asked: false,
            health: Health::Unchecked,
        })
    });
    let busy = operation()
        .prop_filter("adoption is a state of the monitor", |o| *o != Operation::Adopt)
        .prop_map(ContainerState::Busy);
    prop_oneof![
        4 => Just(ContainerState::Running { since: 500_000 }),
        2 => exit,
        1 => Just(ContainerState::Created),
        1 => busy,
    ]
}

fn health() -> impl Strategy<Value = Health> {
    let unhealthy =
        (0..1_100_000u64, prop::option::of(0..500_000u64)).prop_map(|(since, before)| {
            let reason = "exit 1".to_owned();
            Health::Unhealthy(Unhealthy { since, was_healthy_since: before, reason })
        });
    prop_oneof![
        2 => Just(Health::Unchecked),
        1 => Just(Health::Starting),
        1 => Just(Health::Healthy),
        1 => unhealthy,
    ]
}

fn container() -> impl Strategy<Value = Container> {
    let identity = (prop::bool::weighted(0.85), 0..3usize, 0..3usize, 0..50u64);
    let content = (service_text(), prop::bool::weighted(0.8));
    let condition = (
        state(),
        0..6u8,
        prop::bool::weighted(0.2),
        prop::option::weighted(0.2, (operation(), failure())),
    );
    let run = (0..2u64, 0..4u32, 0..4u32);
    let with = prop::collection::btree_map(prop::sample::select(&SERVICES[..]), 0..3i64, 0..2usize);
    let around = (health(), with);
    (identity, content, condition, run, around).prop_map(
        |(identity, content, condition, run, around)| {
            let (is_ours, project, service, serial) = identity;
            let (text, is_current) = content;
            let (state, monitor, is_lost, failed) = condition;
            let made = desired("p", &format!("{{x: {text}}}")).services["x"].clone();
            let name = made.image.to_string();
            let name = if name.contains("/i:") { "i" } else { "j" };
            let runs = matches!(state, ContainerState::Running { .. });
            Container {
                instance: if is_ours { "ours" } else { "theirs" }.into(),
                service: ServiceKey {
                    project: PROJECTS[project].parse().unwrap(),
                    service: SERVICES[service].parse().unwrap(),
                },
                serial,
                fingerprint: made.fingerprint(),
                manifest: Digest::of(if is_current { name.as_bytes() } else { b"older" }),
                mounted: BTreeMap::new(),
                monitor: match monitor {
                    0 if runs => Monitor::Lost,
                    1 if runs => Monitor::Adopting,
                    _ => Monitor::Alive,
                },
                writable: if is_lost && !runs {
                    WritableLayer::Lost
                } else {
                    WritableLayer::Usable
                },
                content: Content::Usable,
                run: Run { request: run.0, restarts: run.1, streak: run.2 },
                health: if runs { around.0 } else { Health::Unchecked },
                stamp: (!matches!(state, ContainerState::Created)).then_some(1),
                with: around.1.into_iter().map(|(name, at)| (name.parse().unwrap(), at)).collect(),
                failed,
                state,
            }
        },
    )
}

fn image_state(name: &'static str) -> impl Strategy<Value = ImageState> {
    let fault =
        prop::sample::select(vec![PullFault::Unreachable, PullFault::NoSpace, PullFault::Refused]);
    prop_oneof![
        3 => Just(ImageState::Ready { manifest: Digest::of(name.as_bytes()) }),
        1 => Just(ImageState::Missing),
        1 => Just(ImageState::Pulling { percent: Some(3) }),
        1 => (failure(), fault).prop_map(|(failure, fault)| ImageState::Failed { failure, fault }),
    ]
}

fn record() -> impl Strategy<Value = ServiceRecord> {
    let stopped = prop::sample::select(vec![ManualStop::Keep, ManualStop::Remove]);
    let grace = prop::option::of(0..20_000u64);
    (0..3u64, 0..3u64, prop::option::weighted(0.15, stopped), grace).prop_map(
        |(request, restart, stopped, grace)| ServiceRecord {
            request,
            // A restart is a request.
            restart: restart.min(request),
            recreate: 0,
            stopped,
            grace,
            create_failure: None,
        },
    )
}

prop_compose! {
    pub(super) fn any_host()(
        containers in prop::collection::vec(container(), 0..7),
        i in image_state("i"),
        j in image_state("j"),
        records in prop::collection::vec((0..2usize, 0..3usize, record()), 0..4),
    ) -> Host {
        let mut host = host();
        host.observed.images = [(image("i"), i), (image("j"), j)].into();
        for (n, container) in containers.into_iter().enumerate() {
            host.observed.containers.insert(ContainerKey::new(format!("c{n}")), container);
        }
        for (project, service, record) in records {
            let key = ServiceKey {
                project: PROJECTS[project].parse().unwrap(),
                service: SERVICES[service].parse().unwrap(),
            };
            host.observed.records.insert(key, record);
        }
        host
    }
}

/// Containers that no plan for `goals` may name.
pub(super) fn is_foreign(container: &Container, goals: &Goals) -> bool {
    container.instance != "ours" || !goals.contains_key(&container.service.project)
}

/// Checks one plan against the laws that hold for every plan.
pub(super) fn check_plan(host: &Host, goals: &Goals, plan: &Plan) -> Result<(), TestCaseError> {
    for (number, step) in plan.steps.iter().enumerate() {
        prop_assert!(step.requires.iter().chain(&step.after).all(|earlier| *earlier < number));
        if let Some(key) = step.action.container() {
            let container = &host.observed.containers[key];
            prop_assert!(!is_foreign(container, goals), "{}", step.action);
            prop_assert!(!matches!(container.state, ContainerState::Busy(_)), "{}", step.action);
            prop_assert_eq!(step.action.service(), Some(&container.service));
        }
        if let Some(service) = step.action.service() {
            prop_assert!(goals.contains_key(&service.project));
        }
        // A container is created only where every other one of the service is removed first.
        if let Action::Create { service, .. } = &step.action {
            let removed = step.requires.iter().filter(|earlier| {
                matches!(&plan.steps[**earlier].action, Action::Remove { service: s, .. } if s == service)
            });
            prop_assert_eq!(removed.count(), host.ours(service).count());
        }
    }
    // What depends on a service ends before it.
    for (number, step) in plan.steps.iter().enumerate() {
        let Action::Stop { service, .. } = &step.action else { continue };
        let depends_on = goals[&service.project].desired().services.get(&service.service);
        for (other, ends) in plan.steps.iter().enumerate() {
            let Action::Stop { service: on, .. } = &ends.action else { continue };
            let is_first = depends_on.is_some_and(|s| s.depends_on.contains_key(&on.service))
                && on.project == service.project;
            prop_assert!(!is_first || (number < other && ends.after.contains(&number)), "{}", plan);
        }
    }
    let kinds: Vec<u8> = plan.steps.iter().map(|step| step.action.rank()).collect();
    prop_assert!(kinds.is_sorted(), "stops before starts: {}", plan);
    prop_assert!(plan.wake_at.is_none_or(|at| at > host.now), "a wake-up in the past");
    prop_assert!(plan.wake_at.is_none_or(|at| at <= host.now + LONGEST_DELAY));
    Ok(())
}

/// Whether a container is what its service wants and does what it should, so that nobody may touch it.
fn is_settled(host: &Host, goals: &Goals, container: &Container) -> bool {
    let Some(Goal::Up(desired)) = goals.get(&container.service.project) else { return false };
    let Some(service) = desired.services.get(&container.service.service) else { return false };
    let record = host.observed.records.get(&container.service).cloned().unwrap_or_default();
    let current = match host.observed.images.get(&service.image) {
        Some(ImageState::Ready { manifest }) => *manifest == container.manifest,
        _ => true,
    };
    container.instance == "ours"
        && record.stopped.is_none()
        && container.run.request >= record.restart
        && host.ours(&container.service).count() == 1
        && matches!(container.state, ContainerState::Running { .. })
        && container.monitor == Monitor::Alive
        && container.fingerprint == service.fingerprint()
        && current
        && container.with.is_empty()
        && !matches!(container.health, Health::Unhealthy(_))
}

/// Whether a condition of a service does not hold, or one further down that keeps it from that.
fn waits(host: &Host, desired: &Desired, service: &ServiceKey) -> bool {
    desired.services[&service.service].depends_on.iter().any(|(on, needs)| {
        let other = ServiceKey { project: service.project.clone(), service: on.clone() };
        !host.holds(service, on, needs) || waits(host, desired, &other)
    })
}

/// Whether the goals hold on `host`.
pub(super) fn check_converged(host: &Host, goals: &Goals) -> Result<(), TestCaseError> {
    for (project, goal) in goals {
        let ours = host.observed.containers.values();
        let ours: Vec<_> =
            ours.filter(|c| c.instance == "ours" && c.service.project == *project).collect();
        let Goal::Up(desired) = goal else {
            let runs = ours.iter().any(|c| matches!(c.state, ContainerState::Running { .. }));
            prop_assert!(!runs && (!matches!(goal, Goal::Down(_)) || ours.is_empty()));
            continue;
        };
        for container in &ours {
            prop_assert!(desired.services.contains_key(&container.service.service));
        }
        for (name, service) in &desired.services {
            let key = ServiceKey { project: project.clone(), service: name.clone() };
            let record = host.observed.records.get(&key).cloned().unwrap_or_default();
            let containers: Vec<_> = host.ours(&key).collect();
            if let Some(stopped) = record.stopped {
                let runs =
                    containers.iter().any(|c| matches!(c.state, ContainerState::Running { .. }));
                prop_assert!(
                    !runs && (stopped == ManualStop::Keep || containers.is_empty()),
                    "{}",
                    key
                );
                continue;
            }
            // What waits for another one has perhaps no container, or not the one that is wanted.
            if waits(host, desired, &key) {
                prop_assert!(containers.len() < 2, "{}", key);
                continue;
            }
            prop_assert_eq!(containers.len(), 1, "{}", key);
            prop_assert!(containers[0].run.request >= record.restart, "{} was not restarted", key);
            prop_assert_eq!(&containers[0].fingerprint, &service.fingerprint());
            // An image that nobody pulled is not fetched only to compare it.
            if let Some(ImageState::Ready { manifest }) = host.observed.images.get(&service.image) {
                prop_assert_eq!(containers[0].manifest, *manifest);
            }
            let may_rest = !matches!(
                service.restart_policy(),
                RestartPolicy::Always | RestartPolicy::UnlessStopped
            );
            let is_right = match containers[0].state {
                ContainerState::Running { .. } => true,
                ContainerState::Exited(_) => may_rest,
                ContainerState::Created | ContainerState::Busy(_) => false,
            };
            prop_assert!(is_right, "{} {:?}", key, containers[0].state);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_converge_whatever_failed_before_and_touch_nothing_foreign(
        mut host in any_host(),
        goals in goals(),
        mut faults in prop::collection::vec(any::<bool>(), 0..12),
    ) {
        let foreign = |host: &Host| -> BTreeMap<_, _> {
            let containers = host.observed.containers.clone().into_iter();
            containers.filter(|(_, c)| is_foreign(c, &goals)).collect()
        };
        host.settle();
        host.know(&goals);
        let before = foreign(&host);
        for round in 0.. {
            let plan = host.plan(&goals);
            check_plan(&host, &goals, &plan)?;
            prop_assert_eq!(&plan, &host.plan(&goals), "the same input gives the same plan");
            let settled = host.keys(|c| is_settled(&host, &goals, c));
            for step in &plan.steps {
                prop_assert!(step.action.container().is_none_or(|key| !settled.contains(key)), "{}", plan);
            }
            // The simulator asserts that no service is created or started beside another container of it.
            host.apply(&plan, |_| faults.pop().unwrap_or(false));
            if plan.is_empty() {
                match plan.wake_at {
                    None if !host.tick() => break,
                    None => {}
                    Some(at) => host.now = at,
                }
            }
            prop_assert!(round < 90, "no end: {}", plan);
        }
        check_converged(&host, &goals)?;
        prop_assert_eq!(before, foreign(&host));
        host.now += 3_600_000;
        let later = host.plan(&goals);
        prop_assert!(later.is_empty() && later.wake_at.is_none(), "{}", later);
    }

    #[test]
    fn what_is_under_way_is_left_alone(host in any_host(), goals in goals()) {
        let plan = host.plan(&goals);
        check_plan(&host, &goals, &plan)?;
    }

    #[test]
    fn nothing_of_a_service_starts_after_its_stop_failed(
        mut host in any_host(),
        goals in goals(),
        seed in any::<u64>(),
    ) {
        host.settle();
        host.know(&goals);
        for round in 0..6u64 {
            let plan = host.plan(&goals);
            let outcomes = host.apply(&plan, |action| {
                matches!(action, Action::Stop { .. } | Action::Remove { .. } | Action::AdoptMonitor { .. })
                    && (seed >> (round * 8)).is_multiple_of(2)
            });
            for (step, outcome) in plan.steps.iter().zip(&outcomes) {
                let failed_before_it = plan.steps.iter().zip(&outcomes).any(|(other, outcome)| {
                    matches!(other.action, Action::Stop { .. } | Action::Remove { .. })
                        && *outcome != Outcome::Done
                        && other.action.service() == step.action.service()
                });
                if matches!(step.action, Action::Create { .. } | Action::Start { .. }) && failed_before_it {
                    prop_assert_eq!(*outcome, Outcome::Skipped, "{}", plan);
                }
            }
            host.now = plan.wake_at.unwrap_or(host.now);
        }
    }
}
