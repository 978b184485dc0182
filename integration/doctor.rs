//! The doctor: on a healthy host, and with each thing broken in turn.

use std::net::SocketAddr;

use crate::golden::image;
use crate::support::cli::Cli;
use crate::support::image::app;
use crate::support::registry::{Access, FaultRegistry};
use crate::support::tls_registry::TlsFront;

/// Runs the doctor and returns its checks, and whether it calls the host healthy.
fn doctor(cli: &Cli, targets: &[&str]) -> (Vec<serde_json::Value>, bool) {
    let ran = cli.run(["doctor", "--json"].iter().chain(targets));
    let checks = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(matches!(ran.code, Some(0 | 1)), "{ran:?}");
    (checks, ran.code == Some(0))
}

fn find<'a>(checks: &'a [serde_json::Value], name: &str) -> &'a serde_json::Value {
    let found = checks.iter().find(|check| check["name"].as_str().unwrap().starts_with(name));
    found.unwrap_or_else(|| panic!("no check `{name}`: {checks:#?}"))
}

/// One check has this health and says this; whatever is not well has a remedy.
#[track_caller]
fn says(cli: &Cli, targets: &[&str], name: &str, health: &str, text: &str) {
    let (checks, healthy) = doctor(cli, targets);
    let check = find(&checks, name);
    assert_eq!(check["health"], health, "{check}");
    assert!(check["message"].as_str().unwrap().contains(text), "{check}");
    assert!(health != "failed" || !healthy);
    for check in checks.iter().filter(|check| check["health"] != "ok") {
        assert!(!check["remedy"].as_str().unwrap().is_empty(), "{check}");
    }
}

/// A host on which this was done before, in a mount namespace of its own.
fn after(commands: &str) -> Cli {
    let script = format!("{commands} && exec \"$@\"");
    Cli::new().through(&["unshare", "-m", "sh", "-c", &script, "--"])
}

#[test]
fn a_healthy_host_is_called_healthy_and_left_as_it_was() {
    let (cli, registry) = (Cli::new(), FaultRegistry::start());
    let (checks, healthy) = doctor(&cli, &[&registry.host()]);
    assert!(healthy, "{checks:#?}");
    for name in ["kernel", "fuse", "overlay", "cgroup", "disk-space", "clock", "control"] {
        assert_eq!(find(&checks, name)["health"], "ok");
    }
    assert_eq!(std::fs::read_dir(cli.state_dir()).unwrap().count(), 0);
    assert!(!cli.run_dir().exists());
    let text = cli.run(["doctor"]).ok();
    assert!(text.contains("✔ kernel ") && text.contains("healthy"), "{text}");
}

#[test]
fn running_services_are_examined_with_their_roles() {
    let cli = Cli::new();
    let say = "    command: [sh, -c, 'echo alive; exec sleep 1000']\n    stop_signal: KILL\n";
    cli.services(&app(&image("small-esgz"), say));
    let mut up = cli.up();
    up.until("| alive");
    let (checks, healthy) = doctor(&cli, &[]);
    assert!(healthy, "{checks:#?}");
    for (name, text) in [
        ("control", "with 1 services"),
        ("lazy-mount", "serve"),
        ("records", "2 readable"),
        ("image", "is sha256:"),
    ] {
        assert!(find(&checks, name)["message"].as_str().unwrap().contains(text), "{checks:#?}");
    }
}

#[test]
fn what_is_switched_off_is_named_with_what_is_lost() {
    for name in
        ["fuse", "passthrough", "resend", "lowerdir+", "cgroup", "seccomp", "landlock", "nftables"]
    {
        let cli = Cli::new().with("SUPERVISOR_DISABLE", name);
        says(&cli, &[], name, "degraded", "it is switched off; lost: ");
    }
    let cli = Cli::new().with("SUPERVISOR_DISABLE", "overlay");
    says(&cli, &[], "overlay", "failed", "no container can start");
}

#[test]
fn a_host_that_really_lacks_something_is_told_so() {
    says(&after("mount --bind /dev/null /dev/fuse"), &[], "fuse", "degraded", "cannot be mounted");
    says(
        &after("umount -R /sys/fs/cgroup"),
        &[],
        "cgroup",
        "degraded",
        "no control groups are mounted",
    );
}

#[test]
fn services_run_where_no_control_groups_are_mounted() {
    let cli = after("umount -R /sys/fs/cgroup");
    let say = "    command: [sh, -c, 'echo alive; exec sleep 1000']\n    stop_signal: KILL\n";
    cli.services(&app(&image("small-esgz"), say));
    let mut up = cli.up();
    up.until("no cgroup (no control groups are mounted");
    up.until("| alive");
}

#[test]
fn registries_are_refused_for_the_real_reason() {
    let cli = Cli::new();
    says(&cli, &["127.0.0.1:1"], "registry", "failed", "refused");
    says(&cli, &["no-such-host.invalid"], "registry", "failed", "could not be resolved");
    let registry = FaultRegistry::start();
    let front = TlsFront::start(&registry, "IP:0.0.0.0");
    says(
        &cli,
        &[&front.host()],
        "registry",
        "failed",
        "an authority that this host does not trust",
    );
    let trusting =
        |front: &TlsFront| Cli::new().with("SSL_CERT_FILE", front.authority().to_str().unwrap());
    says(&trusting(&front), &[&front.host()], "registry", "degraded", "404, encrypted");
    let other = TlsFront::start(&registry, "DNS:other.example");
    says(&trusting(&other), &[&other.host()], "registry", "failed", "is for another name");
    let plain = FaultRegistry::start_at(SocketAddr::from(([0, 0, 0, 0], 0)));
    says(&cli, &[&plain.host()], "registry", "failed", "does not speak TLS");
    registry.require(Access::Basic("user".to_owned(), "word".to_owned()));
    says(&cli, &[&format!("{}/app:1", registry.host())], "image", "failed", "401");
}

#[test]
fn directories_that_cannot_be_used_are_named() {
    let full = after(
        "mount -t tmpfs -o size=1m tmpfs \"$SUPERVISOR_STATE_DIR\" && \
         { head -c 2M /dev/zero > \"$SUPERVISOR_STATE_DIR/fill\" 2>/dev/null || true; }",
    );
    says(&full, &[], "state-directory", "failed", "cannot be written");
    says(&full, &[], "disk-space", "failed", "0 MB");
    says(&full, &[], "journal", "degraded", "nothing survives a reboot");
    let cli = Cli::new();
    std::fs::create_dir_all(cli.state_dir().join("services/site")).unwrap();
    std::fs::write(cli.state_dir().join("services/site/project"), "{\"torn").unwrap();
    says(&cli, &[], "records", "failed", "services/site/project");
    std::fs::write(cli.run_dir(), "in the way").unwrap();
    says(&cli, &[], "run-directory", "failed", "cannot be written");
    std::fs::remove_file(cli.run_dir()).unwrap();
    let nowhere = after("mount -t proc proc /mnt").with("SUPERVISOR_STATE_DIR", "/mnt");
    says(&nowhere, &[], "writable-layers", "failed", "no overlay can be written");
}
