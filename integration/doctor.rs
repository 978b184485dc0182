//! The doctor: on a healthy host, and with each thing broken in turn.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use rustix::process::{Pid, Signal};
use supervisor::host::FeatureName;
use supervisor::sys::process::ProcessIdentity;

use crate::golden::image;
use crate::services::image::Readable;
use crate::services::{IDLE, file, service};
use crate::support::cli::Cli;
use crate::support::eventually;
use crate::support::image::app;
use crate::support::lazy_host::{LazyHost, TestLayer, noise};
use crate::support::program::{Program, signal};
use crate::support::registry::{Access, Fault, FaultRegistry};
use crate::support::tar::TarBuilder;
use crate::support::tls_registry::TlsFront;

/// Runs the doctor and returns its checks, and whether it calls the host healthy.
fn doctor(cli: &Cli, targets: &[&str]) -> (Vec<serde_json::Value>, bool) {
    let ran = cli.run(["doctor", "--json"].iter().chain(targets));
    let checks = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(matches!(ran.code, Some(0 | 1)), "{ran:?}");
    (checks, ran.code == Some(0))
}

fn find<'a>(checks: &'a [serde_json::Value], name: &str) -> &'a serde_json::Value {
    let found = checks.iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("no check `{name}`: {checks:#?}"))
}

/// One check has this health and says this; whatever is not well has a remedy. Gives the one of this check.
#[track_caller]
fn says(cli: &Cli, targets: &[&str], name: &str, health: &str, text: &str) -> String {
    let (checks, healthy) = doctor(cli, targets);
    let check = find(&checks, name);
    assert_eq!(check["health"], health, "{check}");
    assert!(check["message"].as_str().unwrap().contains(text), "{check}");
    assert!(health != "failed" || !healthy);
    for check in checks.iter().filter(|check| check["health"] != "ok") {
        assert!(!check["remedy"].as_str().unwrap().is_empty(), "{check}");
    }
    check["remedy"].as_str().unwrap_or_default().to_owned()
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
        ("control", "with 1 service"),
        ("lazy-mount", "serve"),
        ("records", "2 readable"),
        ("image", "is sha256:"),
    ] {
        assert!(find(&checks, name)["message"].as_str().unwrap().contains(text), "{checks:#?}");
    }
}

#[test]
fn what_is_switched_off_is_named_with_what_is_lost() {
    for name in FeatureName::ALL.map(FeatureName::as_str) {
        let cli = Cli::new().with("SUPERVISOR_DISABLE", name);
        let health = if name == "overlay" { "failed" } else { "degraded" };
        let remedy = says(&cli, &[], name, health, "it is switched off; lost: ");
        assert!(remedy.starts_with("take it out of SUPERVISOR_DISABLE"), "{remedy}");
    }
    let cli = Cli::new().with("SUPERVISOR_DISABLE", "overlay");
    says(&cli, &[], "overlay", "failed", "no container can start");
    let cli = Cli::new().with("SUPERVISOR_FUSE", "off");
    let remedy = says(&cli, &[], "fuse", "degraded", "it is switched off");
    assert!(remedy.contains("SUPERVISOR_FUSE"), "{remedy}");
}

#[test]
fn what_is_for_programs_keeps_its_form_and_what_is_for_people_has_no_colours() {
    let cli = Cli::new().with("SUPERVISOR_DISABLE", "landlock");
    let (checks, healthy) = doctor(&cli, &["127.0.0.1:1"]);
    assert!(!healthy);
    let keys = |name: &str| {
        find(&checks, name).as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(keys("kernel"), "health message name");
    assert_eq!(keys("landlock"), "health message name remedy");
    assert_eq!(keys("registry"), "health message name remedy subject");
    let names: Vec<&str> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    let features = FeatureName::ALL.map(FeatureName::as_str);
    let others = [
        "kernel",
        "privileges",
        "state-directory",
        "disk-space",
        "writable-layers",
        "records",
        "run-directory",
        "lazy-mount",
        "registry",
        "clock",
        "control",
        "nft",
    ];
    for name in features.into_iter().chain(others) {
        assert!(names.contains(&name), "no check `{name}` in {names:?}");
    }
    let text = cli.run(["doctor", "127.0.0.1:1"]);
    assert_eq!(text.code, Some(1), "{text:?}");
    assert!(!text.out.contains('\u{1b}') && text.err.is_empty(), "{text:?}");
    assert!(text.out.contains("✘ registry 127.0.0.1:1"), "{text:?}");
    assert!(text.out.lines().last().unwrap().starts_with("1 failed, "), "{text:?}");
}

#[test]
fn a_control_that_does_not_answer_holds_up_nobody() {
    let cli = Cli::new();
    std::fs::create_dir(cli.run_dir()).unwrap();
    let _listener = UnixListener::bind(cli.run_dir().join("api.sock")).unwrap();
    let own = std::process::id();
    let remedy = says(&cli, &[], "control", "failed", &format!("process {own} does not answer"));
    assert!(remedy.contains(&format!("kill -9 {own}")), "{remedy}");
}

#[test]
fn a_worker_that_cannot_start_is_named_with_its_reason() {
    let program = Program::new();
    let image = Readable::pack(&program, 1, 2);
    program.services(&file(&[service("web", IDLE).image(image.local())]));
    let up = program.up();
    program.running("web");
    assert_eq!(lazy_mount(&program)["health"], "ok");
    let session = program.run_dir().join("lazy/session");
    let aside = session.with_extension("aside");
    std::fs::rename(&session, &aside).unwrap();
    let worker = program.until("there is a worker", || program.role("worker", ""));
    signal(worker, Signal::KILL);
    let check = program.until("the doctor sees it", || {
        let check = lazy_mount(&program);
        check["message"].as_str().unwrap().contains("times in a row").then_some(check)
    });
    assert_eq!(check["health"], "failed", "{check}");
    assert!(check["message"].as_str().unwrap().contains("session"), "{check}");
    assert!(check["remedy"].as_str().unwrap().contains("down --force"), "{check}");
    std::fs::rename(&aside, &session).unwrap();
    program.until("it serves", || (lazy_mount(&program)["health"] == "ok").then_some(()));
    assert_eq!(program.interrupt(up), Some(0));
}

#[test]
fn a_connection_that_nobody_serves_is_named_with_its_end() {
    let host = LazyHost::start();
    let tar = TarBuilder::default().file("small", noise(2, 5000)).finish();
    let directory = host.mount_local(&TestLayer::pack(tar, 4096));
    let cli = Cli::new().with("SUPERVISOR_RUN_DIR", host.run.path().to_str().unwrap());
    says(&cli, &[], "lazy-mount", "ok", "serve (0 restarts)");
    let pid = |process: &ProcessIdentity| Pid::from_raw(process.pid).unwrap();

    let worker = pid(&host.worker());
    signal(worker, Signal::STOP);
    let reader = std::thread::spawn(move || std::fs::read(directory.join("small")));
    let text = format!("for worker {worker}, which does not answer");
    eventually("a read waits", || {
        let (checks, _) = doctor(&cli, &[]);
        find(&checks, "lazy-mount")["message"].as_str().unwrap().contains("1 read waits")
    });
    let remedy = says(&cli, &[], "lazy-mount", "failed", &text);
    assert!(remedy.contains("supervisor down --force"), "{remedy}");
    signal(worker, Signal::CONT);
    assert_eq!(reader.join().unwrap().unwrap(), noise(2, 5000));
    says(&cli, &[], "lazy-mount", "ok", "serve");

    let keeper = pid(&host.status().keeper.process);
    signal(keeper, Signal::STOP);
    let text = "serves, and nobody would replace it; their keeper does not answer";
    let remedy = says(&cli, &[], "lazy-mount", "failed", text);
    assert!(remedy.contains("supervisor down --force"), "{remedy}");
    signal(keeper, Signal::CONT);
    says(&cli, &[], "lazy-mount", "ok", "serve");
}

/// What the doctor says of the connection of lazy layers.
fn lazy_mount(program: &Program) -> serde_json::Value {
    let output = program.run(["doctor", "--json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let checks: Vec<_> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    find(&checks, "lazy-mount").clone()
}

#[test]
fn a_host_that_really_lacks_something_is_told_so() {
    says(&after("mount --bind /dev/null /dev/fuse"), &[], "fuse", "degraded", "cannot be mounted");
    let bare = after("umount -R /sys/fs/cgroup");
    let remedy = says(&bare, &[], "cgroup", "degraded", "no control groups are mounted");
    assert!(remedy.contains("mount -t cgroup2"), "{remedy}");
    let locked = after("mount -t tmpfs -o ro tmpfs /sys/fs/cgroup");
    says(&locked, &[], "cgroup", "degraded", "lost: containers run without limits");
    let old = Cli::new().through(&["setarch", "--uname-2.6"]);
    let remedy = says(&old, &[], "kernel", "failed", "is too old");
    assert!(remedy.contains("Linux 5.10 or later"), "{remedy}");
}

#[test]
fn who_may_not_mount_is_told_to_be_root() {
    let sandboxed = Cli::new().through(&["setpriv", "--bounding-set", "-sys_admin"]);
    let remedy = says(&sandboxed, &[], "privileges", "failed", "nothing can be mounted");
    assert!(remedy.contains("--privileged"), "{remedy}");
    let remedy = says(&sandboxed, &[], "overlay", "failed", "it could not be tried");
    assert_eq!(remedy, "run as root");
    assert_eq!(says(&sandboxed, &[], "fuse", "degraded", "could not be tried"), "run as root");
    assert_eq!(says(&sandboxed, &[], "writable-layers", "failed", "not permitted"), "run as root");
}

/// A host whose device directory is bare, and whose `modprobe` is this script.
fn with_modprobe(script: &str) -> Cli {
    let cli = after(
        "mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && \
         mount --bind \"$HOME/modprobe\" \"$(readlink -f /usr/sbin/modprobe)\"",
    );
    let program = cli.folder().join("modprobe");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    cli
}

#[test]
fn a_missing_module_is_loaded_or_named() {
    let loads = with_modprobe("test \"$1\" = fuse && mknod /dev/fuse c 10 229");
    says(&loads, &[], "fuse", "ok", "protocol 7.");
    let refuses = with_modprobe("echo \"FATAL: Module $1 not found\" >&2; exit 1");
    let text = "the kernel module `fuse` cannot be loaded: FATAL: Module fuse not found";
    let remedy = says(&refuses, &[], "fuse", "degraded", text);
    assert!(remedy.contains("modprobe fuse"), "{remedy}");
    says(&refuses, &[], "resend", "degraded", "it needs `fuse`");
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

/// The doctor of a host that has the authority of `front`, on the registry behind it.
#[track_caller]
fn behind(front: &TlsFront, health: &str, text: &str) -> String {
    let cli = Cli::new().with("SSL_CERT_FILE", front.authority().to_str().unwrap());
    says(&cli, &[&front.host()], "registry", health, text)
}

#[test]
fn registries_that_are_not_reached_are_told_apart() {
    let cli = Cli::new();
    let remedy = says(&cli, &["127.0.0.1:1"], "registry", "failed", "the connection was refused");
    assert!(remedy.contains("that the registry at `127.0.0.1:1` runs"), "{remedy}");
    let remedy =
        says(&cli, &["no-such-host.invalid"], "registry", "failed", "could not be resolved");
    assert!(remedy.contains("the spelling of `no-such-host.invalid`"), "{remedy}");
    // Somebody who takes connections and ends them.
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let (checks, healthy) = doctor(&cli, &[&host]);
    let check = find(&checks, "registry");
    assert!(!healthy && check["subject"] == host, "{check}");
    assert!(check["message"].as_str().unwrap().starts_with("the connection was "), "{check}");
}

#[test]
fn registries_that_answer_are_told_with_what_they_answer() {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    says(&cli, &[&registry.host()], "registry", "ok", "answers, in the clear");
    let front = TlsFront::start(&registry, "0.0.0.0");
    behind(&front, "ok", "answers, encrypted");
    registry.require(Access::Basic("user".to_owned(), "word".to_owned()));
    behind(&front, "ok", "answers, encrypted, and asks who we are");
    let image = format!("{}/app:1", registry.host());
    let remedy = says(&cli, &[&image], "image", "failed", "asks for a password");
    assert!(remedy.contains(&format!("docker login {}", registry.host())), "{remedy}");
    registry.fault("/v2/", 1, Fault::Status(404, Vec::new()));
    let remedy = says(&cli, &[&registry.host()], "registry", "degraded", "status 404");
    assert!(remedy.contains("is a registry"), "{remedy}");
}

#[test]
fn registries_that_cannot_be_trusted_are_refused_for_the_real_reason() {
    let cli = Cli::new();
    let registry = FaultRegistry::start();
    let front = TlsFront::start(&registry, "0.0.0.0");
    let text = "an authority that this host does not trust";
    let remedy = says(&cli, &[&front.host()], "registry", "failed", text);
    assert!(remedy.contains("put the certificate of its authority into"), "{remedy}");
    let other = TlsFront::start(&registry, "other.example");
    let remedy = behind(&other, "failed", "is for another name (other.example)");
    assert!(remedy.contains("use a name that the certificate is for"), "{remedy}");
    let expired = TlsFront::start_in(&registry, "0.0.0.0", 2000..2001);
    let remedy = behind(&expired, "failed", "has expired on 2001-01-01, and this host's clock");
    assert!(remedy.contains("clock") && remedy.contains("renew"), "{remedy}");
    let early = TlsFront::start_in(&registry, "0.0.0.0", 2900..3000);
    let remedy = behind(&early, "failed", "not valid before 2900-01-01, and this host's clock");
    assert!(remedy.contains("set this host's clock"), "{remedy}");
    let own = TlsFront::start_self_signed(&registry, "0.0.0.0");
    let remedy = behind(&own, "failed", "that of an authority (signed by itself)");
    assert!(remedy.contains("that an authority has signed"), "{remedy}");
    let plain = FaultRegistry::start_at(SocketAddr::from(([0, 0, 0, 0], 0)));
    let remedy = says(&cli, &[&plain.host()], "registry", "failed", "does not speak TLS");
    assert!(remedy.contains("speaks plain HTTP, say so"), "{remedy}");
}

#[test]
fn a_clock_is_compared_with_those_of_registries() {
    let (cli, registry) = (Cli::new(), FaultRegistry::start());
    let date = |date: &str| vec![("Date".to_owned(), date.to_owned())];
    registry.fault("/v2/", 1, Fault::Status(200, date("Sat, 01 Jan 2000 00:00:00 GMT")));
    let remedy = says(&cli, &[&registry.host()], "clock", "failed", "days ahead of a registry's");
    assert!(remedy.contains("set the clock"), "{remedy}");
    registry.fault("/v2/", 1, Fault::Status(401, date("Fri, 01 Jan 2100 00:00:00 GMT")));
    says(&cli, &[&registry.host()], "clock", "failed", "days behind a registry's");
    registry.fault("/v2/", 1, Fault::Status(200, date("yesterday")));
    says(&cli, &[&registry.host()], "clock", "ok", "no registry told the time");
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
    let little =
        after("mount -t tmpfs -o size=500m,nr_inodes=5000 tmpfs \"$SUPERVISOR_STATE_DIR\"");
    says(&little, &[], "disk-space", "degraded", "inodes free");
    let sealed = after("mount -t tmpfs -o ro tmpfs \"$SUPERVISOR_STATE_DIR\"");
    let remedy = says(&sealed, &[], "state-directory", "failed", "cannot be written");
    assert!(remedy.contains("remount it writable"), "{remedy}");
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
