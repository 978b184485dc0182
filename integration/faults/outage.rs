//! Sources that go away, come back, or change their mind, while a container needs them.

use std::io::Read as _;
use std::process::Stdio;

use supervisor::image::Digest;

use crate::support::cli::Cli;
use crate::support::eventually;
use crate::support::image::{Image, Layer, app};
use crate::support::lazy_host::noise;
use crate::support::registry::{Access, Fault, FaultRegistry};
use crate::support::tar::TarBuilder;

const SAY: &str = "    command: [sh, -c, 'echo alive; exec sleep 1000']\n";
const BIG: usize = 2 << 20;

fn big_layer() -> Layer {
    Layer::lazy(TarBuilder::default().file("big", noise(11, BIG)).finish())
}

/// The digest that the container should find.
fn sum() -> String {
    Digest::of(&noise(11, BIG)).hex()
}

/// Lets nothing of the layer's content through, whatever is asked for, and says when somebody asked.
fn block(registry: &FaultRegistry, layer: &Layer, fault: Fault) {
    registry.fault(&layer.digest().to_string(), u32::MAX, fault);
}

#[test]
fn a_read_waits_for_a_registry_that_is_away_and_gets_the_content_when_it_is_back() {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let layer = big_layer();
    let image = Image::shell().and(layer.clone());
    let reference = image.put(&registry);
    cli.services(&app(&reference, SAY));
    // Index and start need the last bytes of the layer; the content is held back until the registry is gone.
    let mut up = cli.up();
    eventually("the layer is asked for", || !registry.seen(&layer.digest().to_string()).is_empty());
    block(&registry, &layer, Fault::Hangup);
    up.until("| alive");
    let address = registry.host().parse().unwrap();
    drop(registry);

    let mut reading = cli
        .command(["exec", "-T", "app", "--", "sha256sum", "/big"])
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    up.until("waits for its registry");
    assert!(reading.try_wait().unwrap().is_none(), "the read did not wait");
    let ps = cli.ps("app");
    assert_eq!((&ps["State"], &ps["OfflineReady"]), (&"running".into(), &false.into()), "{ps}");

    let registry = FaultRegistry::start_at(address);
    image.put(&registry);
    let mut said = String::new();
    reading.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said.split(' ').next(), Some(sum().as_str()));
    assert!(reading.wait().unwrap().success());
    up.until("answers again");
}

#[test]
fn a_service_whose_image_was_pulled_completely_starts_and_reads_without_a_registry() {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let reference = Image::shell().and(big_layer()).put(&registry);
    cli.services(&app(&reference, SAY));
    // The images of the services file, and not unpacked.
    let said = cli.run(["pull", "--complete"]).ok();
    assert!(said.contains(&reference), "{said}");
    let image = cli.image();
    assert_eq!((&image["OfflineReady"], &image["ImageLocal"]), (&true.into(), &1.0.into()));
    assert_eq!(image["LazyLayers"], 3);
    cli.end_daemons();
    drop(registry);

    let mut up = cli.up();
    up.until("| alive");
    let said = cli.run(["exec", "-T", "app", "--", "sha256sum", "/big"]).ok();
    assert_eq!(said.split(' ').next(), Some(sum().as_str()));
    assert_eq!(cli.ps("app")["OfflineReady"], true);
}

#[test]
fn short_answers_resets_and_busy_servers_are_got_over() {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let layer = big_layer();
    let reference = Image::shell().and(layer.clone()).put(&registry);
    let target = cli.directory("image");
    cli.run(["image", "mount", &reference, target.to_str().unwrap()]).ok();
    let blob = layer.digest().to_string();
    registry.fault(&blob, 2, Fault::ShortRange(1000));
    registry.fault(&blob, 2, Fault::Reset(5000));
    registry.fault(&blob, 1, Fault::Status(503, Vec::new()));
    registry.fault(&blob, 1, Fault::Status(429, vec![("Retry-After".into(), "0".into())]));
    registry.fault(&blob, 1, Fault::WrongByte(17));
    let content = std::fs::read(target.join("big")).unwrap();
    assert_eq!(Digest::of(&content).hex(), sum());
}

#[test]
fn a_token_that_expires_while_a_container_runs_is_renewed() {
    use base64::Engine as _;
    let registry = FaultRegistry::start();
    let reference = Image::shell().and(big_layer()).put(&registry);
    let user = Some(("ann".to_owned(), "secret".to_owned()));
    registry.require(Access::Bearer { user, expires_in: 300 });
    let folder = tempfile::tempdir().unwrap();
    let auth = base64::engine::general_purpose::STANDARD.encode("ann:secret");
    let config = serde_json::json!({"auths": {registry.host(): {"auth": auth}}});
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let cli = Cli::new().with("DOCKER_CONFIG", folder.path().to_str().unwrap());
    cli.services(&app(&reference, SAY));
    let mut up = cli.up();
    up.until("| alive");
    registry.revoke_tokens();
    let said = cli.run(["exec", "-T", "app", "--", "sha256sum", "/big"]).ok();
    assert_eq!(said.split(' ').next(), Some(sum().as_str()));
}

#[test]
fn content_behind_signed_redirects_is_read_lazily() {
    let (registry, storage) = (FaultRegistry::start(), FaultRegistry::start());
    let image = Image::shell().and(big_layer());
    image.put(&storage);
    let reference = image.put(&registry);
    registry.redirect_blobs_to(&storage);
    let cli = Cli::new();
    let target = cli.directory("image");
    cli.run(["image", "mount", &reference, target.to_str().unwrap()]).ok();
    let content = std::fs::read(target.join("big")).unwrap();
    assert_eq!(Digest::of(&content).hex(), sum());
    assert!(storage.sent("/storage/") > 0);
    assert_eq!(cli.image()["LazyLayers"], 3);
}

#[test]
fn content_that_was_damaged_on_disk_is_fetched_again() {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let reference = Image::shell().and(big_layer()).put(&registry);
    let target = cli.directory("image");
    cli.run(["image", "mount", &reference, target.to_str().unwrap()]).ok();
    std::fs::read(target.join("big")).unwrap();
    eventually("all is here", || cli.image()["ImageLocal"] == 1.0);
    cli.run(["image", "umount", "image"]).ok();
    cli.end_daemons();
    // As a disk does that lost what was not synced: the file is there, and empty.
    let name = sum();
    let kept = cli.state_dir().join("files/sha256").join(&name[..2]).join(&name);
    let size = std::fs::metadata(&kept).unwrap().len();
    assert_eq!(size, BIG as u64);
    std::fs::write(&kept, b"").unwrap();
    cli.run(["image", "mount", &reference, target.to_str().unwrap()]).ok();
    let content = std::fs::read(target.join("big")).unwrap();
    assert_eq!(Digest::of(&content).hex(), name, "damaged content was served");
}
