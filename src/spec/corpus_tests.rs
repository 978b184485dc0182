//! Projects of several files: what they become, and that nothing breaks on any mutation of them.

use std::path::PathBuf;

use super::*;

/// Files by path, below `/srv/demo`.
struct Files(BTreeMap<PathBuf, String>);

impl FileSource for Files {
    fn read(&self, path: &Path) -> Result<Option<String>, String> {
        Ok(self.0.get(path).cloned())
    }

    fn display(&self, path: &Path) -> String {
        path.strip_prefix("/srv/demo").unwrap_or(path).display().to_string()
    }
}

/// A folder given as one text: `=== path` begins a file.
fn folder(text: &str) -> Files {
    let files = text.split("=== ").skip(1).map(|part| {
        let (path, text) = part.split_once('\n').unwrap_or((part, ""));
        (Path::new("/srv/demo").join(path.trim()), text.to_owned())
    });
    Files(files.collect())
}

struct Case<'a> {
    files: &'a [&'a str],
    profiles: &'a [&'a str],
    shell: &'a [(&'a str, &'a str)],
}

const PLAIN: Case<'_> = Case { files: &["services.yaml"], profiles: &[], shell: &[] };

fn composed(files: &Files, case: &Case<'_>) -> Result<Composition, Problems> {
    let sources = Sources {
        files: case.files.iter().map(|file| Path::new("/srv/demo").join(file)).collect(),
        project_dir: "/srv/demo".into(),
        env_files: None,
        profiles: case.profiles.iter().map(|&profile| profile.to_owned()).collect(),
        unsupported: Unsupported::Reject,
        read: Vec::new(),
    };
    let environment =
        case.shell.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let input = LoadInput {
        sources: &sources,
        project: None,
        environment: &environment,
        named: &[],
        interpolation: Interpolation::Replace,
    };
    compose(&input, files)
}

fn yaml(text: &str, case: &Case<'_>) -> String {
    composed(&folder(text), case).unwrap_or_else(|problems| panic!("{problems}")).yaml()
}

fn problems(text: &str) -> String {
    match composed(&folder(text), &PLAIN).and_then(|composed| composed.check()) {
        Ok(desired) => panic!("{desired:?}"),
        Err(problems) => problems.to_string(),
    }
}

/// The canonical text means what the files mean, to the digest of every container, and is its own canonical text.
fn check_round_trip(files: &Files, composed: &Composition) {
    let Ok(desired) = composed.check() else { return };
    let text = composed.text();
    let input = ParseInput {
        file: "kept",
        project: composed.project().clone(),
        project_choice: ProjectChoice::Explicit,
        base_dir: Path::new("/srv/demo"),
        environment: &BTreeMap::new(),
    };
    let selection =
        Selection { profiles: composed.sources.profiles.clone(), ..Selection::default() };
    let again = parse_selected(&text, &input, &selection)
        .unwrap_or_else(|problems| panic!("{problems}\n{text}\n{:?}", files.0));
    assert_eq!(again, desired, "{text}");
    for (name, service) in &again.services {
        assert_eq!(service.fingerprint(), desired.services[name].fingerprint(), "{name}\n{text}");
    }
    let sources = Sources {
        files: vec!["/srv/demo/kept".into()],
        project_dir: "/srv/demo".into(),
        profiles: composed.sources.profiles.clone(),
        ..Sources::default()
    };
    let environment = BTreeMap::new();
    let input = LoadInput {
        sources: &sources,
        project: Some(composed.project()),
        environment: &environment,
        named: &[],
        interpolation: Interpolation::Replace,
    };
    let kept = Files(BTreeMap::from([("/srv/demo/kept".into(), text.clone())]));
    assert_eq!(compose(&input, &kept).unwrap().text(), text);
}

/// Every way in which files come together.
const EVERYTHING: &str = r#"=== services.yaml
name: shop
include:
  - db/services.yaml
  - path: [cache/a.yaml, cache/b.yaml]
    project_directory: cache
    env_file: cache/env
x-common: &common
  restart: unless-stopped
  environment: ["MODE=${MODE:-dev}", TOKEN]
services:
  base:
    profiles: [never]
    image: app:${TAG}
    read_only: true
    environment: {A: 1, B: "$$B"}
    volumes: ["./base:/base:ro,z"]
  web:
    <<: *common
    extends: base
    command: run --all 'a b'
    env_file: [web.env, {path: missing.env, required: false}]
    volumes:
      - ./html:/srv
      - {type: bind, source: ./long, target: /long, read_only: true}
    profiles: !override []
  far:
    extends: {service: tool, file: lib/tools.yaml}
  debug:
    image: debug
    profiles: [debug]
=== override.yaml
services:
  web:
    command: !reset null
    entrypoint: [serve]
    environment: {A: 2}
    volumes: ["./other:/srv"]
    read_only: !reset null
    stop_signal: SIGINT
=== .env
TAG=1.2
HOME_OF=${TAG}-x
=== web.env
# variables of the web
export FROM_FILE="x ${HOME_OF}"
A=never
=== db/services.yaml
services:
  db:
    image: db:${DB_TAG}
    volumes: ["./data:/data"]
=== db/.env
DB_TAG=9
TAG=ignored
=== cache/a.yaml
services:
  cache: {image: "cache:${C}", volumes: ["./c:/c"]}
=== cache/b.yaml
services:
  cache: {user: "1000"}
=== cache/env
C=3
=== lib/tools.yaml
services:
  tool:
    extends: {service: parent, file: more/parent.yaml}
    volumes: ["./tool:/tool"]
=== lib/more/parent.yaml
services:
  parent: {image: "tool:${TAG}", env_file: p.env, volumes: ["./p:/p"]}
=== lib/more/p.env
P=1
"#;

#[test]
fn all_ways_in_which_files_come_together() {
    let case = Case {
        files: &["services.yaml", "override.yaml"],
        profiles: &[],
        shell: &[("TOKEN", "secret"), ("MODE", "")],
    };
    let files = folder(EVERYTHING);
    let composed = composed(&files, &case).unwrap_or_else(|problems| panic!("{problems}"));
    insta::assert_snapshot!(composed.yaml());
    check_round_trip(&files, &composed);
    assert_eq!(composed.services(), ["cache", "db", "far", "web"]);
    assert_eq!(composed.profiles(), ["debug", "never"]);
    assert_eq!(composed.images(), ["app:1.2", "cache:3", "db:9", "tool:1.2"]);
    assert!(composed.warnings.is_empty(), "{:?}", composed.warnings);
    let read: Vec<String> = composed.sources.read.iter().map(|path| files.display(path)).collect();
    for file in [
        "services.yaml",
        "override.yaml",
        ".env",
        "db/.env",
        "cache/env",
        "missing.env",
        "lib/more/p.env",
    ] {
        assert!(read.iter().any(|path| path == file), "{file}: {read:?}");
    }
    assert!(composed.used.contains("TOKEN") && !composed.used.contains("OTHER"));
    let desired = composed.check().unwrap();
    assert_eq!(desired.services["web"].environment["FROM_FILE"].as_deref(), Some("x 1.2-x"));
    assert_eq!(desired.services["web"].environment["B"].as_deref(), Some("$B"));
}

#[test]
fn profiles_and_names_choose_services() {
    let text = "=== services.yaml\nservices:\n  a: {image: a}\n  b: {image: b, profiles: [x, y]}\n  \
        c: {image: c, profiles: [z], ports: [bad]}\n";
    let services = |profiles: &[&str], shell: &[(&str, &str)]| {
        let case = Case { profiles, shell, ..PLAIN };
        composed(&folder(text), &case).unwrap().services().join(" ")
    };
    assert_eq!(services(&[], &[]), "a");
    assert_eq!(services(&["y"], &[]), "a b");
    assert_eq!(services(&["*"], &[]), "a b c");
    assert_eq!(services(&[], &[("COMPOSE_PROFILES", "x, z")]), "a b c");
    assert_eq!(services(&["z"], &[("COMPOSE_PROFILES", "x")]), "a c");
    // What does not run need not be right.
    assert!(composed(&folder(text), &PLAIN).unwrap().check().is_ok());
}

#[test]
fn the_name_of_a_project_has_an_order() {
    let name = |text: &str, shell: &[(&str, &str)]| {
        composed(&folder(text), &Case { shell, ..PLAIN }).unwrap().project().to_string()
    };
    let plain = "=== services.yaml\nservices: {a: {image: 'a:$COMPOSE_PROJECT_NAME'}}\n";
    let named = "=== services.yaml\nname: ${N:-file}\nservices: {a: {image: b}}\n";
    assert_eq!(name(plain, &[]), "demo");
    assert_eq!(name(named, &[]), "file");
    assert_eq!(name(named, &[("N", "n")]), "n");
    assert_eq!(name(named, &[("COMPOSE_PROJECT_NAME", "env")]), "env");
    let both = [("COMPOSE_PROJECT_NAME", "env"), ("SUPERVISOR_PROJECT_NAME", "ours")];
    assert_eq!(name(named, &both), "ours");
    assert_eq!(name(&format!("{named}=== .env\nCOMPOSE_PROJECT_NAME=dot\n"), &[]), "dot");
    assert!(yaml(plain, &PLAIN).contains("a:demo"));
    assert!(
        composed(&folder(plain), &Case { shell: &[("COMPOSE_PROJECT_NAME", "No!")], ..PLAIN })
            .is_err()
    );
}

#[test]
fn problems_name_the_file_that_they_are_in() {
    let text = "=== services.yaml
include: [inc.yaml, gone.yaml, {pth: x}]
services:
  a: {image: '${NO:?say it}', extends: b}
  b: {extends: a}
  c: {extends: {service: x, file: lib.yaml}, env_file: gone.env}
  d: {extends: {service: ok, file: lib.yaml}}
  e: {image: a, env_file: bad.env}
=== inc.yaml
include: [services.yaml]
services:
  e: {image: other}
  f: {image: a b, imag: a}
=== lib.yaml
services:
  ok: {image: a, user: [1]}
=== bad.env
OK=1
NOT OK
";
    insta::assert_snapshot!(problems(text));
    let text = "=== services.yaml
include: [inc.yaml]
services:
  d: {extends: {service: ok, file: lib.yaml}}
=== inc.yaml
services:
  f: {image: a b, imag: a}
=== lib.yaml
services:
  ok: {image: a, user: [1]}
";
    insta::assert_snapshot!(problems(text));
}

#[test]
fn a_variable_without_a_value_is_a_warning_once() {
    let text = "=== services.yaml\nservices:\n  a: {image: 'a$NO', user: '1$NO$NO2'}\n";
    let composed = composed(&folder(text), &PLAIN).unwrap();
    let shown: Vec<String> = composed.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "services.yaml:2:14: a.image: the variable `NO` is not set; it counts as blank",
            "services.yaml:2:28: a.user: the variable `NO2` is not set; it counts as blank",
        ]
    );
    assert_eq!(composed.check().unwrap().services["a"].user.as_deref(), Some("1"));
}

#[test]
fn a_project_without_files_is_a_problem() {
    let problems = composed(&folder(""), &Case { files: &[], ..PLAIN }).unwrap_err();
    assert_eq!(problems.to_string(), "/srv/demo: no services file is named");
}

#[test]
fn includes_and_extends_that_multiply_are_refused() {
    let mut bomb =
        "=== services.yaml\ninclude: [l1.yaml, l1.yaml]\nservices: {a: {image: a}}\n".to_owned();
    for n in 1..30 {
        let next = format!("l{}.yaml", n + 1);
        bomb.push_str(&format!("=== l{n}.yaml\ninclude: [{next}, {next}]\nservices: {{}}\n"));
    }
    bomb.push_str("=== l30.yaml\nservices: {}\n");
    assert!(problems(&bomb).contains("more than 200 files"), "{}", problems(&bomb));
    let mut wide = "=== services.yaml\nservices:\n  base: {image: a, environment: {".to_owned();
    (0..5000).for_each(|n| wide.push_str(&format!("V{n}: x, ")));
    wide.push_str("}}\n");
    (0..1000).for_each(|n| wide.push_str(&format!("  s{n}: {{extends: base}}\n")));
    assert!(problems(&wide).contains("more than 400000 values"));
    let mut chain = "=== services.yaml\nservices:\n".to_owned();
    (0..500).for_each(|n| chain.push_str(&format!("  s{n}: {{extends: s{}}}\n", n + 1)));
    chain.push_str("  s500: {image: a}\n");
    assert!(problems(&chain).contains("extend each other"));
}

#[test]
fn long_and_short_forms_mean_the_same() {
    let short = "=== services.yaml\nservices: {a: {image: a, command: b 'c d', volumes: ['./x:/y:ro'], restart: no, environment: [A=1, B]}}\n";
    let long = "=== services.yaml\nservices: {a: {image: a, command: [b, c d], restart: 'no', environment: {A: '1', B: },\n  \
        volumes: [{type: bind, source: ./x, target: /y, read_only: true, bind: {create_host_path: true}}]}}\n";
    let one = composed(&folder(short), &PLAIN).unwrap();
    let two = composed(&folder(long), &PLAIN).unwrap();
    assert_eq!(one.text(), two.text());
    assert_eq!(one.check(), two.check());
    check_round_trip(&folder(short), &one);
}

#[test]
fn every_key_of_one_file_survives_the_canonical_text() {
    let text = format!("=== services.yaml\n{}", super::tests::EVERY_KEY);
    let files = folder(&text);
    let composed = composed(&files, &Case { shell: &[("TOKEN", "x$y")], ..PLAIN }).unwrap();
    composed.check().unwrap_or_else(|problems| panic!("{problems}"));
    check_round_trip(&files, &composed);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 400, ..Default::default() })]

    #[test]
    fn no_mutation_of_any_file_makes_anything_panic(
        edits in proptest::collection::vec((proptest::num::usize::ANY, 0_usize..6, "[ \n\\-:&*<{}\\[\\]$'\"#a-z!|>?,0-9~é]{0,4}"), 1..6)
    ) {
        let mut text: Vec<char> = EVERYTHING.chars().collect();
        for (at, gone, new) in edits {
            let at = at % text.len();
            let end = (at + gone).min(text.len());
            text.splice(at..end, new.chars());
        }
        let text: String = text.into_iter().collect();
        let case = Case { files: &["services.yaml", "override.yaml"], ..PLAIN };
        let files = folder(&text);
        if let Ok(composed) = composed(&files, &case) {
            check_round_trip(&files, &composed);
            let _ = (composed.yaml(), composed.json(), composed.images(), composed.volumes());
        }
    }
}

#[test]
fn a_layout_that_is_mounted_is_found_from_the_file_that_names_it_and_is_one_of_the_images() {
    let files = folder(
        "=== services.yaml
include: [team/inc.yaml]
services:
  web:
    extends: {file: team/base.yaml, service: base}
    image: web:1
=== team/inc.yaml
services:
  job: {image: 'oci:job:v1', volumes: [{type: image, source: 'oci:./data:v2', target: /data}]}
=== team/base.yaml
services:
  base: {volumes: [{type: image, source: 'oci:model', target: /model}]}
",
    );
    let composed = composed(&files, &PLAIN).unwrap_or_else(|problems| panic!("{problems}"));
    let layouts = ["data:v2", "job:v1", "model"].map(|name| format!("oci:/srv/demo/team/{name}"));
    assert_eq!(composed.images(), [&layouts[..], &["web:1".to_owned()]].concat());
    let services = composed.checked().unwrap().desired.services;
    let of_web = services.values().flat_map(Service::images).map(ToString::to_string);
    assert!(of_web.collect::<Vec<_>>().contains(&layouts[2]));
}
