//! Eviction from the cache alone: what goes first, what stays, and what a death in the middle leaves.

use std::os::unix::fs::MetadataExt as _;

use std::collections::HashSet;

use super::whole::whole_name;
use super::*;

const KIB: usize = 1 << 10;

fn open(dir: &Path, budget: Option<u64>) -> FileCache {
    let cache = FileCache::open(dir, "boot", 1 << 20, EventSink::none()).unwrap();
    cache.set_budget(budget);
    cache
}

/// A file of one chunk that occupies 16 KiB.
fn single(n: u8) -> (Place, Piece, Bytes) {
    let content = Bytes::from(vec![n; 16 * KIB]);
    let (digest, size) = (Digest::of(&content), content.len() as u64);
    let place = Place { whole: Some(digest), id: digest, size, chunks: 1, slot: None };
    (place, Piece { n: 0, offset: 0, size, digest }, content)
}

/// A file of four chunks of 16 KiB.
fn chunked(n: u8) -> (Place, Vec<(Piece, Bytes)>) {
    let chunk = |i: u8| Bytes::from(vec![n.wrapping_mul(4).wrapping_add(i) ^ 0x80; 16 * KIB]);
    let pieces: Vec<_> = (0..4_u8)
        .map(|i| {
            let bytes = chunk(i);
            let size = bytes.len() as u64;
            let offset = u64::from(i) * size;
            (Piece { n: u32::from(i), offset, size, digest: Digest::of(&bytes) }, bytes)
        })
        .collect();
    let whole: Vec<u8> = pieces.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect();
    let id = Digest::of(format!("{pieces:?}").as_bytes());
    (
        Place {
            whole: Some(Digest::of(&whole)),
            id,
            size: whole.len() as u64,
            chunks: 4,
            slot: None,
        },
        pieces,
    )
}

/// Two small files that occupy 16 KiB together, at both ends of a segment.
fn packed(n: u8) -> Vec<(Place, Piece, Bytes)> {
    let segment = Shape { id: Digest::of(&[n]), size: 40 << 10, chunks: 3 };
    let small = |(at, i, offset): (u8, u32, u64)| {
        let content = Bytes::from(vec![n ^ at; 8 * KIB]);
        let (digest, size) = (Digest::of(&content), content.len() as u64);
        let slot = Some(Slot { segment, n: i, offset });
        let place = Place { whole: Some(digest), id: digest, size, chunks: 1, slot };
        (place, Piece { n: 0, offset: 0, size, digest }, content)
    };
    [(0x55, 0, 0), (0xaa, 2, 32 << 10)].map(small).into()
}

fn keep(cache: &FileCache, n: u8) -> Place {
    let (place, piece, content) = single(n);
    assert!(cache.keep(&place, &piece, &content).is_some());
    place
}

fn is_here(cache: &FileCache, place: &Place) -> bool {
    // Not by `find`, which is a use.
    let whole = place.whole.map(|whole| whole_name(&whole));
    let names = whole.into_iter().chain([partial::names(&place.id).0]);
    names
        .into_iter()
        .any(|name| rustix::fs::statat(&cache.root, &*name, AtFlags::SYMLINK_NOFOLLOW).is_ok())
}

fn evict(cache: &FileCache, protected: &[Digest]) -> HashSet<Digest> {
    let mut all = HashSet::new();
    cache.evict(&protected.iter().copied().collect(), |gone| all.extend(gone));
    all
}

/// What the files really occupy.
fn on_disk(dir: &Path) -> u64 {
    let mut total = 0;
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let stat = entry.metadata().unwrap();
        total += if stat.is_dir() { on_disk(&entry.path()) } else { stat.blocks() * 512 };
    }
    total
}

fn occupied(dir: &Path) -> u64 {
    on_disk(&dir.join("sha256")) + on_disk(&dir.join("partial"))
}

#[test]
fn what_was_used_longest_ago_goes_first_and_only_so_much() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), Some(160 << 10));
    let places: Vec<Place> = (0..10).map(|n| keep(&cache, n)).collect();
    assert!(evict(&cache, &[]).is_empty(), "exactly the budget");
    assert!(cache.find(&places[0], Verify::Later).is_some());
    keep(&cache, 10);
    let gone = evict(&cache, &[]);
    assert_eq!(cache.used(), Some(occupied(dir.path())));
    assert!(occupied(dir.path()) <= 144 << 10);
    let expected: HashSet<Digest> = places[1..3].iter().filter_map(|place| place.whole).collect();
    assert_eq!(gone, expected, "the first one was used again");
    assert!(!is_here(&cache, &places[1]) && is_here(&cache, &places[0]));
    let (_, piece, content) = single(1);
    assert!(cache.find(&places[1], Verify::Now).is_none());
    assert!(cache.keep(&places[1], &piece, &content).is_some());
    assert!(cache.find(&places[1], Verify::Now).is_some(), "and comes back like anything else");
}

#[test]
fn what_an_earlier_process_left_is_older_than_what_this_one_used() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), None);
    let keep_later = |n: u8| {
        let scratch = dir.path().join("tmp/scratch");
        let changed = || {
            std::fs::write(&scratch, b"").unwrap();
            let stat = std::fs::metadata(&scratch).unwrap();
            (stat.ctime(), stat.ctime_nsec())
        };
        // Times come from a clock that ticks only a few hundred times in a second.
        let before = changed();
        while changed() == before {}
        keep(&cache, n)
    };
    let places: Vec<Place> = (0..6).map(keep_later).collect();
    assert_eq!(cache.used(), None, "nothing is counted before there is a budget");
    drop(cache);
    let cache = open(dir.path(), Some(64 << 10));
    assert!(cache.find(&places[0], Verify::Later).is_some());
    evict(&cache, &[]);
    assert!(is_here(&cache, &places[0]));
    assert!(is_here(&cache, &places[5]), "of the others the one that was written last");
    assert!(places[1..4].iter().all(|place| !is_here(&cache, place)));
}

#[test]
fn what_is_open_or_protected_stays() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), Some(32 << 10));
    let places: Vec<Place> = (0..5).map(|n| keep(&cache, n)).collect();
    let Some(Content::Complete(file)) = cache.find(&places[0], Verify::Later) else { panic!() };
    let newest = keep(&cache, 5);
    let protected = [places[1].whole.unwrap()];
    evict(&cache, &protected);
    assert!(is_here(&cache, &places[0]) && is_here(&cache, &places[1]));
    assert!([2, 3, 4].iter().all(|n| !is_here(&cache, &places[*n])) && !is_here(&cache, &newest));
    drop(file);
    keep(&cache, 6);
    evict(&cache, &protected);
    assert!(!is_here(&cache, &places[0]) && is_here(&cache, &places[1]));
}

#[test]
fn an_incomplete_file_goes_whole_and_not_while_somebody_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), Some(1));
    let (place, pieces) = chunked(1);
    for (piece, bytes) in &pieces[..3] {
        assert!(cache.keep(&place, piece, bytes).is_some());
    }
    let held = cache.find(&place, Verify::Later).unwrap();
    assert!(evict(&cache, &[]).is_empty());
    assert_eq!(cache.read_piece(&pieces[2].0, &held).unwrap(), pieces[2].1);
    drop(held);
    assert_eq!(evict(&cache, &[]), HashSet::from([place.id]));
    assert_eq!(occupied(dir.path()), 0);
    assert!(cache.find(&place, Verify::Later).is_none());
    assert!(cache.keep(&place, &pieces[3].0, &pieces[3].1).is_some());
    let found = cache.find(&place, Verify::Later).unwrap();
    assert!(!cache.has_piece(&pieces[0].0, &found), "a new one was begun");
    assert_eq!(cache.read_piece(&pieces[3].0, &found).unwrap(), pieces[3].1);
}

#[test]
fn a_complete_file_that_could_not_be_published_is_protected_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), Some(1));
    let (mut place, pieces) = chunked(2);
    place.whole = None;
    for (piece, bytes) in &pieces {
        assert!(cache.keep(&place, piece, bytes).is_some());
    }
    let Some(Content::Complete(file)) = cache.find(&place, Verify::Later) else { panic!() };
    assert!(evict(&cache, &[]).is_empty());
    drop(file);
    assert_eq!(evict(&cache, &[]).len(), 1);
}

#[test]
fn a_death_at_any_step_of_an_eviction_leaves_nothing_wrong() {
    let singles: Vec<u8> = (0..4).collect();
    for steps in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path(), Some(40 << 10));
        let mut places: Vec<Place> = singles.iter().map(|n| keep(&cache, *n)).collect();
        for n in 1..3 {
            let (place, pieces) = chunked(n);
            for (piece, bytes) in &pieces[..2] {
                assert!(cache.keep(&place, piece, bytes).is_some());
            }
            places.push(place);
        }
        for (place, piece, bytes) in packed(1).iter().chain(&packed(2)) {
            assert!(cache.keep(place, piece, bytes).is_some());
        }
        let layer = Digest::of(b"layer");
        cache.save_hint(&layer, || b"everything is here".to_vec());
        cache.dies_after_for_tests.store(steps, Ordering::Release);
        evict(&cache, &[]);
        drop(cache);
        if steps == 9 {
            // And between the data and the map of an incomplete file.
            let (data, _) = partial::names(&places[4].id);
            let _ = std::fs::remove_file(dir.path().join(data));
            for n in 1..3 {
                let (_, map) = partial::names(&Digest::of(&[n]));
                let _ = std::fs::remove_file(dir.path().join(map));
            }
        }
        let cache = open(dir.path(), Some(40 << 10));
        assert_eq!(cache.load_hint(&layer), None, "it would count what is gone");
        for (place, n) in places.iter().zip(&singles) {
            if let Some(Content::Complete(file)) = cache.find(place, Verify::Later) {
                assert_eq!(read_at(&file, 0, 16 << 10).unwrap(), single(*n).2);
            }
        }
        for (place, piece, bytes) in packed(1).iter().chain(&packed(2)) {
            if let Some(found) = cache.find(place, Verify::Now) {
                assert_eq!(cache.read_piece(piece, &found).unwrap(), *bytes);
            }
        }
        for (place, n) in places[4..].iter().zip(1..3) {
            let (_, pieces) = chunked(n);
            assert!(cache.keep(place, &pieces[3].0, &pieces[3].1).is_some());
            let found = cache.find(place, Verify::Now).unwrap();
            for (piece, bytes) in &pieces {
                let read = cache.read_piece(piece, &found);
                assert!(read.is_none_or(|read| read == *bytes), "after {steps} steps");
            }
        }
        evict(&cache, &[]);
        assert!(occupied(dir.path()) <= 40 << 10, "after {steps} steps");
        assert_eq!(cache.used(), Some(occupied(dir.path())));
    }
}

#[test]
fn a_guest_evicts_nothing_while_its_host_lives() {
    let dir = tempfile::tempdir().unwrap();
    let host = open(dir.path(), None);
    let guest = open(dir.path(), Some(1));
    let place = keep(&host, 1);
    let Some(Content::Complete(file)) = host.find(&place, Verify::Later) else { panic!() };
    assert!(evict(&guest, &[]).is_empty());
    drop((file, host));
    assert_eq!(evict(&guest, &[]).len(), 1);
}

#[test]
fn the_background_fill_gets_room_below_the_budget_only_and_tells_its_end_once() {
    let dir = tempfile::tempdir().unwrap();
    keep(&open(dir.path(), None), 1);
    let (events, mut told) = EventSink::channel(4);
    let cache = FileCache::open(dir.path(), "boot", 0, events).unwrap();
    assert!(cache.reserve(1 << 40).is_some(), "there is no budget");
    cache.set_budget(Some(40 << 10));
    let room = cache.reserve(20 << 10).expect("16 of 36 KiB are taken");
    assert_eq!(cache.used(), Some(16 << 10), "it had to count for that");
    assert!(cache.reserve(1).is_none() && cache.reserve(1).is_none());
    drop(room);
    assert!(cache.reserve(20 << 10).is_some());
    assert!(matches!(told.try_recv(), Ok(LazyEvent::CacheFull { budget: 40_960 })));
    assert!(told.try_recv().is_err());
}

#[test]
fn who_opens_what_is_evicted_has_data_and_map_of_one_generation() {
    let dir = tempfile::tempdir().unwrap();
    let (host, guest) = (open(dir.path(), Some(0)), open(dir.path(), None));
    let (place, pieces) = chunked(1);
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..600 {
                let (piece, bytes) = &pieces[round % 4];
                drop(host.keep(&place, piece, bytes));
                evict(&host, &[]);
            }
            is_done.store(true, Ordering::Release);
        });
        while !is_done.load(Ordering::Acquire) {
            let Some(found) = guest.find(&place, Verify::Now) else { continue };
            for (piece, bytes) in &pieces {
                let read = guest.read_piece(piece, &found);
                assert!(read.is_none_or(|read| read == *bytes), "zeros for content");
            }
        }
    });
    assert!(!guest.is_degraded() && !host.is_degraded());
    // Whatever the guest did, it did not take the map from the data that the host has.
    let (piece, bytes) = &pieces[2];
    drop(host.keep(&place, piece, bytes));
    drop((host, guest));
    let cache = open(dir.path(), None);
    let found = cache.find(&place, Verify::Later).expect("data and map");
    assert!(cache.has_piece(piece, &found));
}

#[test]
fn a_file_is_not_published_by_who_has_lost_it() {
    let dir = tempfile::tempdir().unwrap();
    let (host, guest) = (open(dir.path(), Some(0)), open(dir.path(), None));
    let (place, pieces) = chunked(1);
    for (piece, bytes) in &pieces {
        drop(guest.keep(&place, piece, bytes));
    }
    let Some(Content::Complete(_)) = guest.find(&place, Verify::Now) else { panic!("complete") };
    let held = guest.partial(&place.shape(), Missing::Leave).unwrap();
    evict(&host, &[]);
    host.set_budget(None);
    drop(host.keep(&place, &pieces[0].0, &pieces[0].1));
    // As where it was being hashed meanwhile.
    assert!(held.hold(guest.root.as_fd()).is_err());
    let found = host.find(&place, Verify::Now).expect("what came after it");
    assert!(host.has_piece(&pieces[0].0, &found));
}

#[test]
fn who_starts_while_a_guest_evicts_is_the_owner() {
    let dir = tempfile::tempdir().unwrap();
    let host = open(dir.path(), None);
    let guest = open(dir.path(), Some(0));
    let place = keep(&guest, 1);
    drop(host);
    let mut next = None;
    guest.evict(&HashSet::new(), |gone| {
        assert_eq!(gone.len(), 1);
        next = Some(open(dir.path(), None));
    });
    let next = next.expect("it has evicted");
    assert!(next.tenure.is_owner());
    assert!(!is_here(&next, &place));
    let _ = keep(&guest, 2);
    assert!(evict(&guest, &[]).is_empty(), "and from then on it alone evicts");
    drop(next);
    assert_eq!(evict(&guest, &[]).len(), 1);
}

#[test]
fn who_only_visits_keeps_nobody_from_being_the_owner() {
    let dir = tempfile::tempdir().unwrap();
    let visitor = FileCache::visit(dir.path(), "boot").unwrap();
    let mut found = 0;
    let place = keep(&visitor, 1);
    let mut owner = None;
    let gone = visitor.evict_unused(&HashSet::new(), None, |survey| {
        found = survey.rest().files;
        owner = Some(open(dir.path(), None));
    });
    assert_eq!(gone.unwrap(), Some(Found::default()), "what it has is its own from then on");
    assert_eq!(found, 1);
    let owner = owner.unwrap();
    assert!(owner.tenure.is_owner() && is_here(&owner, &place));
    assert_eq!(visitor.evict_unused(&HashSet::new(), None, |_| {}).unwrap(), None);
    drop(owner);
    let gone = visitor.evict_unused(&HashSet::new(), None, |_| {}).unwrap();
    assert_eq!(gone.map(|gone| gone.files), Some(1));
}

#[test]
fn a_note_counts_nothing_that_was_evicted_since() {
    let dir = tempfile::tempdir().unwrap();
    let layer = Digest::of(b"layer");
    let (host, guest) = (open(dir.path(), None), open(dir.path(), None));
    keep(&host, 1);
    guest.save_hint(&layer, || b"hint".to_vec());
    assert_eq!(host.load_hint(&layer).unwrap(), b"hint");
    host.set_budget(Some(0));
    assert_eq!(evict(&host, &[]).len(), 1);
    assert!(host.load_hint(&layer).is_none());
    guest.save_hint(&layer, || b"of what has gone".to_vec());
    assert!(host.load_hint(&layer).is_none(), "it does not know yet");
    assert!(guest.notices_eviction() && !guest.notices_eviction());
    guest.save_hint(&layer, || b"counted anew".to_vec());
    assert_eq!(host.load_hint(&layer).unwrap(), b"counted anew");
    assert!(!host.notices_eviction(), "whoever evicts tells its layers itself");

    // Whoever evicts may die in the middle.
    keep(&host, 2);
    host.dies_after_for_tests.store(0, Ordering::Release);
    assert!(evict(&host, &[]).is_empty());
    assert!(guest.notices_eviction());
    guest.save_hint(&layer, || b"of what goes".to_vec());
    drop(host);
    let next = open(dir.path(), None);
    assert!(next.load_hint(&layer).is_none());
    assert!(guest.notices_eviction());
    guest.save_hint(&layer, || b"counted anew".to_vec());
    assert_eq!(next.load_hint(&layer).unwrap(), b"counted anew");
}
