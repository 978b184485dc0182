//! What the kernel tells of one process, for lists of processes.

use std::fs;
use std::io;
use std::path::Path;

/// Clock ticks a second in `/proc`; the kernel's `USER_HZ`, which is this on every architecture that we build for.
const TICKS: u64 = 100;

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// As this process sees it.
    pub pid: i32,
    /// Its parent.
    pub ppid: i32,
    /// Its user.
    pub uid: u32,
    /// Processor time, in milliseconds.
    pub cpu_ms: u64,
    /// Milliseconds since it began.
    pub age_ms: u64,
    /// Number of its terminal; 0: none.
    pub terminal: i32,
    /// Its arguments, or its name in brackets where it has none.
    pub command: String,
}

impl ProcessInfo {
    /// Reads one process.
    ///
    /// # Errors
    /// When it is gone.
    pub fn of(pid: i32) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let folder = format!("/proc/{pid}");
        let uid = fs::metadata(Path::new(&folder))?.uid();
        let stat = fs::read_to_string(format!("{folder}/stat"))?;
        let command = fs::read(format!("{folder}/cmdline"))?;
        let uptime = fs::read_to_string("/proc/uptime")?;
        parse(pid, uid, &stat, &command, &uptime).ok_or(io::ErrorKind::InvalidData.into())
    }
}

/// See proc_pid_stat(5): the name is in parentheses and may hold anything.
fn parse(pid: i32, uid: u32, stat: &str, command: &[u8], uptime: &str) -> Option<ProcessInfo> {
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1;
    // The first of them is field 3.
    let fields: Vec<&str> = after.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let signed = |field: usize| fields.get(field - 3)?.parse::<i32>().ok();
    let up_ms = uptime.split_whitespace().next()?.replace('.', "").parse::<u64>().ok()? * 10;
    let arguments = String::from_utf8_lossy(command).trim_end_matches('\0').replace('\0', " ");
    Some(ProcessInfo {
        pid,
        ppid: signed(4)?,
        uid,
        cpu_ms: (number(14)? + number(15)?) * 1000 / TICKS,
        age_ms: up_ms.saturating_sub(number(22)? * 1000 / TICKS),
        terminal: signed(7)?,
        command: if arguments.is_empty() { format!("[{name}]") } else { arguments },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "7 (a) b) c) S 5 7 7 34816 7 0 0 0 0 0 120 30 0 0 20 0 1 0 1000 0 0";
        let info = parse(7, 3, stat, b"sh\0-c\0x y\0", "20.50 1.00").unwrap();
        assert_eq!((info.ppid, info.uid, info.cpu_ms, info.terminal), (5, 3, 1500, 34816));
        assert_eq!((info.age_ms, info.command.as_str()), (10_500, "sh -c x y"));
        assert_eq!(parse(7, 3, stat, b"", "20.50 1.00").unwrap().command, "[a) b) c]");
        assert!(
            ProcessInfo::of(std::process::id().try_into().unwrap()).unwrap().age_ms < 86_400_000
        );
    }
}
