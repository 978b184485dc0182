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
volumes: {data: , named: {name: mine.x, driver: local, labels: {a: b}}}
configs: {motd: {content: "a$$b"}, app: {file: ./app.conf}}
secrets: {key: {environment: TOKEN}}
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
      - data:/var/lib/data
      - named:/other:ro,nocopy
      - {type: volume, source: data, target: /again, read_only: true, volume: {nocopy: true}}
    read_only: true
    restart: on-failure:3
    stop_signal: SIGINT
    stop_grace_period: 1m30s
    network_mode: none
    x-supervisor: {lazy: {mode: auto, prefetch: before, prefetch_paths: [/usr/bin/web, /lib//x], background: true}}
    tmpfs: [/run, "/tmp:size=1m,mode=1777"]
    hostname: web.example
    container_name: web
    labels: [a=b]
    expose: [80]
    init: false
    privileged: false
    cap_add: [NET_ADMIN]
    cap_drop: [cap_chown, ALL]
    security_opt: ["no-new-privileges:true", apparmor=unconfined]
    pull_policy: missing
    healthcheck: {disable: true}
    configs: [motd, {source: app, target: /etc/app.conf, mode: 0440, uid: "5"}]
    secrets: [key, {source: key, target: other}]
  job:
    image: oci:./images/job:v1
    environment: [A=1, B=, TOKEN, UNSET, A=2, "C=x y=z"]
    command: []
    user: 1000
    stop_signal: 9
    restart: no
    tty: "false"
    ports: ["80:80", "0.0.0.0:53:53/udp", {target: 81, published: "81"}, 8000-8001:8000-8001]
    extra_hosts: ["a=10.0.0.1", "b:::1", "c:host-gateway"]
    dns: 10.0.0.53
    dns_search: [example.org]
    mem_limit: 64m
    memswap_limit: -1
    mem_reservation: 32m
    cpus: 0.5
    cpu_shares: 512
    cpuset: 0-1,3
    pids_limit: 100
    shm_size: 1m
    oom_score_adj: 100
    ulimits: {nofile: {soft: 100, hard: 200}, core: 0, nproc: -1}
    healthcheck: {test: [NONE]}
    deploy:
      replicas: 1
      resources: {limits: {cpus: "0.5", memory: 64M, pids: 100}, reservations: {memory: 32m, cpus: "0.1"}}
      restart_policy: {condition: on-failure, max_attempts: 3, delay: 5s}
    volumes: [{type: tmpfs, target: /cache, tmpfs: {size: 2m, mode: "0700"}}]
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
    let named: Vec<_> =
        web.named_volumes.iter().map(|named| (named.volume.as_str(), named.copy_up)).collect();
    assert_eq!(
        named,
        [("shop_data", CopyUp::IfEmpty), ("mine.x", CopyUp::Never), ("shop_data", CopyUp::Never)]
    );
    let grants: Vec<_> =
        web.grants.iter().map(|g| (g.target.as_str(), g.content.clone(), g.mode, g.uid)).collect();
    let text = |text: &str| GrantContent::Text(text.to_owned());
    let expected = [
        ("/motd", text("a$b"), None, None),
        ("/etc/app.conf", GrantContent::File("/srv/demo/app.conf".into()), Some(0o440), Some(5)),
        ("/run/secrets/key", text("secret"), None, None),
        ("/run/secrets/other", text("secret"), None, None),
    ];
    assert_eq!(grants, expected);
    assert!(web.is_read_only());
    assert_eq!(web.restart_policy(), RestartPolicy::OnFailure { max: Some(3) });
    assert_eq!(web.stop_signal.map(Signal::number), Some(2));
    assert_eq!(web.grace(), Duration::from_secs(90));
    assert_eq!(web.network_mode, Some(NetworkMode::None));
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
    assert_eq!(job.restart_policy(), RestartPolicy::OnFailure { max: Some(3) });
    check_the_rest(web, job);
}

fn check_the_rest(web: &Service, job: &Service) {
    let targets: Vec<_> =
        web.tmpfs.iter().map(|tmpfs| (tmpfs.target.as_str(), tmpfs.size)).collect();
    assert_eq!(targets, [("/run", None), ("/tmp", Some(1 << 20))]);
    assert_eq!(web.hostname.as_deref(), Some("web.example"));
    assert_eq!(web.privileges.cap_add.iter().collect::<Vec<_>>(), ["CAP_NET_ADMIN"]);
    assert_eq!(web.privileges.cap_drop.iter().collect::<Vec<_>>(), ["ALL", "CAP_CHOWN"]);
    assert_eq!(web.privileges.no_new_privileges, Some(true));
    assert_eq!(web.extensions.lazy.prefetch(), Prefetch::Before);
    assert_eq!(web.extensions.lazy.prefetch_paths(), ["/usr/bin/web", "/lib/x"]);
    assert_eq!(web.healthcheck.as_ref().and_then(|c| c.test.clone()), Some(HealthTest::Disabled));
    let ports: Vec<String> =
        job.ports.iter().map(|p| format!("{}/{}", p.target, p.protocol.as_str())).collect();
    assert_eq!(ports, ["80/tcp", "53/udp", "81/tcp", "8000/tcp", "8001/tcp"]);
    let hosts: Vec<_> = job.extra_hosts.iter().map(|host| host.address).collect();
    assert_eq!(hosts[1..], [HostAddress::Ip("::1".parse().unwrap()), HostAddress::Gateway]);
    assert_eq!(job.dns.servers, ["10.0.0.53".parse::<std::net::IpAddr>().unwrap()]);
    let limits = &job.limits;
    assert_eq!((limits.memory, limits.swap), (Some(64 << 20), Some(Swap::Unlimited)));
    assert_eq!((limits.memory_reservation, limits.nano_cpus), (Some(32 << 20), Some(500_000_000)));
    assert_eq!((limits.pids, limits.shm_size), (Some(100), Some(1 << 20)));
    assert_eq!(limits.ulimits["nofile"], Ulimit { soft: 100, hard: 200 });
    assert_eq!(limits.ulimits["nproc"], Ulimit { soft: u64::MAX, hard: u64::MAX });
    assert_eq!((job.tmpfs[0].size, job.tmpfs[0].mode), (Some(2 << 20), Some(0o700)));
}

#[test]
fn keys_left_out_or_without_a_value_leave_the_defaults() {
    let bare = web("");
    assert_eq!(bare.restart_policy(), RestartPolicy::No);
    assert_eq!(bare.grace(), Duration::from_secs(10));
    assert!(!bare.asks_for_network());
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
    network_mode: service:web
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

/// What can be wrong with the values of keys that have an effect, and what is right and not for this version.
#[test]
fn values_are_checked_with_their_places() {
    let text = "\
x-supervisor: {lazy: {mode: require, prefetch: first, prefetch_paths: [relative]}, priority: 1}
services:
  a:
    image: a
    mem_limit: 1m
    memswap_limit: 1g
    cpus: many
    cpuset: 3-1
    pids_limit: -2
    shm_size: 1x
    oom_score_adj: 2000
    ulimits: {nofile: {soft: 5, hard: 2}, files: 3, core: {soft: 1}}
    cap_add: [NET_ADMIN, FLY]
    security_opt: [seccomp=mine.json, label=type:x, what]
    tmpfs: /run:exec
    hostname: 'a b'
    extra_hosts: [nothing, 'a=b', 'a b=1.1.1.1']
    dns: [example]
    init: true
    tty: maybe
    runtime: nvidia
    pull_policy: always
    platform: linux/s390x
    deploy: {replicas: 2, mode: global, placement: {}, resources: {limits: {memory: 2g}, reservations: {devices: []}}}
    ports: ['8080:80', '80', '127.0.0.1:80:80', '70000:1', 'x', {published: 1}]
    depends_on: {b: {condition: service_ready}, c: {condition: service_healthy}, d: {required: false}}
    healthcheck: {test: [RUN], interval: soon, times: 3}
    networks: [back]
    volumes: ['none:/a', /anonymous, 'data:/b:rshared', {type: volume, source: data, target: /c, bind: {}}]
    configs: [none, {target: /x}, {source: x, mode: 9}, two, unset]
    x-supervisor: {probe: {http: 8080/x}, on_unhealthy: explode, on_registry_loss: wait 10m, lazzy: 1}
  b: {image: b, depends_on: [a], deploy: {resources: {limits: {memory: 2g}}}, mem_limit: 1g}
volumes: {data: , nfs: {driver_opts: {type: nfs}}, out: {external: true}, ../up: , u: {nmae: x}}
networks: {}
configs: {x: {content: y}, two: {content: a, file: b}, unset: {environment: NOT_SET}, out: {external: true}}
";
    insta::assert_snapshot!(parsed(text).unwrap_err());
}

#[test]
fn what_is_not_supported_is_left_out_when_that_is_allowed() {
    let text = "services:\n  web: {image: a, links: [db], volumes: ['nfs:/data', './a:/b'], tty: true}\n  \
        db: {image: b, healthcheck: {test: x}, build: .}\nvolumes: {nfs: {driver: nfs}}\nsecrets: {s: {external: true}}\n";
    let input = ParseInput {
        file: "f",
        project: "p".parse().unwrap(),
        project_choice: ProjectChoice::Explicit,
        base_dir: Path::new("/srv"),
        environment: &BTreeMap::new(),
    };
    let allow = Selection { unsupported: Unsupported::LeaveOut, ..Selection::default() };
    let checked = validate::parse(text, &input, &allow).unwrap_or_else(|p| panic!("{p}"));
    let left_out: Vec<&str> = checked.left_out.iter().map(|p| p.path.as_str()).collect();
    let expected = ["web.links", "web.tty", "db.build", "volumes.nfs.driver", "secrets.s.external"];
    assert_eq!(left_out, expected);
    assert_eq!(checked.desired.services["web"].volumes.len(), 1);
    assert!(parse_selected(text, &input, &Selection::default()).is_err());
    // What is wrong stays an error.
    assert!(validate::parse("services: {a: {image: a, commnd: b}}", &input, &allow).is_err());
    assert!(validate::parse("services: {a: {build: .}}", &input, &allow).is_err());
}

#[test]
fn the_words_of_a_service_win_over_those_for_all() {
    let text = "x-supervisor: {lazy: {prefetch: off, prefetch_paths: [/a]}}\nservices:\n  a: {image: a}\n  \
        b: {image: b, x-supervisor: {lazy: {prefetch: before}}}\n";
    let desired = parsed(text).unwrap_or_else(|problems| panic!("{problems}"));
    let lazy = |name: &str| desired.services[name].extensions.lazy.clone();
    assert_eq!((lazy("a").prefetch(), lazy("b").prefetch()), (Prefetch::Off, Prefetch::Before));
    assert_eq!(lazy("b").prefetch_paths(), ["/a"]);
    assert!(lazy("b").background() && lazy("b").mode() == LazyMode::Auto);
    // It says how content comes, not what the container is.
    let (a, plain) = (&desired.services["a"], parsed("services: {a: {image: a}}").unwrap());
    assert_eq!(a.config_hash(), plain.services["a"].config_hash());
}

#[test]
fn the_document_of_the_keys_is_the_one_that_the_tables_make() {
    let committed = include_str!("keys.md");
    assert_eq!(committed, keys_document(), "run: supervisor config --keys > src/spec/keys.md");
}

/// As much of a validator as the schema uses.
fn fits(schema: &serde_json::Value, value: &serde_json::Value) -> Result<(), String> {
    use serde_json::Value;
    if schema.get("not").is_some() {
        return Err(format!("{} is not allowed: {value}", schema["description"]));
    }
    if let Some(any) = schema.get("anyOf").and_then(Value::as_array) {
        let fitting = any.iter().any(|schema| fits(schema, value).is_ok());
        return fitting.then_some(()).ok_or_else(|| format!("{value} fits nothing of {schema}"));
    }
    if let Some(choices) = schema.get("enum").and_then(Value::as_array) {
        return choices.contains(value).then_some(()).ok_or_else(|| format!("{value}: {schema}"));
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if schema.get("type").is_some_and(|kinds| !kinds.to_string().contains(kind)) {
        return Err(format!("{value} is not {}", schema["type"]));
    }
    if schema["pattern"] == "^$|\\$"
        && value.as_str().is_some_and(|t| !t.is_empty() && !t.contains('$'))
    {
        return Err(format!("{value} is no variable"));
    }
    if let (Some(items), Some(schema)) = (value.as_array(), schema.get("items")) {
        items.iter().try_for_each(|item| fits(schema, item))?;
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        if let Some(schema) = schema.get("properties").and_then(|known| known.get(key)) {
            fits(schema, value).map_err(|error| format!("{key}: {error}"))?;
        } else if schema.get("patternProperties").is_none() || !key.starts_with("x-") {
            match schema.get("additionalProperties") {
                Some(Value::Bool(false)) => return Err(format!("unknown key {key}")),
                Some(schema) => fits(schema, value).map_err(|error| format!("{key}: {error}"))?,
                None => {}
            }
        }
    }
    Ok(())
}

#[test]
fn the_schema_takes_what_the_parser_takes() {
    let schema = schema();
    let fits = |text: &str| fits(&schema, &emit::json(&raw::read(text, 0).unwrap()));
    fits(EVERY_KEY).unwrap();
    fits("services: {a: {image: '$I', read_only: '${RO}', x-a: 1, network_mode: '${N}'}}").unwrap();
    for (text, expected) in [
        ("services: {a: {imag: a}}", "unknown key imag"),
        ("services: {a: {image: [a]}}", "image: "),
        ("services: {a: {image: a, links: [b]}}", "not allowed"),
        ("services: {a: {image: a, deploy: {mode: hots}}}", "fits nothing"),
        ("service: {}", "unknown key service"),
        ("services: {a: {deploy: {replica: 1}}}", "unknown key replica"),
        ("x-supervisor: {lazy: {prefetch: soon}}", "fits nothing"),
    ] {
        let error = fits(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
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
