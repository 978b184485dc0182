//! Start, output, exit codes, stop.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use supervisor::container::{
    ContainerId, MonitorError, MonitorHandle, Mount, MountKind, Network, Outcome, RemoveError,
    Signal, WaitingMonitor, WritableState, exit_record, list, remove,
};
use supervisor::logs::{LogReader, ReadOptions, Stream};
use supervisor::sys::process::{open_pidfd, send_signal};

use super::bundle::*;

#[tokio::test]
async fn a_container_runs_and_its_output_and_exit_code_are_known() {
    let bench = Bench::new();
    let launch = bench.sh("c", "echo out; echo err >&2; exit 7");
    let record = bench.run(&launch).await;
    assert_eq!(record.outcome, exited(7));
    assert_eq!(record.left_behind, Vec::<String>::new());
    assert!(record.started_at.is_some() && !record.oom_killed && !record.stop_requested);
    assert_eq!(stdout(&launch), "out\n");
    assert_eq!(output(&launch, Stream::Stderr), "err\n");
    assert_eq!(exit_record(&launch.run_dir, &launch.id).unwrap(), Some(record));
    assert_eq!(list(&launch.run_dir).unwrap(), std::slice::from_ref(&launch.id));
    bench.assert_tidy();
}

#[tokio::test]
async fn a_signal_that_ends_it_is_told_apart_from_a_code() {
    let bench = Bench::new();
    let record = bench.run(&bench.sh("c", "kill -SEGV $$; kill -9 $$")).await;
    // Its first process is immune to signals from inside without a handler; busybox has none for both.
    assert!(matches!(record.outcome, Outcome::Exited { .. } | Outcome::Signaled { .. }));
    let handle = bench.start(&bench.sh("d", "sleep 1000")).await;
    running(&handle).await;
    handle.signal("KILL".parse().unwrap()).await.unwrap();
    let record = ended(&handle).await;
    assert_eq!(record.outcome, Outcome::Signaled { signal: 9 });
    assert!(!record.stop_requested);
    bench.assert_tidy();
}

#[tokio::test]
async fn what_cannot_be_executed_says_why() {
    let bench = Bench::new();
    let table = [
        (&["no-such-program"][..], 127, "was not found in PATH"),
        (&["/bin/nothing"], 127, "does not exist"),
        (&["/bin/plain"], 126, "is not executable"),
        (&["/etc"], 126, "is not executable"),
    ];
    for (number, (args, code, words)) in table.into_iter().enumerate() {
        let record = bench.run(&bench.launch(&format!("c{number}"), args)).await;
        let Outcome::NotStarted { reason, code: found } = &record.outcome else {
            panic!("{record:?}");
        };
        assert_eq!(*found, code, "{args:?}: {reason}");
        assert!(reason.contains(words), "{args:?}: {reason}");
        assert!(record.left_behind.is_empty() && record.started_at.is_none(), "{record:?}");
    }
    let mut launch = bench.launch("u", &["/bin/true"]);
    launch.process.user = Some("nobody-here".to_owned());
    let record = bench.run(&launch).await;
    let Outcome::NotStarted { reason, code: 125 } = record.outcome else { panic!("{record:?}") };
    assert!(reason.contains("user `nobody-here`"), "{reason}");
    let mut launch = bench.launch("v", &["/bin/true"]);
    launch.mounts.push(Mount {
        target: "/data".into(),
        kind: MountKind::Bind { source: bench.dir.path().join("absent"), create: false },
        read_only: false,
    });
    let record = bench.run(&launch).await;
    let Outcome::NotStarted { reason, .. } = record.outcome else { panic!("{record:?}") };
    assert!(reason.contains("does not exist"), "{reason}");
    let mut launch = bench.launch("w", &["/bin/true"]);
    launch.rootfs.layers.push(bench.dir.path().join("no-layer"));
    let record = bench.run(&launch).await;
    assert!(matches!(record.outcome, Outcome::NotStarted { code: 125, .. }), "{record:?}");
    bench.assert_tidy();
}

#[tokio::test]
async fn a_stop_asks_and_then_kills_everything() {
    let bench = Bench::new();
    let polite =
        bench.sh("polite", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done");
    let handle = bench.start(&polite).await;
    eventually_async(|| stdout(&polite).contains("up")).await;
    handle.stop(None, None).await.unwrap();
    let record = ended(&handle).await;
    assert_eq!(record.outcome, exited(3));
    assert!(record.stop_requested);
    assert_eq!(stdout(&polite), "up\nbye\n");

    let mut deaf =
        bench.sh("deaf", "trap '' TERM; sleep 1000 & echo up; while :; do sleep 1; done");
    // Longer than anything is waited for: what the caller says holds.
    deaf.stop.grace_ms = 1_000_000;
    let handle = bench.start(&deaf).await;
    eventually_async(|| stdout(&deaf).contains("up")).await;
    let begin = Instant::now();
    handle.stop(None, Some(Duration::from_millis(300))).await.unwrap();
    let record = ended(&handle).await;
    assert_eq!(record.outcome, Outcome::Signaled { signal: 9 });
    assert!(begin.elapsed() >= Duration::from_millis(300));

    // A second, impatient stop shortens the first.
    let handle = bench.start(&bench.sh("deaf", "trap '' TERM; while :; do sleep 1; done")).await;
    running(&handle).await;
    handle.stop(None, Some(Duration::from_secs(1000))).await.unwrap();
    handle.stop(None, Some(Duration::ZERO)).await.unwrap();
    ended(&handle).await;
    bench.assert_tidy();
}

#[tokio::test]
async fn another_stop_signal_is_honoured() {
    let bench = Bench::new();
    let mut launch = bench.sh("c", "trap 'exit 5' USR1; echo up; while :; do sleep 0.1; done");
    launch.stop.signal = "SIGUSR1".parse::<Signal>().unwrap();
    let handle = bench.start(&launch).await;
    eventually_async(|| stdout(&launch).contains("up")).await;
    handle.stop(None, None).await.unwrap();
    assert_eq!(ended(&handle).await.outcome, exited(5));
    bench.assert_tidy();
}

#[tokio::test]
async fn a_user_without_privileges_writes_to_dev_stdout() {
    let bench = Bench::new();
    let script = "echo plain; echo again > /dev/stdout; echo bad > /dev/stderr; id -u; id -g; id -G; \
        echo $HOME; pwd; grep Cap /proc/self/status | head -4; grep Seccomp: /proc/self/status";
    let mut launch = bench.sh("c", script);
    launch.process.user = Some("web".to_owned());
    launch.process.cwd = Some("/srv/deep".to_owned());
    let record = bench.run(&launch).await;
    let text = stdout(&launch);
    assert_eq!(record.outcome, exited(0), "{text} {}", output(&launch, Stream::Stderr));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..7], ["plain", "again", "1000", "1001", "1001 44", "/srv", "/srv/deep"]);
    assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
    assert!(text.contains("CapInh:\t0000000000000000"), "{text}");
    assert!(text.contains("Seccomp:\t2"), "{text}");
    assert_eq!(output(&launch, Stream::Stderr), "bad\n");
    bench.assert_tidy();
}

#[tokio::test]
async fn the_surroundings_are_those_that_programs_expect() {
    let bench = Bench::new();
    let script = "cat /etc/hosts /etc/hostname; hostname; env; mount; ls /dev; \
        cat /proc/1/status | grep -E 'CapBnd|NoNewPrivs|SigBlk|SigIgn'; \
        touch /proc/sys/x 2>&1; echo 1 2>&1 > /proc/sysrq-trigger; ls /proc/acpi /sys/firmware; \
        mount -t tmpfs none /tmp 2>&1; chroot / /bin/true && echo chroot-ok; ls /proc/self/fd";
    let mut launch = bench.sh("c", script);
    launch.hostname = Some("box".to_owned());
    launch.process.env = vec!["GREETING=hello there".to_owned()];
    launch.network = Network::None;
    launch.extra_hosts.push(supervisor::container::HostEntry {
        address: "10.1.2.3".to_owned(),
        names: vec!["db".to_owned(), "database".to_owned()],
    });
    bench.run(&launch).await;
    let text = stdout(&launch);
    for line in [
        "127.0.0.1\tlocalhost",
        "10.1.2.3\tdb database",
        "box",
        "GREETING=hello there",
        "HOME=/root",
        "HOSTNAME=box",
        "NoNewPrivs:\t0",
        "SigBlk:\t0000000000000000",
        &format!("CapBnd:\t{}", capabilities()),
        "chroot-ok",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("supervisor on / type overlay"), "{text}");
    assert!(text.contains("on /sys type sysfs (ro"), "{text}");
    assert!(
        text.contains("mount: permission denied") || text.contains("mount: mounting none"),
        "{text}"
    );
    // Only standard streams, and the directory that is being listed.
    assert!(text.ends_with("0\n1\n2\n3\n"), "{text}");
    bench.assert_tidy();
}

#[tokio::test]
async fn a_container_without_network_has_its_own_loopback() {
    let bench = Bench::new();
    let mut launch =
        bench.sh("c", "ip -o link | grep -c . ; ip -o addr show lo | grep -c 127.0.0.1");
    launch.network = Network::None;
    assert_eq!(bench.run(&launch).await.outcome, exited(0));
    assert_eq!(stdout(&launch), "1\n1\n");
    bench.assert_tidy();
}

#[tokio::test]
async fn volumes_are_mounted() {
    let bench = Bench::new();
    let data = bench.dir.path().join("data");
    let made = bench.dir.path().join("made/by/us");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("file"), "from the host\n").unwrap();
    let script = "cat /data/file; echo x > /data/y 2>/dev/null || echo read-only; \
        echo written > /rw/file; echo t > /t/f && cat /t/f; echo r > /etc/r 2>/dev/null || echo root-ro";
    let mut launch = bench.sh("c", script);
    launch.rootfs.read_only = true;
    let bind = |source: &std::path::Path, create| MountKind::Bind { source: source.into(), create };
    for (target, kind, read_only) in [
        ("/data", bind(&data, false), true),
        ("/rw", bind(&made, true), false),
        ("/t", MountKind::Tmpfs { size: Some(1 << 20), mode: None }, false),
    ] {
        launch.mounts.push(Mount { target: target.into(), kind, read_only });
    }
    let record = bench.run(&launch).await;
    assert_eq!(record.outcome, exited(0), "{}", output(&launch, Stream::Stderr));
    assert_eq!(stdout(&launch), "from the host\nread-only\nt\nroot-ro\n");
    assert_eq!(std::fs::read_to_string(made.join("file")).unwrap(), "written\n");
    bench.assert_tidy();
}

#[tokio::test]
async fn the_writable_layer_survives_a_restart_and_not_a_crash() {
    let bench = Bench::new();
    let launch = bench.sh("c", "cat /kept 2>/dev/null; echo line >> /kept");
    for (run, expected) in [(0, ""), (1, "line\n"), (2, "line\nline\n")] {
        let handle = bench.start(&launch).await;
        assert_eq!(ended(&handle).await.outcome, exited(0), "run {run}");
        let writable = handle.seen().status.writable.unwrap();
        let state = if run == 0 { WritableState::Fresh } else { WritableState::Kept };
        assert_eq!(writable, state);
        assert!(stdout(&launch).ends_with(expected));
    }
    // The next run ends with its monitor, as in a power cut.
    std::fs::remove_file(launch.state_dir.join("clean")).unwrap();
    let handle = bench.start(&launch).await;
    ended(&handle).await;
    let writable = handle.seen().status.writable.unwrap();
    assert!(matches!(writable, WritableState::Discarded { .. }), "{writable:?}");
    assert_eq!(stdout(&launch), "line\nline\nline\n");
    bench.assert_tidy();
}

#[tokio::test]
async fn the_old_mount_call_does_too() {
    let bench = Bench::new();
    let mut launch = bench.sh("c", "cat /etc/passwd > /copy && echo ok");
    launch.rootfs.legacy_mount = true;
    assert_eq!(bench.run(&launch).await.outcome, exited(0));
    assert_eq!(stdout(&launch), "ok\n");
    bench.assert_tidy();
}

#[tokio::test]
async fn a_flood_of_output_is_rotated_and_delays_nothing() {
    let bench = Bench::new();
    let mut launch = bench.sh("c", "yes 0123456789012345678901234567890123456789");
    launch.log.max_size = 1_000_000;
    let handle = bench.start(&launch).await;
    running(&handle).await;
    let rotated = launch.log.path.with_file_name("log.json.2");
    eventually_async(|| rotated.exists()).await;
    let (code, text) = exec_in(&launch, command(&["echo", "still here"])).await;
    assert_eq!((code, text.as_str()), (Ok(0), "still here\n"));
    handle.stop(None, Some(Duration::ZERO)).await.unwrap();
    ended(&handle).await;
    let mut reader = LogReader::open(&launch.log.path, ReadOptions::default()).unwrap();
    let mut lines = 0;
    while let Some(entry) = reader.next_entry().unwrap() {
        assert!(entry.is_partial() || entry.text().len() == 40, "{entry:?}");
        lines += 1;
    }
    assert!(lines > 10_000, "{lines}");
    bench.assert_tidy();
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_nothing() {
    let bench = Bench::new();
    let mut launch = bench.sh("c", "seq 1 100000; exit 4");
    launch.log.path = "/dev/full".into();
    assert_eq!(bench.run(&launch).await.outcome, exited(4));
    launch.log.path = "/proc/no/log".into();
    assert_eq!(bench.run(&launch).await.outcome, exited(4));
    bench.assert_tidy();
}

#[tokio::test]
async fn a_start_that_blocks_can_be_stopped() {
    let bench = Bench::new();
    let mut launch = bench.sh("c", "true");
    // A FIFO in the place of the source is found, and mounted; one as a layer cannot be: opening the program blocks
    // only on a real lazy mount, so the child is stopped in its tracks instead.
    launch.start_timeout_secs = 1;
    let source = bench.dir.path().join("slow");
    launch.mounts.push(Mount {
        target: "/slow".into(),
        kind: MountKind::Bind { source, create: true },
        read_only: false,
    });
    let handle = bench.start(&launch).await;
    handle.stop(None, None).await.unwrap();
    let record = ended(&handle).await;
    // Whichever came first; both leave nothing behind.
    assert!(record.left_behind.is_empty(), "{record:?}");
    bench.assert_tidy();
}

#[tokio::test]
async fn one_container_has_one_monitor() {
    let bench = Bench::new();
    let launch = bench.sh("c", "echo up; sleep 1000");
    let handle = bench.start(&launch).await;
    let process = running(&handle).await;
    let second = MonitorHandle::launch(&bench.exe, &launch).await.unwrap_err();
    assert!(matches!(&second, MonitorError::Refused { reason, .. } if reason.contains("living")));
    let other = MonitorHandle::connect(&launch.run_dir, &launch.id).await.unwrap();
    assert_eq!(running(&other).await, process);
    other.stop(None, Some(Duration::ZERO)).await.unwrap();
    assert_eq!(ended(&handle).await, ended(&other).await);
    let nobody: ContainerId = "nobody".parse().unwrap();
    assert!(MonitorHandle::attach(&bench.exe, &launch.run_dir, &nobody).await.is_err());
    bench.assert_tidy();
}

#[tokio::test]
async fn a_monitor_that_waits_can_be_launched_replaced_and_dropped() {
    let bench = Bench::new();
    let launch = bench.sh("c", "echo up");
    let waiting = || WaitingMonitor::start(&bench.exe, &launch.run_dir, &launch.id).unwrap();
    drop(waiting());
    // It has touched nothing.
    bench.assert_tidy();
    let first = waiting();
    let handle = first.launch(&bench.exe, &launch).await.unwrap();
    assert_eq!(ended(&handle).await.outcome, Outcome::Exited { code: 0 });
    // Also the monitor of the run has ended then.
    bench.assert_tidy();

    let second = waiting();
    let mut killed = 0;
    // It is known by its arguments once it has executed its program.
    eventually_async(|| !bench.leftovers().is_empty()).await;
    let lines = bench.leftovers();
    for line in &lines {
        let pid = line.strip_prefix("/proc/").and_then(|line| line.split(':').next());
        let Some(pid) = pid.and_then(|pid| pid.parse().ok()) else { continue };
        let pidfd = open_pidfd(pid).unwrap();
        send_signal(pidfd.as_fd(), 9).unwrap();
        let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, None).unwrap();
        killed += 1;
    }
    assert_eq!(killed, 1, "the one that waits: {lines:?}");
    let handle = second.launch(&bench.exe, &launch).await.unwrap();
    assert_eq!(ended(&handle).await.outcome, Outcome::Exited { code: 0 });
    bench.assert_tidy();
}

#[tokio::test]
async fn a_removed_container_leaves_only_its_log() {
    let bench = Bench::new();
    let launch = bench.sh("c", "echo up; touch /written; sleep 1000");
    let handle = bench.start(&launch).await;
    running(&handle).await;
    let written = launch.state_dir.join("upper/written");
    eventually_async(|| written.exists()).await;
    let refused = remove(&launch.run_dir, &launch.id).unwrap_err();
    assert!(matches!(refused, RemoveError::Alive(_)), "{refused}");
    handle.stop(None, Some(Duration::ZERO)).await.unwrap();
    ended(&handle).await;
    assert!(launch.state_dir.join("upper/written").exists());
    remove(&launch.run_dir, &launch.id).unwrap();
    remove(&launch.run_dir, &launch.id).unwrap();
    assert!(list(&launch.run_dir).unwrap().is_empty());
    let left: Vec<_> =
        std::fs::read_dir(&launch.state_dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["log.json"]);
    bench.assert_tidy();
}

pub(super) async fn eventually_async(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("in time");
}
