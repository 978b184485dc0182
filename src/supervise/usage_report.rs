//! What control tells of the use that containers make of the host. Plain data, versioned with the API.

use serde::{Deserialize, Serialize};

/// What a running container uses. `None`: the kernel does not count it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUsage {
    /// Its project.
    pub project: String,
    /// Its service.
    pub service: String,
    /// Its name.
    pub container: String,
    /// When this was read, in nanoseconds of the host's monotonic clock.
    pub at_ns: u64,
    /// Processor time since it was made, in nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Bytes of memory in use, without files that the kernel can give up at once.
    pub memory: Option<u64>,
    /// Most bytes of memory; `None` also where there is no limit.
    pub memory_limit: Option<u64>,
    /// Bytes of memory that the host has.
    pub host_memory: u64,
    /// Bytes that came into its network; `None` where that is the host's.
    pub received: Option<u64>,
    /// Bytes that left it.
    pub sent: Option<u64>,
    /// Bytes read from disks.
    pub read: Option<u64>,
    /// Bytes written to disks.
    pub written: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// The processes of a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerProcesses {
    /// Its project.
    pub project: String,
    /// Its service.
    pub service: String,
    /// Its name.
    pub container: String,
    /// Sorted by their ids.
    pub processes: Vec<ProcessReport>,
}

/// One process, as the host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessReport {
    /// Its id.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    /// Its user.
    pub uid: u32,
    /// Processor time, in milliseconds.
    pub cpu_ms: u64,
    /// Milliseconds since it began.
    pub age_ms: u64,
    /// Whether it has a terminal.
    pub has_terminal: bool,
    /// Its arguments, or its name in brackets where it has none.
    pub command: String,
}

/// A port of the host that leads to a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReport {
    /// Where; every address of the host of one family when unspecified.
    pub host_ip: std::net::IpAddr,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the container.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}
