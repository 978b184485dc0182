//! The example program `integration/embed/`: a program that is no command line of ours runs containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};

use crate::services::shell_image;
use crate::support::program::{Program, crash, runs, signal};

/// The example. A run of all tests has built it; if one of this test alone has not, it is built here.
fn example() -> PathBuf {
    let supervisor = Path::new(env!("CARGO_BIN_EXE_supervisor"));
    let folder = supervisor.parent().unwrap();
    let example = folder.join("examples/embed");
    let made = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    if made(&example).is_some_and(|time| Some(time) >= made(supervisor)) {
        return example;
    }
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--locked", "--quiet", "--features", "testing", "--example", "embed"]);
    build.current_dir(env!("CARGO_MANIFEST_DIR")).env("CARGO_TARGET_DIR", folder.parent().unwrap());
    if folder.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "the example does not build");
    example
}

/// The example in the folder of an instance, and what it prints.
struct Embedding<'a> {
    program: &'a Program,
    executable: PathBuf,
}

impl Embedding<'_> {
    fn start(&self, options: &[&str]) -> Child {
        let log = fs::File::create(self.program.folder().join("up.log")).unwrap();
        let errors = log.try_clone().unwrap();
        let mut command = Command::new(&self.executable);
        command.arg(self.program.folder()).arg(shell_image()).args(options);
        command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().unwrap()
    }

    /// The processes of both services, once the program says that they run.
    fn pids(&self) -> [Pid; 2] {
        self.program.said("ready");
        let log = self.program.log();
        ["clock", "idle"].map(|service| {
            let prefix = format!("running {service} ");
            let pid = log.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap();
            Pid::from_raw(pid.parse().unwrap()).unwrap()
        })
    }
}

#[test]
fn a_program_of_its_own_runs_services_and_finds_them_again_after_its_death() {
    let program = Program::new();
    // A copy: it is replaced and deleted below, as an upgrade does it.
    let executable = program.folder().join("embedding");
    fs::copy(example(), &executable).unwrap();
    let embedding = Embedding { program: &program, executable };

    let first = embedding.start(&[]);
    let pids = embedding.pids();
    let log = program.log();
    for expected in ["event container-started clock", "exec 0 hello", "log clock tick 0"] {
        assert!(log.contains(expected), "`{expected}` is missing: {log}");
    }
    // The command line speaks to it as to any control.
    assert_eq!(program.running("clock"), pids[0]);
    crash(first);
    assert!(pids.iter().all(|pid| runs(*pid)));

    let mut second = embedding.start(&["--leave"]);
    assert_eq!(embedding.pids(), pids, "they were taken over");
    assert_eq!(program.ended(&mut second).code(), Some(0), "{}", program.log());
    assert!(!program.log().contains("event container-started"), "{}", program.log());

    // Its file is gone while it runs: a monitor that dies is replaced all the same, by a copy in memory.
    let third = embedding.start(&[]);
    assert_eq!(embedding.pids(), pids);
    fs::remove_file(&embedding.executable).unwrap();
    let monitor = program.role("monitor", "idle").unwrap();
    signal(monitor, Signal::KILL);
    program.until("another monitor has taken over", || {
        program.role("monitor", "idle").filter(|pid| *pid != monitor)
    });
    assert_eq!(program.running("idle"), pids[1]);
    assert_eq!(program.interrupt(third), Some(0), "{}", program.log());
    assert!(pids.iter().all(|pid| !runs(*pid)));
    assert_eq!(program.log().lines().filter(|line| line.starts_with("gone ")).count(), 2);
    program.until("nothing is left", || program.traces().is_empty().then_some(()));
}

#[test]
fn a_role_that_is_no_role_is_not_the_program_itself() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(example())
        .args(["supervisor-role", "nothing"])
        .arg(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(70), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no role `nothing`"), "{output:?}");
}
