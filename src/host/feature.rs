//! The names of what a host may lack, what is lost without each, and which are forced off.

use std::collections::BTreeSet;
use std::fmt;

/// Something that a host may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FeatureName {
    /// `/dev/fuse` and mounting it.
    Fuse,
    /// FUSE passthrough, Linux 6.9.
    Passthrough,
    /// `FUSE_NOTIFY_RESEND`, Linux 6.9.
    Resend,
    /// The overlay file system.
    Overlay,
    /// Its option `lowerdir+`, Linux 6.7.
    LowerdirPlus,
    /// `fsopen` and its family, Linux 5.2.
    MountApi,
    /// Overlay in a user namespace, Linux 5.11.
    UserNamespaceOverlay,
    /// Control groups that we may make.
    Cgroup,
    /// System-call filters.
    Seccomp,
    /// Landlock, Linux 5.13.
    Landlock,
    /// nftables.
    Nftables,
    /// Exit codes by pidfd, Linux 6.15.
    ExitCodes,
    /// CAP_SYS_RESOURCE.
    ResourceLimits,
}

impl FeatureName {
    /// Every one.
    pub const ALL: [Self; 13] = [
        Self::Fuse,
        Self::Passthrough,
        Self::Resend,
        Self::Overlay,
        Self::LowerdirPlus,
        Self::MountApi,
        Self::UserNamespaceOverlay,
        Self::Cgroup,
        Self::Seccomp,
        Self::Landlock,
        Self::Nftables,
        Self::ExitCodes,
        Self::ResourceLimits,
    ];

    /// The word for it, also in `SUPERVISOR_DISABLE`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fuse => "fuse",
            Self::Passthrough => "passthrough",
            Self::Resend => "resend",
            Self::Overlay => "overlay",
            Self::LowerdirPlus => "lowerdir+",
            Self::MountApi => "mount-api",
            Self::UserNamespaceOverlay => "userns-overlay",
            Self::Cgroup => "cgroup",
            Self::Seccomp => "seccomp",
            Self::Landlock => "landlock",
            Self::Nftables => "nftables",
            Self::ExitCodes => "exit-codes",
            Self::ResourceLimits => "resource-limits",
        }
    }

    /// What a host without it does not get.
    #[must_use]
    pub fn loss(self) -> &'static str {
        match self {
            Self::Fuse => "every layer is pulled fully before its container starts",
            Self::Passthrough => "content is read through the worker, which is slower",
            Self::Resend => {
                "when the worker of lazy layers dies, reads fail and the containers that use them are restarted"
            }
            Self::Overlay => "no container can start",
            Self::LowerdirPlus => "nothing, layers are mounted with the older call",
            Self::MountApi => "nothing, mounts are made with the older call",
            Self::UserNamespaceOverlay => "nothing, containers run in the host's user namespace",
            Self::Cgroup => {
                "containers run without limits, and without the capability to make device nodes"
            }
            Self::Seccomp => "the system calls of containers and of our own roles are not filtered",
            Self::Landlock => "the processes that parse what the network sent are confined less",
            Self::Nftables => "only services with `network_mode: host` or `none` can start",
            Self::ExitCodes => {
                "the exit code of a container whose monitor died may be reported as unknown"
            }
            Self::ResourceLimits => {
                "hard resource limits cannot be raised, nor kills for want of memory averted"
            }
        }
    }

    /// Whether somebody who uses the host notices; else it is only for the doctor to tell.
    #[must_use]
    pub fn is_noticed(self) -> bool {
        !matches!(
            self,
            Self::LowerdirPlus
                | Self::MountApi
                | Self::UserNamespaceOverlay
                | Self::ExitCodes
                | Self::ResourceLimits
        )
    }

    /// Variables that switch it off, in words that follow “take it out of”.
    #[must_use]
    pub fn switches(self) -> &'static str {
        match self {
            Self::Fuse => "SUPERVISOR_DISABLE, or unset SUPERVISOR_FUSE",
            Self::Passthrough => "SUPERVISOR_DISABLE, or unset SUPERVISOR_PASSTHROUGH",
            _ => "SUPERVISOR_DISABLE",
        }
    }

    /// What an operator can do about it.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Fuse => {
                "load the kernel module (`modprobe fuse`); in a container, pass the device on (`--device /dev/fuse`)"
            }
            Self::Passthrough => {
                "use Linux 6.9 or later with CONFIG_FUSE_PASSTHROUGH, run as root, and keep the state directory on a \
                 plain file system"
            }
            Self::Resend => "use Linux 6.9 or later",
            Self::Overlay => "load the kernel module (`modprobe overlay`); run as root",
            Self::LowerdirPlus => "use Linux 6.7 or later, if you care",
            Self::MountApi => "use Linux 5.2 or later; a sandbox may hide it",
            Self::UserNamespaceOverlay => {
                "use Linux 5.11 or later and allow user namespaces (sysctl user.max_user_namespaces)"
            }
            Self::Cgroup => {
                "mount control groups writable (`mount -t cgroup2 cgroup2 /sys/fs/cgroup`); under systemd, delegate \
                 them (Delegate=yes)"
            }
            Self::Seccomp => "use a kernel with CONFIG_SECCOMP_FILTER",
            Self::Landlock => {
                "use Linux 5.13 or later with landlock in the kernel's `lsm=` parameter"
            }
            Self::Nftables => "load the kernel module (`modprobe nf_tables`)",
            Self::ExitCodes => "use Linux 6.15 or later",
            Self::ResourceLimits => "run with CAP_SYS_RESOURCE",
        }
    }
}

impl fmt::Display for FeatureName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a feature is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absence {
    /// It was not tried, because it is not to be used.
    Forced,
    /// It was tried.
    Missing(String),
    /// It could not be tried, because this process may not.
    Untried(String),
    /// It needs another one, which is not there.
    Needs(FeatureName),
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forced => f.write_str("it is switched off"),
            Self::Missing(reason) => f.write_str(reason),
            Self::Untried(reason) => write!(f, "it could not be tried: {reason}"),
            Self::Needs(name) => write!(f, "it needs `{name}`"),
        }
    }
}

/// Whether a feature is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It works; with what was found.
    Present(String),
    /// It does not.
    Absent(Absence),
}

/// One feature of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// Which.
    pub name: FeatureName,
    /// Whether it is there.
    pub state: State,
}

impl Feature {
    /// Whether it can be used.
    #[must_use]
    pub fn is_present(&self) -> bool {
        matches!(self.state, State::Present(_))
    }

    /// Whether it is not to be used whatever the host has.
    #[must_use]
    pub fn is_forced_off(&self) -> bool {
        self.absence() == Some(&Absence::Forced)
    }

    /// Why it is not there.
    #[must_use]
    pub fn absence(&self) -> Option<&Absence> {
        match &self.state {
            State::Present(_) => None,
            State::Absent(absence) => Some(absence),
        }
    }

    /// What was found, or why nothing.
    #[must_use]
    pub fn text(&self) -> String {
        match &self.state {
            State::Present(detail) => detail.clone(),
            State::Absent(absence) => absence.to_string(),
        }
    }
}

/// A word that names no feature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is no feature; expected some of {}", FeatureName::ALL.map(FeatureName::as_str).join(", "))]
pub struct UnknownFeature {
    /// The word.
    pub word: String,
}

/// Features that are not used even where the host has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forced(BTreeSet<FeatureName>);

impl Forced {
    /// Reads names that are separated by commas.
    ///
    /// # Errors
    /// When one of them names no feature.
    pub fn parse(text: &str) -> Result<Self, UnknownFeature> {
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        let named = words.map(|word| {
            let found = FeatureName::ALL.into_iter().find(|name| name.as_str() == word);
            found.ok_or_else(|| UnknownFeature { word: word.to_owned() })
        });
        named.collect::<Result<_, _>>().map(Self)
    }

    /// One more.
    pub fn insert(&mut self, name: FeatureName) {
        self.0.insert(name);
    }

    /// Whether `name` is forced off.
    #[must_use]
    pub fn contains(&self, name: FeatureName) -> bool {
        self.0.contains(&name)
    }

    /// The names, separated by commas, as they are read.
    #[must_use]
    pub fn to_list(&self) -> String {
        self.0.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_and_an_unknown_word_is_named() {
        let forced = Forced::parse(" passthrough,lowerdir+,, resend ").unwrap();
        assert!(forced.contains(FeatureName::LowerdirPlus) && !forced.contains(FeatureName::Fuse));
        assert_eq!(Forced::parse(&forced.to_list()).unwrap(), forced);
        assert_eq!(Forced::parse("").unwrap(), Forced::default());
        let error = Forced::parse("fuse,fuze").unwrap_err().to_string();
        assert!(error.starts_with("`fuze` is no feature; expected some of fuse,"), "{error}");
    }
}
