//! Settings of the kernel without which a host forwards nothing; of the calling thread's namespace.

use std::io;
use std::path::PathBuf;

use super::Ipv6;

/// A setting could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("could not set `{}`", path.display())]
pub struct SettingError {
    /// The setting.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Lets the host forward packets, and returns the settings that were changed for it. They are the host's and stay:
/// others may have begun to rely on them.
///
/// # Errors
/// When `/proc/sys` is read-only and the setting is not what it should be.
pub fn ensure_forwarding(ipv6: Ipv6) -> Result<Vec<String>, SettingError> {
    let mut changed = Vec::new();
    set("net/ipv4/ip_forward", "1", &mut changed)?;
    if ipv6 != Ipv6::Never && read("net/ipv6/conf/all/forwarding").is_ok_and(|is| is != "1") {
        // A host that forwards ignores what routers announce, and would lose its own way out, unless told not to.
        let interfaces = std::fs::read_dir(path("net/ipv6/conf"));
        for interface in interfaces.into_iter().flatten().flatten() {
            let name = interface.file_name();
            let Some(name) = name.to_str().filter(|name| !["all", "lo"].contains(name)) else {
                continue;
            };
            // One that forwards already ignores them already.
            if read(&format!("net/ipv6/conf/{name}/forwarding")).is_ok_and(|is| is == "1") {
                continue;
            }
            let key = format!("net/ipv6/conf/{name}/accept_ra");
            if read(&key).is_ok_and(|is| is == "1") {
                set(&key, "2", &mut changed)?;
            }
        }
        set("net/ipv6/conf/all/forwarding", "1", &mut changed)?;
    }
    Ok(changed)
}

/// Settings of one of our bridges: ports that are published at loopback addresses are translated on their way to it,
/// and it takes part in no configuration of version 6.
///
/// # Errors
/// As [`ensure_forwarding`].
pub fn prepare_bridge(name: &str) -> Result<(), SettingError> {
    let mut changed = Vec::new();
    set(&format!("net/ipv4/conf/{name}/route_localnet"), "1", &mut changed)?;
    let accept = format!("net/ipv6/conf/{name}/accept_ra");
    if read(&accept).is_ok() {
        set(&accept, "0", &mut changed)?;
    }
    Ok(())
}

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key)
}

fn read(key: &str) -> io::Result<String> {
    Ok(std::fs::read_to_string(path(key))?.trim().to_owned())
}

fn set(key: &str, value: &str, changed: &mut Vec<String>) -> Result<(), SettingError> {
    let failed = |source| SettingError { path: path(key), source };
    // Written only where it differs: containers in containers often have these settings right, and read-only.
    if read(key).map_err(failed)? != value {
        std::fs::write(path(key), value).map_err(failed)?;
        changed.push(format!("{}={value}", key.replace('/', ".")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::sys::netns;

    #[test]
    fn a_host_forwards_and_keeps_its_own_way_out() {
        let host = netns::make().unwrap();
        netns::within(host.as_fd(), || {
            let _ = std::fs::write(path("net/ipv4/ip_forward"), "0");
            let changed = ensure_forwarding(Ipv6::Never).unwrap();
            assert_eq!(changed, ["net.ipv4.ip_forward=1"]);
            let changed = ensure_forwarding(Ipv6::AsHost).unwrap();
            assert!(changed.contains(&"net.ipv6.conf.all.forwarding=1".to_owned()), "{changed:?}");
            assert_eq!(read("net/ipv6/conf/default/accept_ra").unwrap(), "2");
            assert_eq!(read("net/ipv6/conf/lo/accept_ra").unwrap(), "1", "no router is there");
            assert!(ensure_forwarding(Ipv6::AsHost).unwrap().is_empty());
            assert!(prepare_bridge("nowhere").is_err());
        })
        .unwrap();
    }
}
