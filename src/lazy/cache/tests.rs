//! The cache alone: trust over boots, maps over restarts, publication, a full disk.

use std::os::unix::fs::FileExt as _;

use super::whole::whole_name;
use super::*;

fn open(dir: &Path, boot: &str) -> FileCache {
    FileCache::open(dir, boot, 1 << 20, EventSink::none()).unwrap()
}

fn single(content: &[u8]) -> (Place, Piece) {
    let digest = Digest::of(content);
    let size = content.len() as u64;
    (
        Place { whole: Some(digest), id: digest, size, chunks: 1, slot: None },
        Piece { n: 0, offset: 0, size, digest },
    )
}

/// A file of chunks of four bytes.
fn chunked(content: &[u8]) -> (Place, Vec<Piece>) {
    let pieces: Vec<_> = content
        .chunks(4)
        .zip(0_u32..)
        .map(|(bytes, n)| Piece {
            n,
            offset: u64::from(n) * 4,
            size: bytes.len() as u64,
            digest: Digest::of(bytes),
        })
        .collect();
    let place = Place {
        whole: Some(Digest::of(content)),
        id: Digest::of(format!("{pieces:?}").as_bytes()),
        size: content.len() as u64,
        chunks: u32::try_from(pieces.len()).unwrap(),
        slot: None,
    };
    (place, pieces)
}

fn keep(cache: &FileCache, place: &Place, piece: &Piece, content: &[u8]) -> bool {
    let from = usize::try_from(piece.offset).unwrap();
    let to = from + usize::try_from(piece.size).unwrap();
    cache.keep(place, piece, &Bytes::copy_from_slice(&content[from..to])).is_some()
}

fn path(dir: &Path, place: &Place) -> std::path::PathBuf {
    dir.join(whole_name(&place.whole.unwrap()))
}

#[test]
fn what_was_kept_is_found_by_the_next_process_of_the_same_boot() {
    let dir = tempfile::tempdir().unwrap();
    let (place, piece) = single(b"content");
    assert!(open(dir.path(), "one").find(&place, Verify::Later).is_none());
    assert!(keep(&open(dir.path(), "one"), &place, &piece, b"content"));
    let cache = open(dir.path(), "one");
    let content = cache.find(&place, Verify::Later).expect("trusted without a look");
    assert!(matches!(content, Content::Complete(_)));
    assert_eq!(cache.read_piece(&piece, &content).unwrap(), &b"content"[..]);
}

#[test]
fn after_a_boot_content_is_verified_once_before_its_first_use() {
    let dir = tempfile::tempdir().unwrap();
    let (place, piece) = single(b"content");
    keep(&open(dir.path(), "one"), &place, &piece, b"content");
    let cache = open(dir.path(), "two");
    assert!(cache.find(&place, Verify::Later).is_none());
    assert!(cache.find(&place, Verify::Now).is_some());
    assert!(cache.find(&place, Verify::Later).is_some(), "and is of this boot from then on");
}

#[test]
fn content_that_a_power_cut_damaged_is_thrown_away() {
    let dir = tempfile::tempdir().unwrap();
    let (place, piece) = single(b"content");
    keep(&open(dir.path(), "one"), &place, &piece, b"content");
    let file = path(dir.path(), &place);
    let stamp = std::fs::metadata(&file).unwrap().modified().unwrap();
    let damaged = File::options().write(true).open(&file).unwrap();
    damaged.write_all_at(b"\0\0\0\0\0\0\0", 0).unwrap();
    damaged.set_modified(stamp).unwrap();
    let (events, mut told) = EventSink::channel(4);
    let cache = FileCache::open(dir.path(), "two", 0, events).unwrap();
    assert!(cache.find(&place, Verify::Now).is_none());
    assert!(!file.exists());
    assert!(matches!(told.try_recv(), Ok(LazyEvent::CacheRepaired { .. })));
    assert!(keep(&cache, &place, &piece, b"content"));
    assert!(cache.find(&place, Verify::Later).is_some());
}

#[test]
fn synced_content_is_trusted_after_a_boot_and_only_that() {
    let dir = tempfile::tempdir().unwrap();
    let (lost, lost_piece) = single(b"before an unclean boot");
    let (synced, synced_piece) = single(b"synced");
    let (later, later_piece) = single(b"after the sync");
    keep(&open(dir.path(), "one"), &lost, &lost_piece, b"before an unclean boot");
    let cache = open(dir.path(), "two");
    keep(&cache, &synced, &synced_piece, b"synced");
    cache.sync().unwrap();
    keep(&cache, &later, &later_piece, b"after the sync");
    drop(cache);
    let cache = open(dir.path(), "three");
    assert!(cache.find(&lost, Verify::Later).is_none());
    assert!(cache.find(&synced, Verify::Later).is_some());
    assert!(cache.find(&later, Verify::Later).is_none());
}

#[test]
fn a_sync_covers_every_process_of_its_boot() {
    let dir = tempfile::tempdir().unwrap();
    let (place, piece) = single(b"by a worker that was killed");
    keep(&open(dir.path(), "one"), &place, &piece, b"by a worker that was killed");
    open(dir.path(), "one").sync().unwrap();
    assert!(open(dir.path(), "two").find(&place, Verify::Later).is_some());
}

#[test]
fn a_damaged_record_means_that_nothing_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let (place, piece) = single(b"content");
    let cache = open(dir.path(), "one");
    keep(&cache, &place, &piece, b"content");
    cache.sync().unwrap();
    drop(cache);
    std::fs::write(dir.path().join("epoch"), "{").unwrap();
    let cache = open(dir.path(), "two");
    assert!(cache.find(&place, Verify::Later).is_none());
    assert!(cache.find(&place, Verify::Now).is_some());
}

#[test]
fn a_file_of_chunks_becomes_complete_and_is_published_under_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let content = b"abcdefghij";
    let (place, pieces) = chunked(content);
    let cache = open(dir.path(), "one");
    keep(&cache, &place, &pieces[1], content);
    let Some(Content::Partial(partial)) = cache.find(&place, Verify::Later) else { panic!() };
    assert!(partial.has(1) && !partial.has(0));
    assert_eq!(cache.finish(&place), Finished::Unchanged);
    drop((partial, cache));

    let cache = open(dir.path(), "one");
    let found = cache.find(&place, Verify::Later).unwrap();
    assert_eq!(cache.read_piece(&pieces[1], &found).unwrap(), &b"efgh"[..]);
    assert!(cache.read_piece(&pieces[0], &found).is_none());
    keep(&cache, &place, &pieces[0], content);
    keep(&cache, &place, &pieces[2], content);
    assert!(matches!(cache.find(&place, Verify::Later), Some(Content::Complete(_))));
    assert_eq!(cache.finish(&place), Finished::Published);
    assert_eq!(cache.finish(&place), Finished::Unchanged);
    assert_eq!(std::fs::read(path(dir.path(), &place)).unwrap(), content);
    assert_eq!(std::fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
    drop(found);
    assert!(matches!(
        open(dir.path(), "one").find(&place, Verify::Later),
        Some(Content::Complete(_))
    ));
}

#[test]
fn chunks_that_another_boot_left_are_verified_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let content = b"abcdefgh";
    let (place, pieces) = chunked(content);
    let cache = open(dir.path(), "one");
    keep(&cache, &place, &pieces[0], content);
    keep(&cache, &place, &pieces[1], content);
    drop(cache);
    let (data, _) = partial::names(&place.id);
    let file = File::options().write(true).open(dir.path().join(data)).unwrap();
    file.write_all_at(b"????", 4).unwrap();
    for _ in 0..2 {
        // The second opening is a process that was killed before it verified anything.
        let cache = open(dir.path(), "two");
        let found = cache.find(&place, Verify::Now).unwrap();
        let Content::Partial(partial) = &found else { panic!("nothing is verified yet") };
        assert!(!partial.has(0) && partial.may_have(0));
    }
    let cache = open(dir.path(), "two");
    let found = cache.find(&place, Verify::Now).unwrap();
    assert_eq!(cache.read_piece(&pieces[0], &found).unwrap(), &b"abcd"[..]);
    assert!(cache.read_piece(&pieces[1], &found).is_none());
    let Content::Partial(partial) = &found else { unreachable!() };
    assert!(partial.has(0) && !partial.may_have(1));
    keep(&cache, &place, &pieces[1], content);
    assert_eq!(cache.finish(&place), Finished::Published);
}

#[test]
fn content_with_another_digest_than_promised_is_never_shared() {
    let dir = tempfile::tempdir().unwrap();
    let content = b"abcdefgh";
    let (mut place, pieces) = chunked(content);
    place.whole = Some(Digest::of(b"of someone else's file"));
    let cache = open(dir.path(), "one");
    for piece in &pieces {
        keep(&cache, &place, piece, content);
    }
    assert!(matches!(cache.finish(&place), Finished::Mismatch { .. }));
    assert!(!path(dir.path(), &place).exists());
    drop(cache);
    let cache = open(dir.path(), "one");
    assert_eq!(cache.finish(&place), Finished::Unchanged, "and is not hashed again");
    assert!(matches!(cache.find(&place, Verify::Later), Some(Content::Complete(_))));
}

#[test]
fn a_full_disk_leaves_content_in_memory_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (events, mut told) = EventSink::channel(4);
    let cache = FileCache::open(dir.path(), "one", 100, events).unwrap();
    let (place, piece) = single(b"content");
    cache.is_full_for_tests.store(true, Ordering::Release);
    assert!(!keep(&cache, &place, &piece, b"content"));
    assert!(!keep(&cache, &place, &piece, b"content"));
    assert!(cache.find(&place, Verify::Now).is_none());
    assert_eq!(cache.remembered(&piece.digest).unwrap(), &b"content"[..]);
    cache.is_full_for_tests.store(false, Ordering::Release);
    assert!(keep(&cache, &place, &piece, b"content"));
    assert!(cache.find(&place, Verify::Now).is_some());
    assert!(cache.remembered(&piece.digest).is_none());
    assert!(matches!(told.try_recv(), Ok(LazyEvent::CacheDegraded { .. })));
    assert!(matches!(told.try_recv(), Ok(LazyEvent::CacheRestored)));
    assert!(told.try_recv().is_err(), "one event each");
}

#[test]
fn what_a_dead_process_left_half_written_goes() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), "one"));
    std::fs::write(dir.path().join("tmp/1-0"), "half").unwrap();
    drop(open(dir.path(), "one"));
    assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_guest_is_trusted_in_this_boot_and_spoils_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let (place, piece) = single(b"of the guest");
    let (owners, owners_piece) = single(b"of the owner");
    let owner = open(dir.path(), "one");
    let guest = open(dir.path(), "one");
    keep(&owner, &owners, &owners_piece, b"of the owner");
    owner.sync().unwrap();
    keep(&guest, &place, &piece, b"of the guest");
    guest.sync().unwrap();
    assert!(owner.find(&place, Verify::Later).is_some());
    drop((owner, guest));
    let cache = open(dir.path(), "two");
    assert!(cache.find(&owners, Verify::Later).is_some());
    assert!(cache.find(&place, Verify::Later).is_none());
    assert!(cache.find(&place, Verify::Now).is_some());
}

#[test]
fn a_map_whose_data_has_gone_vouches_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let content = b"0123456789";
    let (place, pieces) = chunked(content);
    for piece in &pieces[..2] {
        keep(&open(dir.path(), "one"), &place, piece, content);
    }
    let (data, _) = partial::names(&place.id);
    for cut in [None, Some(3)] {
        match cut {
            None => std::fs::remove_file(dir.path().join(&data)).unwrap(),
            Some(length) => {
                File::options().write(true).open(dir.path().join(&data)).unwrap().set_len(length)
            }
            .unwrap(),
        }
        let cache = open(dir.path(), "one");
        keep(&cache, &place, &pieces[2], content);
        let found = cache.find(&place, Verify::Now).expect("a new one was begun");
        assert!(!cache.has_piece(&pieces[0], &found), "it would be zeros");
        assert_eq!(cache.read_piece(&pieces[2], &found).unwrap(), &b"89"[..]);
        keep(&cache, &place, &pieces[1], content);
    }
}

#[test]
fn who_has_data_without_a_name_spoils_no_map_of_what_came_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let content = b"0123456789ab";
    let (place, pieces) = chunked(content);
    let (data, map) = partial::names(&place.id);
    for left in ["the map", "the data", "nothing"] {
        let host = open(dir.path(), "one");
        let guest = open(dir.path(), "one");
        keep(&guest, &place, &pieces[0], content);
        let held = guest.find(&place, Verify::Later).unwrap();
        // Evicted by the host, which may die in between.
        if left != "the data" {
            std::fs::remove_file(dir.path().join(&data)).unwrap();
        }
        if left != "the map" {
            std::fs::remove_file(dir.path().join(&map)).unwrap();
        }
        keep(&host, &place, &pieces[2], content);
        // By somebody who opened it before it went.
        let Content::Partial(partial) = &held else { unreachable!() };
        partial.write_piece(&pieces[1], b"4567").unwrap();
        drop((held, host, guest));
        let cache = open(dir.path(), "one");
        let found = cache.find(&place, Verify::Later).unwrap();
        for piece in &pieces {
            let from = usize::try_from(piece.offset).unwrap();
            let read = cache.read_piece(piece, &found);
            assert!(
                read.is_none_or(|read| read == content[from..from + 4]),
                "piece {} where {left} was left",
                piece.n
            );
        }
        assert!(cache.has_piece(&pieces[2], &found));
        drop(found);
        for name in [&data, &map] {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
    }
}

#[test]
fn a_map_of_other_data_vouches_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let content = b"0123456789ab";
    let (place, pieces) = chunked(content);
    let (data, map) = partial::names(&place.id);
    let path = |name: &str| dir.path().join(name);
    keep(&open(dir.path(), "one"), &place, &pieces[0], content);
    std::fs::rename(path(&data), path("tmp/data")).unwrap();
    // As long as the data that the map is of, whose inode is not given to anybody meanwhile.
    File::create(path(&data)).unwrap().set_len(place.size).unwrap();
    let cache = open(dir.path(), "one");
    let found = cache.find(&place, Verify::Later).expect("it may be a copy");
    let Content::Partial(partial) = &found else { panic!("nothing is verified") };
    assert!(!partial.has(0));
    assert!(cache.read_piece(&pieces[0], &found).is_none(), "zeros");
    drop((found, cache));
    let cache = open(dir.path(), "one");
    keep(&cache, &place, &pieces[1], content);
    let found = cache.find(&place, Verify::Later).unwrap();
    assert!(cache.read_piece(&pieces[0], &found).is_none(), "zeros");
    assert_eq!(cache.read_piece(&pieces[1], &found).unwrap(), &b"4567"[..]);
    drop((found, cache));
    // That of an earlier version does not say of which data it is.
    let opened = File::options().write(true).open(path(&map)).unwrap();
    opened.write_all_at(&[0; 16], 32).unwrap();
    let cache = open(dir.path(), "one");
    let found = cache.find(&place, Verify::Later).unwrap();
    assert_eq!(cache.read_piece(&pieces[1], &found).unwrap(), &b"4567"[..]);
}

/// As `rsync -a` does: with the times, to other inodes.
fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
            let time = std::fs::metadata(&path).unwrap().modified().unwrap();
            let options = File::options().read(true).open(&to).unwrap();
            options.set_modified(time).unwrap();
        }
    }
}

#[test]
fn a_copy_of_the_cache_has_what_the_cache_has_once_it_was_verified() {
    for boot in ["one", "two"] {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let content = b"0123456789ab";
        let (place, pieces) = chunked(content);
        let (whole, whole_piece) = single(b"content");
        let cache = open(dir.path(), "one");
        keep(&cache, &place, &pieces[0], content);
        keep(&cache, &place, &pieces[1], content);
        keep(&cache, &whole, &whole_piece, b"content");
        copy(dir.path(), other.path());
        // What was written while it was being copied may be in the map and not in the data.
        let (data, _) = partial::names(&place.id);
        let data = File::options().write(true).open(other.path().join(data)).unwrap();
        data.write_all_at(b"\0\0\0\0", 4).unwrap();
        // The second time by the next process, which finds the map that the first one made.
        for _ in 0..2 {
            let copied = open(other.path(), boot);
            let found = copied.find(&place, Verify::Later).expect("some of it is here");
            assert!(copied.has_piece(&pieces[0], &found), "{boot}");
            assert_eq!(copied.read_piece(&pieces[0], &found).unwrap(), &b"0123"[..]);
            assert!(copied.read_piece(&pieces[1], &found).is_none(), "{boot}: zeros");
            assert!(copied.find(&whole, Verify::Now).is_some());
        }
        let copied = open(other.path(), boot);
        keep(&copied, &place, &pieces[1], content);
        keep(&copied, &place, &pieces[2], content);
        assert_eq!(copied.finish(&place), Finished::Published);
    }
}

#[test]
fn small_files_of_an_earlier_version_are_looked_for_only_where_there_are_some() {
    let dir = tempfile::tempdir().unwrap();
    for (kept, may_have) in [(None, false), (Some(100), false), (Some(50), true)] {
        if let Some(size) = kept {
            let (place, piece) = single(&vec![7; size]);
            keep(&open(dir.path(), "one"), &place, &piece, &vec![7; size]);
        }
        let cache = open(dir.path(), "one");
        cache.bound_segments(4, 60);
        assert_eq!(cache.may_have_small_files(), may_have, "{kept:?}");
    }
}

#[test]
fn some_of_the_disk_stays_free_and_the_cache_writes_again_when_there_is_more() {
    let dir = tempfile::tempdir().unwrap();
    let (events, _receiver) = EventSink::channel(8);
    let cache = FileCache::open(dir.path(), "boot", 1 << 20, events).unwrap();
    cache.keep_free(u64::MAX);
    assert_eq!(cache.writable().unwrap_err().kind(), io::ErrorKind::StorageFull);
    cache.keep_free(1);
    cache.writable().unwrap();
}
