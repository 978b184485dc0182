//! Which changes recreate a container and which do not, and with which cause.

use super::*;

/// A service before and after a change, with what a plan says of it.
const CHANGES: [(&str, &str, &str, &[&str]); 18] = [
    ("a comment", "image: i", "image: i # ours", &[]),
    ("the order of keys", "image: i, user: x", "user: x, image: i", &[]),
    ("the form", "image: i, environment: [A=1]", "image: i, environment: {A: 1}", &[]),
    ("depends_on", "image: i", "image: i, depends_on: [other]", &[]),
    ("restart", "image: i", "image: i, restart: always", &[]),
    ("the name for others", "image: i", "image: i, container_name: store", &[]),
    ("a default that is written", "image: i", "image: i, network_mode: host", &["network_mode"]),
    (
        "what a bound file holds",
        "image: i, volumes: ['/f:/f']",
        "image: i, volumes: ['/f:/f']",
        &[],
    ),
    ("a bound file", "image: i, volumes: ['/f:/f']", "image: i, volumes: ['/g:/f']", &["volumes"]),
    ("a config", "image: i, configs: [one]", "image: i, configs: [two]", &["configs"]),
    (
        "a variable",
        "image: i, environment: {A: 1, B: 2}",
        "image: i, environment: {A: 2, B: 2}",
        &["environment.A"],
    ),
    (
        "a variable less",
        "image: i, environment: {A: 1}",
        "image: i, environment: {}",
        &["environment.A"],
    ),
    ("command", "image: i", "image: i, command: [x]", &["command"]),
    ("another image", "image: i", "image: j", &["image"]),
    ("ports", "image: i, ports: ['80:80']", "image: i, ports: ['81:80']", &["ports"]),
    ("a limit", "image: i, mem_limit: 1g", "image: i, mem_limit: 2g", &["mem_limit"]),
    (
        "an image as a volume",
        "image: i",
        "image: i, volumes: [{type: image, source: j, target: /j}]",
        &["image_volumes"],
    ),
    ("our words", "image: i", "image: i, x-supervisor: {on_unhealthy: none}", &[]),
];

fn of(service: &str) -> Goals {
    let environment = BTreeMap::new();
    let input = ParseInput {
        file: "services.yaml",
        project: "p".parse().unwrap(),
        project_choice: ProjectChoice::Explicit,
        base_dir: Path::new("/"),
        environment: &environment,
    };
    let text = format!(
        "services:\n  web: {{\n    {service}\n  }}\n  other: {{image: i}}\n\
         configs: {{one: {{content: '1'}}, two: {{content: '2'}}}}\n"
    );
    let desired = crate::spec::parse(&text, &input).unwrap_or_else(|e| panic!("{service}: {e}"));
    BTreeMap::from([("p".parse().unwrap(), Goal::Up(desired.into()))])
}

#[test]
fn a_change_recreates_what_it_must_and_names_the_field() {
    for (what, before, after, fields) in CHANGES {
        let mut host = running(&of(before));
        let images = ["i", "j"]
            .map(|name| (image(name), ImageState::Ready { manifest: Digest::of(name.as_bytes()) }));
        host.observed.images.extend(images);
        let old = host.keys(|container| container.service == key("web"));
        let goals = of(after);
        let plan = host.plan(&goals);
        let mut causes = plan.steps.iter().map(|step| &step.cause);
        let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
        if fields.is_empty() {
            assert!(plan.is_empty(), "{what}: {plan}");
        } else {
            assert!(causes.all(|c| *c == Cause::FieldsChanged(fields.clone())), "{what}: {plan}");
            assert!(!plan.is_empty(), "{what}");
        }
        run(&mut host, &goals);
        let new = host.keys(|container| container.service == key("web"));
        assert_eq!(new == old, fields.is_empty(), "{what}");
        assert!(host.plan(&goals).is_empty(), "{what}");
    }
}

#[test]
fn images_in_a_container_are_pulled_with_its_own_and_recreate_it_when_they_change() {
    let goals = up("{web: {image: i, volumes: [{type: image, source: j, target: /j}, \
        {type: image, source: j, target: /again, image: {subpath: x}}]}}");
    let mut host = host();
    host.know(&goals);
    let pulls = steps(&host.plan(&goals));
    assert_eq!(
        pulls,
        [
            "pull docker.io/library/i:latest for p/web: the image is not here",
            "pull docker.io/library/j:latest for p/web: the image is not here"
        ]
    );
    let ready = |name: &str| ImageState::Ready { manifest: Digest::of(name.as_bytes()) };
    host.observed.images.insert(image("i"), ready("i"));
    assert_eq!(steps(&host.plan(&goals)), pulls[1..], "nothing is made without all of them");
    host.observed.images.insert(
        image("j"),
        ImageState::Failed {
            failure: Failure { reason: "away".into(), at: host.now, attempts: 1 },
            fault: PullFault::Unreachable,
        },
    );
    assert!(phase(&host, &goals, "web").starts_with("waiting for registry"));
    host.observed.images.insert(image("j"), ready("j"));
    run(&mut host, &goals);
    let old = only(&host);
    host.observed.images.insert(image("j"), ready("newer"));
    let plan = host.plan(&goals);
    let to = Digest::of(b"newer");
    assert!(
        matches!(&plan.steps[0].cause, Cause::ImageChanged { image: one, to: new, .. } if *new == to && *one == image("j")),
        "{plan}"
    );
    run(&mut host, &goals);
    assert_ne!(only(&host), old);
}

#[test]
fn a_creation_that_failed_is_tried_at_once_with_another_image_in_it() {
    let goals = up("{web: {image: i, volumes: [{type: image, source: j, target: /j}]}}");
    let mut host = host();
    host.know(&goals);
    let ready = |name: &str| ImageState::Ready { manifest: Digest::of(name.as_bytes()) };
    for name in ["i", "j"] {
        host.observed.images.insert(image(name), ready(name));
    }
    let plan = host.plan(&goals);
    host.apply(&plan, |action| matches!(action, Action::Create { .. }));
    assert!(host.plan(&goals).is_empty(), "it waits");
    host.observed.images.insert(image("j"), ready("mended"));
    assert!(!host.plan(&goals).is_empty());
}
