//! The runtime configuration of a launch.

use oci_spec::runtime::Spec;

use super::*;
use crate::container::{Process, Rootfs, TerminalSize, Writable};

fn launch() -> Launch {
    let process = Process {
        args: vec!["serve".to_owned()],
        env: vec!["A=1".to_owned(), "B=2".to_owned(), "A=3".to_owned(), "junk".to_owned()],
        cwd: Some("/srv".to_owned()),
        user: None,
        groups: Vec::new(),
        no_new_privileges: false,
        first: Default::default(),
        input: Default::default(),
    };
    let rootfs = Rootfs {
        layers: vec![PathBuf::from("/l")],
        writable: Writable::Volatile,
        read_only: true,
        legacy_mount: false,
    };
    let id = "web-1".parse().unwrap();
    Launch::new(
        id,
        "00c0ffee",
        PathBuf::from("/run/s"),
        PathBuf::from("/state/web-1"),
        rootfs,
        process,
    )
}

fn facts(layout: CgroupLayout) -> Facts {
    Facts {
        user: ResolvedUser { uid: 33, gid: 34, groups: vec![4, 34], home: "/var/www".to_owned() },
        layout,
        hostname: "web".to_owned(),
        network: Some(PathBuf::from("/proc/self/fd/9")),
        groups: None,
        capabilities: crate::spec::Privileges::all()
            .into_iter()
            .filter(|c| c != "CAP_SYS_RESOURCE")
            .collect(),
        devices: Vec::new(),
        images: BTreeMap::from([("/code".into(), "/run/images/1".into())]),
        files: vec![("/etc/hosts", PathBuf::from("/run/s/containers/web-1/hosts"))],
    }
}

fn typed(value: Value) -> Spec {
    serde_json::from_value(value).unwrap()
}

#[test]
fn the_configuration_is_one_of_the_runtime_specification() {
    let spec = typed(spec(&launch(), &facts(CgroupLayout::Legacy)));
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.no_new_privileges(), None);
    assert_eq!(process.user().uid(), 33);
    assert_eq!(process.user().additional_gids().as_deref(), Some(&[34, 4][..]));
    assert_eq!(process.capabilities().as_ref().unwrap().bounding().as_ref().unwrap().len(), 14);
    assert!(process.capabilities().as_ref().unwrap().inheritable().is_none());
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
    let linux = spec.linux().as_ref().unwrap();
    let cgroup = linux.cgroups_path().as_deref().unwrap();
    assert_eq!(cgroup, Path::new("/supervisor-00c0ffee/c/web-1"));
    assert!(linux.seccomp().is_some());
}

#[test]
fn the_environment_has_defaults_and_the_last_value_wins() {
    let spec = spec(&launch(), &facts(CgroupLayout::Legacy));
    assert_eq!(
        strings(&spec["process"]["env"]),
        ["B=2", "A=3", DEFAULT_PATH, "HOME=/var/www", "HOSTNAME=web"]
    );
    let mut own = launch();
    own.process.env = vec!["PATH=/x".to_owned(), "HOME=/h".to_owned(), "HOSTNAME=n".to_owned()];
    let spec = super::spec(&own, &facts(CgroupLayout::Legacy));
    assert_eq!(strings(&spec["process"]["env"]), ["PATH=/x", "HOME=/h", "HOSTNAME=n"]);
}

#[test]
fn privileges_are_only_refused_where_asked() {
    let mut launch = launch();
    launch.process.no_new_privileges = true;
    let spec = spec(&launch, &facts(CgroupLayout::Legacy));
    assert_eq!(spec["process"]["noNewPrivileges"], true);
}

#[test]
fn namespaces_follow_the_network_and_the_cgroup_layout() {
    let kinds = |network: Network, layout| -> Vec<String> {
        let mut launch = launch();
        launch.network = network;
        let spec = spec(&launch, &facts(layout));
        let list = spec["linux"]["namespaces"].as_array().unwrap().clone();
        list.iter().map(|ns| ns["type"].as_str().unwrap().to_owned()).collect()
    };
    let base = ["pid", "ipc", "uts", "mount"];
    assert_eq!(kinds(Network::Host, CgroupLayout::Legacy), base);
    assert_eq!(kinds(Network::Host, CgroupLayout::Unified)[4..], ["cgroup"]);
    assert_eq!(kinds(Network::None, CgroupLayout::Legacy)[4..], ["network"]);
}

#[test]
fn outer_mounts_come_before_inner_ones() {
    let mut launch = launch();
    for target in ["/data/a/b", "/data", "/data/a"] {
        launch.mounts.push(Mount {
            target: PathBuf::from(target),
            kind: MountKind::Bind { source: PathBuf::from("/src"), create: false },
            read_only: target == "/data",
        });
    }
    let spec = spec(&launch, &facts(CgroupLayout::Legacy));
    let mounts = spec["mounts"].as_array().unwrap();
    let own: Vec<&str> =
        mounts[mounts.len() - 3..].iter().map(|m| m["destination"].as_str().unwrap()).collect();
    assert_eq!(own, ["/data", "/data/a", "/data/a/b"]);
    assert_eq!(mounts[mounts.len() - 3]["options"], json!(["rbind", "rprivate", "ro"]));
}

#[test]
fn an_exec_inherits_what_it_does_not_name() {
    let container = spec(&launch(), &facts(CgroupLayout::Legacy));
    let plain = exec_process(&container, &ExecRequest::new(vec!["ls".to_owned()]), None, &[]);
    assert_eq!(plain["cwd"], "/srv");
    assert_eq!(plain["user"]["uid"], 33);
    assert_eq!(plain["terminal"], false);
    let request = ExecRequest {
        env: vec!["A=9".to_owned()],
        cwd: Some("/".to_owned()),
        terminal: Some(TerminalSize { rows: 1, columns: 2 }),
        ..ExecRequest::new(vec!["sh".to_owned()])
    };
    let root = ResolvedUser { uid: 0, gid: 0, groups: vec![], home: "/root".to_owned() };
    let other = exec_process(&container, &request, Some(&root), &["CAP_SYS_ADMIN"]);
    let env = strings(&other["env"]);
    assert!(env.contains(&"A=9".to_owned()) && env.contains(&"HOME=/root".to_owned()));
    assert!(env.contains(&"TERM=xterm".to_owned()) && !env.contains(&"A=3".to_owned()));
    assert_eq!(other["user"]["uid"], 0);
    assert_eq!(strings(&other["capabilities"]["bounding"]).len(), 15);
}
