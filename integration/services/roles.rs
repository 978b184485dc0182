//! Each role is killed while a container reads an image that is not here yet, and the container does not notice.

use std::process::Child;

use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::image::{READ_ALL, Readable, layer_path};
use super::{IDLE, file, service};
use crate::support::program::{Program, crash, runs, signal};
use crate::support::registry::{Fault, FaultRegistry};

/// Files of the image.
const FILES: usize = 60;
/// Bytes a second: reading takes a few seconds.
const SLOW: u64 = 2_000_000;

/// A container in the middle of its reading.
struct Reading {
    program: Program,
    registry: FaultRegistry,
    image: Readable,
    /// None while nobody is in control.
    up: Option<Child>,
    pid: Pid,
}

impl Reading {
    fn start() -> Self {
        let program = Program::new();
        let image = Readable::pack(&program, 7, FILES);
        let registry = FaultRegistry::start();
        registry.put_layout("app", &image.layout);
        registry.limit_rate(Some(SLOW));
        let reference = format!("{}/app:v1", registry.host());
        program.services(&file(&[service("web", READ_ALL).image(reference)]));
        let up = program.up();
        let pid = program.running("web");
        let reading = Self { program, registry, image, up: Some(up), pid };
        reading.further();
        reading
    }

    /// Waits until three more files are read, and not all.
    fn further(&self) {
        let read = self.program.output("web").len();
        self.program.until("the container reads on", || {
            (self.program.output("web").len() >= read + 3).then_some(())
        });
        let read = self.program.output("web").len();
        assert!(read < FILES, "it reads still: {read}");
    }

    /// Makes the next answer stop in the middle, so that a read is under way for as long as the worker lives.
    fn stall(&self) {
        const AFTER: u64 = 777;
        let layer = layer_path(&self.image.layout);
        let stalled =
            || self.registry.seen(&layer).iter().filter(|seen| seen.sent == AFTER).count();
        let before = stalled();
        self.registry.fault(&layer, 1, Fault::Stall(AFTER));
        self.program.until("a read is under way", || (stalled() > before).then_some(()));
    }

    /// Waits until a role is played by somebody else than `before`.
    fn replaced(&self, role: &str, service: &str, before: Pid) -> Pid {
        self.program.until(&format!("the {role} is replaced"), || {
            self.program.role(role, service).filter(|next| *next != before)
        })
    }

    fn role(&self, role: &str) -> Pid {
        let service = if role == "monitor" { "web" } else { "" };
        self.program.role(role, service).unwrap_or_else(|| panic!("there is a {role}"))
    }

    /// The container has read everything, and every byte was right.
    fn finishes(&self) {
        self.registry.limit_rate(None);
        self.program.wrote("web", "end");
        let output = self.program.output("web");
        assert_eq!(output[..FILES], self.image.sums[..]);
        assert_eq!(output.len(), FILES + 1);
        assert!(runs(self.pid));
    }

    /// And all commands work as before.
    fn ends(self) {
        assert_eq!(self.program.running("web"), self.pid);
        assert_eq!(self.program.service("web").unwrap()["Restarts"], 0);
        let shown = self.program.ok(["logs", "-n", "1", "web"]);
        assert_eq!(shown, "web-1  | end\n");
        let sum = self.program.ok(["exec", "web", "--", "sha256sum", "/data/0003"]);
        assert_eq!(sum.trim_end(), self.image.sums[3]);
        assert_eq!(self.program.interrupt(self.up.unwrap()), Some(0));
        let shown = self.program.service("web").unwrap();
        assert_eq!((&shown["State"], &shown["ExitCode"]), (&"exited".into(), &9.into()), "{shown}");
    }
}

#[test]
fn a_worker_killed_in_the_middle_of_a_read_is_not_noticed() {
    let reading = Reading::start();
    for _ in 0..2 {
        reading.stall();
        let worker = reading.role("worker");
        signal(worker, Signal::KILL);
        reading.replaced("worker", "", worker);
        reading.further();
    }
    reading.finishes();
    assert!(reading.program.log().contains("it is replaced and reads wait"), "people are told");
    reading.ends();
}

#[test]
fn a_killed_keeper_is_not_noticed() {
    let reading = Reading::start();
    let (keeper, worker) = (reading.role("keeper"), reading.role("worker"));
    signal(keeper, Signal::KILL);
    reading.further();
    let next = reading.replaced("keeper", "", keeper);
    assert_eq!(reading.role("worker"), worker, "the worker goes on");
    // The next keeper does its work: it replaces a worker.
    signal(worker, Signal::KILL);
    reading.replaced("worker", "", worker);
    reading.further();
    assert_eq!(reading.role("keeper"), next);
    reading.finishes();
    reading.ends();
}

#[test]
fn a_killed_control_is_not_noticed() {
    let mut reading = Reading::start();
    crash(reading.up.take().unwrap());
    reading.further();
    reading.up = Some(reading.program.up());
    reading.finishes();
    reading.ends();
}

#[test]
fn a_killed_control_and_then_a_killed_worker_are_not_noticed() {
    let mut reading = Reading::start();
    crash(reading.up.take().unwrap());
    reading.further();
    reading.stall();
    let worker = reading.role("worker");
    signal(worker, Signal::KILL);
    // Nobody but the keeper is there to replace it.
    reading.replaced("worker", "", worker);
    reading.further();
    reading.up = Some(reading.program.up());
    reading.finishes();
    reading.ends();
}

#[test]
fn a_killed_monitor_is_not_noticed() {
    let reading = Reading::start();
    for _ in 0..2 {
        let monitor = reading.role("monitor");
        signal(monitor, Signal::KILL);
        reading.replaced("monitor", "web", monitor);
        reading.further();
    }
    reading.finishes();
    assert!(reading.program.log().contains("it is being replaced"), "people are told");
    reading.ends();
}

#[test]
fn everything_killed_at_once_but_the_worker_is_not_noticed() {
    let mut reading = Reading::start();
    let (keeper, monitor) = (reading.role("keeper"), reading.role("monitor"));
    crash(reading.up.take().unwrap());
    signal(keeper, Signal::KILL);
    signal(monitor, Signal::KILL);
    reading.up = Some(reading.program.up());
    reading.replaced("keeper", "", keeper);
    reading.replaced("monitor", "web", monitor);
    reading.finishes();
    reading.ends();
}

#[test]
fn all_roles_run_from_one_sealed_copy_of_the_program() {
    use std::os::unix::fs::MetadataExt as _;

    let program = Program::new();
    let image = Readable::pack(&program, 3, 3);
    let image = || image.local();
    program.services(&file(&[
        service("one", IDLE).image(image()),
        service("two", IDLE).image(image()),
    ]));
    program.ok(["up", "-d"]);
    let control = program.until("control runs", || program.background_control());
    let copy = |pid: Pid| {
        let path = format!("/proc/{}/exe", pid.as_raw_nonzero());
        let target = std::fs::read_link(&path).unwrap();
        assert!(target.to_string_lossy().starts_with("/memfd:supervisor"), "{target:?}");
        let file = std::fs::metadata(&path).unwrap();
        (file.dev(), file.ino())
    };
    let first = copy(control);
    let roles = [("keeper", ""), ("worker", ""), ("monitor", "one"), ("monitor", "two")];
    for (role, service) in roles {
        let pid = program.until(role, || program.role(role, service));
        assert_eq!(copy(pid), first, "{role} {service}");
    }
    program.ok(["down"]);
}

#[test]
fn a_worker_that_fails_three_times_is_told_to_people_and_so_is_its_recovery() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE)]));
    program.ok(["up", "-d"]);
    let pid = program.running("web");
    let told = |kind: &str| {
        let text = program.ok(["events", "--json", "--no-follow", "--since", "10m"]);
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.rev().find(|event| event["kind"] == kind)
    };
    let before = told("worker-started").and_then(|event| event["sequence"].as_u64());
    // Without it no worker knows what to serve.
    let session = program.run_dir().join("lazy/session");
    let aside = session.with_extension("aside");
    std::fs::rename(&session, &aside).unwrap();
    signal(program.role("worker", "").unwrap(), Signal::KILL);
    let event = program.until("the failure is told", || told("worker-failing"));
    assert_eq!(event["level"], "error", "{event}");
    let message = event["message"].as_str().unwrap();
    assert!(message.contains("failed 3 times in a row, reads wait: "), "{message}");
    // It is a state, too, and a service that reads nothing runs.
    program.until("the state is shown", || {
        let shown = program.service("web").unwrap();
        let status = shown["Status"].as_str().unwrap();
        status.contains("reads wait: the worker of lazy layers failed").then_some(())
    });
    assert!(runs(pid));

    std::fs::rename(&aside, &session).unwrap();
    program.until("the recovery is told", || {
        told("worker-started").filter(|event| event["sequence"].as_u64() > before)
    });
    program.until("nothing is wrong any more", || {
        let shown = program.service("web").unwrap();
        (!shown["Status"].as_str().unwrap().contains("reads wait")).then_some(())
    });
    assert_eq!(program.running("web"), pid);
    program.ok(["down"]);
}
