//! The store as a whole: owner, crash leftovers, concurrent writers, damaged content.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::image::{Compression, Digest};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state")).unwrap();
    (dir, store)
}

#[test]
fn a_second_owner_is_refused_and_told_who_holds_the_directory() {
    let (_dir, store) = store();
    let Err(StoreError::Locked { holder, path }) = Store::open(store.root()) else {
        panic!("two owners");
    };
    assert_eq!(holder, std::process::id().to_string());
    assert_eq!(path, store.root());
    let shared = Store::open_shared(store.root()).unwrap();
    let root = store.root().to_owned();
    let clone = store.clone();
    drop(store);
    assert!(Store::open(&root).is_err(), "a clone holds the lock");
    drop(clone);
    Store::open(&root).unwrap();
    drop(shared);
}

#[test]
fn folders_are_closed_to_other_users_also_when_they_were_not() {
    let (_dir, store) = store();
    let layers = store.root().join("layers");
    std::fs::set_permissions(&layers, std::fs::Permissions::from_mode(0o755)).unwrap();
    let root = store.root().to_owned();
    drop(store);
    let store = Store::open(&root).unwrap();
    for folder in ["", "blobs", "layers", "files", "images", "containers"] {
        let mode = std::fs::metadata(store.root().join(folder)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{folder}");
    }
}

#[test]
fn a_blob_reads_back_and_a_damaged_one_is_removed() {
    let (_dir, store) = store();
    let digest = store.write_blob(b"manifest").unwrap();
    assert_eq!(digest, Digest::of(b"manifest"));
    assert_eq!(store.read_blob(digest).unwrap().as_deref(), Some(&b"manifest"[..]));
    assert_eq!(store.blobs().unwrap(), [digest]);
    std::fs::write(store.blob_path(digest), b"manifesT").unwrap();
    assert_eq!(store.read_blob(digest).unwrap(), None);
    assert!(!store.has_blob(digest));
    std::fs::write(store.blob_path(digest), b"").unwrap();
    store.write_blob(b"manifest").unwrap();
    assert!(store.read_blob(digest).unwrap().is_some(), "a damaged blob is written anew");
    store.remove_blob(digest).unwrap();
    store.remove_blob(digest).unwrap();
}

#[test]
fn many_writers_of_one_blob_all_succeed_and_leave_one_file() {
    let (_dir, store) = store();
    let content = vec![7_u8; 300_000];
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| store.write_blob(&content).unwrap());
        }
    });
    let digest = Digest::of(&content);
    assert_eq!(store.read_blob(digest).unwrap().as_deref(), Some(&content[..]));
    assert_eq!(std::fs::read_dir(store.root().join("blobs/sha256")).unwrap().count(), 1);
}

#[test]
fn an_image_is_found_by_its_reference_until_it_is_removed() {
    let (_dir, store) = store();
    let image = |text: &str| ImageRecord {
        reference: text.parse().unwrap(),
        manifest: Digest::of(text.as_bytes()),
        index: None,
        platform: "linux/amd64".parse().unwrap(),
        pulled_at: jiff::Timestamp::UNIX_EPOCH,
        previous: None,
    };
    let (b, a) = (image("example.org/b:1"), image("example.org/a:1"));
    for image in [&b, &a] {
        store.record_image(image).unwrap();
        store.record_image(image).unwrap();
    }
    assert_eq!(store.images().unwrap(), [a.clone(), b.clone()]);
    assert_eq!(store.image(&b.reference).unwrap(), Some(b.clone()));
    let key = Digest::of(a.reference.to_string().as_bytes()).hex();
    std::fs::remove_file(store.root().join("images").join(key)).unwrap();
    assert_eq!(store.images().unwrap().len(), 2, "the previous copy counts");
    store.remove_image(&b.reference).unwrap();
    assert_eq!(store.images().unwrap(), [a]);
}

#[test]
fn a_layer_keeps_index_and_source() {
    let (_dir, store) = store();
    let layer = store.layer(Digest::of(b"layer"));
    assert!(layer.indexed_toc().is_none() && !layer.is_full());
    assert_eq!(layer.read_source().unwrap(), None);
    let (toc, other) = (Digest::of(b"toc"), Digest::of(b"other"));
    layer.write_index(toc, b"index").unwrap();
    assert!(layer.is_indexed_by(Some(toc)));
    // A manifest that names another table of contents, or none, must not be given this one's files.
    assert!(!layer.is_indexed_by(Some(other)) && !layer.is_indexed_by(None));
    let source = LayerSource {
        blob: serde_json::json!({"layout": {"path": "/images"}}),
        size: 5,
        compression: Compression::Gzip,
        toc_digest: None,
        diff_id: Some(Digest::of(b"tar")),
    };
    layer.write_source(&source).unwrap();
    assert_eq!(layer.read_source().unwrap(), Some(source));
    assert_eq!(std::fs::read(layer.index_path()).unwrap(), b"index");
    assert_eq!(store.layers().unwrap().len(), 1);
    layer.remove().unwrap();
    layer.remove().unwrap();
    assert!(store.layers().unwrap().is_empty());
}

#[test]
fn the_first_published_tree_stays_and_unpublished_ones_go() {
    let (_dir, store) = store();
    let layer = store.layer(Digest::of(b"layer"));
    let (first, second, third) =
        (layer.staging().unwrap(), layer.staging().unwrap(), layer.staging().unwrap());
    std::fs::write(first.path().join("who"), b"first").unwrap();
    std::fs::write(second.path().join("who"), b"second").unwrap();
    layer.publish_full(first).unwrap();
    layer.publish_full(second).unwrap();
    drop(third);
    assert_eq!(std::fs::read(layer.full_path().join("who")).unwrap(), b"first");
    store.settle().unwrap();
    let left: Vec<_> = std::fs::read_dir(layer.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_crash_in_the_middle_of_unpacking_is_swept_but_a_living_one_is_left_alone() {
    let (_dir, store) = store();
    let layer = store.layer(Digest::of(b"layer"));
    let abandoned = layer.path().join(".tmp-abandoned");
    let living = layer.staging().unwrap();
    std::fs::create_dir_all(abandoned.join("usr/bin")).unwrap();
    let root = store.root().to_owned();
    drop(store);
    let _store = Store::open(&root).unwrap();
    assert!(!abandoned.exists());
    assert!(living.path().exists());
}

#[test]
fn a_tree_that_had_not_reached_the_disk_before_a_power_cut_is_removed() {
    let (_dir, store) = store();
    let root = store.root().to_owned();
    let (cut, settled, fresh) = (
        store.layer(Digest::of(b"cut")),
        store.layer(Digest::of(b"settled")),
        store.layer(Digest::of(b"fresh")),
    );
    for layer in [&cut, &settled] {
        layer.publish_full(layer.staging().unwrap()).unwrap();
    }
    store.settle().unwrap();
    fresh.publish_full(fresh.staging().unwrap()).unwrap();
    // As if it had been published in another boot.
    std::fs::write(cut.path().join("unsettled"), "another boot").unwrap();
    drop(store);
    let store = Store::open(&root).unwrap();
    assert!(!cut.is_full());
    assert!(settled.is_full());
    assert!(fresh.is_full(), "a crash of the program is no power cut");
    store.settle().unwrap();
    assert!(!fresh.path().join("unsettled").exists());
}

#[test]
fn container_folders_are_named_by_plain_ids_only() {
    let (_dir, store) = store();
    for id in ["", ".", "..", ".x", "a/b", "../x", "a\0b", "ä"] {
        assert!(matches!(store.container_dir(id), Err(StoreError::InvalidId(_))), "{id:?}");
        assert!(matches!(store.remove_container(id), Err(StoreError::InvalidId(_))), "{id:?}");
    }
    let path = store.container_dir("web-1").unwrap();
    assert_eq!(store.container_dir("web-1").unwrap(), path);
    std::os::unix::fs::symlink(store.root(), path.join("link")).unwrap();
    assert_eq!(store.containers().unwrap(), ["web-1"]);
    store.remove_container("web-1").unwrap();
    store.remove_container("web-1").unwrap();
    assert!(store.containers().unwrap().is_empty());
    assert!(store.root().join("lock").exists(), "the link was not followed");
}
