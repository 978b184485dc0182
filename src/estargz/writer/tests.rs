//! Whatever the writer makes, the reader must give back; and its bytes must not change unnoticed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;

use proptest::prelude::*;

use super::source::clean;
use super::*;
use crate::estargz::reading::{content, open, toc_of};
use crate::estargz::{EntryKind, EntryNo, Index, chunk, toc};

/// What a path of a test layer is.
#[derive(Debug, Clone, PartialEq)]
enum Thing {
    Dir,
    File(Vec<u8>),
    Symlink(String),
    HardLink(String),
    Char(u32, u32),
    Fifo,
}

#[derive(Debug, Clone)]
struct Item {
    path: String,
    thing: Thing,
    mode: u32,
    owner: (u64, u64),
    mtime: i64,
    xattrs: BTreeMap<String, Vec<u8>>,
}

fn item(path: &str, thing: Thing) -> Item {
    let xattrs = BTreeMap::new();
    Item { path: path.into(), thing, mode: 0o644, owner: (0, 0), mtime: 1_700_000_000, xattrs }
}

fn file(path: &str, content: &[u8]) -> Item {
    item(path, Thing::File(content.to_vec()))
}

/// A tar of the items, made by the `tar` crate.
fn tar_of(items: &[Item]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        for (name, value) in &item.xattrs {
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        if item.mtime < 0 {
            records.push(("mtime".into(), item.mtime.to_string().into_bytes()));
        }
        if !records.is_empty() {
            let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            builder.append_pax_extensions(records).unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(item.mode);
        header.set_uid(item.owner.0);
        header.set_gid(item.owner.1);
        header.set_mtime(u64::try_from(item.mtime).unwrap_or(0));
        header.set_size(0);
        match &item.thing {
            Thing::Dir => header.set_entry_type(tar::EntryType::Directory),
            Thing::Fifo => header.set_entry_type(tar::EntryType::Fifo),
            Thing::Char(major, minor) => {
                header.set_entry_type(tar::EntryType::Char);
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
            }
            Thing::File(content) => {
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, &item.path, &content[..]).unwrap();
                continue;
            }
            Thing::Symlink(target) | Thing::HardLink(target) => {
                header.set_entry_type(match item.thing {
                    Thing::Symlink(_) => tar::EntryType::Symlink,
                    _ => tar::EntryType::Link,
                });
                builder.append_link(&mut header, &item.path, target).unwrap();
                continue;
            }
        }
        builder.append_data(&mut header, &item.path, std::io::empty()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn write(items: &[Item], options: &WriterOptions) -> (Vec<u8>, Written) {
    let mut blob = Vec::new();
    let written = write_layer(&mut Cursor::new(tar_of(items)), options, &mut blob).unwrap();
    (blob, written)
}

fn prefetch(paths: &[&str]) -> WriterOptions {
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    let prefetch = Prefetch::Paths { paths, missing: MissingPath::Refuse };
    WriterOptions { prefetch, ..WriterOptions::default() }
}

fn try_write(items: &[Item], options: &WriterOptions) -> Result<Written, WriteError> {
    write_layer(&mut Cursor::new(tar_of(items)), options, std::io::sink())
}

/// Checks everything there is to know about a blob against the items it was made from.
fn check(items: &[Item], blob: &[u8], written: &Written) -> Index<Vec<u8>> {
    assert_eq!((Digest::of(blob), blob.len() as u64), (written.digest, written.size));
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut plain).unwrap();
    assert_eq!(
        (Digest::of(&plain), plain.len() as u64),
        (written.diff_id, written.uncompressed_size)
    );
    let toc = toc_of(blob);
    toc::verify(&toc.json, written.toc_digest).unwrap();
    let index = open(blob, &toc);
    let by_path: BTreeMap<_, _> = items.iter().map(|item| (clean(&item.path), item)).collect();
    let mut files = BTreeSet::new();
    for (path, named) in &by_path {
        let mut item = *named;
        while let Thing::HardLink(target) = &item.thing {
            item = by_path[&clean(target)];
        }
        let number = index.find(path.as_bytes()).unwrap_or_else(|| panic!("{path} is missing"));
        let entry = index.entry(number).unwrap();
        files.insert(number);
        assert_eq!((entry.mode, entry.mtime), (item.mode, item.mtime), "{path}");
        assert_eq!((u64::from(entry.uid), u64::from(entry.gid)), item.owner, "{path}");
        let xattrs = index
            .xattrs(number)
            .map(|(name, value)| (String::from_utf8(name.to_vec()).unwrap(), value.to_vec()));
        assert_eq!(xattrs.collect::<BTreeMap<_, _>>(), item.xattrs, "{path}");
        match &item.thing {
            Thing::File(expected) => {
                assert_eq!(entry.size, expected.len() as u64, "{path}");
                assert!(content(&index, blob, number) == *expected, "content of {path}");
                assert_eq!(index.file_digest(number), Some(Digest::of(expected)), "{path}");
            }
            Thing::Symlink(target) => assert_eq!(index.link_target(number), target.as_bytes()),
            Thing::Char(major, minor) => assert_eq!(entry.rdev, (*major, *minor), "{path}"),
            Thing::Dir => assert_eq!(entry.kind, EntryKind::Directory, "{path}"),
            Thing::Fifo => assert_eq!(entry.kind, EntryKind::Fifo, "{path}"),
            Thing::HardLink(_) => unreachable!("links were followed"),
        }
    }
    // Members hold all their chunks, found in one pass, and cover the content without gaps in the numbering.
    let all: Vec<_> = index.chunks_in_blob_order().collect();
    for group in all.chunk_by(|a, b| a.0.member.start == b.0.member.start) {
        let first = &group[0].0;
        assert_eq!(index.member_chunks(first.number).len(), group.len());
        let [start, end] =
            [first.member.start, first.member.end].map(|at| usize::try_from(at).unwrap());
        let pieces: Vec<_> = group.iter().map(|(chunk, ..)| chunk::Piece::from(chunk)).collect();
        let results = chunk::decode_many(index.flavour(), &blob[start..end], &pieces);
        assert!(results.iter().all(Result::is_ok));
    }
    index
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec!["a", "b", "c", "d d", "ü", "x\ny", "stargz.index.json", "<&>\"\\"])
            .prop_map(str::to_owned),
        1 => (1usize..120).prop_map(|len| "n".repeat(len)),
    ]
}

/// Items that describe one sound layer: parents are directories, links have targets before them.
fn layers() -> impl Strategy<Value = Vec<Item>> {
    let kind = prop_oneof![3 => Just(0u8), 6 => Just(1), 1 => Just(2), 1 => Just(3), 1 => Just(4), 2 => Just(5)];
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..3000),
        (any::<u8>(), 0usize..20_000).prop_map(|(byte, len)| vec![byte; len]),
    ];
    let xattr = (
        prop::sample::select(vec!["user.a", "security.capability", "user.é"]),
        prop::collection::vec(any::<u8>(), 0..40),
    );
    let attributes = (
        0u32..0o10000,
        0u64..3_000_000_000,
        -100_000i64..5_000_000_000,
        prop::collection::btree_map(xattr.0, xattr.1, 0..2),
    );
    let entry = (any::<prop::sample::Index>(), names(), kind, bytes, attributes);
    prop::collection::vec(entry, 0..25).prop_map(|entries| {
        let mut items: Vec<Item> = Vec::new();
        let mut dirs = vec![String::new()];
        let mut seen = BTreeSet::new();
        for (parent, name, kind, bytes, (mode, owner, mtime, xattrs)) in entries {
            let path = format!("{}{name}", parent.get(&dirs));
            if super::super::is_format_name(path.as_bytes()) || !seen.insert(path.clone()) {
                continue;
            }
            let files: Vec<&Item> = items
                .iter()
                .filter(|i| matches!(i.thing, Thing::File(_) | Thing::HardLink(_)))
                .collect();
            let thing = match kind {
                0 => Thing::Dir,
                2 => Thing::Symlink(format!("../{name}")),
                3 => Thing::Char(mode % 300, mode),
                4 => Thing::Fifo,
                5 if !files.is_empty() => Thing::HardLink(parent.get(&files).path.clone()),
                _ => Thing::File(bytes),
            };
            if thing == Thing::Dir {
                dirs.push(format!("{path}/"));
            }
            let xattrs = xattrs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            items.push(Item { path, thing, mode, owner: (owner, owner / 2), mtime, xattrs });
        }
        items
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn what_is_written_reads_back(
        items in layers(),
        chunk_size in prop::sample::select(vec![100, 4096, 4 << 20]),
        min_chunk_size in prop::sample::select(vec![0, 300, 50_000]),
        picks in prop::option::of(prop::collection::vec(any::<prop::sample::Index>(), 0..4)),
    ) {
        let prefetch = match picks {
            Some(picks) if !items.is_empty() => Prefetch::Paths {
                paths: picks.iter().map(|pick| pick.get(&items).path.clone()).collect(),
                missing: MissingPath::Refuse,
            },
            _ => Prefetch::Nothing,
        };
        let landmark = prefetch != Prefetch::Nothing;
        let options = WriterOptions { level: 1, chunk_size, min_chunk_size, prefetch };
        let (blob, written) = write(&items, &options);
        let (again, _) = write(&items, &options);
        prop_assert!(blob == again, "output is not deterministic");
        let index = check(&items, &blob, &written);
        prop_assert_eq!(index.prefetch_range().is_some(), landmark);
        // A layer made of a layer has the same content.
        let mut plain = Vec::new();
        flate2::read::MultiGzDecoder::new(&blob[..]).read_to_end(&mut plain).unwrap();
        let options = WriterOptions { min_chunk_size: 0, ..WriterOptions::default() };
        let mut second = Vec::new();
        let written = write_layer(&mut Cursor::new(plain), &options, &mut second).unwrap();
        check(&items, &second, &written);
    }
}

#[test]
fn the_bytes_of_a_layer_do_not_change() {
    let mut with_xattr = file("bin/tool", &b"tool ".repeat(3000));
    with_xattr.mode = 0o4755;
    with_xattr.xattrs.insert("security.capability".into(), vec![1, 0, 0, 2, b'\n', 0]);
    let items = [
        item("./", Thing::Dir),
        item("bin", Thing::Dir),
        with_xattr,
        item("bin/link", Thing::Symlink("tool".into())),
        item("bin/hard", Thing::HardLink("bin/tool".into())),
        item("dev/null", Thing::Char(1, 3)),
        item("run/pipe", Thing::Fifo),
        file("empty", b""),
        file(&format!("{}x", "long/".repeat(30)), b"x"),
        file("zürich", b"y"),
    ];
    let options = WriterOptions { chunk_size: 4096, level: 0, ..prefetch(&["bin/hard"]) };
    let (blob, written) = write(&items, &options);
    check(&items, &blob, &written);
    // Level 0 stores, so that these digests do not depend on the compressor. When one changes, so does every
    // layer that anybody converts again: that needs an entry in the changelog.
    assert_eq!(
        (written.diff_id.hex().as_str(), written.digest.hex().as_str()),
        (
            "be07afbd9c15f444c1e05036174fd9a1203af2668288ac09a39142f1d93021cf",
            "d29ea361d374af2c58769515f6ffbdbc6b756e74dd3e74cf89e91c8e34df2b51"
        )
    );
}

#[test]
fn what_is_fetched_first_comes_first_with_all_it_needs() {
    let items = [
        item("a", Thing::Dir),
        file("a/one", b"1"),
        item("b", Thing::Dir),
        file("b/two", b"2"),
        item("c", Thing::HardLink("b/two".into())),
    ];
    let (blob, written) = write(&items, &prefetch(&["/c", "c"]));
    let index = check(&items, &blob, &written);
    let order: Vec<_> =
        index.chunks_in_blob_order().map(|(_, entry, _)| index.path(entry)).collect();
    assert_eq!(order.len(), 2);
    assert_eq!(order[1], b"a/one");
    let end = index.prefetch_range().unwrap().end;
    let chunks: Vec<_> = index.chunks_in_blob_order().map(|(chunk, ..)| chunk).collect();
    assert!(chunks[0].member.end <= end && chunks[1].member.start > end);
    assert!(
        matches!(try_write(&items, &prefetch(&["nope"])), Err(WriteError::Missing(path)) if path == "nope")
    );
    let mut lenient = prefetch(&["a/one", "./nope"]);
    if let Prefetch::Paths { missing, .. } = &mut lenient.prefetch {
        *missing = MissingPath::Skip;
    }
    assert_eq!(write(&items, &lenient).1.missing, ["nope"]);
}

#[test]
fn small_files_share_a_member_when_asked() {
    // Digests do not compress, so that the compressor gives away what it has.
    let content = |n: u32| -> Vec<u8> {
        (0..20u32)
            .flat_map(|m| *Digest::of(&[n.to_le_bytes(), m.to_le_bytes()].concat()).as_bytes())
            .collect()
    };
    let items: Vec<_> = (0..200).map(|n| file(&format!("f{n}"), &content(n))).collect();
    let (apart, _) = write(&items, &WriterOptions::default());
    let options = WriterOptions { min_chunk_size: 1000, ..WriterOptions::default() };
    let (packed, written) = write(&items, &options);
    assert!(packed.len() < apart.len(), "{} of {}", packed.len(), apart.len());
    let index = check(&items, &packed, &written);
    let members: BTreeSet<_> = index.chunks_in_blob_order().map(|(c, ..)| c.member.start).collect();
    assert!(members.len() > 1 && members.len() < 50, "{}", members.len());
    assert!(index.chunks_in_blob_order().any(|(chunk, ..)| chunk.inner_offset > 0));
}

#[test]
fn the_last_of_several_entries_with_one_name_counts() {
    let items = [file("a", b"old"), file("b", b"b"), file("./a", b"new")];
    let (blob, written) = write(&items, &WriterOptions::default());
    let index = check(&items, &blob, &written);
    assert_eq!(content(&index, &blob, index.find(b"a").unwrap()), b"new");
    assert_eq!(index.child_count(EntryNo::ROOT), 2);
}

#[test]
fn what_the_format_cannot_hold_is_refused_by_name() {
    let options = WriterOptions::default();
    let link = [item("l", Thing::HardLink("below".into()))];
    assert!(matches!(try_write(&link, &options), Err(WriteError::HardLink { .. })));
    let circle = [item("l", Thing::HardLink("m".into())), item("m", Thing::HardLink("l".into()))];
    assert!(matches!(try_write(&circle, &prefetch(&["m"])), Err(WriteError::HardLink { .. })));
    let below_file = [file("f", b"1"), file("f/g", b"2")];
    assert!(matches!(try_write(&below_file, &options), Err(WriteError::Unreadable(_))));
    let replaced = [file("\u{fffd}", b"1")];
    assert!(matches!(try_write(&replaced, &options), Err(WriteError::Unreadable(_))));
    let mut late = file("late", b"");
    late.mtime = 300_000_000_000;
    assert!(matches!(try_write(&[late], &options), Err(WriteError::Time(_))));
    let none = WriterOptions { chunk_size: 0, ..options.clone() };
    assert!(matches!(try_write(&[], &none), Err(WriteError::ChunkSize(0))));
    for junk in [&[1; 100][..], &[1; 1024]] {
        let result = write_layer(&mut Cursor::new(junk), &options, std::io::sink());
        assert!(matches!(result, Err(WriteError::Header { position: 0 })));
    }
    let mut cut = tar_of(&[file("f", &[7; 5000])]);
    cut.truncate(2000);
    let result = write_layer(&mut Cursor::new(cut), &options, std::io::sink());
    assert!(matches!(result, Err(WriteError::Read(_))));
}

#[test]
fn global_records_apply_to_what_follows() {
    let mut tar = Vec::new();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XGlobalHeader);
    let records = b"14 uid=123456\n20 comment=whatever\n";
    assert_eq!(records.len(), 14 + 20);
    header.set_path("pax_global_header").unwrap();
    header.set_size(records.len() as u64);
    header.set_cksum();
    tar.extend(header.as_bytes());
    tar.extend(records);
    tar.resize(1024, 0);
    tar.extend(tar_of(&[file("f", b"x")]));
    let mut blob = Vec::new();
    write_layer(&mut Cursor::new(tar), &WriterOptions::default(), &mut blob).unwrap();
    let index = open(&blob, &toc_of(&blob));
    let entry = index.entry(index.find(b"f").unwrap()).unwrap();
    assert_eq!((entry.uid, index.len()), (123_456, 2));
}
