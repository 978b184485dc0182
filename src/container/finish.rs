//! Leaving nothing behind, in a forked child of the monitor: the container's processes, its file system, its control
//! group, the runtime's files. Every step is tried, whatever became of the others.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::writable::{self, WritableLayer};
use super::{Launch, RunPaths};
use crate::boundary::Boundary;
use crate::logs::Stream;
use crate::sys::{cgroup, child, mount, socket};

/// What is left, in words.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) left_behind: Vec<String>,
    pub(super) oom_killed: bool,
}

/// Name of the file beside the sockets that every living monitor holds locked, shared: whoever has it alone may
/// remove the groups that all of them use.
pub(super) const GROUPS_LOCK: &str = ".groups.lock";

/// How long processes may take to die after SIGKILL; one that waits for a lazy read dies when that is answered.
const DEATH: Duration = Duration::from_secs(20);

/// The whole life of the child: its exit code.
pub(super) fn run(launch: &Launch, monitor: i32, done: BorrowedFd<'_>) -> u8 {
    if child::die_with(monitor).and_then(|()| child::close_all_except(&[done])).is_err() {
        return 1;
    }
    let finished = finish(launch);
    let bytes = serde_json::to_vec(&finished).unwrap_or_default();
    let _ = socket::send(done, &bytes, &[]);
    0
}

/// Ends and removes everything that a run of `launch` may have left.
pub(super) fn finish(launch: &Launch) -> Finished {
    let paths = launch.paths();
    let mut finished = Finished::default();
    let mut note = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            finished.left_behind.push(format!("{what}: {error}"));
        }
    };
    let died = kill_all(&launch.cgroup);
    let all_dead = died.is_ok();
    note("processes", died);
    Boundary::ALL_DEAD.reach(&launch.run_dir);
    let oom_killed = was_out_of_memory(&launch.cgroup);
    note("root file system", unmount(launch, &paths, all_dead));
    Boundary::ROOT_UNMOUNTED.reach(&launch.run_dir);
    // Most often gone long since, with all else that a monitor does not need.
    let _ = mount::detach(&paths.groups);
    note("view of control groups", absent_is_fine(fs::remove_dir(&paths.groups)));
    note("control group", remove_cgroup(&launch.cgroup));
    Boundary::GROUP_REMOVED.reach(&launch.run_dir);
    for dir in [&paths.bundle, &paths.runtime, &super::content::folder(&paths)] {
        note(&dir.display().to_string(), absent_is_fine(fs::remove_dir_all(dir)));
    }
    for stream in Stream::ALL {
        let fifo = paths.fifo(stream);
        note(&fifo.display().to_string(), absent_is_fine(fs::remove_file(&fifo)));
    }
    for name in ["hosts", "hostname", "resolv.conf"] {
        note(name, absent_is_fine(fs::remove_file(paths.dir.join(name))));
    }
    finished.oom_killed = oom_killed;
    finished
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn kill_all(group: &str) -> io::Result<()> {
    let deadline = Instant::now() + DEATH;
    let mut pause = 1;
    while cgroup::kill(group)? > 0 {
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "they do not die"));
        }
        wait_ms(pause);
        pause = (pause * 2).min(50);
    }
    Ok(())
}

pub(super) fn wait_ms(milliseconds: i64) {
    let time = rustix::time::Timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 };
    let _ = rustix::event::poll(&mut [], Some(&time));
}

fn unmount(launch: &Launch, paths: &RunPaths, all_dead: bool) -> io::Result<()> {
    let is_mounted = || -> io::Result<bool> {
        Ok(mount::mounts()?.iter().any(|mount| mount.mount_point == paths.rootfs))
    };
    let mut tries = 0;
    while is_mounted()? {
        match writable::unmount(&paths.rootfs) {
            Ok(()) if all_dead => WritableLayer::of(&launch.state_dir).mark_clean()?,
            Ok(()) => {}
            // The last process's namespace may outlive it by a moment.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < 25 => {
                tries += 1;
                wait_ms(20);
            }
            // What is detached vanishes with its last user; the writable layer is not trusted again.
            Err(_) => mount::detach(&paths.rootfs)?,
        }
    }
    // Only an empty directory is removed: never what another mount shows there.
    absent_is_fine(fs::remove_dir(&paths.rootfs))
}

fn remove_cgroup(group: &str) -> io::Result<()> {
    let mut left = cgroup::remove(group)?;
    // A group can be removed only some time after its last process has died.
    for _ in 0..50 {
        if left.is_empty() {
            return Ok(());
        }
        wait_ms(10);
        left = cgroup::remove(group)?;
    }
    let names: Vec<String> = left.iter().map(|path| path.display().to_string()).collect();
    Err(io::Error::new(io::ErrorKind::ResourceBusy, names.join(", ")))
}

/// Whether the kernel killed a process of the group for want of memory.
fn was_out_of_memory(group: &str) -> bool {
    let Ok(hierarchies) = cgroup::hierarchies() else { return false };
    hierarchies.iter().any(|hierarchy| {
        let dir = hierarchy.mount_point.join(group.trim_start_matches('/'));
        // Version 2 and version 1.
        ["memory.events", "memory.oom_control"].iter().any(|name| counts_a_kill(&dir.join(name)))
    })
}

fn counts_a_kill(file: &Path) -> bool {
    fs::read_to_string(file).is_ok_and(|text| {
        text.lines()
            .any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
    })
}

/// Removes the groups above the containers' and the monitors' own when no monitor lives.
pub(super) fn remove_parent_groups_if_alone(launch: &Launch, paths: &RunPaths) {
    let lock = fs::File::options().write(true).open(paths.socket_dir.join(GROUPS_LOCK));
    let alone = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    if lock.is_ok_and(|lock| rustix::fs::flock(&lock, alone).is_ok()) {
        remove_parent_groups(launch);
    }
}

/// Removes the groups above the containers' and the monitors' own, where nothing else is in them. `false` when
/// one of them has processes, and is worth another try.
pub(super) fn remove_parent_groups(launch: &Launch) -> bool {
    let parent = |group: &str| group.rsplit_once('/').map(|(parent, _)| parent.to_owned());
    let Some(containers) = parent(&launch.cgroup) else { return true };
    let Some(instance) = parent(&containers).filter(|group| !group.is_empty()) else { return true };
    let Ok(hierarchies) = cgroup::hierarchies() else { return true };
    let mut all_removed = true;
    for hierarchy in hierarchies {
        let dir = |group: &str| hierarchy.mount_point.join(group.trim_start_matches('/'));
        for group in [&containers, &launch.monitor_cgroup] {
            all_removed &= absent_is_fine(fs::remove_dir(dir(group))).is_ok();
        }
        // Stays while other roles of this instance are in it.
        let _ = fs::remove_dir(dir(&instance));
    }
    all_removed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_for_memory_is_counted_in_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory");
        for (text, killed) in [
            ("low 0\noom 1\noom_kill 2\n", true),
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", false),
            ("", false),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(counts_a_kill(&file), killed, "{text}");
        }
        assert!(!counts_a_kill(&dir.path().join("absent")));
    }
}
