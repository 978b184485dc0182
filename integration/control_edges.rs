//! Deaths and departures at awkward moments: what was under way goes on, or is begun again.

use std::fs;

use rustix::process::{Pid, Signal};

use crate::support::program::{Program, signal};

/// A program that does not mind being asked to end.
const DEAF: &str = "trap '' TERM; echo ready; while :; do sleep 0.1; done";

fn deaf(program: &Program, grace: &str) {
    let layout = concat!(env!("CARGO_MANIFEST_DIR"), "/rootfs-fixtures/golden/small-esgz");
    program.services(&format!(
        "name: edges\nservices:\n  deaf:\n    image: oci:{layout}\n    \
         command: [\"sh\", \"-c\", \"{DEAF}\"]\n    stop_grace_period: {grace}\n    network_mode: host\n"
    ));
}

/// A dead one whose monitor died too waits for the host's init, which need not be quick; it has no program any more.
fn lives(pid: Pid) -> bool {
    fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).is_ok()
}

#[test]
fn a_monitor_that_dies_while_it_stops_its_container_is_replaced() {
    let program = Program::new();
    deaf(&program, "2s");
    let mut up = program.up();
    let pid = program.running("deaf");
    program.wrote("deaf", "ready");
    signal(Pid::from_child(&up), Signal::INT);
    program.state("deaf", "stopping");
    signal(program.role("monitor", "deaf").unwrap(), Signal::KILL);
    program.ended(&mut up);
    assert!(!lives(pid), "{}", program.log());
    program.ok(["down"]);
}

#[test]
fn a_terminal_that_is_closed_while_services_stop_does_not_hurry_them() {
    let program = Program::new();
    deaf(&program, "4s");
    let mut up = program.up();
    let pid = program.running("deaf");
    program.wrote("deaf", "ready");
    signal(Pid::from_child(&up), Signal::INT);
    program.state("deaf", "stopping");
    signal(Pid::from_child(&up), Signal::HUP);
    program.ended(&mut up);
    assert!(lives(pid), "it was killed: {}", program.log());
    program.state("deaf", "exited");
    program.ok(["down"]);
}

#[test]
fn output_that_cannot_be_written_ends_nothing() {
    let program = Program::new();
    deaf(&program, "1s");
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let mut up = program.command(["up"]).stdout(full()).stderr(full()).spawn().unwrap();
    let pid = program.running("deaf");
    signal(Pid::from_child(&up), Signal::INT);
    program.ended(&mut up);
    assert!(!lives(pid), "up has stopped what it started");
    assert!(program.command(["ps"]).stdout(full()).status().unwrap().code() != Some(101));
    program.ok(["down"]);
}

#[test]
fn what_is_left_of_a_project_whose_record_is_lost_can_be_taken_down() {
    let program = Program::new();
    deaf(&program, "1s");
    let mut up = program.up();
    let pid = program.running("deaf");
    signal(Pid::from_child(&up), Signal::KILL);
    program.ended(&mut up);
    fs::remove_dir_all(program.folder().join("state/services/edges")).unwrap();
    program.ok(["down"]);
    assert!(!lives(pid));
}
