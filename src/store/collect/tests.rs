//! What is kept and what goes, over stores with images in every state.

use std::collections::BTreeMap;

use super::*;
use crate::image::Platform;
use crate::store::Pinned;

struct Fixture {
    _dir: tempfile::TempDir,
    store: Store,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state")).unwrap();
    Fixture { _dir: dir, store }
}

fn layer(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn reference(name: &str) -> ImageRef {
    name.parse().unwrap()
}

impl Fixture {
    /// Unpacks layers, and stores a manifest that has them; its configuration tells it from others.
    fn image(&self, config: &str, layers: &[&str]) -> Digest {
        for name in layers {
            self.unpack(name);
        }
        self.manifest(config, layers)
    }

    fn unpack(&self, name: &str) {
        let dir = self.store.layer(layer(name));
        let staging = dir.staging().unwrap();
        std::fs::write(staging.path().join("file"), name).unwrap();
        dir.publish_full(staging).unwrap();
    }

    fn manifest(&self, config: &str, layers: &[&str]) -> Digest {
        let config = self.store.write_blob(config.as_bytes()).unwrap();
        let descriptor = |media: &str, digest: Digest| serde_json::json!({ "mediaType": media, "digest": digest.to_string(), "size": 7 });
        let layers: Vec<_> = layers
            .iter()
            .map(|name| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer(name)))
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": layers,
        });
        self.store.write_blob(manifest.to_string().as_bytes()).unwrap()
    }

    fn record(&self, name: &str, manifest: Digest, previous: Option<Digest>) -> ImageRef {
        let record = ImageRecord {
            reference: reference(name),
            manifest,
            index: None,
            platform: Platform::host(),
            pulled_at: jiff::Timestamp::UNIX_EPOCH,
            previous,
        };
        self.store.record_image(&record).unwrap();
        record.reference
    }

    fn classes(&self, uses: &Uses, reach: &Reach) -> BTreeMap<Digest, Class> {
        let inventory = self.store.inventory(uses, reach).unwrap();
        let found = inventory.leftovers.iter().filter_map(|leftover| match leftover.item {
            Item::Layer(digest) => Some((digest, leftover.class)),
            Item::Image(_) | Item::Blob(_) => None,
        });
        found.collect()
    }

    fn remove(&self, uses: &Uses, reach: &Reach) -> usize {
        let inventory = self.store.inventory(uses, reach).unwrap();
        let (gone, outcome) = self.store.take_away(&inventory).delete();
        outcome.unwrap();
        gone.len()
    }

    fn has(&self, name: &str) -> bool {
        self.store.layer(layer(name)).is_full()
    }
}

fn uses(images: &[&ImageRef]) -> Uses {
    Uses { images: images.iter().map(|image| (*image).clone()).collect(), ..Uses::default() }
}

#[test]
fn leftovers_are_found_by_what_leads_to_them_and_go_in_order() {
    let host = fixture();
    host.unpack("orphan");
    // A pull that ended after its first layer.
    host.unpack("half");
    host.manifest("failed", &["half", "missing"]);
    let old = host.image("old", &["base", "old"]);
    let previous = host.image("previous", &["base", "previous"]);
    let now = host.image("now", &["base", "now"]);
    let app = host.record("example.com/app:1", now, Some(previous));
    host.record("example.com/tool:1", host.image("tool", &["tool"]), None);

    let used = uses(&[&app]);
    let classes = host.classes(&used, &Reach::Leftovers);
    let expected = [
        (layer("orphan"), Class::Orphan),
        (layer("half"), Class::FailedPull),
        (layer("old"), Class::OldGeneration),
    ];
    assert_eq!(classes, BTreeMap::from(expected), "in use, previous and recorded ones stay");
    let inventory = host.store.inventory(&used, &Reach::Unused).unwrap();
    assert!(inventory.leftovers.is_sorted_by_key(|leftover| leftover.class));
    assert!(inventory.leftovers.iter().any(|l| l.item == Item::Blob(old) && l.bytes > 0));
    assert_eq!(inventory.images_in_use, BTreeSet::from([app]));

    host.remove(&used, &Reach::Leftovers);
    assert!(!host.has("orphan") && !host.has("half") && !host.has("old"));
    assert!(host.has("base") && host.has("now") && host.has("previous") && host.has("tool"));
    assert_eq!(host.remove(&used, &Reach::Leftovers), 0, "a second time finds nothing");
    assert_eq!(std::fs::read_dir(host.store.root().join("layers")).unwrap().count(), 4);
}

#[test]
fn what_nothing_uses_goes_unless_it_is_pinned_or_a_container_has_it() {
    let host = fixture();
    let idle = host.record("example.com/idle:1", host.image("idle", &["idle"]), None);
    let pinned = host.record(
        "example.com/pinned:1",
        host.image("pinned", &["pinned"]),
        Some(host.image("before", &["before"])),
    );
    let of_container = host.image("container", &["container"]);
    host.record("example.com/container:1", of_container, None);
    assert_eq!(host.store.pin(&pinned).unwrap(), Pinned::Now);
    assert_eq!(host.store.pin(&pinned).unwrap(), Pinned::Already);
    assert_eq!(host.store.pin(&reference("example.com/none:1")).unwrap(), Pinned::NoImage);
    let uses = Uses { manifests: BTreeSet::from([of_container]), ..Uses::default() };
    host.remove(&uses, &Reach::Unused);
    assert!(host.store.image(&idle).unwrap().is_none() && !host.has("idle"));
    assert!(host.has("pinned") && host.has("before") && host.has("container"));

    assert!(host.store.unpin(&pinned).unwrap());
    host.remove(&uses, &Reach::Unused);
    assert!(!host.has("pinned") && !host.has("before") && host.has("container"));
    assert_eq!(host.store.blobs().unwrap().len(), 2, "manifest and configuration of the container");
}

#[test]
fn one_image_goes_with_what_only_it_has() {
    let host = fixture();
    host.unpack("orphan");
    let one = host.record("example.com/one:1", host.image("one", &["base", "one"]), None);
    host.record("example.com/two:1", host.image("two", &["base", "two"]), None);
    host.remove(&Uses::default(), &Reach::Image(one.clone()));
    assert!(host.store.image(&one).unwrap().is_none());
    assert!(!host.has("one") && host.has("base") && host.has("two") && host.has("orphan"));
}

#[test]
fn what_somebody_holds_stays_also_if_that_began_after_the_look() {
    let host = fixture();
    host.unpack("coming");
    let lease = host.store.lease([layer("coming")]);
    assert!(host.classes(&Uses::default(), &Reach::Unused).is_empty());
    drop(lease);
    let inventory = host.store.inventory(&Uses::default(), &Reach::Unused).unwrap();
    let (first, second) =
        (host.store.lease([layer("coming")]), host.store.lease([layer("coming")]));
    drop(first);
    assert!(host.store.take_away(&inventory).delete().0.is_empty(), "it is held");
    drop(second);
    // It may have come to be needed meanwhile.
    assert!(host.store.take_away(&inventory).delete().0.is_empty(), "it was held");
    assert!(host.has("coming"));
    drop(inventory);
    assert_eq!(host.remove(&Uses::default(), &Reach::Unused), 1);
}

#[test]
fn nothing_goes_while_it_is_not_known_what_is_needed() {
    let host = fixture();
    host.unpack("orphan");
    let manifest = host.image("app", &["app"]);
    let app = host.record("example.com/app:1", manifest, None);
    std::fs::write(host.store.blob_path(manifest), b"damaged").unwrap();
    let inventory = host.store.inventory(&uses(&[&app]), &Reach::Unused).unwrap();
    assert!(inventory.unknown.is_some_and(|reason| reason.contains("example.com/app:1")));
    host.remove(&uses(&[&app]), &Reach::Unused);
    assert!(host.has("app") && host.has("orphan"));
    assert!(host.store.has_blob(manifest) || host.store.read_blob(manifest).unwrap().is_none());
    // It is given up by name all the same.
    host.remove(&Uses::default(), &Reach::Image(app));
    host.remove(&Uses::default(), &Reach::Unused);
    assert!(!host.has("app") && !host.has("orphan"));
}

#[test]
fn a_removal_that_was_interrupted_is_completed_by_the_next_start() {
    let host = fixture();
    host.unpack("layer");
    let layers = host.store.root().join("layers");
    std::fs::rename(host.store.layer(layer("layer")).path(), layers.join(".tmp-abc")).unwrap();
    let root = host.store.root().to_owned();
    drop(host.store);
    Store::open(&root).unwrap();
    assert_eq!(std::fs::read_dir(layers).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_read_may_need_anything() {
    let host = fixture();
    host.unpack("orphan");
    let app = host.record("example.com/app:1", host.image("app", &["app"]), None);
    let idle = host.record("example.com/idle:1", host.image("idle", &["idle"]), None);
    assert_eq!(host.store.pin(&app).unwrap(), Pinned::Now);
    let damage = |path: &std::path::Path| {
        for path in [path.to_owned(), path.with_extension("prev")] {
            std::fs::write(path, b"damaged").unwrap();
        }
    };
    let reach = [Reach::Leftovers, Reach::Unused, Reach::Room { image: app.clone(), bytes: 1 }];
    let stays = |what: &str| {
        // Also with the second look, which finds only what the first one has set aside.
        for reach in reach.iter().chain(&reach) {
            let inventory = host.store.inventory(&Uses::default(), reach).unwrap();
            assert!(inventory.leftovers.is_empty(), "{what}: {:?}", inventory.leftovers);
            let why = inventory.unknown.unwrap();
            assert!(why.contains("cannot be read"), "{why}");
        }
    };
    damage(&host.store.root().join("pins"));
    stays("pins");
    assert_eq!(host.store.pin(&app).unwrap(), Pinned::Now);
    let key = Digest::of(app.to_string().as_bytes()).hex();
    damage(&host.store.root().join("images").join(key));
    stays("image record");
    // One image is given up by its name, and what it had stays until it is known what others have.
    assert_eq!(host.remove(&Uses::default(), &Reach::Image(idle)), 1);
    assert!(host.has("idle"));
    let manifest = host.manifest("app", &["app"]);
    host.record("example.com/app:1", manifest, None);
    host.remove(&Uses::default(), &Reach::Unused);
    assert!(host.has("app") && !host.has("idle") && !host.has("orphan"));
    assert!(host.store.unpin(&app).unwrap());
    host.remove(&Uses::default(), &Reach::Image(app));
    let inventory = host.store.inventory(&Uses::default(), &Reach::Unused).unwrap();
    assert_eq!(inventory.unknown, None, "who gives it up gives up what was set aside of it");
}

#[test]
fn documents_stay_too_while_it_is_not_known_what_is_needed() {
    let host = fixture();
    let of_container = host.image("container", &["container"]);
    let unknown = Some("a record cannot be read".to_owned());
    assert_eq!(host.remove(&Uses { unknown, ..Uses::default() }, &Reach::Unused), 0);
    assert!(host.store.has_blob(of_container));
}

#[test]
fn for_a_pull_the_image_before_goes_and_then_unused_ones_by_age_and_nothing_for_nothing() {
    let host = fixture();
    let sized = |name: &str, bytes: usize| {
        let dir = host.store.layer(layer(name));
        let staging = dir.staging().unwrap();
        std::fs::write(staging.path().join("file"), vec![1; bytes]).unwrap();
        dir.publish_full(staging).unwrap();
        host.manifest(name, &[name])
    };
    let (before, now) = (sized("before", 100_000), sized("now", 100_000));
    let app = host.record("example.com/app:1", now, Some(before));
    let names = ["old", "pinned", "young"];
    for (age, name) in names.iter().enumerate() {
        let manifest = sized(name, 100_000);
        host.record(&format!("example.com/{name}:1"), manifest, None);
        let record = host.store.image(&reference(&format!("example.com/{name}:1"))).unwrap();
        let pulled_at = jiff::Timestamp::from_second(i64::try_from(age).unwrap()).unwrap();
        host.store.record_image(&ImageRecord { pulled_at, ..record.unwrap() }).unwrap();
    }
    host.store.pin(&reference("example.com/pinned:1")).unwrap();
    let used = uses(&[&app]);
    let goes = |bytes| {
        let reach = Reach::Room { image: app.clone(), bytes };
        host.classes(&used, &reach).into_keys().collect::<BTreeSet<_>>()
    };
    let digests = |names: &[&str]| names.iter().map(|name| layer(name)).collect::<BTreeSet<_>>();
    assert_eq!(goes(90_000), digests(&["before"]));
    assert_eq!(goes(190_000), digests(&["before", "old"]));
    assert_eq!(goes(290_000), digests(&["before", "old", "young"]));
    assert_eq!(goes(400_000), digests(&[]), "all of it together would not be enough");
    // One that a container has stays.
    let used = Uses { manifests: BTreeSet::from([before]), ..used };
    let reach = Reach::Room { image: app.clone(), bytes: 90_000 };
    assert_eq!(host.classes(&used, &reach).into_keys().collect::<BTreeSet<_>>(), digests(&["old"]));
}

#[test]
fn an_image_that_is_pinned_or_pulled_after_the_look_stays() {
    let host = fixture();
    let one = host.record("example.com/one:1", host.image("one", &["one"]), None);
    let inventory = host.store.inventory(&Uses::default(), &Reach::Unused).unwrap();
    host.store.pin(&one).unwrap();
    assert!(host.store.take_away(&inventory).delete().0.is_empty());
    host.store.unpin(&one).unwrap();
    let two = host.image("two", &["two"]);
    host.record("example.com/one:1", two, None);
    assert!(host.store.take_away(&inventory).delete().0.is_empty());
    assert!(host.has("one") && host.has("two"));
    assert_eq!(host.store.image(&one).unwrap().unwrap().manifest, two);
}
