//! Layers of other tools, against what their makers noted, and against the index of the same layer.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use supervisor::estargz::index::{Index, build};
use supervisor::estargz::{EntryKind, EntryNo, IndexInput, Tail, tail};
use supervisor::image::{Digest, Document, ImageConfig};

use super::snapshot::{Node, snapshot};
use super::{Place, UnpackInput};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs-fixtures/golden").join(name)
}

struct GoldenLayer {
    blob: Vec<u8>,
    input: UnpackInput,
}

fn layers(image: &str) -> Vec<GoldenLayer> {
    let read_blob = |digest: Digest| {
        std::fs::read(golden(image).join("blobs/sha256").join(digest.hex())).unwrap()
    };
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden(image).join("index.json")).unwrap()).unwrap();
    let mut digest: Digest = index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
    let manifest = loop {
        match Document::parse(&read_blob(digest), None).unwrap() {
            Document::Manifest(manifest) => break manifest,
            Document::Index(index) => digest = index.manifests[0].0.digest,
        }
    };
    let config = ImageConfig::parse(&read_blob(manifest.config.digest)).unwrap();
    let diff_ids = config.diff_ids;
    assert_eq!(manifest.layers.len(), diff_ids.len());
    let layers = manifest.layers.iter().zip(diff_ids);
    layers
        .map(|(descriptor, diff_id)| GoldenLayer {
            blob: read_blob(descriptor.digest),
            input: UnpackInput {
                compression: descriptor.compression().unwrap(),
                digest: descriptor.digest,
                size: descriptor.size,
                diff_id: Some(diff_id),
            },
        })
        .collect()
}

fn unpacked(layer: &GoldenLayer) -> (Place, bool) {
    let place = Place::new();
    let unpacked = place.unpack(&layer.blob, &layer.input).unwrap();
    assert_eq!(Some(unpacked.diff_id), layer.input.diff_id);
    assert_eq!(unpacked.unsupported_xattrs, 0);
    (place, unpacked.estargz)
}

/// The tree that the index of the layer describes, as a lazy mount shows it.
fn indexed(layer: &GoldenLayer) -> BTreeMap<Vec<u8>, Node> {
    let size = layer.input.size;
    let Tail::Complete(toc) = tail::parse(&layer.blob, size).unwrap() else { panic!("no TOC") };
    let input = IndexInput { blob_size: size, toc_offset: toc.toc_offset, flavour: toc.flavour };
    let index = Index::open(build(&toc.json, &input).unwrap()).unwrap();
    let mut nodes = BTreeMap::new();
    let mut names: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut linked = Vec::new();
    let mut pending = vec![(Vec::new(), EntryNo(0))];
    while let Some((path, number)) = pending.pop() {
        let entry = index.entry(number).unwrap();
        for child in 0..index.child_count(number) {
            let (name, number) = index.child(number, child).unwrap();
            let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
            pending.push(([&path, separator, name].concat(), number));
        }
        let mut xattrs: BTreeMap<_, _> =
            index.xattrs(number).map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        if entry.opaque {
            xattrs.insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
        }
        if entry.kind != EntryKind::Directory && entry.nlink > 1 {
            let name = names.entry(number.0).or_insert_with(|| path.clone());
            *name = name.clone().min(path.clone());
            linked.push((path.clone(), number.0));
        }
        let is_file = entry.kind == EntryKind::Regular;
        let node = Node {
            kind: match entry.kind {
                EntryKind::Directory => 'd',
                EntryKind::Regular => 'f',
                EntryKind::Symlink => 'l',
                EntryKind::CharDevice => 'c',
                EntryKind::BlockDevice => 'b',
                EntryKind::Fifo => 'p',
            },
            // Links have no mode of their own in a Linux file system.
            mode: if entry.kind == EntryKind::Symlink { 0o777 } else { entry.mode },
            owner: (entry.uid, entry.gid),
            mtime: (entry.mtime, 0),
            content: is_file.then(|| index.file_digest(number).unwrap_or_else(|| Digest::of(b""))),
            target: index.link_target(number).to_vec(),
            device: entry.rdev,
            xattrs,
            same_as: None,
        };
        nodes.insert(path, node);
    }
    for (path, number) in linked {
        nodes.get_mut(&path).unwrap().same_as = Some(names[&number].clone());
    }
    nodes
}

#[test]
fn an_unpacked_layer_equals_what_its_index_says() {
    for image in ["odd-esgz", "gnu-esgz", "small-esgz", "small-prefetch", "small-zstd"] {
        for layer in layers(image) {
            let (place, estargz) = unpacked(&layer);
            assert!(estargz, "{image}");
            let (found, expected) = (snapshot(&place.root()), indexed(&layer));
            for (path, node) in &expected {
                let path_text = String::from_utf8_lossy(path);
                assert_eq!(found.get(path), Some(node), "{image}: `{path_text}`");
            }
            assert_eq!(found.len(), expected.len(), "{image}: more than the index holds");
        }
    }
}

#[test]
fn the_same_image_as_plain_gzip_unpacks_to_the_same_trees() {
    let (plain, lazy) = (layers("odd-plain"), layers("odd-esgz"));
    let (plain_place, estargz) = unpacked(plain.last().unwrap());
    assert!(!estargz);
    let (lazy_place, _) = unpacked(lazy.last().unwrap());
    let (plain_tree, lazy_tree) = (snapshot(&plain_place.root()), snapshot(&lazy_place.root()));
    assert!(plain_tree.len() > 10);
    if plain.len() == lazy.len() {
        assert_eq!(plain_tree, lazy_tree);
    }
}

#[test]
fn an_unpacked_layer_equals_what_its_maker_noted() {
    for image in ["odd-esgz", "gnu-esgz", "small-esgz", "small-prefetch", "small-zstd"] {
        let mut text = String::new();
        let file = std::fs::File::open(golden(image).join("expect.json.gz")).unwrap();
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        let noted: serde_json::Value = serde_json::from_str(&text).unwrap();
        let noted = noted["layers"].as_array().unwrap();
        let layers = layers(image);
        assert_eq!(noted.len(), layers.len());
        for (layer, noted) in layers.iter().zip(noted) {
            let (place, _) = unpacked(layer);
            let found = snapshot(&place.root());
            for entry in noted.as_array().unwrap() {
                compare(image, &found, entry);
            }
        }
    }
}

fn hex(value: &serde_json::Value) -> Vec<u8> {
    let text = value.as_str().unwrap().as_bytes();
    let digit = |byte: &u8| char::from(*byte).to_digit(16).unwrap();
    text.chunks(2)
        .map(|pair| u8::try_from(digit(&pair[0]) * 16 + digit(&pair[1])).unwrap())
        .collect()
}

fn compare(image: &str, found: &BTreeMap<Vec<u8>, Node>, noted: &serde_json::Value) {
    let path = hex(&noted["path_hex"]);
    let shown = format!("{image}: `{}`", String::from_utf8_lossy(&path));
    let (directory, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&path[..0], &path[..]),
    };
    if name == b".wh..wh..opq" {
        let opaque = found[directory].xattrs.get(&b"trusted.overlay.opaque"[..]);
        assert_eq!(opaque.map(Vec::as_slice), Some(&b"y"[..]), "{shown}");
        return;
    }
    if let Some(hidden) = name.strip_prefix(b".wh.") {
        let hidden =
            if directory.is_empty() { hidden.to_vec() } else { [directory, hidden].join(&b'/') };
        let node = &found[&hidden];
        assert!((node.kind, node.device) == ('c', (0, 0)) || node.kind != 'c', "{shown}");
        return;
    }
    let number = |key: &str| noted[key].as_u64().unwrap();
    let node = found.get(&path).unwrap_or_else(|| panic!("{shown} is missing"));
    let kind = match noted["type"].as_str().unwrap() {
        "0" => 'f',
        "2" => 'l',
        "3" => 'c',
        "4" => 'b',
        "5" => 'd',
        "6" => 'p',
        _ => {
            let target = &found[&hex(&noted["link_hex"])];
            assert!(node.same_as.is_some() && node.same_as == target.same_as, "{shown}");
            return;
        }
    };
    assert_eq!(node.kind, kind, "{shown}");
    assert_eq!(u64::from(node.owner.0), number("uid"), "{shown}");
    assert_eq!(u64::from(node.owner.1), number("gid"), "{shown}");
    assert_eq!(node.mtime, (noted["mtime"].as_f64().unwrap().floor() as i64, 0), "{shown}");
    if kind == 'l' {
        assert_eq!(node.target, hex(&noted["link_hex"]), "{shown}");
    } else {
        assert_eq!(u64::from(node.mode), number("mode"), "{shown}");
    }
    if let Some(sha256) = noted["sha256"].as_str() {
        assert_eq!(node.content.unwrap().hex(), sha256, "{shown}");
    }
    if matches!(kind, 'c' | 'b') {
        let device = (u64::from(node.device.0), u64::from(node.device.1));
        assert_eq!(
            device,
            (noted["dev"][0].as_u64().unwrap(), noted["dev"][1].as_u64().unwrap()),
            "{shown}"
        );
    }
    for name in noted["xattrs"].as_object().unwrap().keys() {
        // The notes lost the first two letters of each name.
        let kept = node.xattrs.keys().any(|known| known.ends_with(name.as_bytes()));
        assert!(kept, "{shown}: {name}");
    }
}
