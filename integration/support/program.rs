//! The program itself, with directories of its own, driven from outside as a user does.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// One instance of supervisor; what it started goes when it is dropped, whatever the test did to it.
pub(crate) struct Program {
    folder: tempfile::TempDir,
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
        Self { folder }
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
        let mut command = Command::new(env!("CARGO_BIN_EXE_supervisor"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("SUPERVISOR_STATE_DIR", self.folder.path().join("state"))
            .env("SUPERVISOR_RUN_DIR", self.run_dir())
            .env("HOME", self.folder.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Starts `up` in the foreground, its output in `up.log`.
    pub(crate) fn up(&self) -> Child {
        let log = fs::File::create(self.log_path()).unwrap();
        let errors = log.try_clone().unwrap();
        self.command(["up", "-f", "services.yaml"]).stdout(log).stderr(errors).spawn().unwrap()
    }

    /// What `up` has printed.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("up.log")
    }

    /// Processes whose arguments name the folder: control and the roles.
    fn processes(&self) -> Vec<rustix::process::Pid> {
        let needle = self.folder.path().as_os_str().as_encoded_bytes();
        let own = std::process::id().to_string();
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| *name != own)
            .filter(|name| {
                let arguments = fs::read(format!("/proc/{name}/cmdline")).unwrap_or_default();
                arguments.windows(needle.len()).any(|window| window == needle)
            })
            .filter_map(|name| rustix::process::Pid::from_raw(name.parse().ok()?))
            .collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let used = self.folder.path().join("services.yaml").exists();
        let down = used.then(|| self.run(["down", "-f", "services.yaml"]));
        for process in self.processes() {
            let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = self.folder.path().display().to_string();
        // Last mounted first.
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if mount.starts_with(&below) {
                let flags = rustix::mount::UnmountFlags::DETACH;
                let _ = rustix::mount::unmount(mount, flags);
            }
        }
        // After the cleaning, and not on top of the test's own failure.
        if let Some(down) = down.filter(|down| !down.status.success())
            && !std::thread::panicking()
        {
            panic!("down failed: {}", String::from_utf8_lossy(&down.stderr));
        }
    }
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
