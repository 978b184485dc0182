//! Layers above layers: lazy and plain ones in every order are the same tree, by the rules of whiteouts.

use std::collections::BTreeMap;
use std::path::Path;

use crate::support::cli::Cli;
use crate::support::image::{Image, Layer};
use crate::support::registry::FaultRegistry;
use crate::support::tar::{Header, TarBuilder};
use crate::unpack::snapshot::{Node, snapshot};

fn lower() -> Vec<u8> {
    let mut raised = Header::new(b'0', b"t/raised");
    (raised.mode, raised.uid, raised.gid) = (0o6755, 12, 34);
    TarBuilder::default()
        .directory("t")
        .entry(&raised, "raised")
        .file("t/gone", "gone")
        .file("t/kept", "kept")
        .hard_link("t/kept-too", "t/kept")
        .file("t/file-to-dir", "file")
        .directory("t/dir-to-file")
        .file("t/dir-to-file/below", "below")
        .directory("t/dir-to-link")
        .file("t/dir-to-link/below", "below")
        .directory("t/opaque")
        .file("t/opaque/below", "below")
        .directory("t/opaque/both")
        .file("t/opaque/both/below", "below")
        .directory("t/gone-dir")
        .file("t/gone-dir/below", "below")
        .symlink("t/link", "kept")
        .file("./t/dotted", "dotted")
        // No entry for its parents.
        .file("t/implicit/deep/file", "file")
        .finish()
}

fn upper() -> Vec<u8> {
    TarBuilder::default()
        .directory("t")
        .file("t/.wh.gone", "")
        .file("t/.wh.never-was", "")
        .directory("t/file-to-dir")
        .file("t/file-to-dir/new", "new")
        .file("t/dir-to-file", "now a file")
        .symlink("t/dir-to-link", "kept")
        .directory("t/opaque")
        .file("t/opaque/.wh..wh..opq", "")
        .file("t/opaque/above", "above")
        .directory("t/opaque/both")
        .file("t/opaque/both/above", "above")
        .file("t/.wh.gone-dir", "")
        .file("t/link", "no link any more")
        .file("t/implicit/deep/second", "second")
        .finish()
}

type Make = fn(Vec<u8>) -> Layer;

fn tree(layers: Vec<Layer>, options: &[&str]) -> BTreeMap<Vec<u8>, Node> {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let image = layers.into_iter().fold(Image::shell(), Image::and);
    let reference = image.put(&registry);
    let target = cli.directory("image");
    let mut arguments = vec!["image", "mount", &reference, target.to_str().unwrap()];
    arguments.extend_from_slice(options);
    cli.run(arguments).ok();
    let tree = snapshot(&target.join("t"));
    check(&target.join("t"));
    tree
}

/// What the image specification says, spelled out.
fn check(root: &Path) {
    let names = |path: &str| -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(root.join(path))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let text = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    assert_eq!(
        names(""),
        [
            "dir-to-file",
            "dir-to-link",
            "dotted",
            "file-to-dir",
            "implicit",
            "kept",
            "kept-too",
            "link",
            "opaque",
            "raised"
        ]
    );
    assert_eq!(names("file-to-dir"), ["new"]);
    assert_eq!(
        (names("opaque"), names("opaque/both")),
        (vec!["above".into(), "both".into()], vec!["above".into()])
    );
    assert_eq!(names("implicit/deep"), ["file", "second"]);
    assert_eq!(
        (text("dir-to-file"), text("link")),
        ("now a file".into(), "no link any more".into())
    );
    assert_eq!(text("dir-to-link"), "kept");
    // A name that was hidden cannot be found by asking for it either.
    for hidden in ["gone", "gone-dir/below", "opaque/below", "opaque/both/below", ".wh.gone"] {
        assert!(!root.join(hidden).exists(), "{hidden}");
    }
}

#[test]
fn whiteouts_work_between_lazy_and_plain_layers_in_every_order() {
    let makes: [Make; 2] = [Layer::lazy, |tar| Layer::gzip(&tar)];
    let mut trees = Vec::new();
    for below in makes {
        for above in makes {
            trees.push(tree(vec![below(lower()), above(upper())], &[]));
        }
    }
    trees.push(tree(vec![Layer::lazy(lower()), Layer::lazy(upper())], &["--full"]));
    for other in &trees[1..] {
        for (path, node) in &trees[0] {
            let shown = String::from_utf8_lossy(path);
            assert_eq!(other.get(path), Some(node), "`{shown}`");
        }
        assert_eq!(other.len(), trees[0].len());
    }
}

#[test]
fn an_image_of_sixty_layers_is_one_tree() {
    let tar = |n: usize| {
        let tar = TarBuilder::default().directory("t").file(format!("t/{n}"), n.to_string());
        // Each hides one name of the layer below.
        tar.file(format!("t/.wh.{}", n.wrapping_sub(1) % 1000 / 2 * 2), "").finish()
    };
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let layers =
        (0..60).map(|n| if n % 3 == 0 { Layer::gzip(&tar(n)) } else { Layer::lazy(tar(n)) });
    let reference = layers.fold(Image::shell(), Image::and).put(&registry);
    let target = cli.directory("image");
    cli.run(["image", "mount", &reference, target.to_str().unwrap()]).ok();
    let found = snapshot(&target.join("t"));
    for n in 0..60 {
        let name = n.to_string().into_bytes();
        // Layer n+1 or n+2 hides an even n; the last ones have nobody above.
        let hidden = n % 2 == 0 && n < 59;
        assert_eq!(found.contains_key(&name), !hidden, "{n}: {:?}", found.keys());
    }
    cli.services(&crate::support::image::app(
        &reference,
        "    command: [sh, -c, 'cat /t/59; echo; echo alive; exec sleep 1000']\n",
    ));
    let mut up = cli.up();
    up.until("| alive");
    assert!(up.text().contains("| 59"), "{}", up.text());
}

#[test]
fn names_that_json_cannot_hold_make_a_layer_a_full_one() {
    // As other writers do: their JSON has U+FFFD for what is no UTF-8, and the tar has the name.
    let layer =
        Layer::lazy(TarBuilder::default().directory("t").file("t/name", "content").finish());
    let layer = layer.with_toc(|toc| {
        let entries = toc["entries"].as_array_mut().unwrap();
        for entry in entries.iter_mut().filter(|entry| entry["name"] == "t/name") {
            entry["name"] = serde_json::json!("t/na\u{fffd}e");
        }
    });
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let reference = Image::shell().and(layer).put(&registry);
    let target = cli.directory("image");
    cli.run(["image", "mount", &reference, target.to_str().unwrap()]).ok();
    let found = snapshot(&target.join("t"));
    assert!(found.contains_key(&b"name"[..]), "{:?}", found.keys());
    let image = cli.image();
    assert_eq!(image["LazyLayers"], 2, "{image}");
    assert!(!image["NotLazyBecause"][0].as_str().unwrap().is_empty(), "{image}");
}
