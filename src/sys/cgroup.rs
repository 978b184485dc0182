//! Control groups by path, in every hierarchy that this host mounts: version 1, version 2, or both at once.
//!
//! Limits and statistics of containers are libcontainer's; this is for placing our own roles, for ending a whole
//! group, and for leaving nothing behind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::mount;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// `true` for the unified hierarchy of version 2.
    pub unified: bool,
}

/// All hierarchies that are mounted where this process sees them.
///
/// # Errors
/// When `/proc/self/mountinfo` cannot be read.
pub fn hierarchies() -> io::Result<Vec<Hierarchy>> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for entry in mount::mounts()? {
        let unified = match entry.fs_type.as_str() {
            "cgroup2" => true,
            "cgroup" => false,
            _ => continue,
        };
        // A mount of a sub-tree (a container's view bound elsewhere) is not the hierarchy.
        if entry.root == "/" && !found.iter().any(|other| other.mount_point == entry.mount_point) {
            found.push(Hierarchy { mount_point: entry.mount_point, unified });
        }
    }
    Ok(found)
}

fn beneath(hierarchy: &Hierarchy, group: &str) -> PathBuf {
    hierarchy.mount_point.join(group.trim_start_matches('/'))
}

/// Moves this process into `group` (an absolute path such as `/supervisor-1234abcd/lazy`) of every hierarchy, making
/// the groups on the way. Returns the hierarchies that refused, with their reason: a sandbox may grant only some.
///
/// # Errors
/// When the hierarchies cannot be listed.
pub fn enter(group: &str) -> io::Result<Vec<(PathBuf, io::Error)>> {
    let mut refused = Vec::new();
    for hierarchy in hierarchies()? {
        let path = beneath(&hierarchy, group);
        let entered =
            make(&hierarchy, group).and_then(|()| fs::write(path.join("cgroup.procs"), "0"));
        if let Err(error) = entered {
            refused.push((path, error));
        }
    }
    Ok(refused)
}

fn make(hierarchy: &Hierarchy, group: &str) -> io::Result<()> {
    let mut path = hierarchy.mount_point.clone();
    for name in group.split('/').filter(|name| !name.is_empty()) {
        let parent = path.clone();
        path.push(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // A version 1 cpuset group takes no process before it has processors and memory nodes.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = path.join(file);
            if !hierarchy.unified
                && fs::read_to_string(&own).is_ok_and(|text| text.trim().is_empty())
            {
                fs::write(&own, fs::read_to_string(parent.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Takes every hierarchy out of this process's mount namespace, which must be its own, and leaves a folder without any
/// in their place: libcontainer starts nothing on a host where that is something else, and tries to enter groups that
/// it sees but may not make.
///
/// # Errors
/// Those of unmounting and mounting.
pub fn hide() -> io::Result<()> {
    for entry in mount::mounts()?.iter().rev() {
        if matches!(entry.fs_type.as_str(), "cgroup" | "cgroup2") {
            mount::detach(&entry.mount_point)?;
        }
    }
    let place = Path::new("/sys/fs/cgroup");
    if !place.exists() {
        // A kernel without control groups has not even the directory, and nobody makes one in sysfs.
        mount::tmpfs_at(Path::new("/sys/fs"))?;
        fs::create_dir(place)?;
    }
    mount::tmpfs_at(place)
}

/// The processes in `group` and below it, over all hierarchies.
///
/// # Errors
/// When the hierarchies cannot be listed.
pub fn processes(group: &str) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for hierarchy in hierarchies()? {
        collect_processes(&beneath(&hierarchy, group), &mut pids);
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

fn collect_processes(path: &Path, pids: &mut Vec<i32>) {
    if let Ok(text) = fs::read_to_string(path.join("cgroup.procs")) {
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    for child in children(path) {
        collect_processes(&child, pids);
    }
}

fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Sends SIGKILL to every process in `group` and below it, at once where the kernel can (version 2, Linux 5.14).
/// Returns how many were there; call until it is zero, because a process may fork meanwhile.
///
/// # Errors
/// When the hierarchies cannot be listed.
pub fn kill(group: &str) -> io::Result<usize> {
    for hierarchy in hierarchies()?.iter().filter(|hierarchy| hierarchy.unified) {
        let _ = fs::write(beneath(hierarchy, group).join("cgroup.kill"), "1");
    }
    let pids = processes(group)?;
    for &pid in &pids {
        if let Ok(pidfd) = super::process::open_pidfd(pid) {
            use std::os::fd::AsFd as _;
            // The pid was read before it was opened; it is ours only if it is still in the group.
            if processes(group)?.contains(&pid) {
                let _ = super::process::send_signal(pidfd.as_fd(), libc::SIGKILL);
            }
        }
    }
    Ok(pids.len())
}

/// Removes `group` and the groups below it from every hierarchy. Groups that still have processes stay, and are
/// returned.
///
/// # Errors
/// When the hierarchies cannot be listed.
pub fn remove(group: &str) -> io::Result<Vec<PathBuf>> {
    let mut left = Vec::new();
    for hierarchy in hierarchies()? {
        remove_tree(&beneath(&hierarchy, group), &mut left);
    }
    Ok(left)
}

fn remove_tree(path: &Path, left: &mut Vec<PathBuf>) {
    for child in children(path) {
        remove_tree(&child, left);
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => left.push(path.to_path_buf()),
        _ => {}
    }
}
