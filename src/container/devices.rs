//! Devices of the host that a container is given: found when it starts, since they come and go.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What every container has, or has of its own.
const OWN: [&str; 12] = [
    "console", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "tty", "urandom",
    "zero",
];
/// How deep a folder of devices is looked into.
const DEPTH: u32 = 8;

/// A device of the host, or all devices in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedDevice {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the container, below `/dev`.
    pub target: PathBuf,
    /// Some of `r`, `w`, `m`.
    pub permissions: String,
}

/// A node that is made in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    path: PathBuf,
    kind: &'static str,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    permissions: String,
}

impl Node {
    /// As the runtime makes it.
    pub(super) fn device(&self) -> Value {
        json!({
            "path": self.path, "type": self.kind, "major": self.major, "minor": self.minor,
            "fileMode": self.mode, "uid": self.uid, "gid": self.gid,
        })
    }

    /// As control groups let it be used.
    pub(super) fn rule(&self) -> Value {
        json!({
            "allow": true, "type": self.kind, "major": self.major, "minor": self.minor,
            "access": self.permissions,
        })
    }
}

/// The nodes of `devices`.
///
/// # Errors
/// The device that is not there, is none, or cannot be looked at.
pub(super) fn find(devices: &[PassedDevice]) -> Result<Vec<Node>, (PathBuf, io::Error)> {
    let mut nodes = Vec::new();
    for device in devices {
        let before = nodes.len();
        collect(&device.source, &device.target, &device.permissions, DEPTH, &mut nodes)
            .map_err(|error| (device.source.clone(), error))?;
        if nodes.len() == before {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "there is no device there");
            return Err((device.source.clone(), error));
        }
    }
    Ok(nodes)
}

/// All devices of the host but those that every container has. What goes meanwhile is left out.
pub(super) fn all() -> Vec<Node> {
    let mut nodes = Vec::new();
    let Ok(entries) = fs::read_dir("/dev") else { return nodes };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !OWN.iter().any(|own| name == *own) {
            // Not what links lead to: `/dev/stdin` is one.
            let _ = collect(&entry.path(), &entry.path(), "rwm", DEPTH - 1, &mut nodes);
        }
    }
    nodes
}

/// Nodes at `source` and below. Links are followed where they are named, and not below: a folder has its devices
/// under their own names too.
fn collect(
    source: &Path,
    target: &Path,
    permissions: &str,
    depth: u32,
    nodes: &mut Vec<Node>,
) -> io::Result<()> {
    let found = if depth == DEPTH { fs::metadata(source)? } else { fs::symlink_metadata(source)? };
    let kind = found.file_type();
    if kind.is_dir() && depth > 0 {
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            let target = target.join(entry.file_name());
            collect(&entry.path(), &target, permissions, depth - 1, nodes)?;
        }
        return Ok(());
    }
    let kind = match () {
        () if kind.is_char_device() => "c",
        () if kind.is_block_device() => "b",
        () => return Ok(()),
    };
    let (major, minor) = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
    nodes.retain(|node| node.path != target);
    nodes.push(Node {
        path: target.to_owned(),
        kind,
        major,
        minor,
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        permissions: permissions.to_owned(),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(source: &str, target: &str) -> PassedDevice {
        let (source, target) = (source.into(), target.into());
        PassedDevice { source, target, permissions: "rw".to_owned() }
    }

    #[test]
    fn a_device_is_found_with_its_numbers_under_its_new_name() {
        let nodes = find(&[passed("/dev/null", "/dev/nothing")]).unwrap();
        let [node] = &nodes[..] else { panic!("{nodes:?}") };
        let device = node.device();
        assert_eq!((&device["major"], &device["minor"]), (&json!(1), &json!(3)));
        assert_eq!((&device["path"], &device["type"]), (&json!("/dev/nothing"), &json!("c")));
        assert_eq!(node.rule()["access"], "rw");
    }

    #[test]
    fn what_is_no_device_is_told() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "text").unwrap();
        let (path, error) = find(&[passed("/dev/surely-none", "/dev/x")]).unwrap_err();
        assert_eq!(path, Path::new("/dev/surely-none"));
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        for path in [dir.path(), &dir.path().join("file")] {
            let (_, error) = find(&[passed(path.to_str().unwrap(), "/dev/x")]).unwrap_err();
            assert_eq!(error.to_string(), "there is no device there");
        }
    }
}
