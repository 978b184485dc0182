//! How often a registry is asked, one request after the other, before an image is here.

use crate::support::cli::Cli;
use crate::support::image::{Image, Layer, app};
use crate::support::registry::FaultRegistry;
use crate::support::tar::TarBuilder;

#[test]
fn an_image_is_here_after_two_round_trips_whatever_its_layers() {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let mut image = Image::shell();
    for n in 0..4 {
        let content = vec![n; 1000];
        image = image
            .and(Layer::lazy(TarBuilder::default().file(format!("file{n}"), &content).finish()));
    }
    let reference = image.put(&registry);
    let layers = image.layer_count();
    // The configuration and the end of every layer: whoever asked for one after the other would wait for ever.
    registry.gather("/blobs/", 1 + layers);
    cli.run(["pull", &reference]).ok();
    assert_eq!(registry.seen("/manifests/").len(), 1);
    let seen = registry.seen("/blobs/");
    assert_eq!(seen.len(), 1 + layers, "{seen:?}");
    assert_eq!(seen.iter().filter(|seen| seen.range.is_some()).count(), layers);
}

#[test]
fn what_a_start_reads_first_is_asked_for_at_once() {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let people = TarBuilder::default()
        .file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
        .file("etc/group", "root:x:0:\n")
        .finish();
    let people = Layer::lazy(people);
    let reference = Image::shell().and(people.clone()).put(&registry);
    let command = "    command: [sh, -c, 'echo alive; exec sleep 1000']\n";
    cli.services(&app(&reference, command));
    cli.run(["pull", &reference]).ok();
    let pulled = registry.seen(&people.digest().to_string()).len();
    // The users, which the uppermost layer has, and the program of another layer: whoever asked for one after the other
    // would wait for ever, since nothing is fetched in the background while a read waits.
    registry.gather("/blobs/", 2);
    let mut up = cli.up();
    up.until("| alive");
    // Passwords and groups are neighbours; those of the lower layer are hidden, and nobody's.
    assert_eq!(registry.seen(&people.digest().to_string()).len(), pulled + 1);
}
