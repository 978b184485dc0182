//! Images of another tool through the command line: mounted lazily and mounted whole they are the same tree, and it
//! is the one that their maker noted.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::support::cli::Cli;
use crate::support::eventually;
use crate::unpack::snapshot::{Node, snapshot};

/// Images whose layers are all lazy.
const LAZY: [&str; 5] = ["small-esgz", "small-prefetch", "small-zstd", "odd-esgz", "gnu-esgz"];

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs-fixtures/golden").join(name)
}

/// The reference of a golden image.
pub(crate) fn image(name: &str) -> String {
    format!("oci:{}", golden(name).display())
}

type Tree = BTreeMap<Vec<u8>, Node>;

fn mounted(cli: &Cli, reference: &str, options: &[&str]) -> Tree {
    let target = cli.directory("image");
    let mut arguments = vec!["image", "mount", reference, target.to_str().unwrap()];
    arguments.extend_from_slice(options);
    cli.run(arguments).ok();
    snapshot(&target)
}

fn assert_same(name: &str, found: &Tree, expected: &Tree) {
    for (path, node) in expected {
        let shown = String::from_utf8_lossy(path);
        assert_eq!(found.get(path), Some(node), "{name}: `{shown}`");
    }
    let more: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    assert!(more.is_empty(), "{name}: {more:?}");
}

fn lazy_equals_full(name: &str) {
    let (lazy, full) = (Cli::new(), Cli::new());
    let tree = mounted(&lazy, &image(name), &[]);
    assert_same(name, &tree, &mounted(&full, &image(name), &["--full"]));
    assert_merged(name, &tree);

    let (lazy_image, full_image) = (lazy.image(), full.image());
    assert_eq!(lazy_image["LazyLayers"], lazy_image["Layers"], "{lazy_image}");
    assert_eq!(full_image["LazyLayers"], 0, "{full_image}");
    assert_eq!(full_image["ImageLocal"], 1.0, "{full_image}");
    // Read once, it is here.
    eventually("all that was read is kept", || lazy.image()["ImageLocal"] == 1.0);
    let mount = lazy.folder().join("image");
    lazy.run(["image", "umount", mount.to_str().unwrap()]).ok();
    assert!(std::fs::read_dir(mount).unwrap().next().is_none(), "still mounted");
}

#[test]
fn an_estargz_image_is_the_same_lazily_and_whole() {
    lazy_equals_full("small-esgz");
}

#[test]
fn an_image_with_prefetch_is_the_same_lazily_and_whole() {
    lazy_equals_full("small-prefetch");
}

#[test]
fn a_zstd_chunked_image_is_the_same_lazily_and_whole() {
    lazy_equals_full("small-zstd");
}

#[test]
fn entries_of_every_kind_are_the_same_lazily_and_whole() {
    lazy_equals_full("odd-esgz");
}

#[test]
fn a_gnu_tar_is_the_same_lazily_and_whole() {
    lazy_equals_full("gnu-esgz");
}

#[test]
fn a_plain_image_is_the_same_as_the_lazy_one_of_the_same_source() {
    let (lazy, plain) = (Cli::new(), Cli::new());
    let tree = mounted(&lazy, &image("odd-esgz"), &[]);
    let mut whole = mounted(&plain, &image("odd-plain"), &[]);
    // The one thing that a table of contents does not keep.
    whole.values_mut().for_each(|node| node.mtime.1 = 0);
    assert_same("odd-plain", &tree, &whole);
    let shown = plain.image();
    assert_eq!(shown["LazyLayers"], 0, "{shown}");
    let why = shown["NotLazyBecause"][0].as_str().unwrap();
    assert!(why.contains("not eStargz"), "{why}");
}

#[test]
fn a_lazy_mount_goes_on_as_a_whole_one_after_a_full_pull() {
    let cli = Cli::new();
    let reference = image("small-esgz");
    let before = mounted(&cli, &reference, &[]);
    cli.run(["pull", "--full", &reference]).ok();
    // The old mount is still lazy, and equal.
    assert_same("while mounted", &snapshot(&cli.folder().join("image")), &before);
    cli.run(["image", "umount", "image"]).ok();
    assert_same("after", &mounted(&cli, &reference, &[]), &before);
    assert_eq!(cli.image()["LazyLayers"], 0);
}

#[test]
fn an_image_that_is_unmounted_after_control_has_gone_leaves_nothing() {
    let cli = Cli::new();
    mounted(&cli, &image("gnu-esgz"), &[]);
    cli.end_control();
    assert_eq!(std::fs::read(cli.folder().join("image/a/f")).unwrap().len(), 1);
    // The check that nothing is left is made when the instance is dropped.
    cli.run(["image", "umount", "image"]).ok();
}

#[test]
fn every_runnable_image_runs() {
    let cli = Cli::new();
    let mut yaml = "name: golden\nservices:\n".to_owned();
    for name in LAZY.iter().filter(|name| name.starts_with("small")) {
        yaml += &format!(
            "  {name}:\n    image: {}\n    network_mode: none\n    restart: \"no\"\n    \
             entrypoint: [\"/bin/sh\", \"-c\", \"echo $$0 runs {name}; exec sleep 1000\"]\n    \
             stop_signal: SIGKILL\n",
            image(name)
        );
    }
    cli.services(&yaml);
    let mut up = cli.up();
    for name in LAZY.iter().filter(|name| name.starts_with("small")) {
        up.until(&format!("/bin/sh runs {name}"));
        let ps = cli.ps(name);
        assert_eq!(ps["State"], "running", "{ps}");
        assert_eq!(ps["LazyLayers"], 2, "{ps}");
    }
}

fn hex(value: &serde_json::Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"))
}

/// What all layers together give, from the notes of the maker, by the rules of the image specification.
fn merged_notes(name: &str) -> BTreeMap<Vec<u8>, serde_json::Value> {
    let mut text = String::new();
    let file = std::fs::File::open(golden(name).join("expect.json.gz")).unwrap();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let noted: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut merged: BTreeMap<Vec<u8>, serde_json::Value> = BTreeMap::new();
    for layer in noted["layers"].as_array().unwrap() {
        let (mut hidden, mut added) = (Vec::new(), Vec::new());
        for entry in layer.as_array().unwrap() {
            let path = hex(&entry["path_hex"]);
            let slash = path.iter().rposition(|byte| *byte == b'/');
            let (directory, file) =
                slash.map_or((&b""[..], &path[..]), |at| (&path[..at], &path[at + 1..]));
            let joined = |name: &[u8]| {
                if directory.is_empty() { name.to_vec() } else { [directory, name].join(&b'/') }
            };
            match file.strip_prefix(b".wh.") {
                Some(b".wh..opq") => hidden.push((directory.to_vec(), false)),
                Some(name) => hidden.push((joined(name), true)),
                None => added.push((path.clone(), entry.clone())),
            }
        }
        merged.retain(|path, _| {
            !hidden.iter().any(|(gone, itself)| is_below(path, gone) || (*itself && path == gone))
        });
        for (path, entry) in added {
            // What is no directory hides all that was below the name.
            if entry["type"] != "5" {
                merged.retain(|known, _| !is_below(known, &path));
            }
            merged.insert(path, entry);
        }
    }
    merged
}

fn assert_merged(name: &str, tree: &Tree) {
    let notes = merged_notes(name);
    assert!(!notes.is_empty());
    for (path, entry) in &notes {
        let shown = format!("{name}: `{}`", String::from_utf8_lossy(path));
        let node = tree.get(path).unwrap_or_else(|| panic!("{shown} is missing"));
        let mut entry = entry;
        while entry["type"] == "1" {
            entry = &notes[&hex(&entry["link_hex"])];
        }
        let kind = match entry["type"].as_str().unwrap() {
            "2" => 'l',
            "3" => 'c',
            "4" => 'b',
            "5" => 'd',
            "6" => 'p',
            _ => 'f',
        };
        assert_eq!(node.kind, kind, "{shown}");
        if kind != 'l' {
            assert_eq!(u64::from(node.mode), entry["mode"].as_u64().unwrap(), "{shown}");
        } else {
            assert_eq!(node.target, hex(&entry["link_hex"]), "{shown}");
        }
        assert_eq!(u64::from(node.owner.0), entry["uid"].as_u64().unwrap(), "{shown}");
        assert_eq!(node.mtime.0, entry["mtime"].as_f64().unwrap().floor() as i64, "{shown}");
        if let Some(sha256) = entry["sha256"].as_str() {
            assert_eq!(node.content.unwrap().hex(), sha256, "{shown}");
        }
    }
    // Implicit parents apart, nothing shows that the maker did not note: whiteouts hide, and do not show themselves.
    for path in tree.keys().filter(|path| !path.is_empty() && !notes.contains_key(*path)) {
        let is_parent = notes.keys().any(|noted| is_below(noted, path));
        let shown = String::from_utf8_lossy(path);
        // The landmarks of the format are files of its own.
        assert!(is_parent || path.ends_with(b"prefetch.landmark"), "{name}: `{shown}`");
    }
}
