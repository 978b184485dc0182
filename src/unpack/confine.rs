//! What the unpacking child gives up before it reads the first byte of a layer.
//!
//! * No new privileges, no core dump.
//! * The staging directory as a mount of its own without devices, programs and setuid: a child that was taken
//!   over could make a device node of the host's disk, but not open it.
//! * Landlock: no path but the staging directory, no network, no signal to others.
//! * Capabilities: those that setting owners, modes and file capabilities needs. Not CAP_SYS_ADMIN: the
//!   attributes that need it are set by the parent.
//!
//! Each of them is more than the last line of defence: names are resolved beneath the directory anyway. So what
//! a kernel or sandbox does not offer is reported and not fatal.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};

/// What unpacking needs: owners, any file whatever its mode, setuid bits, devices, file capabilities.
const CAPABILITIES: [Capability; 6] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_MKNOD,
    Capability::CAP_SETFCAP,
];

/// Confines this process to `staging`; returns the directory to unpack into, and what could not be given up.
///
/// Must run before any other thread exists: both rules and capabilities belong to threads.
pub(super) fn confine(staging: OwnedFd) -> (OwnedFd, Vec<String>) {
    let mut missing = Vec::new();
    let mut note = |what: &str, error: &dyn std::fmt::Display| {
        missing.push(format!("{what}: {error}"));
    };
    if let Err(errno) = rustix::thread::set_no_new_privs(true) {
        note("no new privileges", &errno);
    }
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(errno) = rustix::process::setrlimit(rustix::process::Resource::Core, none) {
        note("no core dump", &errno);
    }
    let directory = match without_devices(staging.as_fd()) {
        Ok(directory) => directory,
        Err(error) => {
            note("mount without devices", &error);
            staging
        }
    };
    match restrict_paths(directory.as_fd()) {
        Ok(RulesetStatus::NotEnforced) => note("landlock", &"the kernel does not have it"),
        Ok(_) => {}
        Err(error) => note("landlock", &error),
    }
    if let Err(error) = drop_capabilities() {
        note("capabilities", &error);
    }
    (directory, missing)
}

/// The same directory through a mount that has no devices, in a namespace of its own.
fn without_devices(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // Cloned before the namespace changes: only mounts of the own namespace can be.
    let clone = rustix::mount::open_tree(
        directory,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH,
    )?;
    crate::sys::mount::enter_private_namespace()?;
    // Attached because only then its flags can be changed with the old call (mount_setattr is not in rustix).
    // On top of the root nothing hides: this process's own root stays the one below.
    rustix::mount::move_mount(
        clone.as_fd(),
        "",
        rustix::fs::CWD,
        "/",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    rustix::mount::mount_remount(
        format!("/proc/self/fd/{}", clone.as_raw_fd()),
        MountFlags::BIND | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC,
        "",
    )?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&clone, ".", flags, Mode::empty())?)
}

fn restrict_paths(directory: BorrowedFd<'_>) -> Result<RulesetStatus, landlock::RulesetError> {
    let abi = ABI::V6;
    let wanted: BitFlags<AccessFs> =
        AccessFs::from_all(abi) & !(AccessFs::Execute | AccessFs::IoctlDev);
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rule(PathBeneath::new(directory, wanted))?
        .restrict_self()?;
    Ok(status.ruleset)
}

fn drop_capabilities() -> Result<(), caps::errors::CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let keep: CapsHashSet =
        CAPABILITIES.into_iter().filter(|cap| permitted.contains(cap)).collect();
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)
}
