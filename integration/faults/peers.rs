//! Images in a real registry, pushed by another tool, in every form that layers have.

use crate::golden::golden;
use crate::support::cli::Cli;
use crate::support::docker_registry::{DockerRegistry, PASSWORD, USER};
use crate::support::eventually;
use crate::support::image::{Image, Layer, app};
use crate::support::tar::TarBuilder;

const SAY: &str = "    command: [sh, -c, 'cat /etc/passwd; echo alive; exec sleep 1000']\n";

#[test]
fn an_image_of_a_real_registry_runs_lazily_and_then_without_it() {
    let cli = Cli::new();
    let registry = DockerRegistry::start();
    registry.push(&golden("small-esgz"), "esgz", "team/shell:v1");
    let reference = format!("{}/team/shell:v1", registry.host());
    cli.services(&app(&reference, SAY));
    let mut up = cli.up();
    up.until("| alive");
    let ps = cli.ps("app");
    assert_eq!((&ps["LazyLayers"], &ps["Layers"]), (&2.into(), &2.into()), "{ps}");
    // Background fill brings the rest; then the image needs no registry any more.
    eventually("the image is complete", || cli.ps("app")["ImageLocal"] == 1.0);
    drop(registry);
    drop(up);
    let mut up = cli.up();
    up.until("| alive");
    assert_eq!(cli.run(["exec", "-T", "app", "--", "busybox", "true"]).code, Some(0));
}

#[test]
fn plain_layers_of_every_compression_run_and_say_that_they_are_not_lazy() {
    let registry = DockerRegistry::start();
    let layout = golden("small-esgz");
    registry.copy(&layout, "esgz", "app:gzip", &["--format", "v2s2"]);
    registry.copy(
        &layout,
        "esgz",
        "app:zstd",
        &["--format", "oci", "--dest-compress-format", "zstd"],
    );
    // What is here fully already stays so; the mixed image has layers of the others, and so an instance of its own.
    let (cli, other) = (Cli::new(), Cli::new());
    let tar = |name: &str| TarBuilder::default().file(name, name).finish();
    let image = Image::shell()
        .and(Layer::gzip(&tar("gzip")))
        .and(Layer::lazy(tar("lazy")))
        .and(Layer::zstd(&tar("zstd")))
        .and(Layer::plain(&tar("plain")));
    let mixed = cli.directory("mixed");
    image.write(&mixed);
    registry.push(&mixed, "v1", "app:mixed");
    for form in ["gzip", "zstd"] {
        cli.services(&app(&format!("{}/app:{form}", registry.host()), SAY));
        let mut up = cli.up();
        up.until("| alive");
        let ps = cli.ps("app");
        assert_eq!((&ps["LazyLayers"], &ps["ImageLocal"]), (&0.into(), &1.0.into()), "{ps}");
        assert!(ps["NotLazyBecause"][0].as_str().unwrap().contains("not eStargz"), "{ps}");
    }
    other.services(&app(&format!("{}/app:mixed", registry.host()), SAY));
    let mut up = other.up();
    up.until("| alive");
    let ps = other.ps("app");
    assert_eq!((&ps["LazyLayers"], &ps["Layers"]), (&3.into(), &6.into()), "{ps}");
    assert!(ps["NotLazyBecause"][0].as_str().unwrap().contains("not eStargz"), "{ps}");
    let said = other.run(["exec", "-T", "app", "--", "cat", "/gzip", "/lazy", "/zstd", "/plain"]);
    assert_eq!(said.ok(), "gziplazyzstdplain");
}

#[test]
fn a_registry_with_a_password_is_read_with_dockers_configuration() {
    use base64::Engine as _;
    let registry = DockerRegistry::start_with_password();
    registry.push(&golden("small-esgz"), "esgz", "shell:v1");
    let reference = format!("{}/shell:v1", registry.host());
    let stranger = Cli::new();
    let error = stranger.run(["pull", &reference]).failed(1);
    assert!(
        error.contains("401") || error.contains("log in") || error.contains("credentials"),
        "{error}"
    );

    let folder = tempfile::tempdir().unwrap();
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let config = serde_json::json!({"auths": {registry.host(): {"auth": auth}}});
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let cli = Cli::new().with("DOCKER_CONFIG", folder.path().to_str().unwrap());
    cli.services(&app(&reference, SAY));
    let mut up = cli.up();
    up.until("| alive");
    // What the worker reads later needs the password too.
    assert_eq!(cli.run(["exec", "-T", "app", "--", "ls", "/bin"]).code, Some(0));
    eventually("the image is complete", || cli.ps("app")["ImageLocal"] == 1.0);
}
