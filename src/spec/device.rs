//! What of the host's kernel a service is given, and how it begins there: `devices`, `sysctls`, `domainname`; `group_add`,
//! `init`, `stdin_open`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::field::{Checker, Refusal};
use super::raw::{Entry, Node, Value};

/// What of the host's kernel a service is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Devices; targets are unique among these.
    pub devices: Vec<Device>,
    /// Settings for this container alone, by name such as `net.core.somaxconn`.
    pub sysctls: BTreeMap<String, String>,
    /// NIS domain name.
    pub domainname: Option<String>,
}

/// How the first process of a service begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FirstProcess {
    /// Further groups, by name or number.
    pub groups: Vec<String>,
    /// Whether one that reaps and passes signals on comes before the program.
    pub init: Option<bool>,
    /// Whether its input stays open.
    pub stdin_open: Option<bool>,
}

/// A device of the host in the container, or all devices in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute, normalized path in the container.
    pub target: String,
    /// Some of `r` (read), `w` (write), `m` (make nodes).
    pub permissions: String,
}

/// Settings of the kernel that each container has for itself, as they begin; those of a network namespace besides.
const OWN_SETTINGS: [&str; 4] = ["kernel.msg", "kernel.shm", "kernel.sem", "fs.mqueue."];
const NETWORK_SETTINGS: &str = "net.";

impl Checker<'_> {
    /// One for each target.
    pub(super) fn devices(&mut self, path: &str, node: &Node) -> Vec<Device> {
        let Value::List(items) = &node.value else {
            if node.value != Value::Null {
                self.mismatch(path, node, "a list of devices");
            }
            return Vec::new();
        };
        let mut devices: Vec<Device> = Vec::new();
        for (n, item) in items.iter().enumerate() {
            let path = &format!("{path}[{n}]");
            let device = match &item.value {
                Value::Map(entries) => self.long_device(path, item, entries),
                _ => self.text(path, item).and_then(|text| {
                    let read = short_device(&text);
                    self.refused(path, item, read)
                }),
            };
            let Some(device) = device else { continue };
            if devices.iter().any(|other| other.target == device.target) {
                let message = format!("there is a device at `{}` already", device.target);
                self.problem(Some(item.at), path, message);
            } else {
                devices.push(device);
            }
        }
        devices
    }

    fn long_device(&mut self, path: &str, node: &Node, entries: &[Entry]) -> Option<Device> {
        let mut given: BTreeMap<&str, String> = BTreeMap::new();
        for Entry { key, at, value } in entries {
            let path = &format!("{path}.{key}");
            match key.as_str() {
                _ if value.value == Value::Null || key.starts_with("x-") => {}
                "source" | "target" | "permissions" => {
                    if let Some(text) = self.text(path, value) {
                        given.insert(key, text);
                    }
                }
                _ => self.problem(Some(*at), path, format!("unknown key `{key}` of a device")),
            }
        }
        let Some(source) = given.get("source") else {
            self.problem(Some(node.at), path, "there is no `source:`");
            return None;
        };
        let target = given.get("target").unwrap_or(source);
        let read = device(source, target, given.get("permissions").map_or("rwm", String::as_str));
        self.refused(path, node, read)
    }

    /// Settings by name, such as `net.core.somaxconn`.
    pub(super) fn sysctls(&mut self, path: &str, node: &Node) -> BTreeMap<String, String> {
        let mut settings = BTreeMap::new();
        for (name, value) in self.environment(path, node) {
            let name = name.replace('/', ".");
            let is_own = OWN_SETTINGS.iter().any(|own| name.starts_with(own))
                || name.starts_with(NETWORK_SETTINGS);
            let at = node.get(&name).map_or(node.at, |node| node.at);
            let path = &format!("{path}.{name}");
            match value {
                // It would name files elsewhere.
                _ if name.contains("..") => {
                    self.problem(Some(at), path, format!("`{name}` is no setting of the kernel"));
                }
                _ if !is_own => {
                    let message = format!(
                        "`{name}` is a setting of the whole host; set it there (containers have `net.…`, `kernel.msg…`, \
                         `kernel.shm…`, `kernel.sem` and `fs.mqueue.…` of their own)"
                    );
                    self.unsupported(at, path, message);
                }
                None => self.problem(Some(at), path, "there is no value"),
                Some(value) => drop(settings.insert(name, value)),
            }
        }
        settings
    }

    /// Groups by name or number.
    pub(super) fn groups(&mut self, path: &str, node: &Node) -> Vec<String> {
        let mut groups: Vec<String> = Vec::new();
        for (path, text, item) in self.texts(path, node) {
            if text.is_empty() || text.contains([':', ',', '\0', '\n']) {
                self.problem(Some(item.at), &path, format!("`{text}` is no group"));
            } else if !groups.contains(&text) {
                groups.push(text);
            }
        }
        groups
    }
}

/// `HOST[:CONTAINER[:rwm]]`.
fn short_device(text: &str) -> Result<Device, Refusal> {
    if text.contains('=') && !text.starts_with('/') {
        return Err(Refusal::unsupported(format!(
            "`{text}` is the name of a device of CDI, which is not read; name its path"
        )));
    }
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        [source] => device(source, source, "rwm"),
        [source, second] if !second.starts_with('/') => device(source, source, second),
        [source, target] => device(source, target, "rwm"),
        [source, target, permissions] => device(source, target, permissions),
        _ => Err(format!("`{text}` is no device, such as `/dev/ttyUSB0:/dev/ttyUSB0:rw`").into()),
    }
}

fn device(source: &str, target: &str, permissions: &str) -> Result<Device, Refusal> {
    if !source.starts_with('/') || source.contains('\0') {
        return Err(format!("`{source}` is no absolute path of a device").into());
    }
    let is_some = !permissions.is_empty() && permissions.chars().all(|c| "rwm".contains(c));
    if !is_some {
        return Err(format!("`{permissions}` is none of the permissions `r`, `w`, `m`").into());
    }
    let target = super::volume::mount_point(target)?;
    if !target.starts_with("/dev/") {
        let message =
            format!("`{target}` is not below `/dev`, where containers have their devices");
        return Err(Refusal::unsupported(message));
    }
    Ok(Device { source: source.into(), target, permissions: permissions.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_compose_s_forms() {
        for (text, expected) in [
            ("/dev/x", ("/dev/x", "/dev/x", "rwm")),
            ("/dev/x:/dev/y", ("/dev/x", "/dev/y", "rwm")),
            ("/dev/x:r", ("/dev/x", "/dev/x", "r")),
            ("/dev/x:/dev//y/:rw", ("/dev/x", "/dev/y", "rw")),
        ] {
            let Device { source, target, permissions } = short_device(text).unwrap();
            let got = (source.to_str().unwrap(), target.as_str(), permissions.as_str());
            assert_eq!(got, expected, "{text}");
        }
        for (text, expected) in [
            ("dev/x", "no absolute path"),
            ("/dev/x:/dev/y:q", "none of the permissions"),
            ("/dev/x:/dev/y:", "none of the permissions"),
            ("/dev/x:", "none of the permissions"),
            ("/dev/x:/", "at `/`"),
            ("/dev/x:/srv/x", "not below `/dev`"),
            ("/a:/b:r:w", "no device"),
            ("vendor.example/gpu=all", "CDI"),
        ] {
            let message = short_device(text).unwrap_err().message;
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
