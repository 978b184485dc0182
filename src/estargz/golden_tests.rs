//! Images made by another tool must read as what went into them: `rootfs-fixtures/golden/README.md`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::reading::{content, open, toc_of};
use super::{EntryKind, EntryNo, Flavour, Index, Tail, footer, tail, toc};
use crate::image::{Descriptor, Digest};

#[derive(Deserialize)]
struct Manifests {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Expected {
    layers: Vec<Vec<Member>>,
}

/// One member of a source tar.
#[derive(Deserialize, Clone)]
struct Member {
    path_hex: String,
    #[serde(rename = "type")]
    kind: String,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: f64,
    link_hex: String,
    dev: (u32, u32),
    sha256: Option<String>,
    xattrs: BTreeMap<String, String>,
}

fn golden(layout: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs-fixtures/golden").join(layout)
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// The layers of a layout, bottom first, with what they should hold.
fn layers(layout: &str) -> Vec<(Descriptor, Vec<u8>, Vec<Member>)> {
    let dir = golden(layout);
    let blob =
        |digest: &Digest| std::fs::read(dir.join("blobs/sha256").join(digest.hex())).unwrap();
    let top: Manifests =
        serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
    let manifest: Manifest = serde_json::from_slice(&blob(&top.manifests[0].digest)).unwrap();
    let file = std::fs::File::open(dir.join("expect.json.gz")).unwrap();
    let mut json = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut json).unwrap();
    let expected: Expected = serde_json::from_str(&json).unwrap();
    assert_eq!(manifest.layers.len(), expected.layers.len());
    let layers = manifest.layers.into_iter().zip(expected.layers);
    layers
        .map(|(layer, members)| {
            let blob = blob(&layer.digest);
            assert_eq!(Digest::of(&blob), layer.digest);
            (layer, blob, members)
        })
        .collect()
}

/// Compares everything that the format keeps.
fn compare(index: &Index<Vec<u8>>, blob: &[u8], members: &[Member]) {
    let by_path: BTreeMap<_, _> = members.iter().map(|m| (unhex(&m.path_hex), m)).collect();
    let mut names = 0;
    for (path, named) in &by_path {
        let shown = String::from_utf8_lossy(path).into_owned();
        let (dir, base) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], &path[..]),
        };
        let parent = index.find(dir).unwrap_or_else(|| panic!("parent of {shown}"));
        if base == b".wh..wh..opq" {
            assert!(index.entry(parent).unwrap().opaque, "{shown}");
            assert_eq!(index.lookup(parent, base), None);
            continue;
        }
        names += 1;
        if let Some(name) = base.strip_prefix(b".wh.") {
            let entry = index.entry(index.lookup(parent, name).unwrap()).unwrap();
            assert_eq!((entry.kind, entry.rdev), (EntryKind::CharDevice, (0, 0)), "{shown}");
            assert_eq!(index.lookup(parent, base), None);
            continue;
        }
        let mut member = *named;
        while member.kind == "1" {
            member = by_path[&unhex(&member.link_hex)];
        }
        let number = index.find(path).unwrap_or_else(|| panic!("{shown} is missing"));
        let entry = index.entry(number).unwrap();
        let kind = match &*member.kind {
            "0" => EntryKind::Regular,
            "2" => EntryKind::Symlink,
            "3" => EntryKind::CharDevice,
            "4" => EntryKind::BlockDevice,
            "5" => EntryKind::Directory,
            "6" => EntryKind::Fifo,
            other => panic!("type {other} of {shown}"),
        };
        assert_eq!(entry.kind, kind, "{shown}");
        assert_eq!(entry.mode, member.mode, "{shown}");
        assert_eq!((entry.uid, entry.gid), (member.uid, member.gid), "{shown}");
        assert_eq!(entry.mtime.to_string(), member.mtime.floor().to_string(), "{shown}");
        assert_eq!(entry.rdev, member.dev, "{shown}");
        for (name, value) in &member.xattrs {
            if value.is_empty() {
                continue;
            }
            let found = index.xattrs(number).find(|(found, _)| found[2..] == *name.as_bytes());
            assert_eq!(found.map(|(_, value)| value), Some(&*unhex(value)), "{name} of {shown}");
        }
        match kind {
            EntryKind::Regular => {
                assert_eq!(entry.size, member.size, "{shown}");
                let content = content(index, blob, number);
                let digest = Digest::of(&content);
                assert_eq!(Some(digest.hex()), member.sha256, "{shown}");
                assert_eq!(index.file_digest(number), Some(digest), "{shown}");
            }
            EntryKind::Symlink => {
                assert_eq!(index.link_target(number), unhex(&member.link_hex), "{shown}");
            }
            EntryKind::Directory => {
                let subs = (0..index.child_count(number))
                    .filter_map(|n| index.entry(index.child(number, n)?.1))
                    .filter(|child| child.kind == EntryKind::Directory);
                assert_eq!(entry.nlink as usize, 2 + subs.count(), "{shown}");
            }
            _ => {}
        }
        if kind != EntryKind::Directory {
            let same = by_path.keys().filter(|path| index.find(path) == Some(number));
            assert_eq!(entry.nlink as usize, same.count(), "{shown}");
        }
    }
    // Nothing that was not in the tar, but for parents that it only implied.
    let listed: u32 = (0..index.len()).map(|entry| index.child_count(EntryNo(entry))).sum();
    let implied = (1..index.len())
        .map(|entry| index.path(EntryNo(entry)))
        .filter(|path| {
            index.child_count(index.find(path).unwrap()) > 0 && !by_path.contains_key(path)
        })
        .count();
    assert_eq!(listed as usize, names + implied);
}

fn check(layout: &str, flavour: Flavour) -> Vec<Index<Vec<u8>>> {
    let mut indexes = Vec::new();
    for (layer, blob, members) in layers(layout) {
        let toc = toc_of(&blob);
        assert_eq!(toc.flavour, flavour);
        toc::verify(&toc.json, layer.toc_digest().unwrap()).unwrap();
        let index = open(&blob, &toc);
        compare(&index, &blob, &members);
        indexes.push(index);
    }
    indexes
}

#[test]
fn small_images_of_both_flavours_equal_their_source() {
    for (layout, flavour) in [("small-esgz", Flavour::Gzip), ("small-zstd", Flavour::Zstd)] {
        for index in check(layout, flavour) {
            assert_eq!(index.prefetch_range(), None, "{layout}");
        }
    }
}

#[test]
fn a_prefetch_landmark_bounds_the_first_part() {
    for index in check("small-prefetch", Flavour::Gzip) {
        let range = index.prefetch_range().unwrap();
        assert!(range.start == 0 && range.end > 0 && range.end < index.toc_offset());
        assert_eq!(index.find(b".prefetch.landmark"), None);
    }
}

#[test]
fn every_kind_of_entry_equals_its_source() {
    check("odd-esgz", Flavour::Gzip);
    check("gnu-esgz", Flavour::Gzip);
}

#[test]
fn a_plain_layer_is_not_taken_for_estargz() {
    let dir = golden("odd-plain/blobs/sha256");
    for blob in std::fs::read_dir(dir).unwrap() {
        let blob = std::fs::read(blob.unwrap().path()).unwrap();
        assert!(matches!(tail::parse(&blob, blob.len() as u64), Ok(Tail::NotEstargz)));
    }
}

#[test]
fn a_legacy_footer_leads_to_the_same_tree() {
    let (_, mut blob, members) = layers("small-esgz").swap_remove(0);
    let toc_offset = toc_of(&blob).toc_offset;
    let end = blob.len() - footer::encode(0).len();
    blob.truncate(end);
    blob.extend(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x16\0");
    blob.extend(format!("{toc_offset:016x}STARGZ").as_bytes());
    blob.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    let toc = toc_of(&blob);
    assert_eq!(toc.toc_offset, toc_offset);
    compare(&open(&blob, &toc), &blob, &members);
}
