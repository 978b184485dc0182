//! The death of a monitor.

use std::time::Duration;

use supervisor::container::{Link, MonitorHandle, Outcome, Phase, WritableState};
use supervisor::sys::process::{open_pidfd, send_signal};

use super::bundle::*;
use super::lifecycle::eventually_async;

async fn kill_monitor(handle: &MonitorHandle) {
    use std::os::fd::AsFd as _;
    let pid = handle.seen().status.monitor.pid;
    send_signal(open_pidfd(pid).unwrap().as_fd(), 9).unwrap();
    let mut handle = handle.clone();
    while handle.changed().await.link == Link::Alive {}
}

#[tokio::test]
async fn a_container_does_not_notice_the_death_of_its_monitor() {
    let bench = Bench::new();
    let script = "trap 'exit 11' TERM; i=0; while :; do i=$((i+1)); echo line $i || exit 99; \
        cat /etc/passwd >/dev/null || exit 98; sleep 0.01; done";
    let launch = bench.sh("c", script);
    let handle = bench.start(&launch).await;
    let process = running(&handle).await;
    eventually_async(|| stdout(&launch).contains("line 3\n")).await;
    for _ in 0..3 {
        let handle = MonitorHandle::attach(&bench.exe, &launch.run_dir, &launch.id).await.unwrap();
        assert_eq!(running(&handle).await, process);
        kill_monitor(&handle).await;
        assert!(process.open().is_some(), "the container runs without a monitor");
    }
    assert!(MonitorHandle::connect(&launch.run_dir, &launch.id).await.is_err());
    let again = MonitorHandle::launch(&bench.exe, &launch).await.unwrap_err();
    assert!(again.to_string().contains("still runs"), "{again}");
    let handle = MonitorHandle::attach(&bench.exe, &launch.run_dir, &launch.id).await.unwrap();
    assert_eq!(running(&handle).await, process);
    let seen = stdout(&launch).lines().count();
    eventually_async(|| stdout(&launch).lines().count() > seen + 20).await;
    let (code, text) = exec_in(&launch, command(&["echo", "adopted"])).await;
    assert_eq!((code, text.as_str()), (Ok(0), "adopted\n"));
    handle.stop(None, None).await.unwrap();
    let record = ended(&handle).await;
    assert_eq!(record.outcome, exited(11));
    assert!(record.left_behind.is_empty(), "{record:?}");
    // No line was lost or said twice.
    let lines: Vec<String> = stdout(&launch).lines().map(str::to_owned).collect();
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("line {}", number + 1));
    }
    // The clean end after an adoption keeps the writable layer.
    let handle = bench.start(&launch).await;
    running(&handle).await;
    assert_eq!(handle.seen().status.writable, Some(WritableState::Kept));
    handle.stop(None, Some(Duration::ZERO)).await.unwrap();
    ended(&handle).await;
    bench.assert_tidy();
}

#[tokio::test]
async fn a_full_pipe_waits_for_the_next_monitor() {
    let bench = Bench::new();
    let mut launch = bench.sh("c", "sleep 0.3; seq 1 400000; exit 6");
    launch.log.max_size = 1_000_000_000;
    let handle = bench.start(&launch).await;
    running(&handle).await;
    kill_monitor(&handle).await;
    // Longer than the program needs to fill the pipe.
    tokio::time::sleep(Duration::from_millis(800)).await;
    let handle = MonitorHandle::attach(&bench.exe, &launch.run_dir, &launch.id).await.unwrap();
    assert_eq!(ended(&handle).await.outcome, exited(6));
    assert_eq!(stdout(&launch).lines().count(), 400_000);
    bench.assert_tidy();
}

#[tokio::test]
async fn an_end_that_nobody_saw_is_cleaned_up() {
    let bench = Bench::new();
    let launch = bench.sh("c", "echo last words; sleep 0.5; exit 3");
    let handle = bench.start(&launch).await;
    let process = running(&handle).await;
    // What is still in the pipe when both have died is lost with the pipe.
    eventually_async(|| stdout(&launch).contains("last words")).await;
    kill_monitor(&handle).await;
    eventually_async(|| process.open().is_none()).await;
    let handle = MonitorHandle::attach(&bench.exe, &launch.run_dir, &launch.id).await.unwrap();
    let record = ended(&handle).await;
    assert!(matches!(record.outcome, Outcome::Unknown | Outcome::Exited { code: 3 }), "{record:?}");
    assert!(stdout(&launch).contains("last words"));
    // Asking again only tells.
    let handle = MonitorHandle::attach(&bench.exe, &launch.run_dir, &launch.id).await.unwrap();
    assert_eq!(handle.seen().status.phase, Phase::Ended(record));
    bench.assert_tidy();
}

#[tokio::test]
async fn a_monitor_can_die_at_any_moment_of_a_start() {
    let bench = Bench::new();
    for delay in 0..12 {
        let launch = bench.sh("c", "echo up; sleep 1000");
        let handle = bench.start(&launch).await;
        tokio::time::sleep(Duration::from_millis(delay * 2)).await;
        kill_monitor(&handle).await;
        let handle = MonitorHandle::attach(&bench.exe, &launch.run_dir, &launch.id).await.unwrap();
        match handle.seen().status.phase {
            Phase::Running { .. } => {
                handle.stop(None, Some(Duration::ZERO)).await.unwrap();
                ended(&handle).await;
            }
            _ => {
                let record = ended(&handle).await;
                assert!(matches!(record.outcome, Outcome::NotStarted { .. }), "{record:?}");
                assert!(record.left_behind.is_empty(), "{record:?}");
            }
        }
        bench.assert_tidy();
    }
}
