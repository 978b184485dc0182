//! Another build takes the place of the one that runs, under running containers, and back again.
//!
//! The second build is a copy of the first with other versions written into it (`src/version.rs`).

use std::path::Path;

use rustix::process::{Pid, Signal};
use supervisor::sys::process::ProcessIdentity;
use supervisor::sys::socket;
use supervisor::version::{Versions, patch, versions};

use super::reader::Reader;
use crate::services::image::Readable;
use crate::services::{TICK, file, service};
use crate::support::program::{Program, crash, runs, signal};

/// Ends with a code of its own when its file is there.
const TOLD: &str = "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 7";

/// Puts a build at `path`, as an installation does: the file is another one afterwards.
fn install(path: &Path, versions: &Versions) {
    let mut bytes = std::fs::read(env!("CARGO_BIN_EXE_supervisor")).unwrap();
    assert!(patch(&mut bytes, versions), "the program is a build for tests");
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, bytes).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&fresh, mode).unwrap();
    std::fs::rename(&fresh, path).unwrap();
}

fn identity(pid: Pid) -> ProcessIdentity {
    ProcessIdentity::of(pid.as_raw_nonzero().get()).unwrap()
}

/// Asks a monitor in its own protocol, and gives the answer.
fn say(program: &Program, service: &str, packet: &str) -> serde_json::Value {
    use std::os::fd::AsFd as _;
    let folder = program.run_dir().join("monitor");
    let part = format!("-{service}-");
    let name = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .find(|name| name.contains(&part) && name.ends_with(".sock"))
        .unwrap();
    let folder = std::fs::File::open(folder).unwrap();
    let connection = socket::connect(folder.as_fd(), &name).unwrap();
    socket::send(connection.as_fd(), packet.as_bytes(), &[]).unwrap();
    let (answer, _) = socket::receive(connection.as_fd()).unwrap();
    serde_json::from_slice(&answer).unwrap()
}

#[test]
fn another_build_takes_over_what_runs_and_the_first_one_after_it() {
    let own = versions();
    let next = Versions { build: "9.0.0", monitor: 2, lazy: 2, index: 2, state: own.state };
    let mut program = Program::new();
    let image = Readable::pack(&program, 5, 40);
    let binary = program.folder().join("supervisor");
    install(&binary, &own);
    program.use_binary(&binary);
    let lazy = service("web", TICK).image(image.local());
    program.services(&file(&[lazy.clone(), service("told", TOLD)]));
    let up = program.up();
    let (web, told) = (program.running("web"), program.running("told"));
    let process = identity(web);
    let reader = Reader::start(web.as_raw_nonzero().get());

    // Nobody is in control while the file is replaced, and then a container ends.
    crash(up);
    install(&binary, &next);
    assert_eq!(program.ok(["version"]).trim(), "supervisor 9.0.0");
    std::fs::write(format!("/proc/{}/root/tmp/go", told.as_raw_nonzero()), "").unwrap();
    program.until("it has ended", || (!runs(told)).then_some(()));
    let up = program.up();
    assert_eq!(program.running("web"), web);
    assert_eq!(program.state("told", "exited")["ExitCode"], 7, "the end was not lost");
    let first = say(&program, "web", r#"{"request":"hello","version":2}"#);
    assert_eq!((&first["version"], &first["software"]), (&1.into(), &own.build.into()));
    assert_eq!(program.ok(["exec", "web", "--", "echo", "new to old"]), "new to old\n");
    assert!(program.ok(["logs", "-n", "1", "web"]).contains("tick"));

    // A monitor of the next build takes over from a dead one of the first.
    let monitor = program.role("monitor", "web").unwrap();
    signal(monitor, Signal::KILL);
    program.until("the monitor is replaced", || {
        program.role("monitor", "web").filter(|other| *other != monitor)
    });
    assert_eq!(program.running("web"), web);
    let second = program.until("the next build answers", || {
        Some(say(&program, "web", r#"{"request":"hello","version":1}"#))
            .filter(|hello| hello["software"] == "9.0.0")
    });
    assert_eq!(second["version"], 2);

    // And back.
    crash(up);
    install(&binary, &own);
    let up = program.up();
    assert_eq!(program.running("web"), web);
    assert_eq!(program.ok(["exec", "web", "--", "echo", "old to new"]), "old to new\n");
    assert_eq!(reader.errors(), Vec::<String>::new());
    assert!(!reader.end().again.is_empty());
    assert!(process.open().is_some(), "the same process through it all");
    assert_eq!(program.interrupt(up), Some(0));
    for (number, line) in program.output("web").iter().enumerate() {
        assert_eq!(*line, format!("tick {number}"), "a hole, or a line said twice");
    }
}

#[test]
fn a_monitor_answers_every_version_and_refuses_what_is_none() {
    let program = Program::new();
    program.services(&file(&[service("web", TICK)]));
    let up = program.up();
    program.running("web");
    let later = say(&program, "web", r#"{"request":"hello","version":99,"more":[1]}"#);
    assert_eq!((&later["message"], &later["version"]), (&"hello".into(), &1.into()));
    let none = say(&program, "web", r#"{"request":"hello","version":0}"#);
    assert_eq!(none["message"], "refused", "{none}");
    let unknown = say(&program, "web", r#"{"request":"dance"}"#);
    assert!(unknown["reason"].as_str().unwrap().contains("dance"), "{unknown}");
    assert_eq!(program.interrupt(up), Some(0));
}
