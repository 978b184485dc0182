//! Control groups by path, in every hierarchy that this host mounts: version 1, version 2, or both at once.
//!
//! Limits and statistics of containers are libcontainer's; this is for placing our own roles, for ending a whole
//! group, and for leaving nothing behind.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use super::mount;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// `true` for the unified hierarchy of version 2.
    pub unified: bool,
}

impl Hierarchy {
    /// Whether it is version 1 of `controller`. Where a hierarchy is mounted is a convention that everybody keeps to;
    /// several controllers may share one.
    #[must_use]
    pub fn controls(&self, controller: &str) -> bool {
        let name = self.mount_point.file_name().unwrap_or_default().to_string_lossy();
        !self.unified && name.split(',').any(|one| one == controller)
    }
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

/// The directory of `group` in a hierarchy.
#[must_use]
pub fn beneath(hierarchy: &Hierarchy, group: &str) -> PathBuf {
    hierarchy.mount_point.join(group.trim_start_matches('/'))
}

/// Moves this process into `group` (an absolute path such as `/supervisor-1234abcd/lazy`) of every hierarchy, making
/// the groups on the way. Returns the hierarchies that refused, with their reason: a sandbox may grant only some.
///
/// The kernel may take a grace period over version 2 (see [`expect_moves`]), unless the process was made in the group
/// ([`super::process::fork_child_into`]). It takes none over version 1 when the process has one thread: a thread that
/// moves itself needs no lock.
///
/// # Errors
/// When the hierarchies cannot be listed.
pub fn enter(group: &str) -> io::Result<Vec<(PathBuf, io::Error)>> {
    enter_those(group, &hierarchies()?)
}

/// As [`enter`], but without a wait where that is possible: beside version 1, version 2 is left for [`place`].
///
/// # Errors
/// When the hierarchies cannot be listed.
pub fn enter_at_once(group: &str) -> io::Result<Vec<(PathBuf, io::Error)>> {
    let mut hierarchies = hierarchies()?;
    if hierarchies.iter().any(|hierarchy| !hierarchy.unified) {
        hierarchies.retain(|hierarchy| !hierarchy.unified);
    }
    enter_those(group, &hierarchies)
}

fn enter_those(group: &str, hierarchies: &[Hierarchy]) -> io::Result<Vec<(PathBuf, io::Error)>> {
    let has_one_thread = fs::read_dir("/proc/self/task")?.count() == 1;
    let mut refused = Vec::new();
    for hierarchy in hierarchies {
        let path = beneath(hierarchy, group);
        let list = if has_one_thread && !hierarchy.unified { "tasks" } else { "cgroup.procs" };
        let entered = make(hierarchy, &path).and_then(|()| {
            if hierarchy.unified && is_in(std::process::id(), group)? {
                return Ok(());
            }
            fs::write(path.join(list), "0")
        });
        if let Err(error) = entered {
            refused.push((path, error));
        }
    }
    Ok(refused)
}

/// Whether a process is in `group` of version 2.
fn is_in(pid: u32, group: &str) -> io::Result<bool> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    Ok(groups.lines().any(|line| line.strip_prefix("0::") == Some(group)))
}

/// Moves the process `pid` into `group` of version 2, where there is such a hierarchy and it is elsewhere. May take a
/// grace period.
///
/// # Errors
/// When the kernel refuses, or there is no such process.
pub fn place(pid: i32, group: &str) -> io::Result<()> {
    let Some(hierarchy) = hierarchies()?.into_iter().find(|hierarchy| hierarchy.unified) else {
        return Ok(());
    };
    if is_in(pid.unsigned_abs(), group)? {
        return Ok(());
    }
    let path = beneath(&hierarchy, group);
    make(&hierarchy, &path)?;
    fs::write(path.join("cgroup.procs"), pid.to_string())
}

/// `group` of version 2, made where it is absent, for [`super::process::fork_child_into`]. `None` where there is no such
/// hierarchy, or it refuses.
///
/// # Errors
/// When the hierarchies cannot be listed.
pub fn open(group: &str) -> io::Result<Option<OwnedFd>> {
    let found = hierarchies()?.into_iter().find(|hierarchy| hierarchy.unified);
    Ok(found.and_then(|hierarchy| {
        let path = beneath(&hierarchy, group);
        make(&hierarchy, &path).and_then(|()| fs::File::open(&path)).ok().map(OwnedFd::from)
    }))
}

/// Has the kernel get ready for processes that change their group: the first one after a quiet while waits for a grace
/// period (10 ms; the lock is a per-CPU one, whose writers wait for RCU), and those that come soon after it do not.
/// Blocks for that time. Nothing is moved: this process goes where it is. Where there is version 1 nothing is done:
/// containers start without such a move, and would wait behind this one.
///
/// # Errors
/// When the process's own group cannot be found or written.
pub fn expect_moves() -> io::Result<()> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let hierarchies = hierarchies()?;
    if hierarchies.iter().any(|hierarchy| !hierarchy.unified) {
        return Ok(());
    }
    // One of them is enough: the lock is the same for all.
    let found = own.lines().find_map(|line| own_group(line, &hierarchies));
    fs::write(found.ok_or(io::ErrorKind::NotFound)?.join("cgroup.procs"), "0")
}

/// The group of a line of `/proc/<pid>/cgroup`, see cgroups(7).
fn own_group(line: &str, hierarchies: &[Hierarchy]) -> Option<PathBuf> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, group) = (fields.next()?, fields.next()?);
    let name = controllers.strip_prefix("name=").unwrap_or(controllers);
    let is_it = |hierarchy: &&Hierarchy| match name {
        "" => hierarchy.unified,
        // Where a hierarchy is mounted is a convention that everybody keeps to; who does not only waits.
        name => !hierarchy.unified && hierarchy.mount_point.ends_with(name),
    };
    hierarchies.iter().find(is_it).map(|hierarchy| beneath(hierarchy, group))
}

/// Makes `path`, a group of `hierarchy`, and those above it where they are absent.
fn make(hierarchy: &Hierarchy, path: &Path) -> io::Result<()> {
    // Most often only the last one is.
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(hierarchy, path.parent().ok_or(error)?)?;
            make_one(path)?;
        }
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if hierarchy.unified || path == hierarchy.mount_point { Ok(()) } else { fill(hierarchy, path) }
}

fn make_one(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        // Somebody else who starts was quicker.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// A version 1 cpuset group takes no process before it has processors and memory nodes: those of the group above it.
fn fill(hierarchy: &Hierarchy, path: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = path.join(file);
        match fs::read_to_string(&own) {
            Ok(text) if text.trim().is_empty() => {}
            Ok(_) => continue,
            // Another hierarchy; none has only one of the files.
            Err(_) => return Ok(()),
        }
        let above = path.parent().unwrap_or(&hierarchy.mount_point);
        let mut text = fs::read_to_string(above.join(file))?;
        if text.trim().is_empty() && above != hierarchy.mount_point {
            // Whoever made that one died before it had filled it.
            fill(hierarchy, above)?;
            text = fs::read_to_string(above.join(file))?;
        }
        fs::write(&own, text)?;
    }
    Ok(())
}

/// Mounts at `target` what a process in `group` may see of version 1: each hierarchy from that group on, under its
/// name, read-only. For a mount namespace of one's own.
///
/// # Errors
/// Those of mount(2).
pub fn show(group: &str, target: &Path) -> io::Result<()> {
    let common = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let read_only = common | MountFlags::BIND | MountFlags::RDONLY;
    rustix::mount::mount("tmpfs", target, "tmpfs", common, Some(c"mode=755"))?;
    for hierarchy in hierarchies()?.iter().filter(|hierarchy| !hierarchy.unified) {
        let source = beneath(hierarchy, group);
        let Some(name) = hierarchy.mount_point.file_name() else { continue };
        let place = target.join(name);
        fs::create_dir(&place)?;
        match rustix::mount::mount_bind(&source, &place) {
            Ok(()) => rustix::mount::mount_remount(&place, read_only, c"")?,
            // The hierarchy has refused the group.
            Err(rustix::io::Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        }
        // Controllers that share a hierarchy are also found by their own names.
        for one in name.to_string_lossy().split(',').filter(|one| name != *one) {
            std::os::unix::fs::symlink(name, target.join(one))?;
        }
    }
    Ok(rustix::mount::mount_remount(target, read_only, c"")?)
}

/// Has this process's mount namespace, which must be its own, look like that of a host with version 2 alone, in which
/// `group` is there and whatever is written to move processes into it or to kill it is thrown away. For libcontainer,
/// which moves processes without need, and at a failure kills its caller with the group. `false` where the host has
/// no version 2.
///
/// # Errors
/// Those of mount(2).
pub fn pretend_unified(group: &str) -> io::Result<bool> {
    let found = hierarchies()?.into_iter().find(|hierarchy| hierarchy.unified);
    let Some(unified) = found.filter(|unified| beneath(unified, group).exists()) else {
        return Ok(false);
    };
    let nothing = Path::new("/dev/null");
    let group = beneath(&unified, group);
    rustix::mount::mount_bind(nothing, group.join("cgroup.procs"))?;
    match rustix::mount::mount_bind(nothing, group.join("cgroup.kill")) {
        // Before Linux 5.14.
        Err(rustix::io::Errno::NOENT) => {}
        other => other?,
    }
    rustix::mount::mount_bind_recursive(&unified.mount_point, "/sys/fs/cgroup")?;
    Ok(true)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_in_any_version() {
        let mount = |path: &str, unified| Hierarchy { mount_point: PathBuf::from(path), unified };
        let old = [mount("/c/cpu,cpuacct", false), mount("/c/systemd", false), mount("/c/u", true)];
        let group = |line: &str| own_group(line, &old);
        assert_eq!(group("3:cpu,cpuacct:/a/b"), Some(PathBuf::from("/c/cpu,cpuacct/a/b")));
        assert_eq!(group("1:name=systemd:/"), Some(PathBuf::from("/c/systemd/")));
        assert_eq!(group("0::/x:y"), Some(PathBuf::from("/c/u/x:y")));
        assert_eq!(group("2:memory:/a"), None);
        assert_eq!(group("nonsense"), None);
    }

    #[test]
    fn expecting_moves_moves_nothing() {
        let before = fs::read_to_string("/proc/self/cgroup").unwrap();
        expect_moves().unwrap();
        assert_eq!(fs::read_to_string("/proc/self/cgroup").unwrap(), before);
    }
}
