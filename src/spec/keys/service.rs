//! The keys of a service.

use super::Shape::{Any, Bool, Choice, Items, List, Number, Object, Pairs, Text, Texts};
use super::{Key, accepted, done, rejected};

const NO_WINDOWS: &str = "it is for containers of Windows";
const NO_SWARM: &str = "it is for clusters, and this is one host";

/// All keys of a service that compose knows, in the order of their names.
pub(in super::super) const SERVICE: &[Key] = &[
    accepted("annotations", Pairs, "nothing reads them"),
    accepted("attach", Bool, "an attached `up` follows every service that it starts"),
    rejected("blkio_config", "use of disks is not limited"),
    rejected("build", "images are not built here; see `supervisor image pack`"),
    done(
        "cap_add",
        List,
        "capabilities besides Docker's default ones, with or without `CAP_`; `ALL`",
    ),
    done("cap_drop", List, "capabilities that are taken away; `ALL`"),
    rejected("cgroup", "each container has control groups of its own"),
    rejected("cgroup_parent", "containers are in groups of the supervisor"),
    done(
        "command",
        Texts,
        "list, or a text that is split into words; replaces the image's command",
    ),
    done(
        "configs",
        Items,
        "list of names, or of `source`, `target`, `uid`, `gid`, `mode`; files in memory, at `/NAME` where no `target` is given",
    ),
    done(
        "container_name",
        Text,
        "a name that others of its networks find it by, from its next start; commands take the service's name",
    ),
    rejected("cpu_count", NO_WINDOWS),
    rejected("cpu_percent", NO_WINDOWS),
    rejected("cpu_period", "use `cpus`"),
    rejected("cpu_quota", "use `cpus`"),
    rejected("cpu_rt_period", "there is no real-time scheduling of groups"),
    rejected("cpu_rt_runtime", "there is no real-time scheduling of groups"),
    done("cpu_shares", Number, "weight against other containers, 1024 where absent"),
    done("cpus", Number, "most processors that it uses, such as `0.5`"),
    done("cpuset", Text, "processors that it may run on, such as `0-2,4`"),
    rejected("credential_spec", NO_WINDOWS),
    done(
        "depends_on",
        Any,
        "list of services, or mapping from them to `condition`, `required`, `restart`; holds at every start, and what depends on a service is stopped before it",
    ),
    done("deploy", Object(DEPLOY), "see below"),
    accepted("develop", Any, "only `watch` of a build tool reads it"),
    rejected("device_cgroup_rules", "use of devices is not granted"),
    done(
        "devices",
        Items,
        "`HOST[:CONTAINER[:rwm]]`, or mappings of `source`, `target`, `permissions`: devices of the host, or folders of them",
    ),
    done("dns", Texts, "addresses of name servers, instead of the host's"),
    done("dns_opt", List, "options of the resolver; with the host's network together with `dns`"),
    done("dns_search", Texts, "domains to search; with the host's network together with `dns`"),
    done(
        "domainname",
        Text,
        "NIS domain name in the container; the domain of a host name is part of `hostname`",
    ),
    rejected("driver_opts", "bridges are set up by the supervisor"),
    done(
        "entrypoint",
        Texts,
        "list or text; replaces the image's entry point and drops its command",
    ),
    done(
        "env_file",
        Any,
        "files with variables: a path, or a list of paths or of `path`, `required`, `format: raw`",
    ),
    done("environment", Pairs, "mapping, or list of `NAME=value`; added to the image's"),
    accepted(
        "expose",
        List,
        "it only documents; services of a network reach every port of each other",
    ),
    done("extends", Any, "`service`, also of another `file`"),
    rejected("external_links", "be in one network with it (`networks`, `external`)"),
    done(
        "extra_hosts",
        Pairs,
        "lines for `/etc/hosts`: list of `NAME=ADDRESS` or `NAME:ADDRESS`, or mapping; `host-gateway` is this host",
    ),
    rejected("gpus", "devices of the host are not passed through"),
    done("group_add", List, "further groups of the process, by name in the image or by number"),
    done(
        "healthcheck",
        Object(HEALTHCHECK),
        "see below; what was healthy and is not any more is restarted, see `on_unhealthy`",
    ),
    done("hostname", Text, "host name in the container"),
    done(
        "image",
        Text,
        "`name[:tag][@digest]`, `host[:port]/name…`, or `oci:FOLDER[:TAG]` for an image layout of this host; required",
    ),
    done(
        "init",
        Bool,
        "`true`: the first process passes signals on to the service's and takes in what it leaves behind",
    ),
    rejected("ipc", "each container has its own"),
    rejected("isolation", NO_WINDOWS),
    rejected("label_file", "nothing reads labels"),
    accepted("labels", Pairs, "nothing reads them"),
    rejected(
        "links",
        "services of a network find each other by name; for other names use `aliases`",
    ),
    done("logging", Any, "`driver`: `json-file`, `local`, `none`; `options`: see Logs"),
    rejected("mac_address", "hardware addresses are made of names, and stay"),
    done("mem_limit", Number, "most memory, such as `512m`"),
    done("mem_reservation", Number, "memory that it keeps when the host has little"),
    rejected("mem_swappiness", "newer kernels have no such setting"),
    done(
        "memswap_limit",
        Number,
        "most memory and swap together; `-1`: any amount of swap; together with `mem_limit`",
    ),
    rejected("models", "models are not run"),
    done(
        "network_mode",
        Text,
        "`host`; `none`; `bridge`: the bridge that such services of all projects share; `service:NAME` or \
         `container:NAME`: the network of that one, after which it starts, and with which it is started again if it is \
         of the project; where absent, `networks` hold",
    ),
    done(
        "networks",
        Any,
        "list, or mapping to settings; where absent, `default`: the project's own bridge",
    ),
    rejected("oom_kill_disable", "newer kernels have no such setting"),
    done(
        "oom_score_adj",
        Number,
        "from -1000 to 1000: who is killed first when the host has no memory left",
    ),
    rejected("pid", "each container has its own"),
    done("pids_limit", Number, "most processes and threads; `-1` or `0`: any number"),
    done("platform", Text, "only this host's, such as `linux/amd64`"),
    done(
        "ports",
        Items,
        "all forms; with `network_mode: host` if the published port is the container's",
    ),
    rejected("post_start", "hooks are not run"),
    rejected("pre_start", "hooks are not run"),
    rejected("pre_stop", "hooks are not run"),
    done(
        "privileged",
        Bool,
        "`true`: all capabilities and devices of the host, no filter of system calls, nothing of the kernel hidden",
    ),
    done("profiles", List, "it runs when one of them is active, or when it is named"),
    rejected("provider", "what is no container is not run"),
    done(
        "pull_policy",
        Text,
        "only `missing` (`if_not_present`), the default: what is here is not looked up again",
    ),
    done("read_only", Bool, "`true`: the root file system cannot be written"),
    done(
        "restart",
        Text,
        "`no` (default), `on-failure[:times]`, `always`, `unless-stopped`; with growing pauses",
    ),
    accepted(
        "runtime",
        Choice(&["runc", "crun", "youki", "io.containerd.runc.v2"]),
        "containers are run by the supervisor itself; names of others are an error",
    ),
    done("scale", Number, "only `1`"),
    done("secrets", Items, "as `configs`, at `/run/secrets/NAME`"),
    done(
        "security_opt",
        List,
        "`no-new-privileges`, `seccomp=unconfined`; `apparmor=unconfined` and `label=disable` are what is so anyway",
    ),
    done("shm_size", Number, "size of `/dev/shm`, `64m` where absent"),
    done("stdin_open", Bool, "`true`: its input stays open, and nobody writes to it"),
    done(
        "stop_grace_period",
        Text,
        "such as `1m30s`, `10s` where absent; then everything in the container is killed",
    ),
    done("stop_signal", Text, "name or number; the image's, else `SIGTERM`, where absent"),
    rejected("storage_opt", "disk space of containers is not limited"),
    done(
        "sysctls",
        Pairs,
        "settings of the kernel that a container has for itself: `net.…` (not with the host's network), `kernel.msg…`, `kernel.shm…`, `kernel.sem`, `fs.mqueue.…`",
    ),
    done("tmpfs", Texts, "`PATH[:size=64m,mode=1777,ro]`: memory that is a folder"),
    done("tty", Bool, "only `false`: services have no terminal"),
    done(
        "ulimits",
        Any,
        "mapping from names such as `nofile` to a number, or to `soft` and `hard`",
    ),
    rejected("use_api_socket", "there is no Docker socket"),
    done("user", Text, "name or id, optionally with `:group`; names are looked up in the image"),
    rejected("userns_mode", "user namespaces are not used"),
    rejected("uts", "each container has its own"),
    done(
        "volumes",
        Items,
        "`HOST:CONTAINER[:ro]`, `NAME:CONTAINER[:ro,nocopy]`, or mappings of type `bind`, `volume`, `image` or `tmpfs`",
    ),
    rejected("volumes_from", "name the volumes in `volumes`"),
    done("working_dir", Text, "where the process starts"),
    done(
        "x-supervisor",
        Object(super::top::SUPERVISOR),
        "our own words, for this service; see below",
    ),
];

/// The keys of `healthcheck`.
pub(in super::super) const HEALTHCHECK: &[Key] = &[
    done("disable", Bool, "`true`: health is not checked, not by the image's check either"),
    done("interval", Text, "from one check to the next, `30s` where absent"),
    done("retries", Number, "failures in a row that make it unhealthy, `3` where absent"),
    done("start_interval", Text, "the same as `interval` until it is healthy, `1s` where absent"),
    done("start_period", Text, "how long failures do not count after the start"),
    done("test", Texts, "`[CMD, …]`, `[CMD-SHELL, …]`, `[NONE]`, or a text for a shell"),
    done("timeout", Text, "how long one check may take, `30s` where absent"),
];

/// The keys of `deploy`.
pub(in super::super) const DEPLOY: &[Key] = &[
    rejected("endpoint_mode", NO_SWARM),
    accepted("labels", Pairs, "nothing reads them"),
    done("mode", Choice(&["replicated"]), "only `replicated`"),
    rejected("placement", NO_SWARM),
    done("replicas", Number, "only `1`"),
    done("resources", Object(RESOURCES), "`limits` and `reservations`"),
    done("restart_policy", Object(RESTART_POLICY), "instead of `restart`"),
    rejected("rollback_config", "updates are not rolled back in this version"),
    rejected("update_config", "a changed service is stopped, then started"),
];

/// The keys of `deploy.resources`.
pub(in super::super) const RESOURCES: &[Key] = &[
    done("limits", Object(LIMITS), "`cpus`, `memory`, `pids`"),
    done("reservations", Object(RESERVATIONS), "`memory`; `cpus` has no effect"),
];

/// The keys of `deploy.resources.limits`.
pub(in super::super) const LIMITS: &[Key] = &[
    done("cpus", Number, "as `cpus` of the service"),
    done("memory", Number, "as `mem_limit`"),
    done("pids", Number, "as `pids_limit`"),
];

/// The keys of `deploy.resources.reservations`.
pub(in super::super) const RESERVATIONS: &[Key] = &[
    accepted("cpus", Number, "one host has nothing to choose from"),
    rejected("devices", "devices of the host are not passed through"),
    rejected("generic_resources", NO_SWARM),
    done("memory", Number, "as `mem_reservation`"),
];

/// The keys of `deploy.restart_policy`.
pub(in super::super) const RESTART_POLICY: &[Key] = &[
    done(
        "condition",
        Choice(&["none", "on-failure", "any"]),
        "`none`, `on-failure` or `any` (default)",
    ),
    accepted("delay", Text, "pauses grow by themselves, from 1 s to 60 s"),
    done("max_attempts", Number, "restarts after failures; together with `on-failure`"),
    accepted("window", Text, "a run of 10 s counts as a success"),
];
