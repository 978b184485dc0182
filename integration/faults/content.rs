//! Blobs that are not what their digests say, tables of contents that lie, and disks without room.

use std::path::Path;

use serde_json::json;
use supervisor::image::Digest;

use crate::support::cli::Cli;
use crate::support::eventually;
use crate::support::image::{Image, Layer, app};
use crate::support::lazy_host::noise;
use crate::support::registry::{Fault, FaultRegistry};
use crate::support::tar::TarBuilder;
use crate::unpack::snapshot::snapshot;

const BIG: usize = 300 << 10;

fn big_layer() -> Layer {
    Layer::lazy(TarBuilder::default().directory("data").file("data/big", noise(7, BIG)).finish())
}

/// The layer's blob with some bytes of the content of its file turned around.
fn corrupted(layer: &Layer) -> Vec<u8> {
    let mut blob = layer.blob.clone();
    let middle = blob.len() / 2;
    blob[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0xff);
    blob
}

#[test]
fn a_corrupted_chunk_is_an_error_to_the_container_and_not_asked_for_without_end() {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let layer = big_layer();
    let reference = Image::shell().and(layer.clone()).put(&registry);
    registry.put_wrong_blob(layer.digest(), &corrupted(&layer));
    cli.services(&app(&reference, "    command: [sh, -c, 'echo alive; exec sleep 1000']\n"));
    let mut up = cli.up();
    up.until("| alive");
    let read = cli.run(["exec", "-T", "app", "--", "cat", "/data/big"]);
    assert_eq!(read.code, Some(1), "{} {}", read.code.unwrap_or(-1), read.err);
    assert!(read.err.contains("I/O error") || read.err.contains("Input/output"), "{}", read.err);
    up.until("is corrupt");
    assert!(up.text().contains("data/big"), "{}", up.text());

    let first = registry.seen(&layer.digest().to_string()).len();
    for _ in 0..20 {
        assert_ne!(cli.run(["exec", "-T", "app", "--", "cat", "/data/big"]).code, Some(0));
    }
    let asked = registry.seen(&layer.digest().to_string()).len();
    // A reader that tries again may be right to, but not at the registry's expense each time.
    assert!(first < 30 && asked < 60, "{first} requests, then {asked}");
    // The rest of the image is as good as before.
    assert_eq!(cli.run(["exec", "-T", "app", "--", "cat", "/etc/hostname"]).code, Some(0));
    assert_eq!(cli.ps("app")["State"], "running");
}

#[test]
fn a_truncated_layer_fails_the_pull_and_publishes_nothing() {
    let tar = TarBuilder::default().file("data", noise(3, BIG)).finish();
    for layer in [Layer::gzip(&tar), Layer::zstd(&tar), Layer::plain(&tar), Layer::lazy(tar)] {
        let cli = Cli::new();
        let registry = FaultRegistry::start();
        let reference = Image::shell().and(layer.clone()).put(&registry);
        registry.put_wrong_blob(layer.digest(), &layer.blob[..layer.blob.len() * 2 / 3]);
        let error = cli.run(["pull", "--full", &reference]).failed(1);
        assert!(error.contains(&layer.digest().to_string()), "{error}");
        assert_eq!(cli.run(["images", "--format", "json"]).ok(), "", "{error}");
        let published = cli.state_dir().join("layers").join(layer.digest().hex()).join("fs");
        assert!(!published.exists(), "{}", published.display());
        // It was the registry's fault, and once that is mended all is well.
        registry.put_blob(&layer.blob);
        cli.run(["pull", "--full", &reference]).ok();
    }
}

#[test]
fn a_layer_of_other_bytes_fails_the_pull_and_publishes_nothing() {
    let tar = TarBuilder::default().file("data", noise(3, BIG)).finish();
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let layer = Layer::plain(&tar);
    let reference = Image::shell().and(layer.clone()).put(&registry);
    registry.put_wrong_blob(layer.digest(), &corrupted(&layer));
    let error = cli.run(["pull", &reference]).failed(1);
    assert!(error.contains("digest"), "{error}");
    assert_eq!(cli.run(["images", "--format", "json"]).ok(), "");
}

#[test]
fn ranges_that_are_ignored_make_a_full_pull_that_says_why() {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let reference = Image::shell().put(&registry);
    registry.fault("/blobs/", 10_000, Fault::RangeIgnored);
    let pulled = cli.run(["pull", &reference]);
    let all = format!("{}{}", pulled.out, pulled.err);
    assert_eq!(pulled.code, Some(0), "{all}");
    assert!(all.contains("does not serve parts"), "{all}");
    cli.services(&app(&reference, "    command: [sh, -c, 'echo alive; exec sleep 1000']\n"));
    let mut up = cli.up();
    up.until("| alive");
    let ps = cli.ps("app");
    assert_eq!(ps["LazyLayers"], 0, "{ps}");
    assert!(ps["NotLazyBecause"][0].as_str().unwrap().contains("does not serve parts"), "{ps}");
}

/// Mounts an image whose last layer cannot be lazy, and returns the reason given.
fn reason_for(layer: Layer) -> String {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let reference = Image::shell().and(layer).put(&registry);
    let target = cli.directory("image");
    cli.run(["image", "mount", &reference, target.to_str().unwrap()]).ok();
    let content = std::fs::read(target.join("data/big")).unwrap();
    assert_eq!(Digest::of(&content), Digest::of(&noise(7, BIG)));
    assert!(!Path::new("/tmp/escaped").exists());
    let image = cli.image();
    assert_eq!(image["LazyLayers"], 2, "{image}");
    image["NotLazyBecause"][0].as_str().unwrap().to_owned()
}

#[test]
fn a_table_of_contents_that_lies_makes_its_layer_a_full_one() {
    let entry = |name: &str| {
        json!({"name": name, "type": "reg", "size": 3, "offset": 0, "mode": 420,
               "digest": Digest::of(b"abc").to_string(), "chunkDigest": Digest::of(b"abc").to_string()})
    };
    let add = |entry: serde_json::Value| {
        big_layer().with_toc(move |toc| toc["entries"].as_array_mut().unwrap().push(entry))
    };
    let mut beyond = entry("beyond");
    beyond["offset"] = json!(1_u64 << 50);
    let mut huge = entry("huge");
    huge["size"] = json!(-5);
    let loops = json!({"name": "data/a", "type": "hardlink", "linkName": "data/a"});
    for layer in [
        add(entry("../../tmp/escaped")),
        add(beyond),
        add(huge),
        add(loops),
        big_layer().with_toc(|toc| toc["entries"] = json!("none")),
        big_layer().with_toc_digest(Digest::of(b"another table")),
    ] {
        let why = reason_for(layer);
        assert!(why.contains("table of contents"), "{why}");
    }
}

/// A file system of so many KiB at the state directory.
struct SmallDisk<'a> {
    cli: &'a Cli,
}

impl<'a> SmallDisk<'a> {
    fn new(cli: &'a Cli, kib: u32) -> Self {
        let options = std::ffi::CString::new(format!("size={kib}k,mode=0700")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        let state = cli.state_dir();
        rustix::mount::mount("test", &state, "tmpfs", flags, Some(options.as_c_str())).unwrap();
        Self { cli }
    }

    fn grow(&self, kib: u32) {
        let options = std::ffi::CString::new(format!("size={kib}k")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        let state = self.cli.state_dir();
        rustix::mount::mount_remount(&state, flags, options.as_c_str()).unwrap();
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(self.cli.state_dir(), flags);
    }
}

#[test]
fn a_full_disk_fails_a_full_pull_with_a_hint_and_more_room_mends_it() {
    let cli = Cli::new();
    let disk = SmallDisk::new(&cli, 1024);
    let registry = FaultRegistry::start();
    let reference = Image::shell().put(&registry);
    let error = cli.run(["pull", "--full", &reference]).failed(1);
    assert!(error.to_lowercase().contains("space"), "{error}");
    assert_eq!(cli.run(["images", "--format", "json"]).ok(), "");
    disk.grow(64 << 10);
    cli.run(["pull", "--full", &reference]).ok();
    assert_eq!(cli.image()["ImageLocal"], 1.0);
}

#[test]
fn a_full_disk_does_not_stop_reading_lazily() {
    let cli = Cli::new();
    let disk = SmallDisk::new(&cli, 2048);
    let registry = FaultRegistry::start();
    let tar = TarBuilder::default().file("big", noise(9, 4 << 20)).finish();
    let reference = Image::shell().and(Layer::lazy(tar)).put(&registry);
    let target = cli.directory("image");
    cli.run(["image", "mount", &reference, target.to_str().unwrap()]).ok();
    let content = std::fs::read(target.join("big")).unwrap();
    assert_eq!(Digest::of(&content), Digest::of(&noise(9, 4 << 20)));
    let log = || std::fs::read_to_string(cli.run_dir().join("control.log")).unwrap();
    eventually("an event says so", || log().contains("content cannot be kept"));
    assert!(cli.image()["ImageLocal"].as_f64().unwrap() < 1.0);
    disk.grow(64 << 10);
    let all = snapshot(&target);
    assert!(all.len() > 600);
    eventually("all is kept again", || {
        std::fs::read(target.join("big")).unwrap();
        cli.image()["ImageLocal"] == 1.0
    });
}
