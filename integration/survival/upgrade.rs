//! Another build takes the place of the one that runs, under running containers, and back again.
//!
//! The second build is a copy of the first with other versions written into it (`src/version.rs`).

use rustix::process::{Pid, Signal};
use supervisor::sys::process::ProcessIdentity;
use supervisor::sys::socket;
use supervisor::version::{Versions, versions};

use super::reader::Reader;
use crate::services::image::Readable;
use crate::services::{TICK, file, service};
use crate::support::program::{Program, crash, install, runs, signal};

/// Ends with a code of its own when its file is there.
const TOLD: &str = "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 7";

fn identity(pid: Pid) -> ProcessIdentity {
    ProcessIdentity::of(pid.as_raw_nonzero().get()).unwrap()
}

/// The format versions of all index files that are kept, in order.
fn index_formats(program: &Program) -> Vec<u32> {
    let layers = program.folder().join("state/layers");
    let mut formats = std::fs::read_dir(layers)
        .unwrap()
        .filter_map(|layer| std::fs::read(layer.unwrap().path().join("index")).ok())
        .map(|index| u32::from_le_bytes(index[8..12].try_into().unwrap()))
        .collect::<Vec<_>>();
    formats.sort_unstable();
    formats
}

/// Asks a monitor in its own protocol, and gives the answer. A monitor that has just begun may not listen yet.
fn say(program: &Program, service: &str, packet: &str) -> serde_json::Value {
    program.until("the monitor answers", || try_say(program, service, packet))
}

fn try_say(program: &Program, service: &str, packet: &str) -> Option<serde_json::Value> {
    use std::os::fd::AsFd as _;
    let folder = program.run_dir().join("monitor");
    let part = format!("-{service}-");
    let name = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .find(|name| name.contains(&part) && name.ends_with(".sock"))?;
    let folder = std::fs::File::open(folder).unwrap();
    let connection = socket::connect(folder.as_fd(), &name).ok()?;
    socket::send(connection.as_fd(), packet.as_bytes(), &[]).ok()?;
    let (answer, _) = socket::receive(connection.as_fd()).ok()?;
    serde_json::from_slice(&answer).ok()
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
    let reader = Reader::start(web.as_raw_nonzero().get(), &image);
    let worker = program.role("worker", "").unwrap();

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

    // The worker hands over under a reader, and what the next build indexes is in its own format.
    program.until("a worker of the next build serves", || {
        program.role("worker", "").filter(|other| *other != worker && !runs(worker))
    });
    let formats = index_formats(&program);
    let more = service("more", TICK).image(Readable::pack(&program, 6, 3).local());
    program.services(&file(&[lazy.clone(), service("told", TOLD), more]));
    program.running("more");
    program.until("its index is of the next format", || {
        (index_formats(&program) == [formats.as_slice(), &[2]].concat()).then_some(())
    });

    // A monitor of the next build takes over from a dead one of the first.
    let monitor = program.role("monitor", "web").unwrap();
    signal(monitor, Signal::KILL);
    program.until("the monitor is replaced", || {
        program.role("monitor", "web").filter(|other| *other != monitor)
    });
    assert_eq!(program.running("web"), web);
    let second = program.until("the next build answers", || {
        try_say(&program, "web", r#"{"request":"hello","version":1}"#)
            .filter(|hello| hello["software"] == "9.0.0")
    });
    assert_eq!(second["version"], 2);

    // And back.
    crash(up);
    install(&binary, &own);
    let up = program.up();
    assert_eq!(program.running("web"), web);
    assert_eq!(program.ok(["exec", "web", "--", "echo", "old to new"]), "old to new\n");
    // The first build cannot read that index, says so, and lets the other worker serve.
    program.said("the worker of another build goes on");
    assert_eq!(program.ok(["exec", "more", "--", "sha256sum", "/data/0000"]).len(), 64 + 13);
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
