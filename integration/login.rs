//! `login` and `logout`: checked against the registry, kept as docker keeps them, and used by the next pull.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::cli::Cli;
use crate::support::registry::{Access, FaultRegistry};

/// `login` with this password on standard input: exit code, and all that it printed.
fn log_in(cli: &Cli, arguments: &[&str], password: &str) -> (Option<i32>, String) {
    let mut command: Command = cli.command([&["login", "--password-stdin"], arguments].concat());
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may have refused its arguments before it reads.
    let _ = writeln!(child.stdin.take().unwrap(), "{password}");
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

#[test]
fn a_login_is_checked_kept_and_forgotten() {
    let docker = tempfile::tempdir().unwrap();
    let cli = Cli::new().with("DOCKER_CONFIG", docker.path().to_str().unwrap());
    let registry = FaultRegistry::start();
    let host = registry.host();
    let user = || ("ann".to_owned(), "secret".to_owned());
    for access in
        [Access::Basic(user().0, user().1), Access::Bearer { user: Some(user()), expires_in: 60 }]
    {
        registry.require(access.clone());
        let (code, said) = log_in(&cli, &["-u", "ann", &host], "wrong");
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("nothing was kept") && !said.contains("wrong"), "{said}");
        assert!(!docker.path().join("config.json").exists());
        let (code, said) = log_in(&cli, &["-u", "ann", &format!("http://{host}/v2/")], "secret");
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains(&format!("`ann` is logged in at `{host}`")), "{said}");
        assert_eq!(config(docker.path())["auths"][&host]["auth"], "YW5uOnNlY3JldA==");
        let out = cli.run(["logout", &host]).ok();
        assert!(out.contains("is forgotten"), "{out}");
        assert!(cli.run(["logout", &host]).ok().contains("was no login"));
        std::fs::remove_file(docker.path().join("config.json")).unwrap();
    }
    registry.require(Access::Open);
    let (code, said) = log_in(&cli, &["-u", "ann", &host], "secret");
    assert!(code == Some(0) && said.contains("lets everybody in"), "{said}");
    let (code, said) = log_in(&cli, &["-u", "ann", "a/b"], "secret");
    assert!(code == Some(1) && said.contains("`a/b` is no registry"), "{said}");
}

#[test]
fn a_credential_helper_gets_what_it_is_there_for() {
    let docker = tempfile::tempdir().unwrap();
    let registry = FaultRegistry::start();
    registry.require(Access::Basic("ann".to_owned(), "secret".to_owned()));
    let host = registry.host();
    let helper = docker.path().join("docker-credential-test");
    let script = format!("#!/bin/sh\ncat >{}/$1\n", docker.path().display());
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(docker.path().join("config.json"), r#"{"credsStore": "test"}"#).unwrap();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", docker.path().display());
    let folder = docker.path().to_str().unwrap();
    let cli = Cli::new().with("DOCKER_CONFIG", folder).with("PATH", &path);
    let (code, said) = log_in(&cli, &["--username", "ann", &host], "secret");
    assert!(code == Some(0) && said.contains("kept by `docker-credential-test`"), "{said}");
    let stored: Value =
        serde_json::from_slice(&std::fs::read(docker.path().join("store")).unwrap()).unwrap();
    assert_eq!(stored["ServerURL"], *host);
    assert_eq!((&stored["Username"], &stored["Secret"]), (&"ann".into(), &"secret".into()));
    assert!(config(docker.path()).get("auths").is_none(), "nothing of it is in the file");
    cli.run(["logout", &host]).ok();
    assert_eq!(std::fs::read_to_string(docker.path().join("erase")).unwrap(), host);
}
