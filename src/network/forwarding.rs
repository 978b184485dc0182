//! Settings of the kernel without which a host forwards nothing; of the calling thread's namespace.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Ipv6, Owner};
use crate::sys::process;

/// What [`Closed`] is kept in.
const CLOSED: &str = "closed.json";

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

/// Interfaces between which the host forwarded nothing until we turned forwarding on, by family. Written down for as
/// long as the host runs, because the setting itself does not tell afterwards who made it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// Of version 4.
    pub v4: BTreeSet<String>,
    /// Of version 6.
    pub v6: BTreeSet<String>,
    /// The boot in which that was so.
    pub(super) boot: String,
}

impl Closed {
    /// Finds out what [`ensure_forwarding`] is about to open; to be asked before it. Kept in `directory`.
    ///
    /// # Errors
    /// When it cannot be kept.
    pub(super) fn before_forwarding(
        directory: &Path,
        owner: &Owner,
        ipv6: Ipv6,
    ) -> io::Result<Self> {
        let boot = process::boot_id()?;
        let file = directory.join(CLOSED);
        let kept = fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        let kept = kept.filter(|kept| kept.boot == boot).unwrap_or_default();
        let is_off = |key: &str| read(key).is_ok_and(|value| value == "0");
        let mut closed = Self { boot, ..kept.clone() };
        if is_off("net/ipv4/ip_forward") {
            closed.v4 = interfaces("net/ipv4/conf", owner);
        }
        if ipv6 != Ipv6::Never && is_off("net/ipv6/conf/all/forwarding") {
            closed.v6 = interfaces("net/ipv6/conf", owner);
        }
        if closed != kept && !(closed.v4.is_empty() && closed.v6.is_empty()) {
            fs::create_dir_all(directory)?;
            fs::write(file, serde_json::to_vec(&closed)?)?;
        }
        Ok(closed)
    }
}

/// The interfaces of the host that are not ours.
fn interfaces(key: &str, owner: &Owner) -> BTreeSet<String> {
    let names = fs::read_dir(path(key)).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    // A name with a quote in it could end the text of the rules; nobody has one.
    let is_plain = |name: &String| !name.contains(['"', '\\', '\n', '*']);
    let is_real = |name: &String| !["all", "default", "lo"].contains(&name.as_str());
    names.filter(|name| is_plain(name) && is_real(name) && !owner.owns(name, None)).collect()
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

/// Whether what bridges pass on is given to the packet filter (br_netfilter), in the network namespace of the calling
/// thread. A container's packet to a published port is then turned around in the bridge.
#[must_use]
pub fn is_bridged_filtered() -> bool {
    ["iptables", "ip6tables"].iter().any(|program| {
        read(&format!("net/bridge/bridge-nf-call-{program}")).is_ok_and(|value| value != "0")
    })
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

    #[test]
    fn what_was_not_forwarded_before_is_known_afterwards() {
        let (host, folder) = (netns::make().unwrap(), tempfile::tempdir().unwrap());
        netns::within(host.as_fd(), || {
            let owner = Owner::new("0badcafe").unwrap();
            let look = || Closed::before_forwarding(folder.path(), &owner, Ipv6::Never).unwrap();
            let _ = fs::write(path("net/ipv4/ip_forward"), "1");
            assert_eq!(look().v4, BTreeSet::new(), "it is somebody else's wish");
            let _ = fs::write(path("net/ipv4/ip_forward"), "0");
            let add = |name: &str| {
                let words = ["link", "add", name, "type", "bridge"];
                assert!(std::process::Command::new("ip").args(words).status().unwrap().success());
            };
            for name in ["uplink", "lan", "s0badcafebaaaaa"] {
                add(name);
            }
            let known = BTreeSet::from(["lan".to_owned(), "uplink".to_owned()]);
            assert_eq!(look().v4, known);
            ensure_forwarding(Ipv6::Never).unwrap();
            add("later");
            assert_eq!(look().v4, known);
            // In another boot the setting is not ours.
            let text = fs::read_to_string(folder.path().join(CLOSED)).unwrap();
            let other = text.replace(&process::boot_id().unwrap(), "another");
            fs::write(folder.path().join(CLOSED), other).unwrap();
            assert_eq!(look().v4, BTreeSet::new());
        })
        .unwrap();
    }
}
