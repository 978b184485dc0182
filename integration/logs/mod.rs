//! The output of services: how it is kept, what happens when it cannot be, and how it is read back.

mod pages;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::services::{IDLE, file, service};
use crate::support::program::{Program, signal};

fn log(program: &Program, service: &str, name: &str) -> PathBuf {
    let project =
        fs::read_dir(program.folder().join("state/logs")).unwrap().next().unwrap().unwrap();
    project.path().join(service).join(name)
}

fn entries(program: &Program, service: &str) -> Vec<Value> {
    let text = fs::read_to_string(log(program, service, "log.json")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn output_is_kept_as_docker_keeps_it_and_outlives_the_container() {
    let program = Program::new();
    let script = "trap 'exit 0' TERM; printf 'a\\rb\\r\\n'; printf 'x\\377\\376y\\n' >&2; \
        head -c 40000 /dev/zero | tr '\\0' z; echo; echo ready; printf 'no end'; \
        while :; do sleep 0.1; done";
    let web = service("web", script);
    program.services(&file(std::slice::from_ref(&web)));
    let up = program.up();
    program.wrote("web", "ready");
    let first = entries(&program, "web");
    let texts: Vec<&str> = first.iter().map(|entry| entry["log"].as_str().unwrap()).collect();
    assert!(texts.contains(&"a\rb\r\n") && texts.contains(&"x\u{fffd}\u{fffd}y\n"), "{texts:?}");
    let pieces: Vec<usize> =
        texts.iter().filter(|text| text.starts_with('z')).map(|text| text.len()).collect();
    assert_eq!(pieces, [16_384, 16_384, 40_001 - 2 * 16_384]);
    let keys: Vec<&String> = first[0].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["log", "stream", "time"]);
    let shown = program.ok(["logs", "web"]);
    assert!(shown.lines().any(|line| line.ends_with(&"z".repeat(40_000))), "one line again");

    // Another `logging` is another container, and the same log.
    let logging = "logging: {options: {max-size: 1m, max-file: '2', tag: '{{.Name}}/x'}}";
    program.services(&file(&[web.key(logging)]));
    program.until("the recreated container writes its tag", || {
        let entries = entries(&program, "web");
        let tag = entries.last().and_then(|entry| Some(entry["attrs"]["tag"].as_str()?.to_owned()));
        tag.filter(|tag| tag.ends_with("/x"))
    });
    let all = entries(&program, "web");
    assert_eq!(all[..first.len()], first, "the earlier lines are still there");
    assert!(all.iter().any(|entry| entry["log"] == "no end"), "the end of the first container");
    program.interrupt(up);
}

#[test]
fn logs_are_chosen_by_time_and_shown_as_asked() {
    let program = Program::new();
    let script = "trap 'exit 0' TERM; echo one; sleep 0.3; echo two; sleep 0.3; echo three; \
        while :; do sleep 0.1; done";
    program.services(&file(&[service("web", script), service("longer", IDLE)]));
    let up = program.up();
    program.wrote("web", "three");
    program.wrote("longer", "ready");
    let json = program.ok(["logs", "--format", "json", "web"]);
    let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{json}");
    let (second, third) = (lines[1]["time"].as_str().unwrap(), lines[2]["time"].as_str().unwrap());
    let shown = |arguments: &[&str]| program.ok(["logs"].iter().chain(arguments));
    let bare = ["--no-log-prefix", "web", "--since", second];
    assert_eq!(shown(&bare), "two\nthree\n");
    assert_eq!(shown(&["--no-log-prefix", "web", "--until", third, "-n", "1"]), "two\n");
    assert_eq!(shown(&["--since", "1h", "--no-log-prefix", "-n", "1", "web"]), "three\n");
    assert_eq!(shown(&["--since", "2099-01-01"]), "");
    let timed = shown(&["-t", "-n", "1", "web"]);
    let stamp = timed.strip_prefix("web-1  | ").unwrap().split(' ').next().unwrap();
    assert!(stamp.len() == 30 && stamp.ends_with('Z'), "{timed}");
    // Two services, in the order of their times, beginning in one column.
    let both = program.ok(["logs"]);
    assert!(both.lines().all(|line| line.find('|') == Some(10)), "{both}");
    let past = shown(&["-f", "--until", third, "--no-log-prefix", "web"]);
    assert_eq!(past, "one\ntwo\n", "following until a moment ends");
    let wrong = program.run(["logs", "--since", "yesterday"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("is no moment"), "{wrong:?}");
    program.interrupt(up);
}

#[test]
fn a_reader_that_stops_holds_nobody_and_one_that_goes_ends_quietly() {
    let program = Program::new();
    let flood = "exec yes 0123456789012345678901234567890123456789";
    let logging = "logging: {options: {max-size: 500k, max-file: '2'}}";
    program.services(&file(&[service("flood", flood).key(logging), service("web", IDLE)]));
    // Not attached: `up` would print the flood too.
    let up = program.up();
    program.wrote("web", "ready");
    let mut stopped =
        program.command(["logs", "-f", "flood"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 1];
    stopped.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    signal(Pid::from_child(&stopped), Signal::STOP);
    let inode = || {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(log(&program, "flood", "log.json")).map_or(0, |metadata| metadata.ino())
    };
    for _ in 0..3 {
        let before = inode();
        program.until("the log is rotated", || (inode() != before).then_some(()));
    }
    stopped.kill().unwrap();
    stopped.wait().unwrap();

    let mut gone = program.command(["logs", "-f", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(gone.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.ends_with("| ready\n"), "{line}");
    assert!(program.ended(&mut gone).success(), "without another line");
    program.interrupt(up);
}

#[test]
fn a_full_disk_costs_lines_that_are_counted_and_nothing_else() {
    crate::support::in_mount_namespace(|| {
        let program = Program::new();
        let logs = program.folder().join("state/logs");
        fs::create_dir_all(&logs).unwrap();
        let small = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &logs, "tmpfs", small, Some(c"size=256k")).unwrap();
        // A file outside of the log says how far the service is; a dollar is doubled by the file writer.
        let script = "trap 'exit 0' TERM; n=0; while :; do echo tick $n; n=$((n+1)); echo $n > /n; sleep 0.02; done";
        program.services(&file(&[service("web", script)]));
        let up = program.up();
        program.wrote("web", "tick 3");
        let filler = logs.join("filler");
        let _ = fs::write(&filler, vec![0; 1 << 20]);
        let far = || -> u32 {
            program.ok(["exec", "web", "--", "cat", "/n"]).trim().parse().unwrap_or(0)
        };
        // A page of the log may have been there already.
        let before = far();
        program.until("the service goes on", || (far() > before + 100).then_some(()));
        fs::remove_file(&filler).unwrap();
        let told = program.until("the lost lines are told", || {
            let all = program.ok(["logs", "--no-log-prefix"]);
            all.lines()
                .find(|line| line.starts_with("supervisor: ") && line.contains(" lost: "))
                .map(str::to_owned)
        });
        assert!(told.contains("No space left"), "{told}");
        program.interrupt(up);
        rustix::mount::unmount(&logs, rustix::mount::UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn a_logging_that_is_not_there_is_refused_with_its_place() {
    let program = Program::new();
    let syslog = service("web", IDLE).key("logging: {driver: syslog}");
    program.services(&file(&[syslog]));
    let refused = program.run(["up"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(
        text.contains("services.yaml:5:23: web.logging.driver: logging driver `syslog`"),
        "{text}"
    );
}
