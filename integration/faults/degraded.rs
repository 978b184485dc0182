//! Hosts that lack something: the same image runs, and says what it lacks.

use crate::golden::image;
use crate::support::cli::{Cli, Up};
use crate::support::image::app;

const SAY: &str = "    command: [sh, -c, 'cat /etc/passwd; echo alive; exec sleep 1000']\n    stop_signal: KILL\n";

fn runs(cli: &Cli) -> (Up, serde_json::Value) {
    cli.services(&app(&image("small-esgz"), SAY));
    let mut up = cli.up();
    up.until("| alive");
    let ps = cli.ps("app");
    assert_eq!(ps["State"], "running", "{ps}");
    (up, ps)
}

fn assert_full(ps: &serde_json::Value, reason: &str) {
    assert_eq!(ps["LazyLayers"], 0, "{ps}");
    assert_eq!(ps["ImageLocal"], 1.0, "{ps}");
    let reasons = ps["NotLazyBecause"].as_array().unwrap();
    assert!(reasons.iter().any(|why| why.as_str().unwrap().contains(reason)), "{ps}");
}

#[test]
fn without_fuse_the_image_is_pulled_fully_and_ps_says_why() {
    let cli = Cli::new().with("SUPERVISOR_FUSE", "off");
    let (_up, ps) = runs(&cli);
    assert_full(&ps, "off");
    assert!(!cli.run_dir().join("lazy/layers").exists());
    let table = cli.run(["ps"]).ok();
    assert!(table.contains("no: "), "{table}");
}

#[test]
fn a_keeper_that_cannot_start_makes_a_full_pull_with_the_reason() {
    let cli = Cli::new();
    std::fs::create_dir(cli.run_dir()).unwrap();
    std::fs::write(cli.run_dir().join("lazy"), "in the way").unwrap();
    let (up, ps) = runs(&cli);
    assert_full(&ps, "lazy");
    assert!(up.text().contains("pulled fully"), "{}", up.text());
}

#[test]
fn a_worker_that_cannot_start_makes_a_full_pull_with_the_reason() {
    let cli = Cli::new();
    // The worker binds its socket here.
    std::fs::create_dir_all(cli.run_dir().join("lazy/worker.sock/in-the-way")).unwrap();
    let (_up, ps) = runs(&cli);
    assert_full(&ps, "worker");
}

#[test]
fn a_layer_that_was_lazy_is_unpacked_when_fuse_is_gone() {
    let cli = Cli::new();
    cli.run(["pull", &image("small-esgz")]).ok();
    assert_eq!(cli.image()["LazyLayers"], 2);
    drop(runs(&cli));
    cli.end_daemons();
    let cli = cli.with("SUPERVISOR_FUSE", "off");
    let (_up, ps) = runs(&cli);
    assert_full(&ps, "off");
}

#[test]
fn without_passthrough_content_is_read_through_the_worker() {
    let cli = Cli::new().with("SUPERVISOR_PASSTHROUGH", "off");
    let (_up, ps) = runs(&cli);
    assert_eq!(ps["LazyLayers"], 2, "{ps}");
    for _ in 0..2 {
        let sum = cli.run(["exec", "-T", "app", "--", "sha256sum", "/bin/busybox"]).ok();
        let direct =
            cli.run(["exec", "-T", "app", "--", "sh", "-c", "cat /bin/busybox | sha256sum"]).ok();
        assert_eq!(sum.split(' ').next(), direct.split(' ').next());
    }
}

#[test]
fn a_host_whose_mounts_are_shared_works_and_keeps_its_own() {
    let cli = Cli::new().through(&["unshare", "-m", "--propagation", "shared"]);
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let (up, ps) = runs(&cli);
    assert_eq!(ps["LazyLayers"], 2, "{ps}");
    // Commands come from another namespace than control, as from a login shell with one of its own.
    assert_eq!(cli.run(["exec", "-T", "app", "--", "ls", "/bin"]).code, Some(0));
    let ours = |table: &str| {
        table.lines().filter(|line| line.contains(cli.folder().to_str().unwrap())).count()
    };
    let after = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!((ours(&before), ours(&after)), (0, 0), "{after}");
    drop(up);
}
