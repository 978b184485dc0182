//! How often a registry is asked, one request after the other, before an image is here.

use crate::support::cli::Cli;
use crate::support::image::{Image, Layer};
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
