//! What an index says of a table of contents, and what it refuses.

use proptest::prelude::*;

use super::*;
use crate::estargz::toc::{Problem, TocError};

const INPUT: IndexInput =
    IndexInput { blob_size: 100_000, toc_offset: 90_000, flavour: Flavour::Gzip };
const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A table of contents of these entries; `D` in them stands for a digest.
fn toc(entries: &[&str]) -> String {
    let entries: Vec<_> = entries
        .iter()
        .map(|e| format!("{{{}}}", e.replace("\"D\"", &format!("\"{EMPTY}\""))))
        .collect();
    format!(r#"{{"version":1,"entries":[{}]}}"#, entries.join(","))
}

fn try_build(entries: &[&str]) -> Result<Vec<u8>, TocError> {
    build(toc(entries).as_bytes(), &INPUT)
}

fn index(entries: &[&str]) -> Index<Vec<u8>> {
    Index::open(try_build(entries).unwrap()).unwrap()
}

fn reg(name: &str, offset: u32) -> String {
    format!(r#""name":"{name}","type":"reg","size":10,"offset":{offset},"chunkDigest":"D""#)
}

fn listing(index: &Index<Vec<u8>>, path: &str) -> Vec<String> {
    let dir = index.find(path.as_bytes()).unwrap();
    (0..index.child_count(dir))
        .map(|n| String::from_utf8(index.child(dir, n).unwrap().0.to_vec()).unwrap())
        .collect()
}

#[test]
fn names_are_cleaned_and_parents_implied() {
    let index = index(&[
        r#""name":"../../x/./y//z","type":"fifo","mode":33188"#,
        r#""name":"/later/file","type":"fifo""#,
        r#""name":"./later/","type":"dir","mode":448,"uid":7,"modtime":"2024-01-02T03:04:05.9Z""#,
        r#""name":"./","type":"dir","mode":16877,"gid":9"#,
        r#""name":"old","type":"fifo","modtime":"1969-12-31T23:59:58.5Z""#,
    ]);
    assert_eq!(listing(&index, ""), ["later", "old", "x"]);
    let entry = |path: &str| index.entry(index.find(path.as_bytes()).unwrap()).unwrap();
    assert_eq!(
        (entry("x").mode, entry("x").uid, entry("x").mtime, entry("x").nlink),
        (0o755, 0, 0, 3)
    );
    assert_eq!((entry("x/y/z").kind, entry("x/y/z").mode), (EntryKind::Fifo, 0o644));
    assert_eq!(
        (entry("later").mode, entry("later").uid, entry("later").mtime),
        (0o700, 7, 1_704_164_645)
    );
    assert_eq!((entry("").mode, entry("").gid, entry("").nlink), (0o755, 9, 4));
    assert_eq!(entry("old").mtime, -2);
    let z = index.find(b"x/y/z").unwrap();
    assert_eq!(index.path(z), b"x/y/z");
    assert_eq!(index.parent(index.parent(z)), index.find(b"x").unwrap());
    assert_eq!(index.find(b"x/y/zz"), None);
    assert_eq!(index.find(b"x/y/z/w"), None);
    assert_eq!(index.entry(EntryNo(index.len())), None);
}

#[test]
fn whiteouts_become_what_overlayfs_expects() {
    let index = index(&[
        r#""name":"d/.wh.gone","type":"reg","digest":"D""#,
        r#""name":"d/.wh.kept","type":"reg""#,
        r#""name":"d/kept","type":"fifo""#,
        r#""name":"o/.wh..wh..opq","type":"reg""#,
        r#""name":".wh..wh.plnk/1.2","type":"fifo""#,
        r#""name":".wh..wh.aufs","type":"reg""#,
        r#""name":"o","type":"dir","mode":448,"xattrs":{"trusted.overlay.redirect":"L2V0Yw==","user.overlay.opaque":"eQ==","user.a":"","security.capability":"AQA="}"#,
        r#""name":".prefetch.landmark","type":"fifo""#,
        r#""name":"d/.prefetch.landmark","type":"fifo""#,
        r#""name":"stargz.index.json","type":"fifo""#,
    ]);
    assert_eq!(listing(&index, ""), ["d", "o"]);
    assert_eq!(listing(&index, "d"), [".prefetch.landmark", "gone", "kept"]);
    let gone = index.entry(index.find(b"d/gone").unwrap()).unwrap();
    assert_eq!(
        (gone.kind, gone.rdev, gone.mode, gone.nlink),
        (EntryKind::CharDevice, (0, 0), 0, 1)
    );
    assert_eq!(index.entry(index.find(b"d/kept").unwrap()).unwrap().kind, EntryKind::Fifo);
    let o = index.find(b"o").unwrap();
    assert!(index.entry(o).unwrap().opaque && index.entry(o).unwrap().mode == 0o700);
    assert!(!index.entry(index.find(b"d").unwrap()).unwrap().opaque);
    let xattrs: Vec<_> = index.xattrs(o).collect();
    assert_eq!(xattrs, [(&b"security.capability"[..], &[1, 0][..]), (b"user.a", b"")]);
    assert_eq!(index.xattr(o, b"user.a"), Some(&b""[..]));
    assert_eq!(index.xattr(o, b"trusted.overlay.redirect"), None);
    assert_eq!(index.prefetch_range(), None);
}

#[test]
fn a_layer_has_attributes_when_overlayfs_or_anybody_else_can_find_one() {
    let has = |entries: &[&str]| index(entries).has_xattrs();
    let file = reg("a", 100);
    assert!(!has(&[]));
    // A whiteout is a device, and what would steer overlayfs is not kept.
    let steers = r#""name":"o","type":"dir","xattrs":{"trusted.overlay.opaque":"eQ=="}"#;
    assert!(!has(&[&file, r#""name":"d/.wh.gone","type":"reg""#, steers]));
    assert!(has(&[&file, r#""name":"o/.wh..wh..opq","type":"reg""#]));
    assert!(has(&[&file, r#""name":"o","type":"dir","xattrs":{"user.a":""}"#]));
    assert!(has(&[r#""name":"f","type":"fifo","xattrs":{"security.capability":"AQA="}"#, &file]));
}

#[test]
fn hard_links_share_one_entry_wherever_their_target_stands() {
    let index = index(&[
        r#""name":"c","type":"hardlink","linkName":"/b""#,
        r#""name":"b","type":"hardlink","linkName":"dir/../a""#,
        &reg("a", 100),
        r#""name":"s","type":"symlink","linkName":"a""#,
        r#""name":"t","type":"hardlink","linkName":"s""#,
    ]);
    let a = index.find(b"a").unwrap();
    assert_eq!((index.find(b"b"), index.find(b"c")), (Some(a), Some(a)));
    assert_eq!(index.entry(a).unwrap().nlink, 3);
    assert_eq!(index.find(b"t"), index.find(b"s"));
    assert_eq!(index.link_target(index.find(b"t").unwrap()), b"a");
    assert_eq!((index.len(), index.chunks()), (3, 1));
}

#[test]
fn members_end_where_the_next_begins() {
    let index = index(&[
        &format!(r#"{},"chunkSize":4"#, reg("f", 100)),
        r#""name":"f","type":"chunk","offset":200,"chunkOffset":4,"chunkSize":4,"chunkDigest":"D""#,
        r#""name":"f","type":"chunk","offset":300,"chunkOffset":8,"chunkDigest":"D""#,
        r#""name":"packed","type":"reg","size":5,"innerOffset":7,"chunkDigest":"D""#,
        r#""name":".wh.hidden","type":"reg","size":5,"offset":400,"chunkDigest":"D""#,
        r#""name":"tail","type":"reg","size":5,"offset":80000,"digest":"D""#,
        &reg("twice", 500),
        r#""name":"twice","type":"reg","size":2,"offset":600,"digest":"D""#,
    ]);
    let f = index.find(b"f").unwrap();
    let members: Vec<_> = (0..3).map(|n| index.chunk(f, n).unwrap().member).collect();
    assert_eq!(members, [100..200, 200..300, 300..400]);
    assert_eq!(
        [0, 3, 4, 8, 9, 10].map(|at| index.chunk_at(f, at)),
        [Some(0), Some(0), Some(1), Some(2), Some(2), None]
    );
    let packed = index.chunk(index.find(b"packed").unwrap(), 0).unwrap();
    assert_eq!((packed.number, packed.member, packed.inner_offset), (ChunkNo(0), 0..100, 7));
    let tail = index.find(b"tail").unwrap();
    assert_eq!(index.chunk(tail, 0).unwrap().member, 80_000..90_000);
    assert_eq!(index.file_digest(tail).unwrap().to_string(), EMPTY);
    assert_eq!(index.file_digest(f), None);
    // A duplicate that was replaced leaves no content, and its chunks no trace but the end of a member.
    assert_eq!((index.chunk_count(index.find(b"twice").unwrap()), index.content_size()), (1, 22));
    assert_eq!(index.chunk_by_number(ChunkNo(2)), Some((f, 1)));
    assert_eq!(index.chunk_by_number(ChunkNo(6)), None);
    assert_eq!(index.chunks_in_blob_order().count(), 6);
}

#[test]
fn a_member_is_never_much_larger_than_its_content_can_be() {
    let input = IndexInput { blob_size: 1 << 41, toc_offset: 1 << 40, flavour: Flavour::Gzip };
    let index = Index::open(build(toc(&[&reg("f", 100)]).as_bytes(), &input).unwrap()).unwrap();
    let member = index.chunk(index.find(b"f").unwrap(), 0).unwrap().member;
    assert!(member.end < 2 << 20, "{member:?}");
}

#[test]
fn landmarks_say_what_to_fetch_first() {
    let prefetch = |entries: &[&str]| index(entries).prefetch_range();
    assert_eq!(prefetch(&[&reg("a", 10), &reg(".prefetch.landmark", 50)]), Some(0..50));
    assert_eq!(
        prefetch(&[&reg("./.prefetch.landmark", 50), &reg(".no.prefetch.landmark", 60)]),
        None
    );
    assert_eq!(prefetch(&[&reg("sub/.prefetch.landmark", 50)]), None);
    assert_eq!(prefetch(&[]), None);
}

#[test]
fn hostile_entries_are_refused_with_their_reason() {
    let long = format!(r#""name":"{}","type":"fifo""#, "n".repeat(256));
    let path = format!(r#""name":"{}","type":"fifo""#, "n/".repeat(2049));
    let deep = format!(r#""name":"{}","type":"fifo""#, "d/".repeat(1025));
    let target = format!(r#""name":"l","type":"symlink","linkName":"{}""#, "t".repeat(4096));
    let chunk = |rest: &str| format!(r#""name":"f","type":"chunk","chunkDigest":"D",{rest}"#);
    let first = format!(r#"{},"chunkSize":4"#, reg("f", 100));
    let cases: &[&[&str]] = &[
        &[&long],
        &[&path],
        &[&deep],
        &[&target],
        &[r#""name":"a\u0000b","type":"fifo""#],
        &[r#""name":"/","type":"fifo""#],
        &[r#""name":"a","type":"door""#],
        &[r#""name":"a","type":"""#],
        &[r#""name":".wh.","type":"reg""#],
        &[r#""name":".wh...","type":"reg""#],
        &[r#""name":"a/.wh..","type":"reg""#],
        &[r#""name":"f","type":"fifo""#, r#""name":"f/g","type":"fifo""#],
        &[r#""name":"f/g","type":"fifo""#, r#""name":"f","type":"symlink","linkName":"x""#],
        &[r#""name":"f","type":"fifo""#, r#""name":"f/.wh.g","type":"reg""#],
        &[r#""name":"f","type":"fifo""#, r#""name":"f/.wh..wh..opq","type":"reg""#],
        &[r#""name":"a","type":"hardlink","linkName":"a""#],
        &[
            r#""name":"a","type":"hardlink","linkName":"b""#,
            r#""name":"b","type":"hardlink","linkName":"a""#,
        ],
        &[r#""name":"a","type":"hardlink","linkName":"nowhere""#],
        &[r#""name":"a","type":"hardlink","linkName":"/""#],
        &[r#""name":"a","type":"hardlink""#],
        &[r#""name":"d","type":"dir""#, r#""name":"a","type":"hardlink","linkName":"d""#],
        &[r#""name":"d/a","type":"hardlink","linkName":"d""#],
        &[r#""name":"l","type":"symlink""#],
        &[r#""name":"l","type":"symlink","linkName":"a\u0000""#],
        &[r#""name":"a","type":"fifo","uid":-1"#],
        &[r#""name":"a","type":"fifo","gid":4294967295"#],
        &[r#""name":"a","type":"char","devMajor":4096"#],
        &[r#""name":"a","type":"block","devMinor":-1"#],
        &[r#""name":"a","type":"fifo","modtime":"yesterday""#],
        &[r#""name":"a","type":"fifo","xattrs":{"user.a":"!"}"#],
        &[r#""name":"a","type":"fifo","xattrs":{"":"YQ=="}"#],
        &[r#""name":"a","type":"reg","size":-1"#],
        &[r#""name":"a","type":"reg","size":9223372036854775807,"offset":1,"chunkDigest":"D""#],
        &[r#""name":"a","type":"reg","size":268435457,"offset":1,"chunkDigest":"D""#],
        &[r#""name":"a","type":"reg","size":1,"chunkDigest":"D""#],
        &[r#""name":"a","type":"reg","size":1,"offset":90000,"chunkDigest":"D""#],
        &[r#""name":"a","type":"reg","size":1,"offset":-5,"chunkDigest":"D""#],
        &[r#""name":"a","type":"reg","size":1,"offset":5,"innerOffset":-5,"chunkDigest":"D""#],
        &[
            r#""name":"a","type":"reg","size":1,"offset":5,"innerOffset":2000000000,"chunkDigest":"D""#,
        ],
        &[r#""name":"a","type":"reg","size":1,"offset":5"#],
        &[r#""name":"a","type":"reg","size":1,"offset":5,"chunkDigest":"md5:00""#],
        &[r#""name":"a","type":"reg","size":2,"offset":5,"chunkSize":3,"chunkDigest":"D""#],
        &[r#""name":"a","type":"reg","size":2,"offset":5,"chunkOffset":1,"chunkDigest":"D""#],
        &[&chunk(r#""offset":5"#)],
        &[r#""name":"f","type":"fifo""#, &chunk(r#""offset":5"#)],
        &[&first],
        &[&first, r#""name":"g","type":"fifo""#],
        &[&first, &chunk(r#""offset":200,"chunkOffset":3"#)],
        &[&first, &chunk(r#""offset":200,"chunkOffset":5"#)],
        &[&first, &chunk(r#""offset":200,"chunkOffset":4,"chunkSize":7"#)],
        &[
            &first,
            &chunk(r#""offset":200,"chunkOffset":4"#),
            &chunk(r#""offset":300,"chunkOffset":10"#),
        ],
        &[&first, r#""name":"f","type":"chunk","chunkOffset":4,"offset":200"#],
        // One stretch of a member for two files.
        &[&reg("a", 100), &reg("b", 100)],
        &[
            &reg("a", 100),
            r#""name":"b","type":"reg","size":1,"offset":100,"innerOffset":9,"chunkDigest":"D""#,
        ],
    ];
    for case in cases {
        match try_build(case) {
            Err(error @ TocError::Entry { .. }) => assert!(!error.is_unrepresentable(), "{error}"),
            other => panic!("{case:?} gives {other:?}"),
        }
    }
}

#[test]
fn replaced_names_make_a_layer_not_lazy() {
    for entry in [
        r#""name":"a\ufffdb","type":"fifo""#,
        r#""name":"a","type":"symlink","linkName":"\ufffd""#,
        r#""name":"a","type":"hardlink","linkName":"\ufffd""#,
        r#""name":"a","type":"fifo","xattrs":{"user.\ufffd":""}"#,
    ] {
        let error = try_build(&[entry]).unwrap_err();
        assert!(error.is_unrepresentable(), "{error}");
        assert!(matches!(error, TocError::Entry { problem: Problem::ReplacedName, .. }));
    }
}

#[test]
fn a_long_chain_of_links_and_a_deep_tree_are_no_trouble() {
    let mut entries: Vec<_> = (1..20_000)
        .map(|n| format!(r#""name":"l{n}","type":"hardlink","linkName":"l{}""#, n - 1))
        .collect();
    entries.push(r#""name":"l0","type":"fifo""#.to_owned());
    entries.push(format!(r#""name":"{}","type":"fifo""#, "d/".repeat(1024)));
    let entries: Vec<_> = entries.iter().map(String::as_str).collect();
    let index = index(&entries);
    assert_eq!(index.entry(index.find(b"l19999").unwrap()).unwrap().nlink, 20_000);
    let deepest = index.find("d/".repeat(1024).as_bytes()).unwrap();
    assert_eq!(index.path(deepest).len(), 2047);
}

fn sample() -> Vec<u8> {
    try_build(&[
        r#""name":"d","type":"dir","xattrs":{"user.a":"YQ==","user.b":"Yg=="}"#,
        &format!(r#"{},"chunkSize":4,"digest":"D""#, reg("d/f", 100)),
        r#""name":"d/f","type":"chunk","offset":200,"chunkOffset":4,"chunkDigest":"D""#,
        &reg("d/g", 300),
        r#""name":"l","type":"symlink","linkName":"d/f""#,
        r#""name":"h","type":"hardlink","linkName":"d/f""#,
    ])
    .unwrap()
}

/// Calls every accessor with sensible and senseless arguments.
fn exercise(index: &Index<Vec<u8>>) {
    for entry in (0..index.len().min(50) + 2).chain([u32::MAX]).map(EntryNo) {
        let _ = (
            index.entry(entry),
            index.parent(entry),
            index.link_target(entry),
            index.file_digest(entry),
        );
        let _ = (index.path(entry), index.lookup(entry, b"f"), index.xattr(entry, b"user.b"));
        for n in (0..index.child_count(entry).min(50) + 1).chain([u32::MAX]) {
            let _ = index.child(entry, n);
        }
        for n in (0..index.chunk_count(entry).min(50) + 1).chain([u32::MAX]) {
            let _ = (index.chunk(entry, n), index.chunk_at(entry, u64::from(n) * 3));
        }
    }
    for number in [0, 1, 2, 3, u32::MAX].map(ChunkNo) {
        let _ = (index.chunk_by_number(number), index.member_chunks(number));
    }
    let _ = (
        index.chunks_in_blob_order().take(50).count(),
        index.prefetch_range(),
        index.content_size(),
    );
}

#[test]
fn every_changed_or_missing_byte_is_found() {
    let good = sample();
    exercise(&Index::open(good.clone()).unwrap());
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(Index::open(bad).is_err(), "byte {at}");
        assert!(Index::open(good[..at].to_vec()).is_err(), "cut at {at}");
    }
    let mut longer = good.clone();
    longer.push(0);
    assert!(matches!(Index::open(longer), Err(IndexError::Length { .. })));
    let mut later = good;
    later[8] = 2;
    assert!(matches!(Index::open(later), Err(IndexError::Version(2))));
}

#[test]
fn the_bytes_of_an_index_do_not_change() {
    // A living connection to the kernel relies on the numbers in it: another digest means another version.
    assert_eq!(
        Digest::of(&sample()).hex(),
        "1ee9852309500d9dac40a04872da425bb19531c6d576a2f4198a4b1c97f6d7ae"
    );
}

fn reseal(bytes: &mut [u8]) {
    let end = bytes.len() - 8;
    let sum = format::checksum(&bytes[..end]);
    bytes[end..].copy_from_slice(&sum.to_le_bytes());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, size: u64, json in "[\\[\\]{}\":,a-z0-9\\\\]{0,60}") {
        let _ = Index::open(bytes.clone());
        let _ = build(&bytes, &IndexInput { blob_size: size, ..INPUT });
        let _ = build(json.as_bytes(), &INPUT);
        let mut magic = format::MAGIC.to_vec();
        magic.extend([1, 0, 0, 0]);
        magic.extend(bytes);
        let _ = Index::open(magic);
    }

    #[test]
    fn an_index_with_a_right_checksum_and_wrong_content_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = sample();
        let good = Index::open(bytes.clone()).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len() - 8);
            bytes[at] = byte;
        }
        reseal(&mut bytes);
        if let Ok(index) = Index::open(bytes.clone()) {
            exercise(&index);
        }
        // As when the file below a mapping is overwritten after it was checked.
        exercise(&Index { bytes, header: good.header, sections: good.sections });
    }

    #[test]
    fn arbitrary_entries_build_an_index_that_opens_or_an_error(
        entries in prop::collection::vec((
            prop::sample::select(vec!["a", "a/b", "a/b/c", ".wh.a", "a/.wh.b", "a/.wh..wh..opq", "b", "..", "./b/", ".prefetch.landmark", "\\ufffd"]),
            prop::sample::select(vec!["dir", "reg", "reg", "chunk", "symlink", "hardlink", "char", "fifo"]),
            prop::sample::select(vec!["a", "b", "a/b", "", "../a"]),
            (0i64..20, 0i64..5, 0i64..12, 0i64..12),
        ), 0..12),
    ) {
        let entries: Vec<_> = entries.iter().map(|(name, kind, link, (size, offset, at, len))| format!(
            r#""name":"{name}","type":"{kind}","linkName":"{link}","size":{size},"offset":{offset},"innerOffset":{at},"chunkOffset":{},"chunkSize":{len},"chunkDigest":"D""#,
            if *kind == "chunk" { *at } else { 0 },
        )).collect();
        let entries: Vec<_> = entries.iter().map(String::as_str).collect();
        if let Ok(bytes) = try_build(&entries) {
            let index = Index::open(bytes).expect("what was built opens");
            exercise(&index);
        }
    }
}

#[test]
#[ignore = "a measurement; run it optimized"]
fn a_hundred_thousand_files_open_in_milliseconds() {
    let entries: Vec<_> = (0..100_000)
        .map(|n| {
            let digest = Digest::of(&u32::to_le_bytes(n % 256));
            format!(r#"{{"name":"usr/lib/directory{}/file{n}","type":"reg","size":10,"modtime":"2024-01-01T00:00:00Z","mode":420,"offset":{},"digest":"{digest}","chunkDigest":"{digest}"}}"#, n / 50, n + 1)
        })
        .collect();
    let json = format!(r#"{{"version":1,"entries":[{}]}}"#, entries.join(","));
    let input = IndexInput { blob_size: 1 << 30, toc_offset: 1 << 29, ..INPUT };
    let began = std::time::Instant::now();
    let bytes = build(json.as_bytes(), &input).unwrap();
    let built = began.elapsed();
    let size = bytes.len();
    let began = std::time::Instant::now();
    Index::open(bytes).unwrap();
    println!(
        "{} bytes of JSON: built in {built:?}, {size} bytes, opened in {:?}",
        json.len(),
        began.elapsed()
    );
}
