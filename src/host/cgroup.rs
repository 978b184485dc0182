//! Which control groups this host has, and whether we may make some.

use std::io;
use std::path::Path;

use crate::sys::cgroup::{self, Hierarchy};
use crate::sys::mount;

/// Which interface the host uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupVersion {
    /// None is mounted.
    #[default]
    None,
    /// Version 1.
    One,
    /// Version 2.
    Two,
    /// Version 1 with version 2 beside it, which has few controllers or none.
    Hybrid,
}

impl CgroupVersion {
    /// In words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::One => "version 1",
            Self::Two => "version 2",
            Self::Hybrid => "version 1 and 2 (hybrid)",
        }
    }
}

/// The control groups of this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cgroups {
    /// Which interface.
    pub version: CgroupVersion,
    /// Controllers that can limit something, sorted.
    pub controllers: Vec<String>,
}

/// Where the runtime looks for them.
const ROOT: &str = "/sys/fs/cgroup";

/// What is mounted, whether or not it can be used.
pub(super) fn look() -> io::Result<(Cgroups, Vec<Hierarchy>)> {
    let hierarchies: Vec<Hierarchy> = cgroup::hierarchies()?
        .into_iter()
        .filter(|hierarchy| hierarchy.mount_point.starts_with(ROOT))
        .collect();
    let (unified, legacy): (Vec<&Hierarchy>, Vec<&Hierarchy>) =
        hierarchies.iter().partition(|hierarchy| hierarchy.unified);
    let version = match (unified.is_empty(), legacy.is_empty()) {
        (true, true) => CgroupVersion::None,
        (true, false) => CgroupVersion::One,
        (false, true) => CgroupVersion::Two,
        (false, false) => CgroupVersion::Hybrid,
    };
    let mut controllers = Vec::new();
    for hierarchy in &hierarchies {
        if hierarchy.unified {
            let text = std::fs::read_to_string(hierarchy.mount_point.join("cgroup.controllers"));
            controllers.extend(text.unwrap_or_default().split_whitespace().map(str::to_owned));
        } else if let Some(name) = hierarchy.mount_point.file_name() {
            // Hosts mount several together as `cpu,cpuacct`.
            let names = name.to_string_lossy();
            controllers.extend(names.split(',').filter(|n| *n != "systemd").map(str::to_owned));
        }
    }
    controllers.sort_unstable();
    controllers.dedup();
    Ok((Cgroups { version, controllers }, hierarchies))
}

/// Makes a group in every hierarchy and removes it again.
///
/// # Errors
/// With the first hierarchy that refuses: a container is in all of them or has none.
pub(super) fn make_one(hierarchies: &[Hierarchy]) -> Result<(), String> {
    if hierarchies.is_empty() {
        return Err(format!("no control groups are mounted at `{ROOT}`"));
    }
    // The runtime tells the versions apart by the file system that is mounted here.
    let mounts = mount::mounts().map_err(|error| error.to_string())?;
    let root = mounts.iter().rev().find(|mount| mount.mount_point == Path::new(ROOT));
    if !root.is_some_and(|root| matches!(root.fs_type.as_str(), "tmpfs" | "cgroup2")) {
        return Err(format!("`{ROOT}` is neither version 2 nor a folder of hierarchies"));
    }
    let name = format!("supervisor-probe-{}", std::process::id());
    for hierarchy in hierarchies {
        let group = hierarchy.mount_point.join(&name);
        std::fs::create_dir(&group).and_then(|()| std::fs::remove_dir(&group)).map_err(
            |error| {
                format!("no group can be made in `{}`: {error}", hierarchy.mount_point.display())
            },
        )?;
    }
    Ok(())
}
