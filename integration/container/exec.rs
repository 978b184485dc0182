//! Programs in running containers.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use supervisor::container::{ExecRequest, ExecStreams, TerminalSize, exec};

use super::bundle::*;

#[tokio::test]
async fn exit_codes_pass_through() {
    let bench = Bench::new();
    let mut launch = bench.sh("c", "sleep 1000");
    launch.process.env = vec!["A=container".to_owned(), "B=container".to_owned()];
    let handle = bench.start(&launch).await;
    running(&handle).await;
    let table = [
        (&["sh", "-c", "exit 42"][..], Ok(42)),
        (&["true"], Ok(0)),
        (&["sh", "-c", "kill -9 $$"], Ok(137)),
        (&["no-such-program"], Err(127)),
        (&["/bin/plain"], Err(126)),
        (&["/etc"], Err(126)),
        (&[], Err(125)),
    ];
    for (args, code) in table {
        let (found, text) = exec_in(&launch, command(args)).await;
        assert_eq!(found, code, "{args:?}: {text}");
    }
    handle.stop(None, Some(Duration::ZERO)).await.unwrap();
    ended(&handle).await;
    let (code, _) = exec_in(&launch, command(&["true"])).await;
    assert_eq!(code, Err(125));
    bench.assert_tidy();
}

#[tokio::test]
async fn control_groups_are_seen_and_limits_cannot_be_changed() {
    let bench = Bench::new();
    let launch = bench.sh("c", "sleep 1000");
    let handle = bench.start(&launch).await;
    running(&handle).await;
    let look = "for file in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do \
        [ -e $file ] && echo seen; (echo 1 > $file) && echo written; done";
    let (_, text) = exec_in(&launch, command(&["sh", "-c", look])).await;
    assert!(text.contains("seen") && !text.contains("written"), "{text}");
    handle.stop(None, Some(Duration::ZERO)).await.unwrap();
    ended(&handle).await;
    bench.assert_tidy();
}

#[tokio::test]
async fn a_joining_program_is_as_restricted_as_the_first() {
    let bench = Bench::new();
    let mut launch = bench.sh("c", "sleep 1000");
    launch.process.env = vec!["A=container".to_owned(), "B=container".to_owned()];
    launch.hostname = Some("box".to_owned());
    let handle = bench.start(&launch).await;
    running(&handle).await;
    let status = "grep -E 'Cap|Seccomp:|NoNew|SigBlk' /proc/self/status";
    let (_, own) = exec_in(
        &launch,
        command(&["sh", "-c", "grep -E 'Cap|Seccomp:|NoNew|SigBlk' /proc/1/status"]),
    )
    .await;
    let (_, joined) = exec_in(&launch, command(&["sh", "-c", status])).await;
    assert_eq!(joined, own);
    assert!(
        own.contains("Seccomp:\t2") && own.contains(&format!("CapEff:\t{}", capabilities())),
        "{own}"
    );
    let request = ExecRequest { user: Some("web".to_owned()), ..command(&["sh", "-c", status]) };
    let (_, web) = exec_in(&launch, request).await;
    assert!(web.contains("CapEff:\t0000000000000000") && web.contains("Seccomp:\t2"), "{web}");
    assert!(web.contains(&format!("CapBnd:\t{}", capabilities())), "{web}");
    let (_, refused) = exec_in(&launch, command(&["unshare", "-m", "true"])).await;
    assert!(refused.contains("not permitted"), "{refused}");
    let request = ExecRequest {
        env: vec!["B=exec".to_owned()],
        user: Some("1000:44".to_owned()),
        cwd: Some("/tmp".to_owned()),
        ..command(&[
            "sh",
            "-c",
            "id -u; id -g; echo $A $B $HOME; pwd; hostname; echo $$ > pid && cat pid",
        ])
    };
    let (code, text) = exec_in(&launch, request).await;
    assert!(text.starts_with("1000\n44\ncontainer exec /srv\n/tmp\nbox\n"), "{text}");
    assert_eq!(code, Ok(0));
    // It is in the container's groups: nothing of it outlives the container.
    let request = command(&["sh", "-c", "setsid sleep 999 >/dev/null 2>&1 & echo started"]);
    assert_eq!(exec_in(&launch, request).await.1, "started\n");
    handle.stop(None, Some(Duration::ZERO)).await.unwrap();
    ended(&handle).await;
    bench.assert_tidy();
}

#[tokio::test]
async fn input_reaches_the_program_and_time_ends_it() {
    let bench = Bench::new();
    let launch = bench.sh("c", "sleep 1000");
    let handle = bench.start(&launch).await;
    running(&handle).await;
    let (run_dir, id) = (launch.run_dir.clone(), launch.id.clone());
    let (code, text) = tokio::task::spawn_blocking(move || {
        let (input, mut typed) = std::io::pipe().unwrap();
        let (mut read, output) = std::io::pipe().unwrap();
        typed.write_all(b"some input\n").unwrap();
        drop(typed);
        let streams =
            ExecStreams { stdin: input.as_fd(), stdout: output.as_fd(), stderr: output.as_fd() };
        let code = exec::run(&run_dir, &id, &command(&["cat"]), streams).unwrap();
        drop(output);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        (code, text)
    })
    .await
    .unwrap();
    assert_eq!((code, text.as_str()), (0, "some input\n"));
    let request = ExecRequest { timeout_ms: Some(200), ..command(&["sleep", "1000"]) };
    assert_eq!(exec_in(&launch, request).await.0, Ok(137));
    handle.stop(None, Some(Duration::ZERO)).await.unwrap();
    ended(&handle).await;
    bench.assert_tidy();
}

#[tokio::test]
async fn a_program_can_have_a_terminal() {
    let bench = Bench::new();
    let launch = bench.sh("c", "sleep 1000");
    let handle = bench.start(&launch).await;
    running(&handle).await;
    let (run_dir, id) = (launch.run_dir.clone(), launch.id.clone());
    let (code, text) = tokio::task::spawn_blocking(move || {
        // The caller's own terminal, with a person at its master.
        let person =
            rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY)
                .unwrap();
        rustix::pty::grantpt(&person).unwrap();
        rustix::pty::unlockpt(&person).unwrap();
        let name = rustix::pty::ptsname(&person, Vec::new()).unwrap();
        let terminal =
            std::fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let size = rustix::termios::Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&terminal, size).unwrap();
        let before = rustix::termios::tcgetattr(&terminal).unwrap();
        let mut person = std::fs::File::from(person);
        person.write_all(b"tty; stty size; echo typed-$((40+2)); exit 9\n").unwrap();
        let request = ExecRequest { terminal: TerminalSize::of(&terminal), ..command(&["sh"]) };
        let streams = ExecStreams {
            stdin: terminal.as_fd(),
            stdout: terminal.as_fd(),
            stderr: terminal.as_fd(),
        };
        let code = exec::run(&run_dir, &id, &request, streams).unwrap();
        let after = rustix::termios::tcgetattr(&terminal).unwrap();
        assert_eq!(before.local_modes, after.local_modes);
        rustix::io::ioctl_fionbio(&person, true).unwrap();
        let mut text = Vec::new();
        // Ends with an error once there is nothing more.
        let _ = person.read_to_end(&mut text);
        (code, String::from_utf8_lossy(&text).into_owned())
    })
    .await
    .unwrap();
    assert_eq!(code, 9, "{text}");
    assert!(text.contains("/dev/pts/0"), "{text}");
    assert!(text.contains("33 77"), "{text}");
    assert!(text.contains("typed-42"), "{text}");
    handle.stop(None, Some(Duration::ZERO)).await.unwrap();
    ended(&handle).await;
    bench.assert_tidy();
}
