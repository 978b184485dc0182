//! What a control group uses, and what its network has carried: counters of the kernel, of either version.

use std::fs;
use std::io;
use std::path::Path;

use super::cgroup::{hierarchies, processes};

/// Version 1 says this, rounded to a page, where there is no limit.
const NO_LIMIT: u64 = 1 << 62;

/// Counters of a control group. `None`: the kernel does not count it, or does not let us see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Processor time since it was made, in nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Bytes of memory in use, without files that the kernel can give up at once.
    pub memory: Option<u64>,
    /// Most bytes of memory; `None` also where there is no limit.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes read from disks.
    pub read: Option<u64>,
    /// Bytes written to disks.
    pub written: Option<u64>,
}

/// The counters of `group`, an absolute path such as `/supervisor-1234abcd/c/web`, over all hierarchies.
///
/// # Errors
/// When the hierarchies cannot be listed.
pub fn usage(group: &str) -> io::Result<Usage> {
    let mut usage = Usage::default();
    for hierarchy in hierarchies()? {
        usage.add(&hierarchy.mount_point.join(group.trim_start_matches('/')));
    }
    if usage.pids.is_none() {
        // A kernel without that controller; threads are not counted then.
        usage.pids = u64::try_from(processes(group)?.len()).ok().filter(|count| *count > 0);
    }
    Ok(usage)
}

impl Usage {
    fn add(&mut self, folder: &Path) {
        let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
        let micros = text("cpu.stat").and_then(|text| field(&text, "usage_usec"));
        let cpu = number("cpuacct.usage").or(micros.map(|micros| micros.saturating_mul(1000)));
        self.cpu_ns = self.cpu_ns.max(cpu);
        let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"));
        if let Some(used) = used {
            let stat = text("memory.stat").unwrap_or_default();
            // The second name is version 1's, with what is below the group.
            let idle = field(&stat, "total_inactive_file").or(field(&stat, "inactive_file"));
            self.memory = Some(used.saturating_sub(idle.unwrap_or(0)));
        }
        let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"));
        self.memory_limit = self.memory_limit.or(limit.filter(|limit| *limit < NO_LIMIT));
        self.pids = self.pids.or_else(|| number("pids.current"));
        if let Some(text) = text("io.stat") {
            self.read = Some(sum(&text, |word| word.strip_prefix("rbytes=")));
            self.written = Some(sum(&text, |word| word.strip_prefix("wbytes=")));
        } else if let Some(text) = text("blkio.throttle.io_service_bytes_recursive")
            .or_else(|| text("blkio.throttle.io_service_bytes"))
        {
            self.read = Some(sum_of_lines(&text, " Read "));
            self.written = Some(sum_of_lines(&text, " Write "));
        }
    }
}

/// The value of a line `name value`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn sum<'a>(text: &'a str, value: impl Fn(&'a str) -> Option<&'a str>) -> u64 {
    text.split_whitespace().filter_map(value).filter_map(|value| value.parse::<u64>().ok()).sum()
}

fn sum_of_lines(text: &str, word: &str) -> u64 {
    let values =
        text.lines().filter_map(|line| line.split_once(word)?.1.trim().parse::<u64>().ok());
    values.sum()
}

/// Bytes that came into and left the network of a process, without its loopback; `None` where that is the network of
/// this process, whose traffic is everybody's.
///
/// # Errors
/// When the process is gone.
pub fn traffic(pid: i32) -> io::Result<Option<(u64, u64)>> {
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net"));
    if of(&pid.to_string())? == of("self")? {
        return Ok(None);
    }
    Ok(Some(carried(&fs::read_to_string(format!("/proc/{pid}/net/dev"))?)))
}

/// The columns of bytes, see proc_pid_net(5).
fn carried(text: &str) -> (u64, u64) {
    let (mut received, mut sent) = (0_u64, 0_u64);
    for (name, counters) in text.lines().filter_map(|line| line.split_once(':')) {
        if name.trim() == "lo" {
            continue;
        }
        let mut counters = counters.split_whitespace().map(|word| word.parse::<u64>().unwrap_or(0));
        received = received.saturating_add(counters.next().unwrap_or(0));
        sent = sent.saturating_add(counters.nth(7).unwrap_or(0));
    }
    (received, sent)
}

/// Bytes of memory that this host has.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn host_memory() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes =
        line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    Ok(kilobytes.ok_or(io::ErrorKind::InvalidData)?.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    #[test]
    fn both_versions_are_read() {
        let new = tempfile::tempdir().unwrap();
        write(
            new.path(),
            &[
                ("cpu.stat", "usage_usec 7000\nuser_usec 1\n"),
                ("memory.current", "5000\n"),
                ("memory.stat", "anon 1\ninactive_file 2000\n"),
                ("memory.max", "max\n"),
                ("pids.current", "3\n"),
                ("io.stat", "8:0 rbytes=10 wbytes=1 rios=1\n8:16 rbytes=5 wbytes=2\n"),
            ],
        );
        let mut usage = Usage::default();
        usage.add(new.path());
        let counted = |memory_limit| Usage {
            cpu_ns: Some(7_000_000),
            memory: Some(3000),
            memory_limit,
            pids: Some(3),
            read: Some(15),
            written: Some(3),
        };
        assert_eq!(usage, counted(None));
        // Of version 1 every controller may be somewhere else.
        let old = tempfile::tempdir().unwrap();
        let mut usage = Usage::default();
        for (number, files) in [
            &[("cpuacct.usage", "7000000\n"), ("cpu.stat", "nr_periods 0\n")][..],
            &[
                ("memory.usage_in_bytes", "5000\n"),
                ("memory.limit_in_bytes", "9000\n"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 2000\n"),
            ],
            &[("pids.current", "3\n")],
            &[(
                "blkio.throttle.io_service_bytes",
                "8:0 Read 15\n8:0 Write 3\n8:0 Total 18\nTotal 18\n",
            )],
        ]
        .iter()
        .enumerate()
        {
            let folder = old.path().join(number.to_string());
            fs::create_dir(&folder).unwrap();
            write(&folder, files);
            usage.add(&folder);
        }
        assert_eq!(usage, counted(Some(9000)));
    }

    #[test]
    fn no_limit_and_no_loopback_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &[("memory.limit_in_bytes", "9223372036854771712\n")]);
        let mut usage = Usage::default();
        usage.add(folder.path());
        assert_eq!(usage, Usage::default());
        let text = "Inter-| Receive | Transmit\n face |bytes packets\n    lo: 9 1 0 0 0 0 0 0 9 1\n  \
            eth0: 100 2 0 0 0 0 0 0 7 1 0\n  eth1:1 1 0 0 0 0 0 0 1 1 0\n";
        assert_eq!(carried(text), (101, 8));
        assert!(host_memory().unwrap() > 0);
        assert_eq!(traffic(i32::try_from(std::process::id()).unwrap()).unwrap(), None);
    }
}
