//! The connection of lazy layers below containers that run: kept over the death of everybody, lost, wedged, and given
//! up slot by slot. With the whole program.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};

use rustix::process::{Pid, Signal};
use supervisor::sys::socket;

use crate::services::image::{READ_ALL, Readable, layer_path};
use crate::services::{IDLE, file, service};
use crate::support::program::{Program, crash, runs, signal};
use crate::support::registry::{Fault, FaultRegistry};

/// Reads a file over and over and says each time that it could.
const READ_ON: &str = "trap 'exit 0' TERM; n=0; \
    while sha256sum /data/0000 > /dev/null; do n=$((n+1)); echo read $n; sleep 0.05; done; exit 3";

fn role(program: &Program, role: &str) -> Pid {
    program.until(&format!("there is a {role}"), || program.role(role, ""))
}

/// Kills several processes so that none sees the end of another.
fn end(processes: &[Pid]) {
    processes.iter().for_each(|process| signal(*process, Signal::STOP));
    processes.iter().for_each(|process| signal(*process, Signal::KILL));
}

fn reads_on(program: &Program) {
    let before = program.output("web").len();
    program.until("it reads on", || (program.output("web").len() > before + 2).then_some(()));
}

/// A service that reads from a lazy layer, its control in the foreground, and its process.
fn reading() -> (Program, Child, Pid) {
    let program = Program::new();
    let image = Readable::pack(&program, 1, 3);
    program.services(&file(&[service("web", READ_ON).image(image.local())]));
    let up = program.up();
    let pid = program.running("web");
    reads_on(&program);
    (program, up, pid)
}

#[test]
fn containers_whose_connection_is_lost_are_started_again_and_that_counts_as_no_crash() {
    let (program, up, pid) = reading();

    let (keeper, worker) = (role(&program, "keeper"), role(&program, "worker"));
    signal(Pid::from_child(&up), Signal::STOP);
    end(&[keeper, worker]);
    crash(up);
    // A control that nobody asks to start anything, and a policy that restarts nothing.
    let next = program.until("it runs again", || {
        let next = program.running("web");
        (next != pid).then_some(next)
    });
    assert!(runs(next));
    reads_on(&program);
    assert_eq!(program.service("web").unwrap()["Restarts"], 0);
    let log = fs::read_to_string(program.run_dir().join("control.log")).unwrap();
    assert!(log.contains("the connection that served its lazy layers was lost"), "{log}");
    program.ok(["down"]);
}

#[test]
fn a_control_that_cannot_begin_a_keeper_tries_until_it_can() {
    let (program, up, pid) = reading();

    let keeper = role(&program, "keeper");
    signal(Pid::from_child(&up), Signal::STOP);
    end(&[keeper]);
    crash(up);
    // Nothing can be written where a keeper writes its log.
    let (log, aside) = (program.run_dir().join("lazy/keeper.log"), program.folder().join("aside"));
    fs::rename(&log, &aside).unwrap();
    fs::create_dir(&log).unwrap();
    assert_eq!(program.running("web"), pid, "the next control finds it");
    program.until("it is said", || {
        let events = program.ok(["events", "--since", "1h", "--no-follow", "--json"]);
        events.contains("lazy-unavailable").then_some(())
    });
    fs::remove_dir(&log).unwrap();
    fs::rename(&aside, &log).unwrap();
    // Nobody asks for anything that needs a layer.
    program.until("a keeper begins", || program.role("keeper", ""));
    assert_eq!(program.running("web"), pid, "the same container");
    reads_on(&program);
    program.ok(["down"]);
}

#[test]
fn with_a_descriptor_store_everybody_may_die_at_once() {
    let program = Program::new();
    let image = Readable::pack(&program, 2, 3);
    program.services(&file(&[service("web", READ_ON).image(image.local())]));
    let manager = UnixDatagram::bind(program.folder().join("notify")).unwrap();
    let mut daemon = program.command(["daemon"]);
    daemon.env("NOTIFY_SOCKET", program.folder().join("notify"));
    let mut daemon = daemon.spawn().unwrap();
    program.until("control answers", || program.run_dir().join("api.sock").exists().then_some(()));
    let mut up = program.up();
    let pid = program.running("web");
    reads_on(&program);

    let (name, stored) = stored(&manager);
    let (keeper, worker) = (role(&program, "keeper"), role(&program, "worker"));
    end(&[Pid::from_child(&daemon), keeper, worker]);
    daemon.wait().unwrap();
    let before = program.output("web").len();

    // As a service manager starts the next one.
    rustix::io::fcntl_setfd(&stored, rustix::io::FdFlags::empty()).unwrap();
    let script = format!(
        "exec 3<&{}; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={name} exec \"$0\" daemon",
        stored.as_raw_fd()
    );
    let given = program.command(["daemon"]);
    let mut next = Command::new("bash");
    next.args(["-c", &script]).arg(given.get_program()).current_dir(program.folder());
    next.env("NOTIFY_SOCKET", program.folder().join("notify"));
    next.envs(given.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut next = next.spawn().unwrap();
    drop(stored);
    program.until("it reads on", || (program.output("web").len() > before + 3).then_some(()));
    assert_eq!(program.running("web"), pid, "the same container");
    assert!(runs(pid));
    assert_eq!(program.service("web").unwrap()["Restarts"], 0);

    program.ok(["down"]);
    program.ended(&mut up);
    program.until("the store is told to forget", || {
        let (message, _) = socket::receive(manager.as_fd()).ok()?;
        String::from_utf8_lossy(&message).contains("FDSTOREREMOVE=1").then_some(())
    });
    signal(Pid::from_child(&next), Signal::TERM);
    program.ended(&mut next);
}

/// What the manager was last told to keep, and its name.
fn stored(manager: &UnixDatagram) -> (String, OwnedFd) {
    manager.set_nonblocking(true).unwrap();
    let mut kept = None;
    while let Ok((message, descriptors)) = socket::receive(manager.as_fd()) {
        let text = String::from_utf8(message).unwrap();
        if !text.lines().any(|line| line == "FDSTORE=1") {
            continue;
        }
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap();
        kept = descriptors.into_iter().next().map(|descriptor| (name.to_owned(), descriptor));
    }
    kept.expect("a descriptor was given to be kept")
}

#[test]
fn down_by_force_frees_a_container_that_waits_for_somebody_who_does_not_serve() {
    let program = Program::new();
    let image = Readable::pack(&program, 3, 20);
    let registry = FaultRegistry::start();
    registry.put_layout("app", &image.layout);
    let reference = format!("{}/app:v1", registry.host());
    program.services(&file(&[service("web", READ_ALL).image(reference)]));
    registry.limit_rate(Some(300_000));
    let mut up = program.up();
    let pid = program.running("web");
    program.until("it reads", || (!program.output("web").is_empty()).then_some(()));
    let layer = layer_path(&image.layout);
    registry.fault(&layer, 1_000_000, Fault::Hangup);
    let before = registry.seen(&layer).len();
    program.until("it waits", || (registry.seen(&layer).len() > before).then_some(()));
    let (keeper, worker) = (role(&program, "keeper"), role(&program, "worker"));
    signal(keeper, Signal::STOP);
    signal(worker, Signal::STOP);

    program.ok(["down", "--force"]);
    program.ended(&mut up);
    assert!(!runs(pid) && !runs(keeper) && !runs(worker));
    assert_eq!(program.mounts(), Vec::<String>::new());
}

#[test]
fn slots_of_layers_that_no_container_needs_are_given_up_one_by_one() {
    let program = Program::new();
    let (one, two) = (Readable::pack(&program, 4, 2), Readable::pack(&program, 5, 2));
    let keep = service("keep", READ_ON).image(one.local());
    let go = service("go", IDLE).image(two.local());
    let both = file(&[keep.clone(), go]);
    program.services(&both);
    let up = program.up();
    program.running("keep");
    program.running("go");
    let slots = || fs::read_dir(program.run_dir().join("lazy/layers")).unwrap().count();
    assert_eq!(slots(), 2);
    program.services(&file(&[keep]));
    program.until("one slot is given up", || (slots() == 1).then_some(()));
    // And again needed, as another slot.
    program.services(&both);
    program.running("go");
    program.until("it is mounted again", || (slots() == 2).then_some(()));
    assert_eq!(program.interrupt(up), Some(0));
}
