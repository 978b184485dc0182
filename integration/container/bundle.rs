//! Directories, launches and patience for the tests of this folder.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use supervisor::container::{
    ContainerId, ExecRequest, ExecStreams, ExitRecord, Launch, Link, MonitorHandle, Outcome, Phase,
    Process, Rootfs, Writable, exec,
};
use supervisor::logs::{LogReader, ReadOptions, Stream};
use supervisor::sys::process::{ProcessIdentity, SealedExe};

/// How long a test waits for what should take milliseconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// One instance: its own run and state directory, a layer, and no trace of it afterwards.
pub(super) struct Bench {
    pub(super) dir: tempfile::TempDir,
    pub(super) exe: SealedExe,
    pub(super) instance: String,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Bench {
    pub(super) fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "run as root: sudo scripts/test");
        let dir = tempfile::tempdir().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let instance = format!("t{:x}x{number}", std::process::id());
        let bench = Self { exe: program(), dir, instance };
        bench.make_layer();
        bench
    }

    pub(super) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(super) fn layer(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    fn make_layer(&self) {
        let layer = self.layer();
        for dir in ["bin", "etc", "tmp", "root"] {
            fs::create_dir_all(layer.join(dir)).unwrap();
        }
        fs::copy("/bin/busybox", layer.join("bin/busybox")).expect("Debian's busybox-static");
        for name in [
            "sh", "cat", "echo", "sleep", "id", "env", "true", "false", "ls", "head", "dd", "kill",
            "hostname", "pwd", "touch", "mount", "grep", "chroot", "stty", "yes", "seq", "tty",
            "unshare", "setsid", "ip", "wget", "date",
        ] {
            symlink("busybox", layer.join("bin").join(name)).unwrap();
        }
        fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/srv:\n")
            .unwrap();
        fs::write(layer.join("etc/group"), "root:x:0:\nweb:x:1001:\nlog:x:44:web\n").unwrap();
        fs::write(layer.join("bin/plain"), "no program\n").unwrap();
        fs::set_permissions(layer.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    }

    /// A launch of `args`.
    pub(super) fn launch(&self, id: &str, args: &[&str]) -> Launch {
        let id: ContainerId = id.parse().unwrap();
        let process = Process {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: Vec::new(),
            cwd: None,
            user: None,
            groups: Vec::new(),
            no_new_privileges: false,
            first: Default::default(),
            input: Default::default(),
        };
        let rootfs = Rootfs {
            layers: vec![self.layer()],
            writable: Writable::Volatile,
            read_only: false,
            legacy_mount: false,
        };
        let state = self.dir.path().join("state/containers").join(id.as_str());
        Launch::new(id, &self.instance, self.run_dir(), state, rootfs, process)
    }

    pub(super) fn sh(&self, id: &str, script: &str) -> Launch {
        self.launch(id, &["/bin/sh", "-c", script])
    }

    pub(super) async fn start(&self, launch: &Launch) -> MonitorHandle {
        MonitorHandle::launch(&self.exe, launch).await.unwrap()
    }

    /// Runs to the end.
    pub(super) async fn run(&self, launch: &Launch) -> ExitRecord {
        let handle = self.start(launch).await;
        ended(&handle).await
    }

    /// Nothing of this instance is left on the host.
    pub(super) fn assert_tidy(&self) {
        let until = Instant::now() + PATIENCE / 3;
        loop {
            let left = self.leftovers();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "left behind: {left:#?}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    pub(super) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = self.dir.path().to_str().unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(here)).map(str::to_owned));
        for hierarchy in supervisor::sys::cgroup::hierarchies().unwrap() {
            let group = hierarchy.mount_point.join(format!("supervisor-{}", self.instance));
            if group.exists() {
                left.push(group.display().to_string());
            }
        }
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(line) = fs::read_to_string(process.path().join("cmdline")) else { continue };
            if line.contains(here) {
                left.push(format!("{}: {line}", process.path().display()));
            }
        }
        let sockets = fs::read_dir(self.run_dir().join("monitor")).into_iter().flatten().flatten();
        left.extend(
            sockets
                .map(|entry| entry.file_name().into_string().unwrap())
                .filter(|name| name.ends_with(".sock")),
        );
        left
    }
}

/// The program under test, sealed.
fn program() -> SealedExe {
    SealedExe::of_file(Path::new(env!("CARGO_BIN_EXE_supervisor"))).unwrap()
}

pub(super) async fn ended(handle: &MonitorHandle) -> ExitRecord {
    tokio::time::timeout(PATIENCE, handle.ended()).await.expect("it ends").expect("a record")
}

/// Waits until the program runs and returns its first process.
pub(super) async fn running(handle: &MonitorHandle) -> ProcessIdentity {
    let mut handle = handle.clone();
    let wait = async {
        loop {
            let seen = handle.changed().await;
            match seen.status.phase {
                Phase::Running { process, .. } => return process,
                Phase::Ended(record) => panic!("it has ended: {record:?}"),
                Phase::Starting | Phase::Stopping { .. } => {
                    assert_eq!(seen.link, Link::Alive, "the monitor was lost");
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it starts")
}

/// Waits for a condition; for use outside of asynchronous code.
pub(super) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// What a container has written to one stream so far.
pub(super) fn output(launch: &Launch, stream: Stream) -> String {
    let mut reader = LogReader::open(&launch.log.path, ReadOptions::default()).unwrap();
    let mut text = String::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        if entry.stream == stream {
            text.push_str(&entry.log);
        }
    }
    text
}

pub(super) fn stdout(launch: &Launch) -> String {
    output(launch, Stream::Stdout)
}

pub(super) fn exited(code: i32) -> Outcome {
    Outcome::Exited { code }
}

/// Runs a program in a container: its code, standard output and standard error.
pub(super) async fn exec_in(launch: &Launch, request: ExecRequest) -> (Result<i32, i32>, String) {
    let (run_dir, id) = (launch.run_dir.clone(), launch.id.clone());
    tokio::task::spawn_blocking(move || {
        use std::io::Read as _;
        use std::os::fd::AsFd as _;
        let (mut read, write) = std::io::pipe().unwrap();
        let null = fs::File::open("/dev/null").unwrap();
        let streams =
            ExecStreams { stdin: null.as_fd(), stdout: write.as_fd(), stderr: write.as_fd() };
        let code = exec::run(&run_dir, &id, &request, streams).map_err(|error| error.exit_code());
        drop(write);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        (code, text)
    })
    .await
    .unwrap()
}

pub(super) fn command(args: &[&str]) -> ExecRequest {
    ExecRequest::new(args.iter().map(|arg| (*arg).to_owned()).collect())
}

/// The capabilities that a container has here: version 2 of control groups leaves device nodes unguarded, and so
/// nobody may make any.
pub(super) fn capabilities() -> &'static str {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        "00000000a00425fb"
    } else {
        "00000000a80425fb"
    }
}
