//! Where the files of one run of a container are. What is in them is their owners' business.

use std::path::{Path, PathBuf};

use super::ContainerId;

/// Where the files of one container are, below `$RUN`.
#[derive(Debug, Clone)]
pub struct RunPaths {
    /// `$RUN/containers/<id>`, mode 0700.
    pub dir: PathBuf,
    /// The launch specification.
    pub launch: PathBuf,
    /// What runs (`RunRecord`), for the monitor that replaces a dead one.
    pub process: PathBuf,
    /// How it ended ([`super::ExitRecord`]).
    pub exit: PathBuf,
    /// Locked by the living monitor.
    pub lock: PathBuf,
    /// What the monitor says of itself.
    pub monitor_log: PathBuf,
    /// Mount point of the root file system, in the monitor's namespace.
    pub rootfs: PathBuf,
    /// Mount point of what the container sees of control groups, in the monitor's namespace.
    pub groups: PathBuf,
    /// Runtime configuration.
    pub bundle: PathBuf,
    /// libcontainer's state.
    pub runtime: PathBuf,
    /// Directory of the sockets, `$RUN/monitor`.
    pub socket_dir: PathBuf,
    /// Name of the socket there.
    pub socket_name: String,
}

impl RunPaths {
    /// Paths of container `id` below `run_dir`.
    #[must_use]
    pub fn new(run_dir: &Path, id: &ContainerId) -> Self {
        let dir = run_dir.join("containers").join(id.as_str());
        Self {
            launch: dir.join("launch.json"),
            process: dir.join("process.json"),
            exit: dir.join("exit.json"),
            lock: dir.join("lock"),
            monitor_log: dir.join("monitor.log"),
            rootfs: dir.join("rootfs"),
            groups: dir.join("groups"),
            bundle: dir.join("bundle"),
            runtime: dir.join("runtime"),
            socket_dir: run_dir.join("monitor"),
            socket_name: format!("{id}.sock"),
            dir,
        }
    }

    /// The FIFO of one output stream.
    #[must_use]
    pub fn fifo(&self, stream: crate::logs::Stream) -> PathBuf {
        self.dir.join(stream.name())
    }
}
