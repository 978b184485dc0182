//! The daemon under a service manager that is played by the test: what it says, when it says nothing more, and what
//! installing leaves on the host.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::support::program::{Program, signal};

/// How long anything may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(20);
/// The watchdog of these tests; the daemon beats twice as often.
const WATCHDOG: Duration = Duration::from_secs(1);

/// The service manager's end.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(program: &Program) -> Self {
        let path = program.folder().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path }
    }

    fn start(&self, program: &Program, state: Option<&Path>) -> Child {
        let log = fs::File::create(program.folder().join("daemon.log")).unwrap();
        let mut command = program.command(["daemon"]);
        if let Some(state) = state {
            command.env("SUPERVISOR_STATE_DIR", state);
        }
        command
            .env("NOTIFY_SOCKET", &self.path)
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("the service manager hears nothing");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    /// Waits for a message that begins so, and gives it.
    fn hears(&self, beginning: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let message = self.next();
            if message.starts_with(beginning) {
                return message;
            }
            assert!(Instant::now() < end, "`{beginning}` does not come, but `{message}` does");
        }
    }

    /// Whether so long nothing comes.
    fn is_silent(&self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let silent = self.socket.recv(&mut [0; 4096]).is_err();
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        silent
    }
}

fn services(program: &Program) {
    let layout = concat!(env!("CARGO_MANIFEST_DIR"), "/rootfs-fixtures/golden/small-esgz");
    program.services(&format!(
        "name: managed\nservices:\n  web:\n    image: oci:{layout}\n    \
         command: [\"sh\", \"-c\", \"while :; do sleep 0.2; done\"]\n    stop_grace_period: 0s\n    network_mode: host\n"
    ));
}

fn end(program: &Program, mut daemon: Child) {
    signal(Pid::from_child(&daemon), Signal::TERM);
    assert!(program.ended(&mut daemon).success());
}

#[test]
fn the_service_manager_hears_how_the_daemon_is() {
    let program = Program::new();
    services(&program);
    let manager = Manager::new(&program);
    let daemon = manager.start(&program, None);
    manager.hears("READY=1");
    // Whoever was told so can call at once.
    assert!(program.run_dir().join("api.sock").exists());
    program.ok(["ps"]);
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");
    let mut up = program.up();
    let pid = program.running("web");
    signal(Pid::from_child(&up), Signal::HUP);
    program.ended(&mut up);
    manager.hears("STATUS=1 service runs");
    signal(Pid::from_child(&daemon), Signal::HUP);
    assert!(manager.hears("RELOADING=1").contains("\nMONOTONIC_USEC="));
    manager.hears("READY=1");

    // Nothing of ours is where the service manager would end it with the unit, where the host lets us choose.
    let groups =
        |pid: Pid| fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).unwrap();
    let own = format!(":/supervisor-{}", supervisor::supervise::instance_of(&program.run_dir()));
    for (role, service) in [("keeper", ""), ("worker", ""), ("monitor", "web")] {
        let pid = program.role(role, service).expect("the image is lazy, so every role runs");
        let text = groups(pid);
        let outside = text.lines().filter(|line| !line.contains(&own));
        assert_eq!(outside.collect::<Vec<_>>(), Vec::<&str>::new(), "{role}");
    }
    assert!(groups(pid).lines().any(|line| line.contains(&own)));

    end(&program, daemon);
    manager.hears("STOPPING=1");
    // It ended and the service did not.
    assert_eq!(program.running("web"), pid);
    program.ok(["down"]);
}

#[test]
fn a_daemon_takes_over_from_a_control_that_was_started_for_a_command() {
    let program = Program::new();
    services(&program);
    let mut up = program.up();
    let pid = program.running("web");
    signal(Pid::from_child(&up), Signal::HUP);
    program.ended(&mut up);
    program.until("control goes on in the background", || program.background_control());
    let manager = Manager::new(&program);
    let daemon = manager.start(&program, None);
    manager.hears("READY=1");
    // If it was the first, the other one waits for a moment before it gives up.
    let ours = Some(Pid::from_child(&daemon));
    program.until("it is the only one", || (program.background_control() == ours).then_some(()));
    assert_eq!(program.running("web"), pid);
    program.ok(["down"]);
    end(&program, daemon);
}

/// A file system that can be frozen: whoever writes to it hangs.
struct Freezer {
    folder: PathBuf,
}

impl Freezer {
    fn new(program: &Program) -> Self {
        let (image, folder) = (program.folder().join("disk"), program.folder().join("frozen"));
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        fs::create_dir(&folder).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&folder));
        Self { folder }
    }

    fn freeze(&self, what: &str) {
        run(Command::new("fsfreeze").arg(what).arg(&self.folder));
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        for (program, option) in [("fsfreeze", "--unfreeze"), ("umount", "--lazy")] {
            let _ =
                Command::new(program).arg(option).arg(&self.folder).stderr(Stdio::null()).status();
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_daemon_whose_loop_hangs_stops_its_beats() {
    let program = Program::new();
    services(&program);
    let freezer = Freezer::new(&program);
    let state = freezer.folder.join("state");
    let manager = Manager::new(&program);
    let daemon = manager.start(&program, Some(&state));
    manager.hears("WATCHDOG=1");
    freezer.freeze("--freeze");
    // The loop writes the project's record before anything else, and its disk does not answer.
    let mut up = program
        .command(["up"])
        .env("SUPERVISOR_STATE_DIR", &state)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let end_of_patience = Instant::now() + PATIENCE;
    while !manager.is_silent(WATCHDOG * 2) {
        assert!(Instant::now() < end_of_patience, "it beats although its loop hangs");
    }
    freezer.freeze("--unfreeze");
    manager.hears("WATCHDOG=1");
    signal(Pid::from_child(&up), Signal::INT);
    program.ended(&mut up);
    let mut down = program.command(["down"]);
    run(down.env("SUPERVISOR_STATE_DIR", &state));
    end(&program, daemon);
}

/// Everything below a folder: mode, size and content.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            let content = if kind.is_symlink() {
                fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
            } else if kind.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else {
                supervisor::image::Digest::of(&fs::read(&path).unwrap()).to_string().into_bytes()
            };
            found.insert(path, content);
        }
    }
    found
}

#[test]
fn an_installation_comes_and_goes_and_its_units_are_valid() {
    let program = Program::new();
    let root = program.folder().join("root");
    fs::create_dir_all(root.join("usr/lib/systemd")).unwrap();
    fs::write(root.join("usr/lib/systemd/systemd"), "").unwrap();
    let before = tree(&root);
    let root_argument = root.to_str().unwrap().to_owned();
    let install = ["install", "--root", &root_argument];
    let said = program.ok(install);
    assert!(said.contains("placed ") && said.contains("usr/local/bin/supervisor"), "{said}");
    let installed = tree(&root);
    assert!(installed.contains_key(&root.join("etc/systemd/system/supervisor.service")));
    assert!(installed.contains_key(&root.join("usr/local/share/man/man1/supervisor.1")));
    let again = program.ok(install);
    assert!(again.lines().all(|line| line.starts_with("unchanged ")), "{again}");
    assert_eq!(tree(&root), installed);

    verify(&program, &root);
    program.ok(["uninstall", "--root", &root_argument]);
    assert_eq!(tree(&root), before);
    let twice = program.run(["uninstall", "--root", &root_argument]);
    assert_eq!(twice.status.code(), Some(1));
}

/// Has systemd read the units; it finds their programs on this host, so they name the one under test.
fn verify(program: &Program, root: &Path) {
    let folder = program.folder().join("units");
    fs::create_dir(&folder).unwrap();
    let installed = root.join("etc/systemd/system");
    let names = ["supervisor.service", "supervisor-shutdown.service"];
    for name in names {
        let text = fs::read_to_string(installed.join(name)).unwrap();
        let text = text.replace("/usr/local/bin/supervisor", env!("CARGO_BIN_EXE_supervisor"));
        fs::write(folder.join(name), text).unwrap();
    }
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(names.map(|name| folder.join(name)))
        .output()
        .expect("systemd-analyze (Debian package `systemd`) reads the units");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn uninstalling_now_leaves_nothing_of_what_ran() {
    let program = Program::new();
    services(&program);
    let prefix = program.folder().join("prefix");
    let prefix = ["--prefix", prefix.to_str().unwrap()];
    let mut up = program.up();
    program.running("web");
    signal(Pid::from_child(&up), Signal::HUP);
    program.ended(&mut up);
    program.ok(["install", "--systemd", "never", prefix[0], prefix[1]]);
    let refused = program.run(["uninstall", "--purge", prefix[0], prefix[1]]);
    assert_eq!(refused.status.code(), Some(1));
    program.running("web");
    program.ok(["uninstall", "--now", "--purge", prefix[0], prefix[1]]);
    // One that has ended waits for the host's init, which need not be quick.
    program.until("nothing is left", || program.traces().is_empty().then_some(()));
    for path in ["state", "run", "prefix/bin", "prefix/lib"] {
        assert!(!program.folder().join(path).exists(), "`{path}` is left");
    }
}
