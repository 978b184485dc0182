//! The text of the systemd units. Each line that is there for a reason of ours says it.

use std::path::{Path, PathBuf};

use super::error::InstallError;

/// The unit of control.
pub const SERVICE: &str = "supervisor.service";
/// The unit whose stop is the host's shutdown.
pub const SHUTDOWN_SERVICE: &str = "supervisor-shutdown.service";

/// What the units name.
#[derive(Debug, Clone)]
pub struct UnitOptions {
    /// The installed program.
    pub program: PathBuf,
    /// Its state directory.
    pub state_dir: PathBuf,
    /// Its run directory.
    pub run_dir: PathBuf,
    /// Who besides root may use its socket; a number, because names need not exist yet when it starts.
    pub socket_group: Option<u32>,
}

/// `supervisor.service`.
///
/// # Errors
/// When a path cannot be written into a unit.
pub fn service_unit(options: &UnitOptions) -> Result<String, InstallError> {
    let start = command(options, "daemon")?;
    let state = word(&options.state_dir)?;
    Ok(format!(
        "\
# Placed by `supervisor install`; `supervisor uninstall` removes it. Changes belong into `systemctl edit supervisor`.
[Unit]
Description=Container supervisor
Documentation=man:supervisor(1)
# Wanted and not waited for: what runs needs no network to start again. After network.target, so that at a shutdown
# the network outlives it.
Wants=network-online.target
After=network.target local-fs.target
RequiresMountsFor={state}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={start}
ExecReload=/bin/kill -HUP $MAINPID
# Containers and the processes that keep them have control groups of their own and go on without this unit; where the
# host grants none, this keeps them.
KillMode=process
Delegate=yes
OOMPolicy=continue
Restart=always
RestartSec=1
WatchdogSec=60
TimeoutStopSec=30
# Keeps the connection of lazy layers, should every process that holds it die at once.
FileDescriptorStoreMax=16
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
# No RuntimeDirectory=: the program makes its run directory itself, and what is mounted there outlives this unit.
# No sandbox with a mount namespace: services see the mounts that are made here.

[Install]
WantedBy=multi-user.target
Also={SHUTDOWN_SERVICE}
"
    ))
}

/// `supervisor-shutdown.service`: does nothing while the host runs; its stop ends all services in order.
///
/// # Errors
/// When a path cannot be written into a unit.
pub fn shutdown_unit(options: &UnitOptions) -> Result<String, InstallError> {
    let start = command(options, "resume-services")?;
    let stop = command(options, "shutdown-services")?;
    let state = word(&options.state_dir)?;
    let mount = mount_unit(&options.run_dir.join("lazy/layers"))?;
    let marked = mount_unit(&options.run_dir.join("lazy-xattr/layers"))?;
    Ok(format!(
        "\
# Placed by `supervisor install`; `supervisor uninstall` removes it.
[Unit]
Description=Stops the services of supervisor in order when the host shuts down
Documentation=man:supervisor(1)
# Units stop in the reverse of this order: so services end before supervisor does, and before the network, the file
# systems of their volumes and the mount of their images go. An order only: when the mount or the supervisor is
# replaced, nothing happens to this unit.
After={SERVICE} network.target local-fs.target remote-fs.target {mount} {marked}
RequiresMountsFor={state}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={start}
ExecStop={stop}
# Services have grace periods of their own, and one waits for the other.
TimeoutStopSec=15min

[Install]
WantedBy=multi-user.target
"
    ))
}

fn command(options: &UnitOptions, name: &str) -> Result<String, InstallError> {
    let group =
        options.socket_group.map_or_else(String::new, |group| format!(" --socket-group {group}"));
    Ok(format!(
        "{} --state-dir {} --run-dir {}{group} {name}",
        word(&options.program)?,
        word(&options.state_dir)?,
        word(&options.run_dir)?
    ))
}

/// A path as one word of a unit file, without expansions. Paths with quotes, spaces or backslashes are refused: what
/// systemd makes of them differs from line to line.
fn word(path: &Path) -> Result<String, InstallError> {
    let refused = || InstallError::Path(path.to_path_buf());
    let text = path.to_str().filter(|text| text.starts_with('/')).ok_or_else(refused)?;
    let odd = |c: char| c.is_whitespace() || c.is_control() || "\"'\\$;".contains(c);
    if text.chars().any(odd) {
        return Err(refused());
    }
    Ok(text.replace('%', "%%"))
}

/// The name of the unit that systemd makes of a mount at `path`, as systemd-escape(1) does.
fn mount_unit(path: &Path) -> Result<String, InstallError> {
    use std::fmt::Write as _;
    let text = path.to_str().ok_or_else(|| InstallError::Path(path.to_path_buf()))?;
    let mut name = String::new();
    for byte in text.trim_matches('/').bytes() {
        match byte {
            b'/' => name.push('-'),
            b'.' if name.is_empty() => name.push_str("\\x2e"),
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b':' | b'_' | b'.' => {
                name.push(char::from(byte));
            }
            other => write!(name, "\\x{other:02x}").expect("a string takes everything"),
        }
    }
    Ok(name + ".mount")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_units_are_named_as_systemd_names_them() {
        let name = |path: &str| mount_unit(Path::new(path)).unwrap();
        assert_eq!(name("/run/supervisor/lazy/layers"), "run-supervisor-lazy-layers.mount");
        assert_eq!(name("/srv/a-b/.c d"), "srv-a\\x2db-.c\\x20d.mount");
        assert_eq!(name("/.x"), "\\x2ex.mount");
    }

    #[test]
    fn paths_that_a_unit_would_misread_are_refused() {
        for path in ["/a b", "/a\nExecStart=/bin/sh", "/a\"b", "/a$HOME", "relative", "/a\\b"] {
            assert!(word(Path::new(path)).is_err(), "{path}");
        }
        assert_eq!(word(Path::new("/srv/100%")).unwrap(), "/srv/100%%");
    }
}
