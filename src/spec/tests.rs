//! The whole way from text to model or problems.

use std::time::Duration;

use super::*;

fn parsed(text: &str) -> Result<Desired, Problems> {
    let environment = BTreeMap::from([
        ("TOKEN".to_owned(), "secret".to_owned()),
        ("EMPTY".to_owned(), String::new()),
    ]);
    let input = ParseInput {
        file: "services.yaml",
        project: "demo".parse().unwrap(),
        project_choice: ProjectChoice::Default,
        base_dir: Path::new("/srv/demo"),
        environment: &environment,
    };
    parse(text, &input)
}

/// The service `web` of a file whose services have these keys.
fn web(keys: &str) -> Service {
    let text = format!("services:\n  web:\n    image: a\n{keys}");
    parsed(&text).unwrap_or_else(|problems| panic!("{problems}")).services["web"].clone()
}

fn words(words: &[&str]) -> Option<Vec<String>> {
    Some(words.iter().map(|word| (*word).to_owned()).collect())
}

/// Every key of this version in every form.
pub(super) const EVERY_KEY: &str = r#"
version: "3.8"
name: shop
x-note: {anything: [goes]}
x-env: &env
  A: 1
services:
  web:
    image: registry.example:5000/team/web:1.2
    command: python3 -m http.server "80 80"
    entrypoint: ["/bin/tini", "--"]
    environment:
      <<: *env
      B: two=2
      C: 022
      D: true
      E: 1.10
      TOKEN:
      UNSET:
      EMPTY:
      F: ""
      G: a$$b
    working_dir: /app
    user: "1000:1000"
    volumes:
      - ./html:/srv:ro
      - /etc/ssl:/etc/ssl
    read_only: true
    restart: on-failure:3
    stop_signal: SIGINT
    stop_grace_period: 1m30s
    network_mode: none
    x-supervisor: {lazy: {mode: auto}}
  job:
    image: oci:./images/job:v1
    environment: [A=1, B=, TOKEN, UNSET, A=2, "C=x y=z"]
    command: []
    user: 1000
    stop_signal: 9
    restart: no
"#;

#[test]
fn every_key_in_every_form_is_read() {
    let desired = parsed(EVERY_KEY).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(desired.project.as_str(), "shop");
    let web = &desired.services["web"];
    assert_eq!(web.image.to_string(), "registry.example:5000/team/web:1.2");
    assert_eq!(web.command, words(&["python3", "-m", "http.server", "80 80"]));
    assert_eq!(web.entrypoint, words(&["/bin/tini", "--"]));
    let pairs: Vec<_> = web.environment.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
    let expected = [
        ("A", Some("1")),
        ("B", Some("two=2")),
        ("C", Some("022")),
        ("D", Some("true")),
        ("E", Some("1.10")),
        ("EMPTY", Some("")),
        ("F", Some("")),
        ("G", Some("a$b")),
        ("TOKEN", Some("secret")),
        ("UNSET", None),
    ];
    assert_eq!(pairs, expected);
    assert_eq!(web.working_dir.as_deref(), Some("/app"));
    assert_eq!(web.user.as_deref(), Some("1000:1000"));
    assert_eq!(web.volumes[0].source, Path::new("/srv/demo/html"));
    assert_eq!(web.volumes[0].access, Access::ReadOnly);
    assert_eq!(web.volumes[1].access, Access::ReadWrite);
    assert!(web.is_read_only());
    assert_eq!(web.restart_policy(), RestartPolicy::OnFailure { max: Some(3) });
    assert_eq!(web.stop_signal.map(Signal::number), Some(2));
    assert_eq!(web.grace(), Duration::from_secs(90));
    assert_eq!(web.network(), NetworkMode::None);
    let job = &desired.services["job"];
    assert_eq!(job.image.to_string(), "oci:/srv/demo/images/job:v1");
    assert_eq!(job.environment["A"].as_deref(), Some("2"));
    assert_eq!(job.environment["B"].as_deref(), Some(""));
    assert_eq!(job.environment["C"].as_deref(), Some("x y=z"));
    assert_eq!(job.environment["TOKEN"].as_deref(), Some("secret"));
    assert_eq!(job.environment["UNSET"], None);
    assert_eq!(job.command, Some(vec![]));
    assert_eq!(job.user.as_deref(), Some("1000"));
    assert_eq!(job.stop_signal, Some(Signal::KILL));
    assert_eq!(job.restart_policy(), RestartPolicy::No);
}

#[test]
fn keys_left_out_or_without_a_value_leave_the_defaults() {
    let bare = web("");
    assert_eq!(bare.restart_policy(), RestartPolicy::No);
    assert_eq!(bare.grace(), Duration::from_secs(10));
    assert_eq!(bare.network(), NetworkMode::Host);
    let empty = "    command:\n    entrypoint:\n    environment:\n    volumes:\n    restart:\n    user:\n    \
         read_only:\n    stop_signal:\n    stop_grace_period:\n    network_mode:\n    working_dir:\n";
    assert_eq!(web(empty), bare);
    assert_eq!(web(empty).config_hash(), bare.config_hash());
}

#[test]
fn an_empty_command_or_entrypoint_is_not_the_same_as_none() {
    for keys in ["    entrypoint: []\n", "    entrypoint: ''\n"] {
        assert_eq!(web(keys).entrypoint, Some(vec![]), "{keys}");
    }
    assert_ne!(web("    entrypoint: []\n").config_hash(), web("").config_hash());
}

#[test]
fn the_project_name_of_the_caller_wins_only_when_it_was_chosen() {
    let environment = BTreeMap::new();
    for (project_choice, expected) in
        [(ProjectChoice::Default, "file"), (ProjectChoice::Explicit, "given")]
    {
        let input = ParseInput {
            file: "f",
            project: "given".parse().unwrap(),
            project_choice,
            base_dir: Path::new("/"),
            environment: &environment,
        };
        let desired = parse("name: file\nservices: {a: {image: b}}", &input).unwrap();
        assert_eq!(desired.project.as_str(), expected);
    }
}

#[test]
fn all_problems_are_reported_together_with_their_places() {
    let text = "\
version: 3
volume: {}
image: x
services:
  web:
    build: .
  both:
    build: .
    image: a
  api:
    image: a b
    comand: x
    command: \"sh -c 'oops\"
    environment: {A: [1], B: $HOME}
    volumes: [data:/data, ./a:/b, ./c:/b, {type: bind}]
    read_only: maybe
    restart: sometimes
    stop_signal: SIGFOO
    stop_grace_period: 10
    network_mode: bridge
    working_dir: app
    user: 'a:b:c'
    ports: ['80:80']
    depends_on: [web]
  'no/name': {image: a}
  list: [1]
  empty:
  none: {}
";
    insta::assert_snapshot!(parsed(text).unwrap_err());
}

#[test]
fn a_file_that_is_no_mapping_of_services_says_so() {
    let shown: Vec<String> = [
        "",
        "- a",
        "services:",
        "services: {}",
        "x-a: 1",
        "a: [",
        "a: 1\na: 2",
        "services: {a: {image: }}",
    ]
    .iter()
    .map(|text| parsed(text).unwrap_err().to_string())
    .collect();
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn no_control_character_of_a_file_reaches_the_terminal() {
    let problems = parsed("services: {web: {image: a, \"\\e[31m\": 1}}").unwrap_err();
    assert!(!problems.to_string().contains('\u{1b}'), "{problems:?}");
}

#[test]
fn the_hash_follows_the_meaning_and_not_the_writing() {
    let a =
        web("    environment: {A: 1, B: 2}\n    command: echo 'a b'\n    stop_grace_period: 60s\n");
    let b =
        web("    stop_grace_period: 1m\n    command: [echo, a b]\n    environment: [B=2, A=1]\n");
    assert_eq!(a.config_hash(), b.config_hash());
    assert!(a.fingerprint().changed_fields(&b.fingerprint()).is_empty());
}

#[test]
fn the_fields_that_changed_are_named() {
    for (keys, expected) in [
        ("    environment: {A: 1}\n", vec!["environment.A"]),
        ("    command: a\n    user: b\n", vec!["command", "user"]),
        ("    volumes: ['./a:/b']\n", vec!["volumes"]),
        ("    restart: always\n", vec![]),
        ("    x-note: 1\n", vec![]),
    ] {
        let changed = web("").fingerprint().changed_fields(&web(keys).fingerprint());
        assert_eq!(changed, expected, "{keys}");
        assert_eq!(web("").config_hash() == web(keys).config_hash(), expected.is_empty());
    }
}

#[test]
fn the_encoding_of_fingerprints_never_changes_unnoticed() {
    let keys = "    environment: {A: 1}\n    volumes: ['./a:/b:ro']\n    stop_grace_period: 1s\n    \
         command: [a]\n    entrypoint: [b]\n    working_dir: /w\n    user: u\n    read_only: false\n    \
         stop_signal: INT\n    network_mode: host\n";
    insta::assert_snapshot!(web(keys).config_hash());
    let json = serde_json::to_string(&web(keys).fingerprint()).unwrap();
    let back: Fingerprint = serde_json::from_str(&json).unwrap();
    assert_eq!(back.hash(), web(keys).config_hash());
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "[ \n\\-:&*<{}\\[\\]$'\"#a-z!|>?,0-9~é/\\\\]{0,120}") {
        let _ = parsed(&text);
        let _ = parsed(&format!("services:\n  web:\n    image: a\n    command: {text}\n    volumes: [{text}]\n"));
    }
}

#[test]
fn logging_is_read_and_what_it_cannot_do_is_said() {
    let keys = "    logging:\n      driver: json-file\n      options: {max-size: 10m, max-file: 3, tag: '{{.Name}}', \
        env: 'A, B', mode: blocking, compress: 'false', x-mine: 1}\n";
    let logging = web(keys).logging.unwrap();
    assert_eq!(logging.driver, Some(LogDriver::JsonFile));
    assert_eq!((logging.max_size, logging.max_files), (Some(10_000_000), Some(3)));
    assert_eq!(logging.tag("c", "i").as_deref(), Some("c"));
    assert_eq!(logging.env.into_iter().collect::<Vec<_>>(), ["A", "B"]);
    assert_eq!(web("    logging:\n").logging, None);
    let line = |logging: &str| {
        let text = format!("services:\n  web:\n    image: a\n    logging: {logging}\n");
        parsed(&text).unwrap_err().to_string()
    };
    for (logging, at, message) in [
        (
            "{driver: syslog}",
            "4:23:",
            "logging driver `syslog` is not supported: output is kept in files",
        ),
        ("{driver: jsonfile}", "4:23:", "unknown logging driver `jsonfile`"),
        ("{drivers: none}", "4:15:", "unknown key `drivers`"),
        ("json-file", "4:14:", "expected a mapping"),
        ("{options: {max-size: 10x}}", "4:35:", "`10x` is not a size"),
        ("{options: {max-size: 10}}", "4:35:", "too small"),
        ("{options: {max-file: 0}}", "4:35:", "from 1 to 100"),
        (
            "{options: {max-flie: 2}}",
            "4:25:",
            "unknown logging option `max-flie`; there are `max-size`",
        ),
        ("{options: {compress: 'true'}}", "4:25:", "`compress` is not supported: older files stay"),
        ("{options: {labels: a}}", "4:25:", "services have no labels"),
        (
            "{options: {tag: '{{.DaemonName}}'}}",
            "4:30:",
            "`{{.DaemonName}}` is not supported in a tag",
        ),
        ("{options: {max-buffer-size: 1m}}", "4:25:", "no meaning without `mode: non-blocking`"),
        ("{driver: none, options: {max-size: 1m}}", "4:39:", "it has no options"),
        ("{options: {mode: async}}", "4:31:", "use `blocking` or `non-blocking`"),
        ("{options: [a]}", "4:24:", "expected a mapping"),
    ] {
        let problem = line(logging);
        assert!(problem.contains(message), "{logging}: {problem}");
        assert!(problem.starts_with(&format!("services.yaml:{at}")), "{logging}: {problem}");
    }
}

#[test]
fn a_change_of_logging_is_a_change_of_the_service() {
    let none = web("").fingerprint();
    assert_eq!(none, web("    logging: {}\n").fingerprint());
    let one = web("    logging: {options: {max-size: 1m}}\n").fingerprint();
    assert_eq!(none.changed_fields(&one), ["logging"]);
    assert_eq!(one, web("    logging: {options: {max-size: 1000k}}\n").fingerprint());
    let two = web("    logging: {driver: none}\n").fingerprint();
    assert_eq!(one.changed_fields(&two), ["logging"]);
}
