//! Which capabilities a container has.

/// What Docker gives, in the runtime specification's names.
pub(super) const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// How this host groups processes; it decides what the runtime can enforce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CgroupLayout {
    /// Version 1, alone or beside version 2.
    Legacy,
    /// Version 2 alone.
    Unified,
    /// Not at all.
    Absent,
}

impl CgroupLayout {
    /// That of this host.
    pub(super) fn of_host() -> Self {
        if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            Self::Unified
        } else {
            Self::Legacy
        }
    }
}

/// The capabilities of a container on such a host.
pub(super) fn granted(layout: CgroupLayout) -> Vec<&'static str> {
    DEFAULT
        .into_iter()
        // Version 2 enforces device rules with a BPF program, which libcontainer loads only with a C library that we
        // do not link. A container that can make device nodes could then open every disk of the host.
        // Without any groups nothing enforces them either.
        .filter(|name| layout == CgroupLayout::Legacy || *name != "CAP_MKNOD")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_makes_devices_where_nobody_guards_them() {
        assert_eq!(granted(CgroupLayout::Legacy).len(), 14);
        assert!(!granted(CgroupLayout::Unified).contains(&"CAP_MKNOD"));
        assert!(!granted(CgroupLayout::Absent).contains(&"CAP_MKNOD"));
    }
}
