//! What this kernel and machine offer: probes that try each thing once and leave nothing, and which of them are
//! forced off.
//!
//! A probe says what is there and, where it is not, why. What is done without a feature is decided where the feature
//! is used; [`FeatureName::loss`] says it in words. Nothing here looks at our own directories, processes or
//! registries: that is `doctor`.

mod cgroup;
mod feature;
mod module;
mod probe;

use std::path::Path;

pub use cgroup::{CgroupVersion, Cgroups};
pub use feature::{Absence, Feature, FeatureName, Forced, State, UnknownFeature};
pub use module::{LoadError, load_module};

/// The release of the running kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` prints it.
    pub release: String,
    /// Its first two numbers.
    pub version: (u32, u32),
}

/// The oldest kernel on which everything essential works: writable layers are mounted `volatile`.
pub const OLDEST_KERNEL: (u32, u32) = (5, 10);

impl Kernel {
    /// Of this host.
    #[must_use]
    pub fn running() -> Self {
        Self::of(rustix::system::uname().release().to_string_lossy().into_owned())
    }

    fn of(release: String) -> Self {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
        let version = (next(), next());
        Self { release, version }
    }
}

/// What a host offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// Its kernel.
    pub kernel: Kernel,
    /// Layers can be mounted before their content is here.
    pub fuse: Feature,
    /// Complete files are read by the kernel itself.
    pub passthrough: Feature,
    /// Reads survive the death of the worker.
    pub resend: Feature,
    /// Root file systems can be put together from layers.
    pub overlay: Feature,
    /// Layers of an overlay are named one by one.
    pub overlay_lowerdir_plus: Feature,
    /// Mounts are made and attached in two steps.
    pub mount_api: Feature,
    /// Overlays can be mounted in a user namespace.
    pub user_namespace_overlay: Feature,
    /// Processes can be grouped and limited.
    pub cgroup: Feature,
    /// How they are grouped.
    pub cgroups: Cgroups,
    /// System calls can be filtered.
    pub seccomp: Feature,
    /// Paths can be taken away from a process.
    pub landlock: Feature,
    /// Packet rules.
    pub nftables: Feature,
    /// The kernel keeps exit codes for whoever holds a pidfd.
    pub exit_codes: Feature,
    /// Hard resource limits can be raised.
    pub resource_limits: Feature,
}

impl Features {
    /// Every one, in the order in which they are shown.
    #[must_use]
    pub fn all(&self) -> [&Feature; 13] {
        [
            &self.fuse,
            &self.passthrough,
            &self.resend,
            &self.overlay,
            &self.overlay_lowerdir_plus,
            &self.mount_api,
            &self.user_namespace_overlay,
            &self.cgroup,
            &self.seccomp,
            &self.landlock,
            &self.nftables,
            &self.exit_codes,
            &self.resource_limits,
        ]
    }

    /// Those that are not there.
    pub fn absent(&self) -> impl Iterator<Item = (&Feature, &Absence)> {
        self.all().into_iter().filter_map(|feature| Some((feature, feature.absence()?)))
    }

    /// What is not there and somebody will notice, each with a sentence on it.
    pub fn losses(&self) -> impl Iterator<Item = (FeatureName, String)> {
        // What needs a thing that is not there itself is told with that thing.
        let told = |absence: &Absence| !matches!(absence, Absence::Needs(_));
        self.absent()
            .filter(move |(feature, absence)| feature.name.is_noticed() && told(absence))
            .map(|(feature, absence)| {
                let name = feature.name;
                (name, format!("no {name} ({absence}): {}", name.loss()))
            })
    }

    /// As they are on a host that has everything; for tests, and for who has no need to ask.
    #[must_use]
    pub fn assumed() -> Self {
        let present = |name| Feature { name, state: State::Present(String::new()) };
        Self {
            kernel: Kernel::running(),
            fuse: present(FeatureName::Fuse),
            passthrough: present(FeatureName::Passthrough),
            resend: present(FeatureName::Resend),
            overlay: present(FeatureName::Overlay),
            overlay_lowerdir_plus: present(FeatureName::LowerdirPlus),
            mount_api: present(FeatureName::MountApi),
            user_namespace_overlay: present(FeatureName::UserNamespaceOverlay),
            cgroup: present(FeatureName::Cgroup),
            cgroups: Cgroups::default(),
            seccomp: present(FeatureName::Seccomp),
            landlock: present(FeatureName::Landlock),
            nftables: present(FeatureName::Nftables),
            exit_codes: present(FeatureName::ExitCodes),
            resource_limits: present(FeatureName::ResourceLimits),
        }
    }
}

/// Tries everything that is not forced off. Needs root for most of it; takes some tens of milliseconds.
///
/// `state_dir` is where layers will be kept (or any directory above it, if it is not there yet): whether the kernel
/// can read files for us depends on their file system.
#[must_use]
pub fn probe(forced: &Forced, state_dir: &Path) -> Features {
    probe::probe(forced, state_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_their_first_two_numbers() {
        for (release, version) in [
            ("6.18.44-fc-v595", (6, 18)),
            ("6.1.0-28-amd64", (6, 1)),
            ("5.10-rc1", (5, 10)),
            ("7", (7, 0)),
            ("odd", (0, 0)),
        ] {
            assert_eq!(Kernel::of(release.to_owned()).version, version, "{release}");
        }
    }

    #[test]
    fn what_is_forced_off_is_not_tried_and_says_so() {
        let names: Vec<&str> = FeatureName::ALL.iter().map(|name| name.as_str()).collect();
        let forced = Forced::parse(&names.join(",")).unwrap();
        let features = probe(&forced, Path::new("/"));
        for feature in features.all() {
            assert_eq!(feature.absence(), Some(&Absence::Forced), "{feature:?}");
        }
    }

    #[test]
    fn probing_leaves_nothing() {
        let before = crate::sys::mount::mounts().unwrap();
        let features = probe(&Forced::default(), Path::new("/nonexistent/state"));
        assert_eq!(crate::sys::mount::mounts().unwrap(), before);
        assert_eq!(features.kernel, Kernel::running());
        for feature in features.all() {
            assert!(!feature.text().is_empty(), "{feature:?}");
        }
    }
}
