//! Small files are created by other threads, some time after their entry: nobody may see a difference.

use proptest::prelude::*;
use supervisor::image::Compression;

use super::snapshot::snapshot;
use super::{Place, gzip, input};
use crate::support::tar::{Header, TarBuilder};

/// Larger than any file that is left to another thread.
const LARGE: usize = 200 << 10;

#[derive(Debug, Clone)]
struct Wish {
    kind: u8,
    name: &'static str,
    link: &'static str,
    mode: u32,
    uid: u32,
}

/// Few names, so that entries meet: replaced, removed, linked to, in the way of others.
fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    let name = || {
        prop::sample::select(vec![
            "a",
            "b",
            "a/a",
            "a/b",
            "b/a",
            "b/c",
            "a/a/c",
            "a/b/c",
            ".wh.a",
            "a/.wh..wh..opq",
        ])
    };
    let kind = prop::sample::select(b"000000112556".to_vec());
    let mode = prop::sample::select(vec![0o644, 0o755, 0, 0o4755, 0o2777]);
    let wish = (kind, name(), name(), mode, prop::sample::select(vec![0, 0, 1000]))
        .prop_map(|(kind, name, link, mode, uid)| Wish { kind, name, link, mode, uid });
    prop::collection::vec(wish, 1..24)
}

/// The entries, each with a time of its own that tells them apart.
fn tar(wishes: &[Wish], size: usize) -> Vec<u8> {
    let mut tar = TarBuilder::default();
    for (mtime, wish) in (1..).zip(wishes) {
        let header = Header {
            mode: wish.mode,
            uid: wish.uid,
            mtime,
            ..Header::new(wish.kind, wish.name.as_bytes()).link(wish.link.as_bytes())
        };
        let content = if wish.kind == b'0' { vec![1; size] } else { Vec::new() };
        tar = tar.entry(&header, content);
    }
    tar.finish()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn small_files_make_the_same_tree_as_large_ones(wishes in wishes()) {
        let outcome = |size| {
            let tar = tar(&wishes, size);
            let place = Place::new();
            let outcome = place.unpack(&tar, &input(&tar, Compression::None));
            outcome.map_err(|error| error.to_string()).map(|unpacked| {
                let mut nodes = snapshot(&place.root());
                nodes.values_mut().for_each(|node| node.content = None);
                (unpacked.entries, nodes)
            })
        };
        prop_assert_eq!(outcome(3), outcome(LARGE));
    }
}

#[test]
fn many_files_in_many_members_are_all_there_with_their_content() {
    // More than one batch of each directory, and members of all sizes up to those that only the stream takes.
    let mut members = Vec::new();
    let mut expected = std::collections::BTreeMap::new();
    for n in 0..3_000_u32 {
        let name = format!("d{}/{}", n % 7, n);
        let size = match n {
            1_000 => 9 << 20,
            n if n % 100 == 0 => 300 << 10,
            n => (n % 40) as usize * 50,
        };
        // Incompressible enough that a large file is a large member.
        let mut state = n.wrapping_mul(2_654_435_761) | 1;
        let content: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[2]
        })
        .take(size)
        .collect();
        members.push(gzip(&TarBuilder::default().file(&name, &content).unfinished()));
        expected.insert(name, content);
    }
    members.push(gzip(&[0; 1024]));
    let blob = members.concat();
    let place = Place::new();
    let unpacked = place.unpack(&blob, &input(&blob, Compression::Gzip)).unwrap();
    assert_eq!(unpacked.entries, 3_000);
    for (name, content) in expected {
        assert!(std::fs::read(place.at(&name)).unwrap() == content, "{name}");
    }
}
