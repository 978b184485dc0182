//! Version 1 of control groups around a container that starts, or a program that joins one: limits, what the container
//! sees of them, and that the runtime leaves them alone.
//!
//! The runtime can do all of it, but it reads the table of mounts twice for each controller (25 times, with each line
//! taken apart), resolves each path with dozens of system calls, leaves the hierarchies writable in the container, and
//! moves its processes in a way that has the kernel wait for a grace period of 10 ms. With version 2 alone it is left
//! to the runtime.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::capability::CgroupLayout;
use super::prepare::private_dir;
use super::{Bounds, Lack, Launch, RunPaths};
use crate::sys::{cgroup, mount};

/// What every container may do with devices besides those of the runtime specification: make their nodes, and use its
/// terminals and TUN.
const DEVICES: [&str; 12] = [
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c *:* m",
    "b *:* m",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
    "c 10:200 rwm",
];

/// Why a container is not in its group, or has not its limits.
#[derive(Debug, thiserror::Error)]
pub(super) enum GroupError {
    #[error("control groups cannot be listed")]
    List(#[source] io::Error),
    #[error("this host has no control groups for `{0}`")]
    NoController(&'static str),
    #[error("could not enter `{0}`")]
    Enter(PathBuf, #[source] io::Error),
    #[error("could not write `{1}` to `{0}`")]
    Write(PathBuf, String, #[source] io::Error),
}

/// The groups that this host has and the container is started with.
pub(super) fn layout(launch: &Launch) -> CgroupLayout {
    if launch.lacks(Lack::Cgroup) { CgroupLayout::Absent } else { CgroupLayout::of_host() }
}

/// Moves this process, which has one thread, into the container's group of every hierarchy, not only of those that
/// limit something: what is in the group can be found and killed. Limits it where the runtime does not.
pub(super) fn enter(launch: &Launch, layout: CgroupLayout) -> Result<(), GroupError> {
    let mut refused = cgroup::enter(&launch.cgroup).map_err(GroupError::List)?;
    if layout != CgroupLayout::Legacy {
        return Ok(());
    }
    let hierarchies = cgroup::hierarchies().map_err(GroupError::List)?;
    for (controller, settings) in settings(&launch.bounds) {
        let found = hierarchies.iter().find(|hierarchy| hierarchy.controls(controller));
        let found = found.ok_or(GroupError::NoController(controller))?;
        let group = cgroup::beneath(found, &launch.cgroup);
        if let Some(at) = refused.iter().position(|(path, _)| *path == group) {
            let (path, error) = refused.swap_remove(at);
            return Err(GroupError::Enter(path, error));
        }
        for (file, value) in settings {
            write(&group, file, &value)?;
        }
    }
    Ok(())
}

fn write(group: &Path, file: &str, value: &str) -> Result<(), GroupError> {
    let path = group.join(file);
    let open = File::options().write(true).open(&path);
    open.and_then(|mut open| open.write_all(value.as_bytes()))
        .map_err(|error| GroupError::Write(path, value.to_owned(), error))
}

/// What is written for `bounds`, by controller and in order. The rules for devices hold for every container.
fn settings(bounds: &Bounds) -> Vec<(&'static str, Vec<(&'static str, String)>)> {
    let mut devices = vec![("devices.deny", "a *:* rwm".to_owned())];
    devices.extend(DEVICES.map(|rule| ("devices.allow", rule.to_owned())));
    let mut memory = Vec::new();
    if let Some(bytes) = bounds.memory {
        // A group that is left from another run may have a limit on both that is lower than this one.
        if bounds.swap.is_some() {
            memory.push(("memory.memsw.limit_in_bytes", "-1".to_owned()));
        }
        memory.push(("memory.limit_in_bytes", bytes.to_string()));
    }
    memory.extend(bounds.swap.map(|bytes| ("memory.memsw.limit_in_bytes", bytes.to_string())));
    let reservation = bounds.memory_reservation;
    memory.extend(reservation.map(|bytes| ("memory.soft_limit_in_bytes", bytes.to_string())));
    let mut cpu: Vec<_> =
        bounds.cpu_shares.map(|shares| ("cpu.shares", shares.to_string())).into_iter().collect();
    if let Some((quota, period)) = bounds.cpu_quota() {
        cpu.push(("cpu.cfs_period_us", period.to_string()));
        cpu.push(("cpu.cfs_quota_us", quota.to_string()));
    }
    let cpuset = bounds.cpuset.iter().map(|cpus| ("cpuset.cpus", cpus.clone())).collect();
    let pids = bounds.pids.iter().map(|pids| ("pids.max", pids.to_string())).collect();
    let all = [
        ("devices", devices),
        ("memory", memory),
        ("cpu", cpu),
        ("cpuset", cpuset),
        ("pids", pids),
    ];
    all.into_iter().filter(|(_, settings)| !settings.is_empty()).collect()
}

/// A mount namespace for the runtime, in which it leaves groups alone. Until it ends, this process is in it; the
/// container's first process gets a copy.
#[derive(Debug)]
pub(super) struct View {
    /// The monitor's namespace.
    before: File,
}

impl View {
    /// Enters one, where the runtime would find version 1.
    pub(super) fn enter(layout: CgroupLayout) -> io::Result<Option<Self>> {
        if layout != CgroupLayout::Legacy {
            return Ok(None);
        }
        let before = File::open("/proc/self/ns/mnt")?;
        mount::enter_private_namespace()?;
        Ok(Some(Self { before }))
    }

    /// Mounts what the container sees: its own groups, read-only. Returns where.
    pub(super) fn show(&self, launch: &Launch, paths: &RunPaths) -> io::Result<PathBuf> {
        private_dir(&paths.groups)?;
        cgroup::show(&launch.cgroup, &paths.groups)?;
        Ok(paths.groups.clone())
    }

    /// Has the runtime find nothing to do. `false` on a host without version 2, where it does all once more.
    pub(super) fn hide(&self, launch: &Launch) -> io::Result<bool> {
        cgroup::pretend_unified(&launch.cgroup)
    }

    /// Goes back to the monitor's namespace.
    pub(super) fn leave(self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.before.as_fd(), Some(LinkNameSpaceType::Mount))?)
    }
}

/// Moves the monitor of a container that runs to where the others are, as far as it has not gone there by itself.
pub(super) fn place_monitor(launch: &Launch, monitor: i32, layout: CgroupLayout) {
    if layout == CgroupLayout::Legacy
        && let Err(error) = cgroup::place(monitor, &launch.monitor_cgroup)
    {
        tracing::warn!(%error, "the monitor could not enter a control group");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bounds: &Bounds) -> Vec<(&'static str, String)> {
        let all = settings(bounds).into_iter().filter(|(controller, _)| *controller != "devices");
        all.flat_map(|(_, settings)| settings).collect()
    }

    #[test]
    fn devices_are_forbidden_before_some_are_allowed() {
        let all = settings(&Bounds::default());
        let [("devices", rules)] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!(rules[0], ("devices.deny", "a *:* rwm".to_owned()));
        assert!(rules[1..].iter().all(|(file, _)| *file == "devices.allow"));
        // No disk, and no memory of the host.
        assert!(!rules[1..].iter().any(|(_, rule)| rule.starts_with('b') && rule.contains('w')));
        assert!(!rules.iter().any(|(_, rule)| rule.starts_with("c 1:1 ")));
    }

    #[test]
    fn limits_are_written_in_an_order_that_the_kernel_takes() {
        let bounds = Bounds {
            memory: Some(64 << 20),
            swap: Some(128 << 20),
            memory_reservation: Some(32 << 20),
            nano_cpus: Some(500_000_000),
            cpu_shares: Some(512),
            cpuset: Some("0".to_owned()),
            pids: Some(20),
            ..Bounds::default()
        };
        let expected = [
            ("memory.memsw.limit_in_bytes", "-1"),
            ("memory.limit_in_bytes", "67108864"),
            ("memory.memsw.limit_in_bytes", "134217728"),
            ("memory.soft_limit_in_bytes", "33554432"),
            ("cpu.shares", "512"),
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_quota_us", "50000"),
            ("cpuset.cpus", "0"),
            ("pids.max", "20"),
        ];
        assert_eq!(written(&bounds), expected.map(|(file, value)| (file, value.to_owned())));
    }
}
