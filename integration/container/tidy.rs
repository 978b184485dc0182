//! The host's mounts, and what a monitor costs.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::bundle::*;

#[tokio::test]
async fn a_monitor_is_small() {
    let bench = Bench::new();
    let launch = bench.sh("c", "sleep 1000");
    for _ in 0..5 {
        let handle = bench.start(&launch).await;
        running(&handle).await;
        let pid = handle.seen().status.monitor.pid;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let kib = |key: &str| -> u64 {
            let line = rollup.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        println!("anonymous {} KiB, proportional {} KiB", kib("Anonymous:"), kib("Pss:"));
        assert!(kib("Anonymous:") < 4096, "{rollup}");
        handle.stop(None, Some(Duration::ZERO)).await.unwrap();
        ended(&handle).await;
    }
    bench.assert_tidy();
}

/// Some of the other tests of this folder again, in a mount namespace that `prepare` has changed.
fn again(propagation: &str, prepare: &str, tests: &[&str]) {
    let test = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["-m", "--propagation", propagation, "sh", "-c"])
        .arg(format!("{prepare} && exec \"$0\" \"$@\""))
        .arg(test)
        .args(tests)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let passed = format!("{} passed", tests.len());
    assert!(output.status.success() && text.contains(&passed), "{text}");
}

const TESTS: [&str; 6] = [
    "container::lifecycle::volumes",
    "container::lifecycle::the_writable",
    "container::lifecycle::the_surroundings",
    "container::survival::a_container",
    "container::exec::exit_codes",
    "container::exec::a_joining",
];

#[test]
fn everything_holds_where_mounts_are_shared() {
    again("shared", "true", &TESTS);
}

#[test]
fn everything_holds_with_version_2_of_control_groups_alone() {
    again("private", "mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup", &TESTS);
}

#[tokio::test]
async fn a_mount_of_the_host_is_not_kept_busy() {
    let bench = Bench::new();
    let point = bench.dir.path().join("foreign");
    fs::create_dir(&point).unwrap();
    let status = Command::new("mount").args(["-t", "tmpfs", "foreign"]).arg(&point).status();
    assert!(status.unwrap().success());
    let launch = bench.sh("c", "sleep 1000");
    let handle = bench.start(&launch).await;
    running(&handle).await;
    let pid = handle.seen().status.monitor.pid;
    eventually("it is gone", || {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        (!mounts.contains("/foreign")).then_some(())
    });
    assert!(Command::new("umount").arg(&point).status().unwrap().success());
    handle.stop(None, Some(Duration::ZERO)).await.unwrap();
    ended(&handle).await;
    bench.assert_tidy();
}
