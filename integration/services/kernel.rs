//! What a services file gives of the host's kernel, and how its programs begin there.

use super::{IDLE, file, service};
use crate::support::program::Program;

/// A line of `/proc/PID/status`.
fn status(pid: impl std::fmt::Display, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    line.unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[test]
fn devices_settings_and_groups_are_those_of_the_file() {
    let program = Program::new();
    let given = service("web", IDLE)
        .key("network_mode: none")
        .key("devices: [/dev/null:/dev/nothing, {source: /dev/zero, target: /dev/only/read, permissions: r}]")
        .key("sysctls: {net.core.somaxconn: 77, kernel.shmmni: 99}")
        .key("domainname: nis.example")
        .key("group_add: [4711, '4712']");
    program.services(&file(&[given, service("plain", IDLE)]));
    let up = program.up();
    let pid = program.running("web");
    let shown = |script: &str| program.ok(["exec", "web", "--", "sh", "-c", script]);
    let settings = shown("cd /proc/sys; cat net/core/somaxconn kernel/shmmni kernel/domainname");
    assert_eq!(settings, "77\n99\nnis.example\n");
    assert_eq!(shown("echo lost > /dev/nothing && echo written"), "written\n");
    let zeros = shown("dd if=/dev/only/read bs=7 count=1 2>/dev/null | wc -c");
    assert_eq!(zeros.trim(), "7");
    let groups = status(pid, "Groups");
    assert!(groups.contains("4711") && groups.contains("4712"), "{groups}");
    // Others have nothing of it.
    let plain = program.running("plain");
    assert!(!status(plain, "Groups").contains("4711"));
    program.ok(["exec", "plain", "--", "sh", "-c", "test ! -e /dev/nothing"]);
    program.interrupt(up);
}

#[test]
fn a_device_that_is_not_there_is_told() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE).key("devices: [/dev/surely-none]")]));
    let up = program.up();
    program.until("the start fails", || {
        program.log().contains("could not find the device `/dev/surely-none`").then_some(())
    });
    program.interrupt(up);
}

#[test]
fn what_is_privileged_has_what_root_of_the_host_has() {
    let program = Program::new();
    let privileged = service("web", IDLE).key("privileged: true");
    program.services(&file(&[privileged, service("plain", IDLE)]));
    let up = program.up();
    let pid = program.running("web");
    let own = std::process::id();
    assert_eq!(status(pid, "CapEff"), status(own, "CapPrm"));
    assert_eq!(status(pid, "Seccomp"), "0");
    let shown = |script: &str| program.ok(["exec", "web", "--", "sh", "-c", script]);
    let written = shown(
        "v=$(cat /proc/sys/kernel/shmmni); echo $v > /proc/sys/kernel/shmmni && echo written",
    );
    assert_eq!(written, "written\n");
    assert_eq!(shown("test -c /dev/fuse && echo there"), "there\n");
    let refused = program.run([
        "exec",
        "plain",
        "--",
        "sh",
        "-c",
        "test -e /dev/fuse || echo 1 > /proc/sys/kernel/shmmni",
    ]);
    assert!(!refused.status.success());
    program.interrupt(up);
}

#[test]
fn an_init_passes_signals_on_and_takes_in_what_is_left_behind() {
    let program = Program::new();
    // The child of a child that ends is nobody's; the program itself waits for none.
    let script = "trap 'echo asked; exit 7' TERM; (sh -c 'exit 0' & echo $! >/orphan) & \
                  echo ready; while :; do sleep 0.1; done";
    let with = service("web", script).key("init: true").key("restart: 'no'");
    let missing = service("none", IDLE).key("init: true").key("entrypoint: [/no/such/program]");
    program.services(&file(&[with, missing]));
    let up = program.up();
    let pid = program.running("web");
    let shown = |script: &str| program.ok(["exec", "web", "--", "sh", "-c", script]);
    // The program is not the first process, and the orphan is nowhere.
    assert_eq!(shown("cat /proc/1/status | grep -c '^PPid:.0'").trim(), "1");
    program.until("the orphan was taken in", || {
        let found =
            shown("test -s /orphan && { test -e /proc/$(cat /orphan) && echo here || echo gone; }");
        (found.trim() == "gone").then_some(())
    });
    let held = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(held <= 5, "streams, signals and the program: {held}");
    program.until("a program that is not there is told", || {
        program.log().contains("`/no/such/program` does not exist").then_some(())
    });
    program.ok(["stop", "web"]);
    let seen = program.ok(["ps", "--format", "json"]);
    assert!(seen.contains("\"ExitCode\":7") || seen.contains("(7)"), "{seen}");
    program.interrupt(up);
}

#[test]
fn an_input_stays_open_where_that_is_asked_for() {
    let program = Program::new();
    let reader = |name: &str| {
        service(name, "cat; echo the input ended; sleep 1000").key("stop_grace_period: 0s")
    };
    program.services(&file(&[reader("open").key("stdin_open: true"), reader("plain")]));
    let up = program.up();
    let logs = |name: &str| program.ok(["logs", "--no-log-prefix", name]);
    program.until("the other one's ended", || logs("plain").contains("ended").then_some(()));
    program.running("open");
    assert_eq!(logs("open"), "");
    program.interrupt(up);
}
