//! The command line as a user meets it: one instance with directories of its own, what its commands print, and
//! a check that nothing stays behind.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::eventually;

/// How long an instance that is told to end may take.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// An instance of the program. Dropped, it ends all that it started, and fails the test if that leaves anything.
pub(crate) struct Cli {
    folder: tempfile::TempDir,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// What it printed to standard output; it must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// What it printed to standard error; it must have failed with this code.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.err
    }
}

impl Cli {
    pub(crate) fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test mounts and starts containers; run it as root: `scripts/test`"
        );
        // `scripts/test` looks for mounts with this name when all tests have ended.
        let folder = tempfile::Builder::new().prefix("supervisor-test-").tempdir().unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        Self { folder, environment: Vec::new(), wrapper: Vec::new() }
    }

    /// With a variable in the environment of every command.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With every command started through another one.
    pub(crate) fn through(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Where everything is.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.folder().join("state")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.folder().join("run")
    }

    /// Makes an empty directory.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.folder().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Writes the services file; the project is named after its folder, so the name is given in the file.
    pub(crate) fn services(&self, yaml: &str) {
        fs::write(self.folder().join("services.yaml"), yaml).unwrap();
    }

    /// A command that has not been started.
    pub(crate) fn command<I: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = I>,
    ) -> Command {
        let program = env!("CARGO_BIN_EXE_supervisor");
        let mut command = match self.wrapper.split_first() {
            None => Command::new(program),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        command
            .args(arguments)
            .current_dir(self.folder())
            .env("SUPERVISOR_STATE_DIR", self.state_dir())
            .env("SUPERVISOR_RUN_DIR", self.run_dir())
            .env("HOME", self.folder())
            .env_remove("DOCKER_CONFIG")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Ran {
        Ran::of(&self.command(arguments).output().unwrap())
    }

    /// Starts `up` in the foreground.
    pub(crate) fn up(&self) -> Up {
        let path = self.folder().join("up.log");
        let log = fs::File::create(&path).unwrap();
        let errors = log.try_clone().unwrap();
        let child = self.command(["up"]).stdout(log).stderr(errors).spawn().unwrap();
        Up { child, path }
    }

    /// What `ps` says of a service.
    pub(crate) fn ps(&self, service: &str) -> serde_json::Value {
        let lines = self.run(["ps", "--format", "json"]).ok();
        lines
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .find(|line| line["Service"] == service)
            .unwrap_or_default()
    }

    /// What `images` says of the one image that is here.
    pub(crate) fn image(&self) -> serde_json::Value {
        let lines = self.run(["images", "--format", "json"]).ok();
        assert_eq!(lines.lines().count(), 1, "{lines}");
        serde_json::from_str(&lines).unwrap()
    }

    /// Processes whose arguments name the folder: control and the roles.
    fn processes(&self) -> Vec<(Pid, String)> {
        let needle = self.folder().to_str().unwrap();
        let own = std::process::id().to_string();
        let numbers = fs::read_dir("/proc").unwrap();
        numbers
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| *name != own)
            .filter_map(|name| {
                let arguments = fs::read(format!("/proc/{name}/cmdline")).unwrap_or_default();
                let text = String::from_utf8_lossy(&arguments).replace('\0', " ");
                text.contains(needle).then_some((Pid::from_raw(name.parse().ok()?)?, text))
            })
            .collect()
    }

    /// Mounts below the folder, the last one first; what the test itself mounted on the state directory excepted.
    fn mounts(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(4));
        points
            .map(PathBuf::from)
            .filter(|path| path.starts_with(self.folder()) && *path != self.state_dir())
            .collect()
    }

    /// Control groups of the instance, in every hierarchy.
    fn groups(&self) -> Vec<PathBuf> {
        let Ok(run_dir) = self.run_dir().canonicalize() else { return Vec::new() };
        let name = format!("supervisor-{}", supervisor::supervise::instance_of(&run_dir));
        let mounts = supervisor::sys::mount::mounts().unwrap();
        let hierarchies = mounts.iter().filter(|mount| mount.fs_type.starts_with("cgroup"));
        hierarchies
            .map(|mount| mount.mount_point.join(&name))
            .filter(|group| group.exists())
            .collect()
    }

    /// Ends control in the background, and waits until it has.
    pub(crate) fn end_control(&self) {
        let is_control = |(_, arguments): &(Pid, String)| arguments.contains(" daemon ");
        for (process, _) in self.processes().into_iter().filter(is_control) {
            let _ = kill_process(process, Signal::TERM);
        }
        eventually("control ends", || !self.processes().iter().any(is_control));
    }

    /// Ends control in the background, and waits until what it no longer needs is gone too.
    pub(crate) fn end_daemons(&self) {
        self.end_control();
        let start = Instant::now();
        while !(self.processes().is_empty() && self.mounts().is_empty() && self.groups().is_empty())
            && start.elapsed() < END_PATIENCE
        {
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn end(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for mount in self.mounts().into_iter().filter(|mount| !mount.starts_with(self.run_dir())) {
            let ran = self.run([OsStr::new("image"), OsStr::new("umount"), mount.as_os_str()]);
            wrong.extend((ran.code != Some(0)).then(|| format!("umount: {ran:?}")));
        }
        if self.folder().join("services.yaml").exists() && self.run_dir().join("api.sock").exists()
        {
            let ran = self.run(["down"]);
            wrong.extend((ran.code != Some(0)).then(|| format!("down: {ran:?}")));
        }
        self.end_daemons();
        for (process, arguments) in self.processes() {
            wrong.push(format!("left running: {arguments}"));
            let _ = kill_process(process, Signal::KILL);
        }
        wrong.extend(self.groups().iter().map(|group| format!("left: {}", group.display())));
        for mount in self.mounts() {
            wrong.push(format!("left mounted: {}", mount.display()));
            let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
        }
        wrong
    }
}

impl Drop for Cli {
    #[expect(clippy::print_stderr, reason = "what the roles logged explains a failed test")]
    fn drop(&mut self) {
        let wrong = self.end();
        if std::thread::panicking() || !wrong.is_empty() {
            for log in ["up.log", "run/control.log", "run/lazy/keeper.log", "run/lazy/worker.log"] {
                if let Ok(text) = fs::read_to_string(self.folder().join(log)) {
                    eprintln!("--- {log}\n{text}");
                }
            }
        }
        if !std::thread::panicking() {
            assert!(wrong.is_empty(), "{wrong:#?}");
        }
    }
}

/// A running `up`. Dropped, it is stopped as by Ctrl-C.
pub(crate) struct Up {
    child: Child,
    path: PathBuf,
}

impl Up {
    /// All that it printed so far.
    pub(crate) fn text(&self) -> String {
        fs::read_to_string(&self.path).unwrap_or_default()
    }

    /// Waits until it has printed `text`.
    #[track_caller]
    pub(crate) fn until(&mut self, text: &str) {
        eventually(&format!("up says `{text}`"), || {
            let printed = self.text().contains(text);
            if !printed && let Some(status) = self.child.try_wait().unwrap() {
                panic!("up ended ({status}) and did not say `{text}`: {}", self.text());
            }
            printed
        });
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let process = Pid::from_child(&self.child);
        let _ = kill_process(process, Signal::INT);
        let start = Instant::now();
        while !matches!(self.child.try_wait(), Ok(Some(_))) {
            if start.elapsed() > END_PATIENCE {
                let _ = self.child.kill();
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}
