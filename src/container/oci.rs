//! From a launch and what the image and the host say to the configuration of the runtime specification. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::capability::CgroupLayout;
use super::devices::Node;
use super::user::ResolvedUser;
use super::{
    Bounds, ExecRequest, Filter, Lack, Launch, Mount, MountKind, Network, RunPaths, content,
};

/// What Docker's images expect when they name no other.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the kernel tells about the host; replaced by something empty.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What changes the host; may only be read.
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What is known only when the container starts.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) user: ResolvedUser,
    pub(super) layout: CgroupLayout,
    /// What can be given: the capabilities that we have ourselves.
    pub(super) capabilities: Vec<String>,
    /// Devices of the host that it is given.
    pub(super) devices: Vec<Node>,
    /// Its host name.
    pub(super) hostname: String,
    /// For [`Network::None`] and [`Network::Attached`]: a namespace that is set up already. Relative to
    /// the descriptors of the starting process, which the container's first process has too.
    pub(super) network: Option<PathBuf>,
    /// What is seen of control groups, where that is mounted already.
    pub(super) groups: Option<PathBuf>,
    /// Files of ours by their path in the container, such as `/etc/hosts`.
    pub(super) files: Vec<(&'static str, PathBuf)>,
    /// Where images are mounted, by their path in the container.
    pub(super) images: BTreeMap<PathBuf, PathBuf>,
}

/// The configuration of the container.
pub(super) fn spec(launch: &Launch, facts: &Facts) -> Value {
    let (bounds, layout) = (&launch.bounds, facts.layout);
    let capabilities = bounds.capabilities(layout, &facts.capabilities);
    let capabilities: Vec<&str> = capabilities.iter().map(String::as_str).collect();
    let mut linux = json!({
        "cgroupsPath": launch.cgroup,
        "namespaces": namespaces(launch, facts),
    });
    if !bounds.privileged {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    if !facts.devices.is_empty() {
        linux["devices"] = facts.devices.iter().map(Node::device).collect();
    }
    // Without groups there is nobody to enforce rules for devices, and the runtime refuses to start with some.
    if layout != CgroupLayout::Absent {
        let mut resources = bounds.resources();
        // Everything, or nothing but what follows and what every container has.
        let mut rules = vec![json!({ "allow": bounds.privileged, "access": "rwm" })];
        if !bounds.privileged {
            rules.extend(facts.devices.iter().map(Node::rule));
        }
        resources.insert("devices".to_owned(), rules.into());
        linux["resources"] = resources.into();
    }
    let is_filtered = bounds.filter == Filter::Default && !bounds.privileged;
    if !launch.lacks(Lack::Seccomp) && is_filtered {
        linux["seccomp"] = super::seccomp::profile(&capabilities, std::env::consts::ARCH);
    }
    if launch.network != Network::Host {
        // As Docker: in a network of its own any user may listen on any port, and ping.
        linux["sysctl"] = json!({
            "net.ipv4.ip_unprivileged_port_start": "0",
            "net.ipv4.ping_group_range": "0 2147483647",
        });
    }
    for (name, value) in &bounds.sysctls {
        linux["sysctl"][name] = json!(value);
    }
    let cwd = launch.process.cwd.as_deref().unwrap_or("/");
    let env = environment(&launch.process.env, &facts.user.home, &facts.hostname);
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": launch.paths().rootfs, "readonly": launch.rootfs.read_only },
        "hostname": facts.hostname,
        "mounts": mounts(launch, facts),
        "process": Program {
            args: &launch.process.args,
            env,
            cwd,
            user: &facts.user,
            capabilities: &capabilities,
            no_new_privileges: launch.process.no_new_privileges,
            bounds: &launch.bounds,
            has_terminal: false,
        }.to_json(),
        "linux": linux,
    })
}

/// The process of an exec in a container whose configuration is `container`; `user` is given where the request names
/// one, and `extra` are capabilities that it gives up before the program runs.
pub(super) fn exec_process(
    container: &Value,
    request: &ExecRequest,
    user: Option<&ResolvedUser>,
    extra: &[&str],
) -> Value {
    let mut process = container["process"].clone();
    process["args"] = json!(request.args);
    let own: Vec<String> = strings(&process["env"]);
    let mut env: Vec<String> = own
        .into_iter()
        .filter(|entry| !request.env.iter().any(|e| name(e) == name(entry)))
        .collect();
    if let Some(user) = user {
        process["user"] = user_json(user);
        env.retain(|entry| name(entry) != "HOME");
        env.push(format!("HOME={}", user.home));
    }
    if request.terminal.is_some() && !env.iter().any(|entry| name(entry) == "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    env.retain(|entry| !request.env.iter().any(|e| name(e) == name(entry)));
    env.extend(request.env.iter().cloned());
    process["env"] = json!(env);
    if let Some(cwd) = &request.cwd {
        process["cwd"] = json!(cwd);
    }
    process["terminal"] = json!(request.terminal.is_some());
    add_capabilities(&mut process, extra);
    process
}

/// What the runtime is given of a configuration whose filter the executor loads: none, and the capabilities `extra` for
/// that, which the executor gives up again.
pub(super) fn without_filter(spec: &Value, extra: &[&str]) -> Value {
    let mut spec = spec.clone();
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("seccomp");
    }
    add_capabilities(&mut spec["process"], extra);
    spec
}

/// Takes out the limits that are there already.
pub(super) fn remove_resources(spec: &mut Value) {
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("resources");
    }
}

/// The filter of a container with this configuration, if it has one.
pub(super) fn profile(container: &Value) -> Option<&Value> {
    container["linux"].get("seccomp").filter(|profile| !profile.is_null())
}

/// The capabilities of a container with this configuration.
pub(super) fn capabilities(container: &Value) -> Vec<String> {
    strings(&container["process"]["capabilities"]["bounding"])
}

fn add_capabilities(process: &mut Value, extra: &[&str]) {
    for set in ["bounding", "effective", "permitted"] {
        let mut names = strings(&process["capabilities"][set]);
        for extra in extra {
            if !names.iter().any(|name| name == extra) {
                names.push((*extra).to_owned());
            }
        }
        process["capabilities"][set] = json!(names);
    }
}

/// The strings of a JSON list.
fn strings(list: &Value) -> Vec<String> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect()
}

struct Program<'a> {
    args: &'a [String],
    env: Vec<String>,
    cwd: &'a str,
    user: &'a ResolvedUser,
    capabilities: &'a [&'a str],
    no_new_privileges: bool,
    bounds: &'a Bounds,
    has_terminal: bool,
}

impl Program<'_> {
    fn to_json(&self) -> Value {
        let set = self.capabilities;
        let mut process = json!({
            "terminal": self.has_terminal,
            "args": self.args,
            "env": self.env,
            "cwd": self.cwd,
            "user": user_json(self.user),
            "capabilities": { "bounding": set, "effective": set, "permitted": set },
        });
        if !self.bounds.rlimits.is_empty() {
            process["rlimits"] = self.bounds.rlimits();
        }
        if let Some(score) = self.bounds.oom_score_adj {
            process["oomScoreAdj"] = json!(score);
        }
        // Its mere presence moves the library's loading of a filter behind the drop of capabilities, where it fails.
        if self.no_new_privileges {
            process["noNewPrivileges"] = json!(true);
        }
        process
    }
}

fn user_json(user: &ResolvedUser) -> Value {
    // The primary group is listed too: the set of groups is replaced only when it is not empty, and a program must
    // not keep the groups of the runtime.
    let mut groups = vec![user.gid];
    groups.extend(user.groups.iter().filter(|gid| **gid != user.gid));
    json!({ "uid": user.uid, "gid": user.gid, "additionalGids": groups })
}

fn name(entry: &str) -> &str {
    entry.split('=').next().unwrap_or(entry)
}

/// The last of several values of one name wins.
fn environment(given: &[String], home: &str, hostname: &str) -> Vec<String> {
    let mut env: Vec<String> = Vec::with_capacity(given.len() + 3);
    for entry in given.iter().filter(|entry| entry.contains('=')) {
        env.retain(|known| name(known) != name(entry));
        env.push(entry.clone());
    }
    let defaults =
        [DEFAULT_PATH.to_owned(), format!("HOME={home}"), format!("HOSTNAME={hostname}")];
    for default in defaults {
        if !env.iter().any(|entry| name(entry) == name(&default)) {
            env.push(default);
        }
    }
    env
}

fn namespaces(launch: &Launch, facts: &Facts) -> Value {
    let mut list: Vec<Value> =
        ["pid", "ipc", "uts", "mount"].iter().map(|typ| json!({ "type": typ })).collect();
    if facts.layout == CgroupLayout::Unified {
        list.push(json!({ "type": "cgroup" }));
    }
    match &launch.network {
        Network::Host | Network::Other(_) => {}
        Network::None | Network::Attached(_) | Network::Of(_) => {
            list.push(json!({ "type": "network", "path": facts.network }));
        }
        Network::Namespace(path) => list.push(json!({ "type": "network", "path": path })),
    }
    Value::Array(list)
}

fn mounts(launch: &Launch, facts: &Facts) -> Value {
    let fixed = [
        ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"][..]),
        ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ];
    let has_groups = facts.layout != CgroupLayout::Absent;
    let mut list: Vec<Value> = fixed
        .iter()
        .filter(|(_, typ, ..)| has_groups || *typ != "cgroup")
        .map(|(target, typ, source, options)| {
            json!({ "destination": target, "type": typ, "source": source, "options": options })
        })
        .collect();
    if launch.bounds.privileged {
        for mount in list.iter_mut().filter(|mount| mount["type"] == "sysfs") {
            mount["options"] = json!(["nosuid", "noexec", "nodev"]);
        }
    }
    if let Some(groups) = &facts.groups
        && let Some(mount) = list.iter_mut().find(|mount| mount["type"] == "cgroup")
    {
        *mount = json!({
            "destination": "/sys/fs/cgroup", "type": "bind", "source": groups,
            "options": ["rbind", "rprivate", "nosuid", "noexec", "nodev", "ro"],
        });
    }
    if let Some(bytes) = launch.bounds.shm_size
        && let Some(shm) = list.iter_mut().find(|mount| mount["destination"] == "/dev/shm")
    {
        let size = format!("size={bytes}");
        shm["options"] = json!(["nosuid", "noexec", "nodev", "mode=1777", size]);
    }
    for (target, source) in &facts.files {
        list.push(json!({
            "destination": target, "type": "bind", "source": source, "options": ["rbind", "rprivate"],
        }));
    }
    // What is mounted below another mount comes after it, or would be hidden by it.
    let mut own: Vec<&Mount> = launch.mounts.iter().collect();
    own.sort_by_key(|mount| depth(&mount.target));
    let paths = launch.paths();
    list.extend(own.into_iter().map(|mount| mount_json(mount, &paths, facts)));
    Value::Array(list)
}

fn depth(path: &Path) -> usize {
    path.components().count()
}

fn mount_json(mount: &Mount, paths: &RunPaths, facts: &Facts) -> Value {
    let access = if mount.read_only { "ro" } else { "rw" };
    match &mount.kind {
        MountKind::Bind { source, .. } | MountKind::Volume { source, .. } => json!({
            "destination": mount.target, "type": "bind", "source": source,
            "options": ["rbind", "rprivate", access],
        }),
        // One of a newer program is refused before.
        MountKind::Image { .. } | MountKind::Other(_) => json!({
            "destination": mount.target, "type": "bind", "source": facts.images.get(&mount.target),
            "options": ["rbind", "rprivate", "ro", "nodev"],
        }),
        MountKind::Content(_) => json!({
            "destination": mount.target, "type": "bind", "source": content::path(paths, &mount.target),
            "options": ["rbind", "rprivate", access, "nosuid", "nodev", "noexec"],
        }),
        MountKind::Tmpfs { size, mode } => {
            let mut options: Vec<String> =
                ["noexec", "nosuid", "nodev", access].map(str::to_owned).to_vec();
            options.extend(size.map(|size| format!("size={size}")));
            options.push(format!("mode={:o}", mode.unwrap_or(0o1777)));
            json!({
                "destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options,
            })
        }
    }
}

#[cfg(test)]
#[path = "oci_tests.rs"]
mod tests;
