//! Services files and references that are wrong.

use supervisor::image::{Digest, media_type};

use crate::support::cli::Cli;
use crate::support::eventually;
use crate::support::image::{Image, app};
use crate::support::registry::FaultRegistry;

#[test]
fn an_unknown_key_is_named_with_its_place_and_nothing_starts() {
    let cli = Cli::new();
    cli.services("services:\n  web:\n    image: oci:/nowhere\n    prots: [80]\n");
    let error = cli.run(["up"]).failed(1);
    assert!(error.contains("services.yaml:4:5") && error.contains("`prots`"), "{error}");
    assert!(!cli.run_dir().exists(), "something was started for a file that is not valid");
}

#[test]
fn every_problem_of_a_file_is_told_at_once() {
    let cli = Cli::new();
    cli.services(
        "services:\n  a:\n    image: oci:/x\n    tty: true\n  b:\n    build: .\n  c: {}\n  \
         d:\n    image: 'A B'\n    restart: sometimes\n",
    );
    let error = cli.run(["up"]).failed(1);
    for (place, word) in
        [("4:10", "tty"), ("6:5", "build"), ("7:", "image"), ("9:", "A B"), ("10:", "sometimes")]
    {
        let told = error
            .lines()
            .any(|line| line.contains(&format!("services.yaml:{place}")) && line.contains(word));
        assert!(told, "{place} {word}: {error}");
    }
    assert!(error.contains("image pack"), "what to do instead of `build`: {error}");
}

#[test]
fn a_file_that_is_not_yaml_and_one_that_is_not_there_are_failures() {
    let cli = Cli::new();
    let error = cli.run(["up"]).failed(1);
    assert!(error.contains("services.yaml"), "{error}");
    cli.services("services:\n  a: [\n");
    let error = cli.run(["up"]).failed(1);
    assert!(error.contains("services.yaml:"), "{error}");
    cli.services("services:\n  a:\n    image: oci:/x\n    image: oci:/y\n");
    let error = cli.run(["up"]).failed(1);
    assert!(error.contains("services.yaml:4") && error.contains("image"), "{error}");
}

#[test]
fn a_missing_image_is_told_and_the_other_services_run() {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let reference = Image::shell().put(&registry);
    let missing = format!("{}/nobody/nothing:v9", registry.host());
    cli.services(&format!(
        "{}  lost:\n    image: {missing}\n",
        app(&reference, "    command: [sh, -c, 'echo alive; exec sleep 1000']\n")
    ));
    let mut up = cli.up();
    up.until("| alive");
    up.until(&format!("could not pull {missing}"));
    assert!(up.text().contains("check the image's name"), "{}", up.text());
    let (lost, running) = (cli.ps("lost"), cli.ps("app"));
    assert_eq!(lost["State"], "failed", "{lost}");
    assert!(lost["Status"].as_str().unwrap().contains(&missing), "{lost}");
    assert_eq!(running["State"], "running", "{running}");
    // An image that is not there is not asked for again and again.
    let asked = registry.seen("nobody/nothing").len();
    assert!(asked < 4, "{asked} requests");
}

#[test]
fn a_manifest_with_another_digest_than_asked_for_is_refused() {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let image = Image::shell();
    image.put(&registry);
    let other = Digest::of(b"another manifest");
    registry.put_manifest("app", &other.to_string(), media_type::OCI_MANIFEST, &image.manifest());
    let error = cli.run(["pull", &format!("{}/app@{other}", registry.host())]).failed(1);
    assert!(error.contains("digest") && error.contains(&other.hex()), "{error}");
    assert_eq!(cli.run(["images", "--format", "json"]).ok(), "");
}

#[test]
fn wrong_use_has_its_own_exit_code() {
    let cli = Cli::new();
    cli.run(["frobnicate"]).failed(2);
    cli.run(["up", "--no-such-flag"]).failed(2);
    cli.run(["image", "pin"]).failed(2);
    // A name that is none would be another query to control.
    for command in ["logs", "events", "inspect", "wait", "ps", "stop"] {
        for name in ["a&follow=true", "a b"] {
            let error = cli.run([command, name]).failed(2);
            assert!(error.contains(&format!("`{name}` is not a service name")), "{error}");
        }
    }
    cli.run(["ps", "-p", "a&b"]).failed(2);
    let error = cli.run(["pull", "repo/UPPER"]).failed(1);
    assert!(error.contains("repo/UPPER"), "{error}");
    cli.services("services:\n  a:\n    image: oci:/x\n");
    let error = cli.run(["up", "nobody"]).failed(1);
    assert!(error.contains("no such service") && error.contains("nobody"), "{error}");
    assert_eq!(cli.run(["exec", "-T", "a", "--", "true"]).code, Some(125));
}

#[test]
fn a_registry_that_is_down_is_waited_for() {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let address = registry.host().parse().unwrap();
    let reference = format!("{address}/app:v1");
    drop(registry);
    cli.services(&app(&reference, "    command: [sh, -c, 'echo alive; exec sleep 1000']\n"));
    let mut up = cli.up();
    up.until("could not pull");
    eventually("ps says what is waited for", || {
        let status = cli.ps("app")["Status"].as_str().unwrap_or_default().to_owned();
        status.contains("waiting for registry, retry in") && status.contains("refused")
    });
    let registry = FaultRegistry::start_at(address);
    Image::shell().put(&registry);
    up.until("| alive");
    assert_eq!(cli.ps("app")["State"], "running");
}
