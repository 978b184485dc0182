//! The host goes down and comes back: everything is killed, the run directory is gone, the boot has another id.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use crate::services::image::{READ_ALL, Readable, layer_path};
use crate::services::{IDLE, TICK, file, service};
use crate::support::program::{Program, runs};
use crate::support::registry::{Fault, FaultRegistry};

/// A boot id that no host had before.
const NEXT_BOOT: &str = "00000000-5afe-4b00-a000-000000000002";

/// Starts `supervisor daemon` on a host that has booted anew. Every process of it reads another boot id, from a mount
/// that nobody else sees.
fn boot(program: &Program) -> Child {
    let id = program.folder().join("boot-id");
    fs::write(&id, format!("{NEXT_BOOT}\n")).unwrap();
    let mounting = "mount --bind \"$1\" /proc/sys/kernel/random/boot_id && shift && exec \"$@\"";
    let log = fs::File::create(program.folder().join("up.log")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", mounting, "sh"]);
    command.arg(id).arg(env!("CARGO_BIN_EXE_supervisor")).arg("daemon");
    let environment = program.command(["daemon"]);
    command.envs(environment.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let errors = log.try_clone().unwrap();
    let daemon = command.stdout(log).stderr(errors).spawn().unwrap();
    let socket = program.run_dir().join("api.sock");
    program.until("the daemon is served", || std::os::unix::net::UnixStream::connect(&socket).ok());
    daemon
}

/// How often a service has written a line.
fn times(program: &Program, service: &str, line: &str) -> usize {
    program.output(service).iter().filter(|written| *written == line).count()
}

#[test]
fn everything_comes_back_after_a_reboot_without_a_network() {
    let program = Program::new();
    let image = Readable::pack(&program, 1, 8);
    let registry = FaultRegistry::start();
    registry.put_layout("app", &image.layout);
    let reference = format!("{}/app:v1", registry.host());
    let always = "restart: always";
    program.services(&file(&[
        service("web", READ_ALL).image(reference.as_str()).key(always),
        service("clock", &format!("touch /written && {TICK}")).key("restart: unless-stopped"),
        service("once", "echo once; exit 0"),
        service("idle", IDLE),
        service("off", IDLE).key(always),
    ]));
    let mut up = program.up();
    program.wrote("web", "end");
    program.state("once", "exited");
    program.running("idle");
    program.running("off");
    program.ok(["stop", "off"]);
    program.wrote("clock", "tick 3");
    program.ok(["pull", "--full", &reference]);
    program.lose_power();
    up.wait().unwrap();
    drop(registry);

    let mut daemon = boot(&program);
    program.until("the image is read again", || (times(&program, "web", "end") == 2).then_some(()));
    let output = program.output("web");
    assert_eq!(output[9..17], image.sums[..], "what was kept is what it was");
    program.until("its log goes on", || (times(&program, "clock", "tick 3") == 2).then_some(()));
    program.running("clock");
    let shown = program.state("once", "exited");
    assert_eq!((&shown["ExitCode"], times(&program, "once", "once")), (&0.into(), 1), "{shown}");
    // Without a policy nothing is started again, as after any other end.
    let shown = program.service("idle").unwrap();
    assert_ne!(shown["State"], "running", "{shown}");
    // What was stopped by hand stays stopped, whatever its policy.
    assert_eq!(program.service("off").unwrap()["Status"], "stopped (manual)");
    program.ok(["down", "-f", "services.yaml"]);
    program.end_controls();
    program.ended(&mut daemon);
}

#[test]
fn content_that_was_not_here_before_the_reboot_comes_when_the_network_does() {
    let program = Program::new();
    let image = Readable::pack(&program, 2, 8);
    let registry = FaultRegistry::start();
    registry.put_layout("app", &image.layout);
    let reference = format!("{}/app:v1", registry.host());
    // Reads the rest when it is told to, which is after the reboot; and little more arrives before.
    let script =
        format!("sha256sum /data/0000; until [ -e /gate/open ]; do sleep 0.1; done; {READ_ALL}");
    fs::create_dir(program.folder().join("gate")).unwrap();
    program.services(&file(&[service("web", &script)
        .image(reference.as_str())
        .key("volumes: [\"./gate:/gate\"]")
        .key("restart: always")]));
    registry.limit_rate(Some(200_000));
    let mut up = program.up();
    program.wrote("web", &image.sums[0]);
    registry.fault(&layer_path(&image.layout), u32::MAX, Fault::Hangup);
    program.lose_power();
    up.wait().unwrap();
    let address = registry.host().parse().unwrap();
    drop(registry);

    let mut daemon = boot(&program);
    let pid = program.running("web");
    let local = program.service("web").unwrap()["ImageLocal"].as_f64().unwrap();
    assert!(local < 1.0, "everything was here before the reboot");
    fs::write(program.folder().join("gate/open"), b"").unwrap();
    let registry = FaultRegistry::start_at(address);
    registry.put_layout("app", &image.layout);
    program.wrote("web", "end");
    let output = program.output("web");
    let last = output.len() - 1;
    assert_eq!(output[last - 8..last], image.sums[..]);
    assert!(runs(pid));
    program.ok(["down", "-f", "services.yaml"]);
    program.end_controls();
    program.ended(&mut daemon);
}

/// Files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

#[test]
fn content_that_a_power_cut_damaged_is_found_out_before_it_is_used() {
    let program = Program::new();
    let image = Readable::pack(&program, 3, 6);
    let registry = FaultRegistry::start();
    registry.put_layout("app", &image.layout);
    let reference = format!("{}/app:v1", registry.host());
    let web = service("web", READ_ALL).image(reference.as_str()).key("restart: always");
    program.services(&file(&[web]));
    let mut up = program.up();
    program.wrote("web", "end");
    program.lose_power();
    up.wait().unwrap();
    // What had not reached the disk: right lengths and times, wrong bytes. And of what was synced nothing is known.
    let cache = program.folder().join("state/files");
    let damaged: Vec<PathBuf> = files(&cache.join("sha256")).into_iter().collect();
    assert!(!damaged.is_empty());
    for path in &damaged {
        let found = fs::metadata(path).unwrap();
        fs::write(path, vec![0; found.len() as usize]).unwrap();
        let time = format!("@{}.{:09}", found.mtime(), found.mtime_nsec());
        assert!(Command::new("touch").args(["-d", &time]).arg(path).status().unwrap().success());
    }
    fs::write(cache.join("epoch"), b"garbage").unwrap();
    let _ = fs::remove_file(cache.join("epoch.prev"));

    let mut daemon = boot(&program);
    program.until("the image is read again", || (times(&program, "web", "end") == 2).then_some(()));
    assert_eq!(program.output("web")[7..13], image.sums[..]);
    assert!(cache.join("epoch.unreadable-last").exists());
    program.ok(["down", "-f", "services.yaml"]);
    program.end_controls();
    program.ended(&mut daemon);
}
