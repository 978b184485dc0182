//! The keys of compose: which are implemented, and what to say of those that are not.

/// Keys of a service that this version implements.
pub(super) const SERVICE: [&str; 14] = [
    "image",
    "command",
    "entrypoint",
    "environment",
    "working_dir",
    "user",
    "volumes",
    "read_only",
    "restart",
    "stop_signal",
    "stop_grace_period",
    "network_mode",
    "logging",
    "profiles",
];

/// Keys at the top of the file that this version accepts, besides `x-*`.
pub(super) const TOP: [&str; 3] = ["services", "version", "name"];

/// Keys of a service that compose knows and this version does not implement.
const SERVICE_LATER: [&str; 79] = [
    "annotations",
    "attach",
    "blkio_config",
    "build",
    "cap_add",
    "cap_drop",
    "cgroup",
    "cgroup_parent",
    "configs",
    "container_name",
    "cpu_count",
    "cpu_percent",
    "cpu_period",
    "cpu_quota",
    "cpu_rt_period",
    "cpu_rt_runtime",
    "cpu_shares",
    "cpus",
    "cpuset",
    "credential_spec",
    "depends_on",
    "deploy",
    "develop",
    "device_cgroup_rules",
    "devices",
    "dns",
    "dns_opt",
    "dns_search",
    "domainname",
    "driver_opts",
    "env_file",
    "expose",
    "extends",
    "external_links",
    "extra_hosts",
    "gpus",
    "group_add",
    "healthcheck",
    "hostname",
    "init",
    "ipc",
    "isolation",
    "label_file",
    "labels",
    "links",
    "mac_address",
    "mem_limit",
    "mem_reservation",
    "mem_swappiness",
    "memswap_limit",
    "models",
    "networks",
    "oom_kill_disable",
    "oom_score_adj",
    "pid",
    "pids_limit",
    "platform",
    "ports",
    "post_start",
    "pre_start",
    "pre_stop",
    "privileged",
    "provider",
    "pull_policy",
    "runtime",
    "scale",
    "secrets",
    "security_opt",
    "shm_size",
    "stdin_open",
    "storage_opt",
    "sysctls",
    "tmpfs",
    "tty",
    "ulimits",
    "use_api_socket",
    "userns_mode",
    "uts",
    "volumes_from",
];

/// Keys at the top of the file that compose knows and this version does not implement.
const TOP_LATER: [&str; 6] = ["configs", "include", "models", "networks", "secrets", "volumes"];

/// What is wrong with `key` of a service. `has_image`: the service has an `image:` too.
pub(super) fn service_problem(key: &str, has_image: HasImage) -> String {
    match (key, has_image) {
        ("build", HasImage::No) => "`build` is not supported: images are not built here; pack a folder with \
            `supervisor image pack`, or build with another tool, and name the result in `image:`"
            .to_owned(),
        ("build", HasImage::Yes) => {
            "`build` is not supported: images are not built here; remove it, and `image:` is pulled as it is"
                .to_owned()
        }
        ("ports", _) => later("ports", "; services use the host's network, so a port is reachable as it is"),
        ("env_file" | "extends", _) => format!("`{key}` names a file, and this text was given without its folder"),
        ("deploy", _) => later("deploy", "; `restart:` gives the restart policy"),
        _ if SERVICE_LATER.contains(&key) => later(key, ""),
        _ => unknown(key, SERVICE.iter().chain(&SERVICE_LATER)),
    }
}

/// What is wrong with `key` at the top of the file.
pub(super) fn top_problem(key: &str) -> String {
    match key {
        "volumes" => later("volumes", "; a service can mount folders of the host (`./data:/data`)"),
        "include" => "`include` names files, and this text was given without its folder".to_owned(),
        _ if TOP_LATER.contains(&key) => later(key, ""),
        _ if SERVICE.contains(&key) || SERVICE_LATER.contains(&key) => {
            format!(
                "`{key}` belongs to a service; put it below `services:` and the name of the service"
            )
        }
        _ => unknown(key, TOP.iter().chain(&TOP_LATER)),
    }
}

/// Whether a service names its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HasImage {
    Yes,
    No,
}

fn later(key: &str, advice: &str) -> String {
    format!("`{key}` is not supported in this version{advice}")
}

fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a &'static str>) -> String {
    let normalized = key.to_ascii_lowercase().replace('-', "_");
    let nearest = known
        .map(|candidate| (distance(&normalized, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 1.max(candidate.len().min(key.len()) / 3))
        .min();
    match nearest {
        Some((_, candidate)) => format!("unknown key `{key}`; did you mean `{candidate}`?"),
        None => format!("unknown key `{key}`; keys of your own begin with `x-`"),
    }
}

/// Edits that lead from `a` to `b`: insert, delete, replace. Bounded, since a key can be as long as the file.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 64 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_answered_with_the_nearest_known_one() {
        for (key, expected) in [
            ("imag", "`image`"),
            ("enviroment", "`environment`"),
            ("read-only", "`read_only`"),
            ("Restart", "`restart`"),
            ("comand", "`command`"),
            ("volume", "`volumes`"),
            ("port", "`ports`"),
            ("frobnicate", "`x-`"),
        ] {
            let message = service_problem(key, HasImage::Yes);
            assert!(message.contains(expected), "{message}");
        }
        assert!(top_problem("service").contains("`services`"));
        assert!(top_problem("image").contains("belongs to a service"));
        assert!(unknown(&"x".repeat(10_000), SERVICE.iter()).contains("unknown key"));
    }

    #[test]
    fn no_key_is_both_implemented_and_not() {
        assert!(SERVICE.iter().all(|key| !SERVICE_LATER.contains(key)));
        assert!(TOP.iter().all(|key| !TOP_LATER.contains(key)));
        assert!(SERVICE_LATER.is_sorted());
    }
}
