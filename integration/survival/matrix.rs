//! Every boundary of every action, and at each the death of every role: whoever comes next finishes the action, and
//! nothing is done twice.
//!
//! Keeper and worker have no part in starts, stops and removals, so these six tests take their time only in
//! `scripts/test --all`. A monitor has ended before its container is removed.

use std::process::{Child, Stdio};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use supervisor::boundary::Boundary;
use supervisor::sys::process::ProcessIdentity;

use super::hold::{arm, release, waiting};
use crate::services::{file, service};
use crate::support::program::{Program, crash, runs, signal};

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Control,
    Keeper,
    Worker,
    Monitor,
}

impl Role {
    /// Whether somebody plays it at `boundary`; else there may be nobody to kill.
    fn is_played(self, boundary: Boundary) -> bool {
        const BEFORE_THE_MONITOR: [Boundary; 7] = [
            Boundary::PULL_BEGINS,
            Boundary::PULLED,
            Boundary::FOLDER_MADE,
            Boundary::CREATED,
            Boundary::LAYERS_MOUNTED,
            Boundary::START_RECORDED,
            Boundary::LAUNCH_WRITTEN,
        ];
        match self {
            Self::Control => true,
            // The first pull is what they are started for.
            Self::Keeper | Self::Worker => boundary != Boundary::PULL_BEGINS,
            // None yet, none between two of them, none any more.
            Self::Monitor => {
                !BEFORE_THE_MONITOR.contains(&boundary)
                    && ![Boundary::ADOPTION_BEGINS, Boundary::STOPPED].contains(&boundary)
            }
        }
    }
}

/// Ends with a code of its own a moment after it was asked.
const WEB: &str =
    "trap 'echo stopping; sleep 0.1; exit 4' TERM; echo ready; while :; do sleep 0.05; done";

/// One instance in the middle of something.
struct Scene {
    program: Program,
    up: Option<Child>,
}

impl Scene {
    /// Begins an `up` that is held up at `boundary`, if it comes there.
    fn begin(boundary: Option<Boundary>) -> Self {
        let program = Program::new();
        program.services(&file(&[service("web", WEB).key("restart: always")]));
        if let Some(boundary) = boundary {
            arm(&program, boundary);
        }
        let up = Some(program.up());
        Self { program, up }
    }

    fn held(&self, boundary: Boundary) {
        self.program.until(&format!("somebody is at {}", boundary.name()), || {
            waiting(&self.program, boundary)
        });
    }

    /// Kills a role, which somebody plays at `boundary` if any can, and lets go what is held up there.
    fn kill(&mut self, role: Role, boundary: Boundary) {
        let attached = if role == Role::Control { self.up.take() } else { None };
        if let Some(up) = attached {
            crash(up);
        } else {
            let name = format!("{role:?}").to_lowercase();
            let find = || match role {
                Role::Control => self.program.background_control(),
                Role::Keeper | Role::Worker => self.program.role(&name, ""),
                Role::Monitor => self.program.role(&name, "web"),
            };
            let found = if role.is_played(boundary) {
                Some(self.program.until(&format!("there is a {name}"), find))
            } else {
                find()
            };
            if let Some(pid) = found {
                match kill_process(pid, Signal::KILL) {
                    // Nobody holds it up, and it was on its way out.
                    Err(Errno::SRCH) if !role.is_played(boundary) => {}
                    other => other.unwrap(),
                }
            }
        }
        release(&self.program);
    }

    /// One container runs, it is whole, and nothing of another one is there.
    fn converges(&mut self) -> Pid {
        if self.up.is_none() {
            self.up = Some(self.program.up());
        }
        let pid = self.program.running("web");
        let count =
            |folder: &str| std::fs::read_dir(self.program.folder().join(folder)).unwrap().count();
        self.program.until("one container is left", || {
            (count("state/containers") == 1 && count("run/containers") == 1).then_some(())
        });
        // While a monitor is replaced nobody answers.
        self.program.until("a program runs in it", || {
            let ran = self.program.run(["exec", "web", "--", "cat", "/proc/1/comm"]);
            (ran.stdout == b"sh\n").then_some(())
        });
        pid
    }

    /// And it is stopped as always.
    fn ends(mut self, pid: Pid) {
        self.program.wrote("web", "ready");
        assert_eq!(self.program.interrupt(self.up.take().unwrap()), Some(0));
        assert!(!runs(pid));
        assert_eq!(self.program.service("web").unwrap()["ExitCode"], 4);
    }
}

fn of_action(names: &[&str]) -> Vec<Boundary> {
    let of = |name: &&str| {
        let begins = |boundary: &Boundary| boundary.name().starts_with(*name);
        let found: Vec<_> = Boundary::ALL.iter().copied().filter(begins).collect();
        assert!(!found.is_empty(), "no boundary begins with `{name}`");
        found
    };
    names.iter().flat_map(of).collect()
}

/// Runs a scene for each boundary, and says which one has failed.
fn each(names: &[&str], scene: impl Fn(Boundary)) {
    for boundary in of_action(names) {
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| scene(boundary)));
        assert!(ran.is_ok(), "at {}", boundary.name());
    }
}

fn starts(role: Role) {
    each(&["pull-", "create-", "start-"], |boundary| {
        let mut scene = Scene::begin(Some(boundary));
        scene.held(boundary);
        scene.kill(role, boundary);
        let pid = scene.converges();
        scene.ends(pid);
    });
}

/// `stop` is asked for and meets a death on its way.
fn stops(role: Role) {
    each(&["stop-"], |boundary| {
        let mut scene = Scene::begin(None);
        let pid = scene.converges();
        scene.program.wrote("web", "ready");
        arm(&scene.program, boundary);
        signal(Pid::from_child(scene.up.as_ref().unwrap()), Signal::INT);
        scene.held(boundary);
        scene.kill(role, boundary);
        // What the user asked for is kept by whoever is control then.
        if let Some(mut up) = scene.up.take() {
            assert_eq!(scene.program.ended(&mut up).code(), Some(0));
        }
        let shown = scene.program.state("web", "exited");
        assert_eq!(shown["ExitCode"], 4, "{shown}");
        assert!(!runs(pid));
    });
}

fn removes(role: Role) {
    each(&["remove-"], |boundary| {
        let mut scene = Scene::begin(None);
        let pid = scene.converges();
        scene.program.wrote("web", "ready");
        arm(&scene.program, boundary);
        let mut down = scene
            .program
            .command(["down"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        scene.held(boundary);
        scene.kill(role, boundary);
        scene.program.ended(&mut down);
        if let Some(mut up) = scene.up.take() {
            scene.program.ended(&mut up);
        }
        // Once more, because the first may have lost its control.
        scene.program.ok(["down"]);
        assert!(!runs(pid));
        for folder in ["state/containers", "run/containers"] {
            let left = std::fs::read_dir(scene.program.folder().join(folder)).unwrap().count();
            assert_eq!(left, 0, "{folder}");
        }
    });
}

/// A monitor has died, and its replacement meets another death on its way.
fn adopts(role: Role) {
    each(&["adopt-"], |boundary| {
        let mut scene = Scene::begin(None);
        let pid = scene.converges();
        let process = ProcessIdentity::of(pid.as_raw_nonzero().get()).unwrap();
        scene.program.wrote("web", "ready");
        arm(&scene.program, boundary);
        signal(scene.program.role("monitor", "web").unwrap(), Signal::KILL);
        scene.held(boundary);
        scene.kill(role, boundary);
        assert_eq!(scene.converges(), pid);
        assert!(process.open().is_some(), "the same process");
        scene.ends(pid);
    });
}

macro_rules! matrix {
    ($($(#[$attribute:meta])* $name:ident: $action:ident, $role:ident;)*) => {
        $(#[test] $(#[$attribute])* fn $name() { $action(Role::$role); })*
    };
}

matrix! {
    control_dies_at_every_boundary_of_a_start: starts, Control;
    #[ignore = "the other two roles have no part in it; `scripts/test --all`"]
    the_keeper_dies_at_every_boundary_of_a_start: starts, Keeper;
    #[ignore = "the other two roles have no part in it; `scripts/test --all`"]
    the_worker_dies_at_every_boundary_of_a_start: starts, Worker;
    the_monitor_dies_at_every_boundary_of_a_start: starts, Monitor;
    control_dies_at_every_boundary_of_a_stop: stops, Control;
    #[ignore = "the other two roles have no part in it; `scripts/test --all`"]
    the_keeper_dies_at_every_boundary_of_a_stop: stops, Keeper;
    #[ignore = "the other two roles have no part in it; `scripts/test --all`"]
    the_worker_dies_at_every_boundary_of_a_stop: stops, Worker;
    the_monitor_dies_at_every_boundary_of_a_stop: stops, Monitor;
    control_dies_at_every_boundary_of_a_removal: removes, Control;
    #[ignore = "the other two roles have no part in it; `scripts/test --all`"]
    the_keeper_dies_at_every_boundary_of_a_removal: removes, Keeper;
    #[ignore = "the other two roles have no part in it; `scripts/test --all`"]
    the_worker_dies_at_every_boundary_of_a_removal: removes, Worker;
    control_dies_at_every_boundary_of_an_adoption: adopts, Control;
    the_keeper_dies_at_every_boundary_of_an_adoption: adopts, Keeper;
    the_worker_dies_at_every_boundary_of_an_adoption: adopts, Worker;
    the_monitor_dies_at_every_boundary_of_an_adoption: adopts, Monitor;
}

#[test]
fn a_restart_that_control_does_not_survive_is_completed_and_the_end_before_is_told_once() {
    let program = Program::new();
    program.services(&file(&[service("web", WEB)]));
    let up = Some(program.up());
    let mut pid = program.running("web");
    let mut scene = Scene { program, up };
    let boundaries = [Boundary::LAYERS_MOUNTED, Boundary::START_RECORDED, Boundary::LAUNCH_WRITTEN];
    for (round, boundary) in boundaries.into_iter().enumerate() {
        let stopping = || {
            let output = scene.program.output("web");
            output.iter().filter(|line| *line == "stopping").count()
        };
        assert_eq!(stopping(), round);
        arm(&scene.program, boundary);
        let mut restart = scene.program.command(["restart", "web"]);
        let mut restart = restart.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        scene.held(boundary);
        // Nobody asks for it again: the next control does what was asked of this one.
        scene.kill(Role::Control, boundary);
        scene.program.ended(&mut restart);
        let next = scene.program.running("web");
        assert!(next != pid && !runs(pid), "at {}", boundary.name());
        pid = next;
    }
    scene.program.ok(["down"]);
    assert!(!runs(pid));
}
