//! Entries of every kind, and what becomes of them in the tree.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

use supervisor::image::{Compression, Digest};

use super::snapshot::{snapshot, xattrs};
use super::{Place, gzip, input, unpack};
use crate::support::tar::{Header, TarBuilder, seal};

#[test]
fn every_kind_of_entry_keeps_its_attributes() {
    let odd =
        |kind, name| Header { mode: 0o6751, uid: 1000, gid: 70_000, ..Header::new(kind, name) };
    let tar = TarBuilder::default()
        .entry(&Header { mode: 0o1777, uid: 3, ..Header::new(b'5', b"./") }, b"")
        .entry(&odd(b'5', b"dir/"), b"")
        .entry(&odd(b'0', b"dir/file"), b"content")
        .entry(&odd(b'2', b"dir/symlink").link(b"../../outside"), b"")
        .entry(&odd(b'1', b"dir/hard").link(b"./dir/file"), b"")
        .entry(&Header { device: (1, 3), ..odd(b'3', b"dir/char") }, b"")
        .entry(&Header { device: (259, 300), ..odd(b'4', b"dir/block") }, b"")
        .entry(&odd(b'6', b"dir/fifo"), b"")
        .finish();
    let (place, unpacked) = unpack(&tar).unwrap();
    assert_eq!((unpacked.entries, unpacked.bytes), (8, 7));
    let tree = snapshot(&place.root());
    let node = |path: &str| &tree[path.as_bytes()];
    for (name, kind) in [("", 'd'), ("/file", 'f'), ("/char", 'c'), ("/block", 'b'), ("/fifo", 'p')]
    {
        let node = node(&format!("dir{name}"));
        assert_eq!((node.kind, node.mode, node.owner), (kind, 0o6751, (1000, 70_000)), "{name}");
        assert_eq!(node.mtime, (1_700_000_000, 0), "{name}");
    }
    assert_eq!((node("").mode, node("").owner, node("").mtime.0), (0o1777, (3, 0), 1_700_000_000));
    assert_eq!(node("dir/symlink").target, b"../../outside");
    assert_eq!(node("dir/symlink").owner, (1000, 70_000));
    assert_eq!(node("dir/symlink").mtime, (1_700_000_000, 0));
    assert_eq!(node("dir/hard").same_as, node("dir/file").same_as);
    assert!(node("dir/hard").same_as.is_some());
    assert_eq!(node("dir/char").device, (1, 3));
    assert_eq!(node("dir/block").device, (259, 300));
}

#[test]
fn parents_that_no_entry_describes_are_plain_directories_of_the_epoch() {
    let tar = TarBuilder::default().file("a/b/c", b"x").finish();
    let (place, _) = unpack(&tar).unwrap();
    let tree = snapshot(&place.root());
    for path in ["", "a", "a/b"] {
        let node = &tree[path.as_bytes()];
        assert_eq!(
            (node.kind, node.mode, node.owner, node.mtime),
            ('d', 0o755, (0, 0), (0, 0)),
            "{path}"
        );
    }
    // An entry that comes later describes it after all.
    let header = Header { mode: 0o700, uid: 5, ..Header::new(b'5', b"a") };
    let tar = TarBuilder::default().file("a/b/c", b"x").entry(&header, b"").finish();
    let (place, _) = unpack(&tar).unwrap();
    let node = &snapshot(&place.root())[&b"a"[..]];
    assert_eq!((node.mode, node.owner, node.mtime.0), (0o700, (5, 0), 1_700_000_000));
}

#[test]
fn the_last_entry_of_a_name_counts_whatever_was_there() {
    let tar = TarBuilder::default()
        .file("file", b"first")
        .file("file", b"second")
        .directory("dir-then-file")
        .file("dir-then-file/child", b"x")
        .file("dir-then-file/.wh.gone", b"")
        .hard_link("dir-then-file/link", "file")
        .file("dir-then-file", b"file")
        .file("file-then-dir", b"x")
        .directory("file-then-dir")
        .file("file-then-dir/child", b"child")
        .symlink("link-then-dir", "/outside")
        .directory("link-then-dir")
        .file("link-then-dir/secret", b"inside")
        .symlink("link-then-file", "../outside/secret")
        .file("link-then-file", b"inside")
        .directory("dir-then-dir")
        .file("dir-then-dir/child", b"child")
        .directory("dir-then-dir")
        .hard_link("dir-then-link", "file")
        .file("hard-then-file", b"x")
        .hard_link("hard-then-file", "file")
        .file("hard-then-file", b"own")
        .hard_link("file", "file")
        .finish();
    let (place, _) = unpack(&tar).unwrap();
    let read = |path: &str| std::fs::read(place.at(path)).unwrap();
    assert_eq!(read("file"), b"second");
    assert_eq!(read("dir-then-file"), b"file");
    assert_eq!(read("file-then-dir/child"), b"child");
    assert_eq!(read("link-then-dir/secret"), b"inside");
    assert!(std::fs::symlink_metadata(place.at("link-then-file")).unwrap().is_file());
    assert_eq!(read("dir-then-dir/child"), b"child");
    assert_eq!(read("hard-then-file"), b"own");
    assert_eq!(std::fs::metadata(place.at("file")).unwrap().nlink(), 2);
}

#[test]
fn hard_links_may_come_before_their_targets_and_lead_to_links() {
    let tar = TarBuilder::default()
        .hard_link("first", "second")
        .hard_link("second", "real")
        .file("real", b"content")
        .symlink("symlink", "nowhere")
        .hard_link("second-symlink", "/symlink")
        .finish();
    let (place, _) = unpack(&tar).unwrap();
    let tree = snapshot(&place.root());
    assert_eq!(tree[&b"first"[..]].content, Some(Digest::of(b"content")));
    assert_eq!(tree[&b"first"[..]].same_as, tree[&b"real"[..]].same_as);
    assert_eq!(tree[&b"second-symlink"[..]].target, b"nowhere");
}

#[test]
fn whiteouts_become_devices_unless_the_layer_has_the_name() {
    let tar = TarBuilder::default()
        .file("dir/.wh.gone", b"")
        .file("dir/.wh.kept", b"")
        .file("dir/kept", b"kept")
        .file(".wh.linked", b"")
        .hard_link("linked", "dir/kept")
        .file("opaque/.wh..wh..opq", b"")
        .entry(&Header { mode: 0o750, ..Header::new(b'5', b"opaque") }, b"")
        .file("opaque/own", b"own")
        .directory(".wh..wh.plnk")
        .file(".wh..wh.plnk/1.2", b"aufs")
        .file("dir/.wh..", b"")
        .file("dir/.wh...", b"")
        .file("dir/.wh.", b"")
        .finish();
    let (place, _) = unpack(&tar).unwrap();
    let tree = snapshot(&place.root());
    let paths: Vec<_> =
        tree.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
    assert_eq!(paths, ["", "dir", "dir/gone", "dir/kept", "linked", "opaque", "opaque/own"]);
    let gone = &tree[&b"dir/gone"[..]];
    assert_eq!((gone.kind, gone.device, gone.mode), ('c', (0, 0), 0));
    let opaque = &tree[&b"opaque"[..]];
    assert_eq!(opaque.mode, 0o750);
    assert_eq!(
        opaque.xattrs,
        BTreeMap::from([(b"trusted.overlay.opaque".to_vec(), b"y".to_vec())])
    );
}

#[test]
fn extended_attributes_are_kept_and_those_of_overlayfs_dropped() {
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let records: [(&str, &[u8]); 6] = [
        ("SCHILY.xattr.user.text", b"a\n=b\0"),
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/outside"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.other", b"kept"),
    ];
    let tar = TarBuilder::default()
        .pax(b'x', &records)
        .entry(&Header { mode: 0o4755, uid: 9, ..Header::new(b'0', b"file") }, b"x")
        .pax(b'x', &records[2..])
        .directory("dir")
        .pax(b'x', &[("SCHILY.xattr.trusted.x", b"1"), ("SCHILY.xattr.user.x", b"1")])
        .symlink("link", "file")
        .finish();
    let (place, unpacked) = unpack(&tar).unwrap();
    let file = xattrs(&place.at("file"));
    assert_eq!(file.len(), 3, "{file:?}");
    assert_eq!(file[&b"user.text"[..]], b"a\n=b\0");
    assert_eq!(file[&b"security.capability"[..]], capability);
    assert_eq!(std::fs::metadata(place.at("file")).unwrap().mode() & 0o7777, 0o4755);
    assert_eq!(xattrs(&place.at("dir")).keys().collect::<Vec<_>>(), [b"trusted.other"]);
    assert_eq!(xattrs(&place.at("link")).keys().collect::<Vec<_>>(), [b"trusted.x"]);
    assert_eq!(unpacked.unsupported_xattrs, 1);
}

#[test]
fn names_and_times_of_pax_headers_count_global_ones_too() {
    let long = "d/".repeat(120) + "file";
    let tar = TarBuilder::default()
        .pax(b'g', &[("mtime", b"1234.9"), ("comment", b"x"), ("uid", b"3000000000")])
        .file("global", b"x")
        .pax(b'x', &[("path", long.as_bytes()), ("mtime", b"-1.5"), ("size", b"3")])
        .file("short", b"abc")
        .pax(b'x', &[("linkpath", b"target\xff"), ("path", b"name\xfe")])
        .symlink("s", "t")
        .finish();
    let (place, _) = unpack(&tar).unwrap();
    let tree = snapshot(&place.root());
    assert_eq!(tree[&b"global"[..]].mtime, (1234, 0));
    assert_eq!(tree[&b"global"[..]].owner.0, 3_000_000_000);
    assert_eq!(tree[long.as_bytes()].mtime, (-2, 0));
    assert_eq!(tree[&b"name\xfe"[..]].target, b"target\xff");
}

#[test]
fn names_that_are_no_text_are_kept() {
    let name = b"\xff\xfe \n\x01\xc3\xa4";
    let tar = TarBuilder::default().file(name, b"x").finish();
    let (place, _) = unpack(&tar).unwrap();
    assert!(place.root().join(std::ffi::OsStr::from_bytes(name)).is_file());
}

#[test]
fn sparse_files_of_all_formats_are_expanded() {
    let mut expected = vec![0; 10_000];
    expected[1024..1536].fill(b'a');
    expected[5000..5003].fill(b'b');
    let data = [&[b'a'; 512][..], b"bbb"].concat();
    let number = |value: usize| format!("{value:011o}\0");
    // Old GNU: the map is in the header.
    let mut block = [0; 512];
    block[..7].copy_from_slice(b"old-gnu");
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(number(data.len()).as_bytes());
    block[136..148].copy_from_slice(number(0).as_bytes());
    block[156] = b'S';
    block[257..265].copy_from_slice(b"ustar  \0");
    for (index, value) in [1024, 512, 5000, 3, 10_000, 0].into_iter().enumerate() {
        block[386 + index * 12..398 + index * 12].copy_from_slice(number(value).as_bytes());
    }
    block[483..495].copy_from_slice(number(10_000).as_bytes());
    seal(&mut block);
    let common = |name: &'static [u8]| -> [(&str, &[u8]); 2] {
        [("GNU.sparse.name", name), ("GNU.sparse.size", b"10000")]
    };
    let with_map = [&b"2\n1024\n512\n5000\n3\n"[..], &[0; 494], &data].concat();
    let [name, size] = common(b"pax-0.0");
    let tar = TarBuilder::default()
        .block(block)
        .raw(&data)
        .pad()
        .pax(
            b'x',
            &[
                name,
                size,
                ("GNU.sparse.offset", b"1024"),
                ("GNU.sparse.numbytes", b"512"),
                ("GNU.sparse.offset", b"5000"),
                ("GNU.sparse.numbytes", b"3"),
            ],
        )
        .file("x", &data)
        .pax(b'x', &[&common(b"pax-0.1")[..], &[("GNU.sparse.map", b"1024,512,5000,3")]].concat())
        .file("x", &data)
        .pax(
            b'x',
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"pax-1.0"),
                ("GNU.sparse.realsize", b"10000"),
            ],
        )
        .file("x", &with_map)
        .file("after", b"after")
        .finish();
    let (place, _) = unpack(&tar).unwrap();
    for name in ["old-gnu", "pax-0.0", "pax-0.1", "pax-1.0"] {
        assert!(std::fs::read(place.at(name)).unwrap() == expected, "{name}");
    }
    assert_eq!(std::fs::read(place.at("after")).unwrap(), b"after");
}

#[test]
fn marks_of_lazy_layers_are_left_out_only_of_lazy_layers() {
    let marked = TarBuilder::default()
        .file(".no.prefetch.landmark", b"x")
        .file("dir/.prefetch.landmark", b"x");
    let (place, unpacked) = unpack(&marked.clone().finish()).unwrap();
    assert!(!unpacked.estargz);
    assert!(place.at(".no.prefetch.landmark").exists());
    let (place, unpacked) = unpack(&marked.file("stargz.index.json", b"{}").finish()).unwrap();
    assert!(unpacked.estargz);
    assert!(!place.at(".no.prefetch.landmark").exists());
    assert!(!place.at("stargz.index.json").exists());
    assert!(place.at("dir/.prefetch.landmark").exists());
}

#[test]
fn the_content_decides_how_a_layer_is_compressed() {
    let tar = TarBuilder::default().file("file", vec![7; 3 << 20]).finish();
    let (first, second) = tar.split_at(tar.len() / 2);
    let members = [gzip(first), gzip(second)].concat();
    let frames = [
        zstd::encode_all(first, 1).unwrap(),
        b"\x50\x2a\x4d\x18\x04\0\0\0skip".to_vec(),
        zstd::encode_all(second, 1).unwrap(),
    ]
    .concat();
    for blob in [&tar, &members, &frames] {
        for declared in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let place = Place::new();
            let mut input = input(blob, declared);
            input.diff_id = Some(Digest::of(&tar));
            let unpacked = place.unpack(blob, &input).unwrap();
            assert_eq!(unpacked.bytes, 3 << 20);
        }
    }
}

#[test]
fn what_follows_the_end_of_the_archive_is_hashed_and_not_unpacked() {
    let mut tar = TarBuilder::default().file("file", b"x").finish();
    tar.extend(TarBuilder::default().file("hidden", b"x").finish());
    let (place, unpacked) = unpack(&tar).unwrap();
    assert_eq!(unpacked.diff_id, Digest::of(&tar));
    assert!(!place.at("hidden").exists());
    let unfinished = TarBuilder::default().file("file", b"x").unfinished();
    unpack(&unfinished).unwrap();
    let (_, empty) = unpack(b"").unwrap();
    assert_eq!(empty.entries, 0);
}
