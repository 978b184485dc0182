//! The house rules that the compiler does not check: each test reads `src/` and fails with the rule that was broken.
//!
//! What clippy can say (no `unwrap`, no environment outside the command line) is in `Cargo.toml` and `clippy.toml`.

mod source;

use source::Source;

/// The modules in their order: one imports only from those before it.
const ORDER: [&str; 26] = [
    "boundary",
    "version",
    "sys",
    "telemetry",
    "host",
    "image",
    "estargz",
    "spec",
    "reconcile",
    "logs",
    "network",
    "registry",
    "store",
    "lazy",
    "unpack",
    "container",
    "fuse",
    "layer",
    "rootfs",
    "tooling",
    "supervise",
    "api",
    "embed",
    "doctor",
    "install",
    "cli",
];

/// Modules that compute and do nothing else.
const PURE: [&str; 5] = ["version", "image", "estargz", "spec", "reconcile"];

/// Crates that only one place names, so that another one can take their place.
const CRATES: [(&str, &[&str]); 8] = [
    ("fuser", &["fuse"]),
    ("libcontainer", &["container"]),
    ("reqwest", &["registry"]),
    ("libc", &["sys"]),
    ("memmap2", &["sys"]),
    ("anyhow", &["cli", ""]),
    ("clap", &["cli", ""]),
    ("axum", &["api"]),
];

/// What a pure module may not name: files, sockets, clocks, random numbers, the environment, runtimes. Addresses,
/// durations and `io::Read` are values and traits, so they are no part of this.
const IMPURE: [&str; 20] = [
    "std::fs",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "ToSocketAddrs",
    "std::process",
    "std::env",
    "std::thread",
    "std::os::unix::net",
    "Instant",
    "SystemTime",
    "Timestamp::now",
    "Zoned::now",
    "tokio",
    "rustix",
    "memmap2",
    "tempfile",
    "rand",
    "crate::sys",
    "tracing",
];

/// Longest production code of one file, in lines.
const LONGEST: usize = 400;

/// One breach: where, and of which rule.
type Breach = String;

#[test]
fn modules_import_only_from_modules_above() {
    check(imports_from_below);
}

#[test]
fn a_crate_behind_a_seam_is_named_only_there() {
    check(crates_out_of_place);
}

#[test]
fn pure_modules_name_nothing_of_the_outside() {
    check(outside_in_pure_modules);
}

#[test]
fn unsafe_code_is_only_in_sys_and_in_the_backing_file_call() {
    check(unsafe_out_of_place);
}

#[test]
fn every_file_begins_with_what_it_owns() {
    check(missing_introduction);
}

#[test]
fn only_the_command_line_prints() {
    check(printing_out_of_place);
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    check(too_long);
}

#[test]
fn no_file_is_named_for_leftovers() {
    check(leftover_names);
}

/// Fails with every breach of `rule` in `src/`.
fn check(rule: fn(&Source) -> Vec<Breach>) {
    let breaches: Vec<Breach> = source::all().iter().flat_map(rule).collect();
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

fn imports_from_below(source: &Source) -> Vec<Breach> {
    let Some(own) = ORDER.iter().position(|module| *module == source.module()) else {
        return Vec::new();
    };
    let mut breaches = Vec::new();
    for (line, module) in crate_modules(source) {
        let theirs = ORDER.iter().position(|known| *known == module);
        if module == "testing" || theirs.is_some_and(|theirs| theirs > own) {
            let path = &source.path;
            let own = source.module();
            breaches.push(format!(
                "src/{path}:{line}: `{own}` must not import `{module}`, which stands below it"
            ));
        }
    }
    breaches
}

/// Modules of this crate that production code names, with lines: `crate::x`, `crate::{x, y::z}`, and `super::x` where
/// `super` is the root.
fn crate_modules(source: &Source) -> Vec<(usize, String)> {
    let depth = source.path.matches('/').count() + usize::from(!source.path.ends_with("/mod.rs"));
    let from_root = "super::".repeat(depth);
    let mut found = Vec::new();
    for root in ["crate::", &from_root] {
        for at in occurrences(&source.production, root) {
            let line = line_of(&source.production, at);
            let rest = &source.production[at + root.len()..];
            match rest.strip_prefix('{') {
                Some(group) => {
                    let names = group_heads(group);
                    found.extend(names.into_iter().map(|name| (line, name)));
                }
                None => found.push((line, word(rest).to_owned())),
            }
        }
    }
    found
}

/// First names of the paths in a `use` group whose brace was taken off.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 0;
    let mut at_head = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_head = true,
            c if at_head && (c.is_alphanumeric() || c == '_') => {
                heads.push(word(&group[at..]).to_owned());
                at_head = false;
            }
            _ => {}
        }
    }
    heads
}

fn crates_out_of_place(source: &Source) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (name, modules) in CRATES {
        if modules.contains(&source.module()) {
            continue;
        }
        for line in names_crate(&source.production, name) {
            let places = modules.join("`, `");
            breaches.push(format!(
                "src/{}:{line}: only `{places}` may name the crate `{name}`",
                source.path
            ));
        }
    }
    breaches
}

/// Lines of `code` that name the crate `name`: as the head of a path, or in a `use`.
fn names_crate(code: &str, name: &str) -> Vec<usize> {
    let is_named = |at: &usize| {
        let rest = &code[at + name.len()..];
        let before = code[..*at].trim_end();
        let is_head = !before.ends_with("::") || before.ends_with(" ::");
        let is_path = rest.starts_with("::") || before.ends_with("use");
        is_head && is_path && !is_path_in_group(before)
    };
    occurrences(code, name).filter(is_named).map(|at| line_of(code, at)).collect()
}

/// Whether `before` ends inside the braces of a `use` of another path.
fn is_path_in_group(before: &str) -> bool {
    let statement = before.rsplit(';').next().unwrap_or("");
    statement.contains("::{")
        && statement.matches('{').count() > statement.matches('}').count()
        && statement.trim_start().starts_with(['u', 'p'])
        && statement.contains("use ")
}

fn outside_in_pure_modules(source: &Source) -> Vec<Breach> {
    if !PURE.contains(&source.module()) {
        return Vec::new();
    }
    let mut breaches = Vec::new();
    for name in IMPURE {
        let is_crate = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let lines: Vec<usize> = if is_crate {
            names_crate(&source.production, name)
        } else {
            occurrences(&source.production, name)
                .map(|at| line_of(&source.production, at))
                .collect()
        };
        for line in lines {
            let module = source.module();
            breaches.push(format!(
                "src/{}:{line}: `{module}` computes only and must not name `{name}`",
                source.path
            ));
        }
    }
    breaches
}

fn unsafe_out_of_place(source: &Source) -> Vec<Breach> {
    if source.module() == "sys" || source.path == "fuse/backing.rs" {
        return Vec::new();
    }
    let line = |at| line_of(&source.code, at);
    occurrences(&source.code, "unsafe")
        .map(|at| {
            format!(
                "src/{}:{}: `unsafe` belongs in `sys/` or `fuse/backing.rs`",
                source.path,
                line(at)
            )
        })
        .collect()
}

fn missing_introduction(source: &Source) -> Vec<Breach> {
    if source.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![format!("src/{}:1: the file must begin with `//!` and what it owns", source.path)]
}

fn printing_out_of_place(source: &Source) -> Vec<Breach> {
    if source.module() == "cli" {
        return Vec::new();
    }
    let mut breaches = Vec::new();
    for name in ["print", "println", "eprint", "eprintln", "dbg"] {
        for at in occurrences(&source.production, name) {
            if source.production[at + name.len()..].starts_with('!') {
                let line = line_of(&source.production, at);
                breaches.push(format!("src/{}:{line}: only `cli` prints (`{name}!`)", source.path));
            }
        }
    }
    breaches
}

fn too_long(source: &Source) -> Vec<Breach> {
    let lines = if source.is_test { 0 } else { source.production_lines() };
    if lines <= LONGEST {
        return Vec::new();
    }
    vec![format!("src/{}: {lines} production lines, more than {LONGEST}; split it", source.path)]
}

fn leftover_names(source: &Source) -> Vec<Breach> {
    let words = source.path.trim_end_matches(".rs").split(['/', '_']);
    let bad = |word: &&str| {
        matches!(
            *word,
            "utils" | "util" | "helpers" | "helper" | "common" | "misc" | "types" | "manager"
        )
    };
    words
        .filter(bad)
        .map(|word| format!("src/{}: `{word}` says nothing of what the file is about", source.path))
        .collect()
}

/// Offsets of `name` in `code` where no longer word surrounds it.
fn occurrences<'a>(code: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).map(|(at, _)| at).filter(move |at| {
        let joined_before = code[..*at].ends_with(is_word)
            || name.starts_with("super") && code[..*at].ends_with("::");
        let open_end = name.ends_with(':');
        !joined_before && (open_end || !code[at + name.len()..].starts_with(is_word))
    })
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// The rules themselves: each bites where it should, and nowhere else.
mod rules {
    use super::*;

    fn breaches(rule: fn(&Source) -> Vec<Breach>, path: &str, text: &str) -> usize {
        rule(&Source::new(path, text)).len()
    }

    #[test]
    fn imports_are_followed_through_groups_and_supers() {
        for (path, text, expected) in [
            ("spec/a.rs", "use crate::image::Digest;", 0),
            ("spec/a.rs", "use crate::store::Store;", 1),
            ("spec/a.rs", "use crate::{\n  image::{store, Digest},\n  store::Store, cli};", 2),
            ("spec/a.rs", "fn f() { crate::cli::main() }", 1),
            ("spec/a.rs", "use super::super::cli;", 1),
            ("spec/mod.rs", "use super::cli;", 1),
            ("spec/a.rs", "use super::store;", 0),
            ("spec/a.rs", "// crate::cli\n/* crate::cli */ const A: &str = \"crate::cli\";", 0),
            ("spec/a.rs", "#[cfg(test)]\nmod tests {\n use crate::cli;\n}\nuse crate::cli;", 1),
            ("spec/a.rs", "use crate::testing::Fake;", 1),
            ("store/a.rs", "use crate::registry::BlobSource;", 0),
            ("lib.rs", "use crate::cli;", 0),
        ] {
            assert_eq!(breaches(imports_from_below, path, text), expected, "{path}: {text}");
        }
    }

    #[test]
    fn crates_are_found_as_heads_of_paths() {
        for (path, text, expected) in [
            ("lazy/a.rs", "use fuser::Session;", 1),
            ("lazy/a.rs", "fn f(s: fuser::Session) {}", 1),
            ("fuse/a.rs", "use fuser::Session;", 0),
            ("lazy/a.rs", "use crate::fuser::x; let libc = 1; a.libc();", 0),
            ("store/a.rs", "use libc;", 1),
            ("store/a.rs", "let raw = rustix::libc::X; x::libc::y();", 0),
            ("main.rs", "fn f() -> anyhow::Result<()> {}", 0),
        ] {
            assert_eq!(breaches(crates_out_of_place, path, text), expected, "{path}: {text}");
        }
    }

    #[test]
    fn the_outside_is_found_in_pure_modules_only() {
        for (path, text, expected) in [
            ("image/a.rs", "use std::fs::File;", 1),
            ("image/a.rs", "use std::io::Read; let t: std::time::Duration;", 0),
            ("reconcile/a.rs", "let now = Instant::now();", 1),
            ("spec/a.rs", "async fn f() { tokio::spawn(g()) }", 1),
            ("spec/a.rs", "use crate::sys::mapped;", 1),
            ("store/a.rs", "use std::fs::File;", 0),
            ("image/a.rs", "use std::net::IpAddr; jiff::Timestamp::from_second(1);", 0),
            ("image/a.rs", "jiff::Timestamp::now();", 1),
            ("image/a.rs", "#[cfg(test)]\nmod tests {\n    fn f() { std::fs::read(1); }\n}\n", 0),
        ] {
            assert_eq!(breaches(outside_in_pure_modules, path, text), expected, "{path}: {text}");
        }
    }

    #[test]
    fn unsafe_printing_lengths_and_names_are_seen() {
        assert_eq!(breaches(unsafe_out_of_place, "lazy/a.rs", "unsafe { x() } // unsafe"), 1);
        assert_eq!(breaches(unsafe_out_of_place, "sys/a.rs", "unsafe { x() }"), 0);
        assert_eq!(breaches(unsafe_out_of_place, "fuse/backing.rs", "unsafe { x() }"), 0);
        assert_eq!(breaches(unsafe_out_of_place, "lib.rs", "#![deny(unsafe_code)]"), 0);
        assert_eq!(
            breaches(printing_out_of_place, "lazy/a.rs", "println!(\"x\"); eprint!(\"y\");"),
            2
        );
        assert_eq!(breaches(printing_out_of_place, "cli/a.rs", "println!(\"x\");"), 0);
        assert_eq!(breaches(missing_introduction, "lazy/a.rs", "use x;"), 1);
        assert_eq!(breaches(missing_introduction, "lazy/a.rs", "//! It owns x."), 0);
        let long = "x();\n".repeat(LONGEST);
        assert_eq!(breaches(too_long, "lazy/a.rs", &long), 0);
        assert_eq!(breaches(too_long, "lazy/a.rs", &format!("{long}y();\n")), 1);
        let tested = format!("{long}#[cfg(test)]\nmod tests {{\n\n// x\n{long}}}\n");
        assert_eq!(breaches(too_long, "lazy/a.rs", &tested), 0);
        assert_eq!(breaches(leftover_names, "lazy/file_utils.rs", ""), 1);
        assert_eq!(breaches(leftover_names, "lazy/file.rs", ""), 0);
    }

    #[test]
    fn literals_and_comments_are_no_code() {
        let text = "a(\"\\\" unsafe\", r#\"\" unsafe\"#, 'u', '\\'', b\"unsafe\", br\"unsafe\"); /* /* */ unsafe */ <'a> b";
        let code = source::blank_comments_and_literals(text);
        assert!(!code.contains("unsafe"), "{code}");
        assert!(code.contains("<'a> b"), "{code}");
        assert_eq!(code.chars().count(), text.chars().count());
    }

    #[test]
    fn files_declared_for_tests_are_tests_with_all_below_them() {
        let mut sources = vec![
            Source::new("spec/mod.rs", "mod a;\n#[cfg(test)]\nmod tests;\nmod b;"),
            Source::new("spec/a.rs", "#[cfg(test)]\n#[path = \"x\"]\nmod deep;"),
            Source::new("spec/a/deep.rs", ""),
            Source::new("spec/b.rs", ""),
            Source::new("spec/tests.rs", "use crate::cli;"),
            Source::new("spec/tests/more.rs", "use crate::cli;"),
        ];
        source::mark_tests(&mut sources);
        let tests: Vec<&str> =
            sources.iter().filter(|s| s.is_test).map(|s| s.path.as_str()).collect();
        assert_eq!(tests, ["spec/a/deep.rs", "spec/tests.rs", "spec/tests/more.rs"]);
        assert!(sources.iter().all(|source| imports_from_below(source).is_empty()));
    }
}
