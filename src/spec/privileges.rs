//! What a service's processes are allowed to do: capabilities and `security_opt`.

use std::collections::BTreeSet;

use super::field::{Checker, Refusal};
use super::raw::Node;

/// Capabilities of Linux, without `CAP_`.
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// What the user wrote of privileges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Privileges {
    /// Besides the default ones, such as `CAP_NET_ADMIN`.
    pub cap_add: BTreeSet<String>,
    /// Taken away. What is in both sets stays, as in Docker, unless it was added by `ALL`.
    pub cap_drop: BTreeSet<String>,
    /// No program may gain privileges by being executed.
    pub no_new_privileges: Option<bool>,
    /// Which system calls are let through.
    pub system_calls: SystemCalls,
    /// Whether it may do what root of the host may, and has its devices.
    pub privileged: Option<bool>,
}

/// Which system calls are let through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SystemCalls {
    /// Those of Docker's default profile.
    #[default]
    Default,
    /// All.
    Unconfined,
}

impl Privileges {
    /// All capabilities of Linux.
    #[must_use]
    pub fn all() -> BTreeSet<String> {
        CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect()
    }
}

impl Checker<'_> {
    /// The capabilities of a list; `ALL` becomes all of them.
    pub(super) fn capabilities(&mut self, path: &str, node: &Node) -> BTreeSet<String> {
        let mut set = BTreeSet::new();
        for (path, text, item) in self.texts(path, node) {
            let upper = text.to_ascii_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if upper == "ALL" {
                set.insert(upper);
            } else if CAPABILITIES.contains(&name) {
                set.insert(format!("CAP_{name}"));
            } else {
                let message = format!("`{text}` is no capability, such as `NET_ADMIN`");
                self.problem(Some(item.at), &path, message);
            }
        }
        set
    }

    pub(super) fn security_opt(&mut self, path: &str, node: &Node, privileges: &mut Privileges) {
        for (path, text, item) in self.texts(path, node) {
            let read = option(&text, privileges);
            self.refused(&path, item, read);
        }
    }
}

fn option(text: &str, privileges: &mut Privileges) -> Result<(), Refusal> {
    let unsupported =
        |why: &str| Err(Refusal::unsupported(format!("`{text}` is not supported: {why}")));
    let (name, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
    match (name, value) {
        ("no-new-privileges", "" | "true") => privileges.no_new_privileges = Some(true),
        ("no-new-privileges", "false") => privileges.no_new_privileges = Some(false),
        ("seccomp", "unconfined") => privileges.system_calls = SystemCalls::Unconfined,
        ("seccomp", "builtin" | "") => privileges.system_calls = SystemCalls::Default,
        ("seccomp", _) => return unsupported("profiles are not read; there is `unconfined`"),
        // Neither of the two is used.
        ("apparmor", "unconfined") | ("label", "disable") => {}
        ("apparmor", _) => return unsupported("AppArmor profiles are not used"),
        ("label", _) => return unsupported("SELinux labels are not used"),
        ("systempaths", _) => return unsupported("paths of the kernel stay masked"),
        ("credentialspec", _) => return unsupported("it is for containers of Windows"),
        _ => return Err(format!("unknown security option `{text}`").into()),
    }
    Ok(())
}
