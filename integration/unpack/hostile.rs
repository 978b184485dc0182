//! Tars and streams that nobody means well with.

use proptest::prelude::*;
use supervisor::image::{Compression, Digest};
use supervisor::unpack::{FailureKind, StreamError, TreeError, UnpackError};

use super::{Place, gzip, input, unpack};
use crate::support::tar::{Header, TarBuilder};

fn malformed(tar: &[u8]) -> UnpackError {
    let place = Place::new();
    let error = place.unpack(tar, &input(tar, Compression::None)).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Malformed, "{error:?}");
    error
}

#[test]
fn names_that_lead_out_are_taken_as_from_the_root() {
    let tar = TarBuilder::default()
        .file("../outside/one", b"x")
        .file("/outside/two", b"x")
        .file("a/../../../outside/three", b"x")
        .file("..", b"")
        .finish();
    // The last one names the root, which no file can be.
    assert!(matches!(malformed(&tar), UnpackError::Tree(TreeError::Root)));
    let tar = TarBuilder::default()
        .file("../outside/one", b"x")
        .file("/outside/two", b"x")
        .symlink("../../link", "../outside")
        .hard_link("../hard", "../../outside/one")
        .file("/../.wh.secret", b"")
        .finish();
    let (place, _) = unpack(&tar).unwrap();
    assert!(place.at("outside/one").is_file() && place.at("outside/two").is_file());
    assert!(place.at("link").is_symlink() && place.at("hard").is_file());
}

#[test]
fn nothing_is_written_through_a_link() {
    for target in ["../outside", "/", ".", "dir", "/proc/self/root"] {
        let links = |link: &str| TarBuilder::default().directory("dir").symlink(link, target);
        for tar in [
            links("link").file("link/file", b"x"),
            links("link").directory("link/sub"),
            links("link").symlink("link/other", "x"),
            links("link").file("link/.wh.secret", b""),
            links("link").file("link/.wh..wh..opq", b""),
            links("dir/link").file("dir/link/a/b", b"x"),
            links("link").file("real", b"x").hard_link("link/hard", "real"),
        ] {
            let error = malformed(&tar.finish());
            let below = matches!(error, UnpackError::Tree(TreeError::BelowNonDirectory(_)));
            assert!(below, "{target}: {error:?}");
        }
        let through = links("link").hard_link("hard", "link/secret").finish();
        assert!(matches!(malformed(&through), UnpackError::Tree(TreeError::HardLink { .. })));
    }
    let tar = TarBuilder::default().file("file", b"x").file("file/below", b"x").finish();
    assert!(matches!(malformed(&tar), UnpackError::Tree(TreeError::BelowNonDirectory(_))));
    let tar = TarBuilder::default().hard_link("l", "f").file("l/x", b"").file("f", b"").finish();
    assert!(matches!(malformed(&tar), UnpackError::Tree(TreeError::BelowNonDirectory(_))));
}

#[test]
fn hard_links_reach_only_files_of_the_layer() {
    for tar in [
        TarBuilder::default().hard_link("hard", "../../../../etc/passwd"),
        TarBuilder::default().hard_link("hard", "/etc/passwd"),
        TarBuilder::default().directory("dir").hard_link("hard", "dir"),
        TarBuilder::default().hard_link("hard", ""),
        TarBuilder::default().hard_link("a", "b").hard_link("b", "a"),
        TarBuilder::default().hard_link("self", "./self"),
    ] {
        let tar = tar.finish();
        match tar.starts_with(b"self") {
            // What tar writes for a file that it was told to archive twice.
            true => drop(unpack(&tar).unwrap()),
            false => {
                assert!(matches!(malformed(&tar), UnpackError::Tree(TreeError::HardLink { .. })));
            }
        }
    }
    // A link to a symbolic link is that link, not what it points to.
    let tar = TarBuilder::default()
        .symlink("link", "../outside/secret")
        .hard_link("hard", "link")
        .file("link", b"replaced")
        .finish();
    unpack(&tar).unwrap();
}

#[test]
fn damaged_headers_are_refused() {
    let good = TarBuilder::default().file("file", vec![1; 2000]).unfinished();
    let mut checksum = good.clone();
    checksum[0] ^= 1;
    for damaged in [
        checksum,
        good[..700].to_vec(),
        good[..100].to_vec(),
        [&good[..], &[0; 512], &good].concat(),
        vec![b'x'; 4096],
        TarBuilder::default().entry(&Header::new(b'M', b"continued"), b"").finish(),
        TarBuilder::default()
            .pax(b'x', &[("size", b"99999999999999999999")])
            .file("f", b"x")
            .finish(),
        TarBuilder::default().pax(b'x', &[("size", b"-1")]).file("f", b"x").finish(),
        TarBuilder::default().pax(b'x', &[("uid", b"4294967295")]).file("f", b"x").finish(),
        TarBuilder::default().entry(&Header::new(b'x', b"pax"), b"99 path=a\n").finish(),
        TarBuilder::default().pax(b'x', &[("path", b"a\0b")]).file("f", b"x").finish(),
        TarBuilder::default().file("n".repeat(300), b"x").finish(),
        TarBuilder::default().file("n/".repeat(1100), b"x").finish(),
        TarBuilder::default().file("nnnn/".repeat(900), b"x").finish(),
        TarBuilder::default().symlink("link", "").finish(),
        TarBuilder::default().symlink("link", "x".repeat(5000)).finish(),
        TarBuilder::default()
            .pax(b'x', &[("GNU.sparse.map", b"5,9,2,2"), ("GNU.sparse.size", b"20")])
            .file("sparse", b"eleven bytes")
            .finish(),
        TarBuilder::default()
            .pax(b'x', &[("GNU.sparse.map", b"0,4"), ("GNU.sparse.size", b"20")])
            .file("sparse", b"more than four")
            .finish(),
    ] {
        malformed(&damaged);
    }
}

#[test]
fn extension_headers_of_any_size_take_no_memory() {
    let mut header = [0; 512];
    header[..3].copy_from_slice(b"pax");
    header[124..136].copy_from_slice(b"77777777777\0");
    header[156] = b'x';
    header[257..265].copy_from_slice(b"ustar\x0000");
    crate::support::tar::seal(&mut header);
    let tar = TarBuilder::default().block(header).raw(&[0; 4096]).unfinished();
    malformed(&tar);
}

#[test]
fn a_deep_tree_is_unpacked_and_can_be_removed() {
    let deep = "d/".repeat(1000) + "file";
    let (place, _) = unpack(&TarBuilder::default().file(&deep, b"x").finish()).unwrap();
    // As the store removes it, when a file takes the place of the tree.
    drop(place);
    let tar = TarBuilder::default().file(&deep, b"x").file("d", b"x").finish();
    let (place, _) = unpack(&tar).unwrap();
    assert!(place.at("d").is_file());
}

#[test]
fn other_bytes_than_the_manifest_names_are_named_as_the_cause() {
    let tar = TarBuilder::default().file("file", vec![3; 400_000]).finish();
    let blob = gzip(&tar);
    let honest = input(&blob, Compression::Gzip);
    let mut flipped = blob.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    let (digest, kind) = (|input: &Digest| *input, FailureKind::Corrupt);
    let error = Place::new().unpack(&flipped, &honest).unwrap_err();
    assert!(matches!(&error, UnpackError::Stream(StreamError::Digest { expected, .. })
        if digest(expected) == honest.digest));
    assert_eq!(error.kind(), kind);
    let error = Place::new().unpack(&blob[..middle], &honest).unwrap_err();
    assert!(
        matches!(error, UnpackError::Stream(StreamError::Size { found, .. }) if found == middle as u64)
    );
    let longer = [&blob[..], b"x"].concat();
    let error = Place::new().unpack(&longer, &honest).unwrap_err();
    assert!(matches!(error, UnpackError::Stream(StreamError::Size { .. })), "{error:?}");
    // The right digest of the wrong thing: nobody's transport is to blame.
    let error = Place::new().unpack(&longer, &input(&longer, Compression::Gzip)).unwrap_err();
    assert!(matches!(error, UnpackError::Stream(StreamError::Decompress { .. })), "{error:?}");
    let error = Place::new()
        .unpack(&blob[..middle], &input(&blob[..middle], Compression::Gzip))
        .unwrap_err();
    assert_eq!(error.kind(), FailureKind::Malformed);
    let mut other = honest;
    other.diff_id = Some(Digest::of(b"other"));
    let error = Place::new().unpack(&blob, &other).unwrap_err();
    assert!(matches!(error, UnpackError::DiffId { .. }));
    assert_eq!(error.kind(), FailureKind::Malformed);
}

#[test]
fn a_source_that_fails_is_named_as_the_cause() {
    struct Failing(usize);
    impl std::io::Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            let count = buffer.len().min(self.0);
            buffer[..count].fill(0);
            self.0 -= count;
            Ok(count)
        }
    }
    let place = Place::new();
    let directory = std::fs::File::open(place.root()).unwrap();
    let input = input(&[0; 4096], Compression::None);
    let error = supervisor::unpack::unpack_layer(
        Failing(2048),
        &input,
        std::os::fd::AsFd::as_fd(&directory),
    );
    assert_eq!(error.unwrap_err().kind(), FailureKind::Source);
}

/// Few names, so that entries meet: directories, links and files of the same name, in any order.
fn any_name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        "..",
        ".",
        "",
        "outside",
        "secret",
        ".wh.a",
        ".wh..wh..opq",
        "c",
    ]);
    (any::<bool>(), prop::collection::vec(part, 1..4)).prop_map(|(absolute, parts)| {
        format!("{}{}", if absolute { "/" } else { "" }, parts.join("/"))
    })
}

fn any_tar() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(b"0012345670xgLKS".to_vec());
    let entry = (kind, any_name(), any_name(), prop::collection::vec(any::<u8>(), 0..40));
    prop::collection::vec(entry, 1..14).prop_map(|entries| {
        let mut tar = TarBuilder::default();
        for (kind, name, link, content) in entries {
            let header = Header::new(kind, name.as_bytes()).link(link.as_bytes());
            tar = match kind {
                b'x' | b'g' => tar.pax(kind, &[("path", link.as_bytes())]),
                b'L' | b'K' => tar.entry(&header, link.as_bytes()),
                b'0' | b'S' => tar.entry(&header, &content),
                _ => tar.entry(&header, b""),
            };
        }
        tar.finish()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_ever_created_outside_of_the_staging_directory(tar in any_tar()) {
        let place = Place::new();
        // Outcome does not matter; `unpack` looks at the neighbourhood.
        let _ = place.unpack(&tar, &input(&tar, Compression::None));
        prop_assert!(std::fs::symlink_metadata(place.root()).unwrap().is_dir());
    }

    #[test]
    fn any_bytes_are_unpacked_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..3000), valid in any::<bool>()) {
        let mut tar = TarBuilder::default().file("file", b"x").unfinished();
        if valid { tar.extend(bytes) } else { tar = bytes }
        let _ = Place::new().unpack(&tar, &input(&tar, Compression::None));
    }
}
