//! What a services file says of limits, privileges and surroundings holds in the container.

use super::{IDLE, file, service};
use crate::support::program::Program;

#[test]
fn limits_and_privileges_of_the_file_hold_in_the_container() {
    let program = Program::new();
    let bounded = service("web", IDLE)
        .key("hostname: web.example")
        .key("extra_hosts: [db=10.1.2.3, here:host-gateway]")
        .key("dns: 10.9.9.9")
        .key("dns_search: [example.org]")
        .key("tmpfs: ['/scratch:size=1m,mode=0700']")
        .key("shm_size: 2m")
        .key("ulimits: {nofile: {soft: 100, hard: 200}}")
        .key("oom_score_adj: 123")
        .key("mem_limit: 64m")
        .key("cpus: 0.5")
        .key("pids_limit: 50")
        .key("cap_drop: [ALL]")
        .key("cap_add: [CHOWN]")
        .key("security_opt: ['no-new-privileges:true']");
    program.services(&file(&[bounded, service("plain", IDLE)]));
    let up = program.up();
    let pid = program.running("web");
    let shown = |script: &str| program.ok(["exec", "web", "--", "sh", "-c", script]);
    let of = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(shown("cat /etc/hostname /proc/sys/kernel/hostname"), "web.example\nweb.example\n");
    let hosts = shown("cat /etc/hosts");
    assert!(hosts.contains("10.1.2.3\tdb\n") && hosts.contains("127.0.0.1\there\n"), "{hosts}");
    assert_eq!(shown("cat /etc/resolv.conf"), "nameserver 10.9.9.9\nsearch example.org\n");
    let mounts = of("mounts");
    let mounted = |target: &str, option: &str| {
        let at = format!(" {target} tmpfs ");
        mounts.lines().any(|line| line.contains(&at) && line.contains(option))
    };
    assert!(mounted("/scratch", "size=1024k") && mounted("/scratch", "mode=700"), "{mounts}");
    assert!(mounted("/dev/shm", "size=2048k"), "{mounts}");
    let limits = of("limits");
    let files: Vec<&str> = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(files[3..5], ["100", "200"]);
    assert_eq!(of("oom_score_adj"), "123\n");
    let status = of("status");
    let line = |name: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        found.unwrap_or_else(|| panic!("{status}")).to_owned()
    };
    assert_eq!(
        (line("CapEff"), line("CapBnd")),
        ("0000000000000001".into(), "0000000000000001".into())
    );
    assert_eq!(line("NoNewPrivs"), "1");
    let groups = of("cgroup");
    let setting = |controller: &str, legacy: &str, unified: &str| {
        let group = groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers.split(',').any(|one| one == controller).then(|| path.to_owned())
        });
        let path = match group {
            Some(path) => format!("/sys/fs/cgroup/{controller}{path}/{legacy}"),
            None => {
                let path = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
                format!("/sys/fs/cgroup{path}/{unified}")
            }
        };
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    assert_eq!(setting("memory", "memory.limit_in_bytes", "memory.max"), "67108864\n");
    assert_eq!(setting("pids", "pids.max", "pids.max"), "50\n");
    if groups.lines().any(|line| line.contains(":memory:")) {
        let rules = shown("cat /sys/fs/cgroup/devices/devices.list");
        assert!(rules.contains("c 1:3 rwm\n") && !rules.contains('a'), "{rules}");
    }
    let quota = setting("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota.starts_with("50000"), "{quota}");
    // A change of a limit is a change of the container.
    program.services(&file(&[service("web", IDLE).key("mem_limit: 32m"), service("plain", IDLE)]));
    let plain = program.running("plain");
    program.until("`web` is recreated", || Some(program.running("web")).filter(|new| *new != pid));
    assert_eq!(program.running("plain"), plain);
    program.interrupt(up);
}

#[test]
fn what_is_not_supported_is_left_out_when_the_user_says_so() {
    let program = Program::new();
    program.services(&file(&[service("web", IDLE).key("sysctls: [net.core.somaxconn=100]")]));
    let refused = program.run(["config", "-q"]);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(errors.contains("services.yaml:") && errors.contains("web.sysctls"), "{errors}");
    assert!(errors.contains("--allow-unsupported"), "{errors}");
    let up = program.up_with(&["--allow-unsupported"]);
    program.running("web");
    assert!(program.log().contains("left out"), "{}", program.log());
    program.interrupt(up);
}
