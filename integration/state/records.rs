//! Records that cannot be used, met by the real program: it says so, and goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::services::{TICK, file, service, shell_image};
use crate::support::program::{Program, crash, runs, signal};

/// A way in which a record can be unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    FlippedBit,
    Empty,
    CutOff,
    Garbage,
    Folder,
    Fifo,
    Newer,
    Immovable,
}

impl Damage {
    const ALL: [Self; 8] = [
        Self::FlippedBit,
        Self::Empty,
        Self::CutOff,
        Self::Garbage,
        Self::Folder,
        Self::Fifo,
        Self::Newer,
        Self::Immovable,
    ];

    fn apply(self, path: &Path) {
        let whole = fs::read(path).unwrap();
        // A new file, since the previous copy may be another name of the old one.
        fs::remove_file(path).unwrap();
        match self {
            Self::FlippedBit => {
                let mut bytes = whole;
                let middle = bytes.len() * 3 / 4;
                bytes[middle] ^= 1;
                fs::write(path, bytes).unwrap();
            }
            Self::Empty => fs::write(path, b"").unwrap(),
            Self::CutOff => fs::write(path, &whole[..whole.len() / 2]).unwrap(),
            Self::Garbage => fs::write(path, [0xff; 4096]).unwrap(),
            Self::Folder => fs::create_dir_all(path.join("with/something")).unwrap(),
            Self::Fifo => {
                assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
            }
            Self::Newer => {
                let text = String::from_utf8(whole).unwrap();
                fs::write(path, text.replacen("\"version\":1,", "\"version\":77,", 1)).unwrap();
            }
            Self::Immovable => {
                fs::write(path, b"garbage").unwrap();
                change_flag("+i", path);
            }
        }
    }

    /// What undoes the part that the program cannot.
    fn lift(self, path: &Path) {
        if self == Self::Immovable {
            change_flag("-i", path);
        }
    }

    fn event(self) -> &'static str {
        match self {
            Self::Newer | Self::Immovable => "record-unusable",
            _ => "record-set-aside",
        }
    }
}

fn change_flag(flag: &str, path: &Path) {
    let changed = Command::new("chattr").arg(flag).arg(path).status().unwrap();
    assert!(changed.success(), "`chattr {flag}` must work where the tests' folders are");
}

/// The only entry of a folder whose name passes.
fn only(folder: &Path, passes: impl Fn(&str) -> bool) -> PathBuf {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut names = entries.map(|entry| entry.file_name().into_string().unwrap());
    folder.join(names.find(|name| passes(name)).unwrap())
}

/// The records of an instance with one project and one service.
fn records(program: &Program) -> [(&'static str, PathBuf); 3] {
    let state = program.folder().join("state");
    [
        ("project", only(&state.join("services"), |_| true).join("project")),
        ("container", only(&state.join("containers"), |_| true).join("container")),
        ("image", only(&state.join("images"), |name| !name.contains('.'))),
    ]
}

fn previous(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.prev", path.display()))
}

fn control_log(program: &Program) -> String {
    fs::read_to_string(program.run_dir().join("control.log")).unwrap_or_default()
}

/// Kills the control in the background and waits until it is dead.
fn kill_control(program: &Program) {
    let Some(control) = program.background_control() else { return };
    signal(control, Signal::KILL);
    program.until("the control is dead", || (!runs(control)).then_some(()));
}

#[test]
fn an_unusable_record_is_told_and_its_previous_copy_is_used() {
    let program = Program::new();
    program.services(&file(&[service("web", TICK)]));
    let up = program.up();
    let pid = program.running("web");
    crash(up);
    for (kind, path) in records(&program) {
        for damage in Damage::ALL {
            assert!(previous(&path).exists(), "{kind} has no previous copy");
            let before = control_log(&program).len();
            damage.apply(&path);
            assert_eq!(program.running("web"), pid, "{kind}, {damage:?}");
            let said = |text: &str| control_log(&program)[before..].contains(text);
            program.until(&format!("it is told: {kind}, {damage:?}"), || {
                said(damage.event()).then_some(())
            });
            if damage == Damage::Newer {
                assert!(said("newer supervisor"), "{}", control_log(&program));
            }
            kill_control(&program);
            damage.lift(&path);
            // The next one has what it needs to put the record right, for the next round.
            assert_eq!(program.running("web"), pid, "{kind}, after {damage:?}");
            program.until("there is a record", || path.is_file().then_some(()));
            kill_control(&program);
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let aside = supervisor::store::set_aside_below(&program.folder().join("state"));
        let of_kind = aside.iter().filter(|aside| aside.record == path);
        assert!((1..=6).contains(&of_kind.count()), "{name}: {aside:?}");
    }
    program.ok(["down", "-f", "services.yaml"]);
    assert!(!runs(pid));
}

#[test]
fn what_is_lost_with_both_copies_is_made_anew_and_never_doubled() {
    let program = Program::new();
    program.services(&file(&[service("web", TICK)]));
    crash(program.up_running());
    let pid = program.running("web");
    let [project, container, image] = records(&program);
    kill_control(&program);

    // The image is found again where it came from; what runs does not notice.
    for path in [image.1.clone(), previous(&image.1)] {
        fs::write(path, b"garbage").unwrap();
    }
    assert_eq!(program.running("web"), pid);
    kill_control(&program);

    // Of the project nothing is known: what runs goes on, and `up` takes it over as it is.
    for path in [project.1.clone(), previous(&project.1)] {
        fs::write(path, b"garbage").unwrap();
    }
    program.ok(["ps"]);
    assert!(runs(pid));
    kill_control(&program);
    let up = program.up();
    assert_eq!(program.running("web"), pid);
    crash(up);

    // Of the container only its name is known: it is replaced, and two never run.
    for path in [container.1.clone(), previous(&container.1)] {
        fs::write(path, b"garbage").unwrap();
    }
    let next = program.until("another one runs", || {
        Some(program.running("web")).filter(|running| *running != pid)
    });
    assert!(!runs(pid) && runs(next));
    let folder = program.folder().join("state/containers");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
}

#[test]
fn what_stands_in_the_place_of_a_folder_is_set_aside() {
    let program = Program::new();
    let state = program.folder().join("state");
    fs::create_dir(&state).unwrap();
    for folder in ["images", "layers", "containers", "blobs", "files"] {
        fs::write(state.join(folder), b"no folder").unwrap();
    }
    program.services(&file(&[service("web", TICK)]));
    let up = program.up();
    program.running("web");
    assert_eq!(supervisor::store::set_aside_below(&state).len(), 5);
    program.interrupt(up);
}

#[test]
fn a_control_that_is_killed_while_it_writes_leaves_records_that_can_be_used() {
    let program = Program::new();
    let other = |number: u32| {
        let key = format!("environment: {{ROUND: \"{number}\"}}");
        file(&[service("web", TICK), service("other", TICK).key(&key)])
    };
    program.services(&other(0));
    crash(program.up_running());
    let pid = program.running("web");
    kill_control(&program);
    for round in 1..=12_u64 {
        program.services(&other(u32::try_from(round).unwrap()));
        let up = program.up();
        // Wherever it is then; another place in each round.
        std::thread::park_timeout(std::time::Duration::from_millis(round * 37 % 290));
        crash(up);
    }
    let up = program.up();
    assert_eq!(program.running("web"), pid);
    program.running("other");
    assert_eq!(supervisor::store::set_aside_below(&program.folder().join("state")), []);
    assert!(program.ok(["images", "--format", "json"]).contains(&shell_image()));
    program.interrupt(up);
}
