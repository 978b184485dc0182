//! What an instance has on the host: its processes, mounts and control groups. Found, judged, and removed at the end.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use supervisor::supervise::instance_of;

use super::Program;

/// How long the end of an instance may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process of an instance.
struct Process {
    pid: Pid,
    arguments: Vec<String>,
}

impl Process {
    /// A control process, or one that is about to be.
    fn is_control(&self) -> bool {
        self.arguments.get(1).is_some_and(|word| word == "up" || word == "daemon")
    }
}

impl Program {
    fn instance(&self) -> String {
        let folder = fs::canonicalize(self.folder()).unwrap();
        instance_of(&folder.join("run"))
    }

    /// Processes of this instance: their arguments or their environment name the folder, or their control group is
    /// one of ours.
    fn processes(&self) -> Vec<Process> {
        let needle = self.folder().as_os_str().as_encoded_bytes();
        let group = format!("/supervisor-{}", self.instance());
        let own = Pid::from_raw(std::process::id().cast_signed());
        let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            (Some(pid) != own).then_some(pid)
        });
        pids.filter_map(|pid| {
            let read = |name: &str| {
                fs::read(format!("/proc/{}/{name}", pid.as_raw_nonzero())).unwrap_or_default()
            };
            let names = |bytes: &[u8]| bytes.windows(needle.len()).any(|part| part == needle);
            let arguments = read("cmdline");
            let in_group = String::from_utf8_lossy(&read("cgroup")).contains(&group);
            (names(&arguments) || names(&read("environ")) || in_group).then(|| Process {
                pid,
                arguments: String::from_utf8_lossy(&arguments)
                    .split_terminator('\0')
                    .map(str::to_owned)
                    .collect(),
            })
        })
        .collect()
    }

    /// The process of a role: `keeper`, `worker`, or `monitor` with the name of a service.
    pub(crate) fn role(&self, role: &str, service: &str) -> Option<Pid> {
        let part = format!("-{service}-");
        self.processes()
            .iter()
            .find(|process| {
                process.arguments.get(1).is_some_and(|word| word == "supervisor-role")
                    && process.arguments.get(2).is_some_and(|word| word == role)
                    && (service.is_empty()
                        || process.arguments.last().is_some_and(|id| id.contains(&part)))
            })
            .map(|process| process.pid)
    }

    /// Keeper or worker of the connection in a directory of the run directory.
    pub(crate) fn role_in(&self, directory: &str, role: &str) -> Option<Pid> {
        let part = format!("{}/{directory}\"", self.run_dir().display());
        self.processes()
            .iter()
            .find(|process| {
                process.arguments.get(2).is_some_and(|word| word == role)
                    && process.arguments.last().is_some_and(|config| config.contains(&part))
            })
            .map(|process| process.pid)
    }

    /// The control that runs in the background.
    pub(crate) fn background_control(&self) -> Option<Pid> {
        let is_daemon =
            |process: &&Process| process.arguments.get(1).is_some_and(|word| word == "daemon");
        self.processes().iter().find(is_daemon).map(|process| process.pid)
    }

    /// Mounts of this instance, in whatever namespace: the process that has them, and the line of its table.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let needles =
            [self.folder().display().to_string(), format!("supervisor-{}", self.instance())];
        let mut found = Vec::new();
        let mut namespaces = BTreeSet::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(namespace) = fs::read_link(entry.path().join("ns/mnt")) else { continue };
            if !namespaces.insert(namespace) {
                continue;
            }
            let table = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
            for line in table.lines() {
                if needles.iter().any(|needle| line.contains(needle)) {
                    found.push(format!("{}: {line}", entry.path().display()));
                }
            }
        }
        found
    }

    fn groups(&self) -> Vec<PathBuf> {
        let name = format!("supervisor-{}", self.instance());
        let hierarchies = supervisor::sys::cgroup::hierarchies().unwrap();
        hierarchies
            .iter()
            .map(|hierarchy| hierarchy.mount_point.join(&name))
            .filter(|group| group.exists())
            .collect()
    }

    /// Everything of this instance that is on the host, in words.
    pub(crate) fn traces(&self) -> Vec<String> {
        let processes = self.processes();
        let mut left: Vec<String> = processes
            .iter()
            .map(|process| format!("process {}: {}", process.pid, process.arguments.join(" ")))
            .collect();
        left.extend(self.mounts());
        left.extend(self.groups().iter().map(|group| group.display().to_string()));
        left
    }

    /// Waits until nothing is left, and gives what is left when it takes too long.
    fn traces_in_the_end(&self) -> Vec<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = self.traces();
            if left.is_empty() || Instant::now() > end {
                return left;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Ends every control, which leaves alone what it supervises.
    pub(crate) fn end_controls(&self) {
        for process in self.processes().iter().filter(|process| process.is_control()) {
            // One that has just ended is what is wanted.
            let _ = kill_process(process.pid, Signal::TERM);
        }
    }

    /// What the loss of power leaves: the disk. Processes and control groups go at once, the run directory with them.
    pub(crate) fn lose_power(&self) {
        self.until("every process is gone", || {
            for process in self.processes() {
                let _ = kill_process(process.pid, Signal::KILL);
            }
            self.processes().is_empty().then_some(())
        });
        self.remove_by_force();
        fs::remove_dir_all(self.run_dir()).unwrap();
    }

    fn remove_by_force(&self) {
        for process in self.processes() {
            let _ = kill_process(process.pid, Signal::KILL);
        }
        let below = self.folder().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // Last mounted first.
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if mount.starts_with(&below) {
                let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
            }
        }
        let _ = supervisor::sys::cgroup::remove(&format!("/supervisor-{}", self.instance()));
    }

    fn circumstances(&self) -> String {
        let read = |name: &str| {
            let text = fs::read_to_string(self.folder().join(name)).unwrap_or_default();
            let from = text.len().saturating_sub(4000);
            format!("--- {name}\n{}", String::from_utf8_lossy(&text.as_bytes()[from..]))
        };
        let traces = self.traces().join("\n");
        let logs = ["up.log", "run/control.log", "run/lazy/keeper.log", "run/lazy/worker.log"];
        format!("{}--- on the host\n{traces}", logs.map(read).concat())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            // Straight to the descriptor of the runner, which shows it with the failed test.
            let _ =
                std::io::Write::write_all(&mut std::io::stderr(), self.circumstances().as_bytes());
        }
        let used = self.folder().join("services.yaml").exists();
        let down = used.then(|| self.run(["down", "-f", "services.yaml"]));
        self.end_controls();
        let left = self.traces_in_the_end();
        if !left.is_empty() {
            self.remove_by_force();
        }
        // After the cleaning, and not on top of the test's own failure.
        if !failed {
            if let Some(down) = down.filter(|down| !down.status.success()) {
                panic!("down failed: {}", String::from_utf8_lossy(&down.stderr));
            }
            assert!(left.is_empty(), "left behind: {left:#?}");
        }
    }
}
