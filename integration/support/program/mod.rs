//! The program itself, with directories of its own, driven from outside as a user does.
//!
//! It finds what it started by its folder and its instance, so it touches nothing of anybody else, and it fails a
//! test that left a process, a mount or a control group behind.

mod trace;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use supervisor::logs::{LogReader, ReadOptions, Stream};
use supervisor::version::{Versions, patch};

/// How long a condition may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(20);

/// One instance of supervisor; what it started goes when it is dropped, whatever the test did to it.
pub(crate) struct Program {
    folder: tempfile::TempDir,
    binary: PathBuf,
}

impl Program {
    /// An instance that has not run yet.
    pub(crate) fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test mounts and starts containers; run it as root: `scripts/test`"
        );
        // `scripts/test` looks for mounts with this name when all tests have ended.
        let folder = tempfile::Builder::new().prefix("supervisor-test-").tempdir().unwrap();
        Self { folder, binary: PathBuf::from(env!("CARGO_BIN_EXE_supervisor")) }
    }

    /// From here on the program is the one at `path`.
    pub(crate) fn use_binary(&mut self, path: &Path) {
        path.clone_into(&mut self.binary);
    }

    /// Its folder, where relative paths start.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where its sockets and mounts are.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// Writes the services file and gives its path.
    pub(crate) fn services(&self, yaml: &str) -> PathBuf {
        let path = self.folder.path().join("services.yaml");
        fs::write(&path, yaml).unwrap();
        path
    }

    /// The program with these arguments, not started yet; it works in the folder.
    pub(crate) fn command<I: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = I>,
    ) -> Command {
        self.prepare(Command::new(&self.binary), arguments)
    }

    fn prepare<I: AsRef<OsStr>>(
        &self,
        mut command: Command,
        arguments: impl IntoIterator<Item = I>,
    ) -> Command {
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("SUPERVISOR_STATE_DIR", self.folder.path().join("state"))
            .env("SUPERVISOR_RUN_DIR", self.run_dir())
            .env("HOME", self.folder.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end, which comes by force if it does not come in time.
    pub(crate) fn run<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Output {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "60"]).arg(&self.binary);
        self.prepare(command, arguments).output().unwrap()
    }

    /// Runs the program, which must succeed, and gives what it printed.
    pub(crate) fn ok<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}: {errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts `up` in the foreground, its output in `up.log`.
    pub(crate) fn up(&self) -> Child {
        self.up_with(&[])
    }

    /// Starts `up` and waits until every service has a process.
    pub(crate) fn up_running(&self) -> Child {
        let up = self.up();
        self.until("all services run", || {
            let services = self.ps();
            let all = services.iter().all(|service| service["State"] == "running");
            (all && !services.is_empty()).then_some(())
        });
        up
    }

    /// Starts `up` with more arguments.
    pub(crate) fn up_with(&self, arguments: &[&str]) -> Child {
        let log = fs::File::create(self.log_path()).unwrap();
        let errors = log.try_clone().unwrap();
        let mut command = self.command(["up", "-f", "services.yaml"]);
        let mut up = command.args(arguments).stdout(log).stderr(errors).spawn().unwrap();
        // A `ps` that comes first would start a control of its own, which the test does not mean.
        let socket = self.run_dir().join("api.sock");
        self.until("up is served", || {
            let ended = up.try_wait().unwrap();
            assert!(ended.is_none(), "up ended with {ended:?}: {}", self.log());
            std::os::unix::net::UnixStream::connect(&socket).ok()
        });
        up
    }

    /// What `up` has printed.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("up.log")
    }

    /// Waits until `up` has printed a text.
    pub(crate) fn said(&self, text: &str) {
        self.until(&format!("up says `{text}`"), || self.log().contains(text).then_some(()));
    }

    /// All services as `ps` shows them. Starts a control when none runs, as `ps` does.
    pub(crate) fn ps(&self) -> Vec<Value> {
        let text = self.ok(["ps", "--format", "json"]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// One service as `ps` shows it.
    pub(crate) fn service(&self, name: &str) -> Option<Value> {
        self.ps().into_iter().find(|service| service["Service"] == name)
    }

    /// Waits until a service is in a state, and gives what `ps` shows then.
    pub(crate) fn state(&self, name: &str, state: &str) -> Value {
        self.until(&format!("`{name}` is {state}"), || {
            self.service(name).filter(|service| service["State"] == state)
        })
    }

    /// Waits until a service runs, and gives the id of its first process, which is not known while its monitor is
    /// replaced.
    pub(crate) fn running(&self, name: &str) -> Pid {
        self.until(&format!("`{name}` runs"), || {
            let shown = self.service(name).filter(|service| service["State"] == "running")?;
            Pid::from_raw(i32::try_from(shown["Pid"].as_i64()?).unwrap())
        })
    }

    /// Makes an empty file in the root file system of a service that runs. An `exec` that lets the service end would
    /// end with it, and could not be judged.
    pub(crate) fn make_file(&self, service: &str, path: &str) {
        let pid = self.running(service).as_raw_nonzero();
        fs::write(format!("/proc/{pid}/root{path}"), "").unwrap();
    }

    /// What a service has written to its standard output so far, read from the disk: asks no process of ours.
    pub(crate) fn output(&self, service: &str) -> Vec<String> {
        let Ok(projects) = fs::read_dir(self.folder.path().join("state/logs")) else {
            return Vec::new();
        };
        let mut lines = Vec::new();
        for project in projects.flatten() {
            let path = project.path().join(service).join("log.json");
            let Ok(mut reader) = LogReader::open(&path, ReadOptions::default()) else { continue };
            while let Some(entry) = reader.next_entry().unwrap() {
                if entry.stream == Stream::Stdout {
                    lines.push(entry.text().to_owned());
                }
            }
        }
        lines
    }

    /// Waits until the output of a service has a line.
    pub(crate) fn wrote(&self, service: &str, line: &str) {
        self.until(&format!("`{service}` writes `{line}`"), || {
            self.output(service).iter().any(|written| written == line).then_some(())
        });
    }

    /// Waits until a condition gives something, looking again every few milliseconds.
    pub(crate) fn until<T>(&self, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = condition() {
                return found;
            }
            assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
            // A timer without a sleep: nobody unparks this thread on purpose.
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Waits until a process that this test started ends.
    pub(crate) fn ended(&self, child: &mut Child) -> ExitStatus {
        self.until("the process ends", || child.try_wait().unwrap())
    }

    /// Interrupts `up`, waits for its end and gives its exit code, which is 0 when all was stopped.
    pub(crate) fn interrupt(&self, mut up: Child) -> Option<i32> {
        signal(Pid::from_child(&up), Signal::INT);
        self.ended(&mut up).code()
    }
}

/// Sends a signal to a process that must be there.
pub(crate) fn signal(process: Pid, signal: Signal) {
    kill_process(process, signal).unwrap();
}

/// Whether a process runs. One that has ended and waits for its parent, which may be a busy init, does not.
pub(crate) fn runs(process: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

/// Puts a build at `path`, as an installation does: the file is another one afterwards.
pub(crate) fn install(path: &Path, versions: &Versions) {
    let mut bytes = fs::read(env!("CARGO_BIN_EXE_supervisor")).unwrap();
    assert!(patch(&mut bytes, versions), "the program is a build for tests");
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes).unwrap();
    fs::set_permissions(&fresh, PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(&fresh, path).unwrap();
}

/// Kills `up` as a crash does.
pub(crate) fn crash(mut up: Child) {
    up.kill().unwrap();
    up.wait().unwrap();
}

/// Waits until `condition` gives something, looking again every few milliseconds.
pub(crate) async fn eventually<T>(
    what: &str,
    patience: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(Instant::now() < end, "not within {patience:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
