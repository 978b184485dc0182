//! Processes: the sealed executable, starting roles from it, pidfds, forked children.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};

pub use super::identity::{ProcessIdentity, boot_id};
use super::spawn::Spawn;

/// Variables that belong to the process that systemd started, not to its children.
const SERVICE_MANAGER_VARIABLES: [&str; 7] = [
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "MAINPID",
];

/// Where descriptors wait in a starting role before they get their numbers; above any number that a role asks for.
const PARKING: RawFd = 200;

/// What keeps the copy from ever changing.
const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

/// A sealed copy of this program in memory. All roles run from one: they share its pages, and replacing or deleting
/// the file on disk, or a container that writes through `/proc/self/exe`, changes nothing for them.
#[derive(Debug)]
pub struct SealedExe(OwnedFd);

impl SealedExe {
    /// A sealed copy of the running program, or the one that it already runs from.
    ///
    /// # Errors
    /// When the executable cannot be read or there is no memory for the copy.
    pub fn of_current() -> io::Result<Self> {
        let running = File::open("/proc/self/exe")?;
        if rustix::fs::fcntl_get_seals(&running).is_ok_and(|present| present.contains(SEALS)) {
            return Ok(Self(running.into()));
        }
        Self::copy_of(running)
    }

    /// A sealed copy of the program at `path`, which calls [`crate::run_if_role`] first: for programs, tests among
    /// them, whose own `main` does not.
    ///
    /// # Errors
    /// As [`SealedExe::of_current`].
    pub fn of_file(path: &Path) -> io::Result<Self> {
        Self::copy_of(File::open(path)?)
    }

    fn copy_of(mut program: File) -> io::Result<Self> {
        let memory = rustix::fs::memfd_create(
            "supervisor",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        let mut copy = File::from(memory);
        io::copy(&mut program, &mut copy)?;
        rustix::fs::fcntl_add_seals(&copy, SEALS)?;
        // Reopened read-only: a file that is open for writing cannot be executed (ETXTBSY).
        let readable = File::open(format!("/proc/self/fd/{}", copy.as_raw_fd()))?;
        Ok(Self(readable.into()))
    }

    /// The descriptor, to hand to another role.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How a role is started.
#[derive(Debug)]
pub struct RoleCommand {
    /// Arguments after the program's name; the first names the role.
    pub args: Vec<OsString>,
    /// Descriptors and the numbers (3 to 99) that they get in the role.
    pub descriptors: Vec<(OwnedFd, RawFd)>,
    /// Standard input; `/dev/null` without it.
    pub stdin: Option<OwnedFd>,
    /// Standard output; `/dev/null` without it.
    pub stdout: Option<OwnedFd>,
    /// Standard error; `/dev/null` without it.
    pub stderr: Option<OwnedFd>,
}

impl RoleCommand {
    /// A role without descriptors whose standard streams are `/dev/null`.
    #[must_use]
    pub fn new<A: Into<OsString>>(args: impl IntoIterator<Item = A>) -> Self {
        Self {
            args: args.into_iter().map(Into::into).collect(),
            descriptors: Vec::new(),
            stdin: None,
            stdout: None,
            stderr: None,
        }
    }

    /// Gives `descriptor` the number `number` in the role.
    #[must_use]
    pub fn descriptor(mut self, descriptor: OwnedFd, number: RawFd) -> Self {
        assert!((3..100).contains(&number), "descriptor number {number} is not between 3 and 99");
        self.descriptors.push((descriptor, number));
        self
    }

    /// Sends both output streams to `log`.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub fn log_to(mut self, log: &File) -> io::Result<Self> {
        self.stdout = Some(log.try_clone()?.into());
        self.stderr = Some(log.try_clone()?.into());
        Ok(self)
    }

    /// Starts the role: own session, working directory `/`, no variables of a service manager, no blocked signals.
    ///
    /// # Errors
    /// Those of fork and exec.
    pub fn spawn(self, exe: &SealedExe) -> io::Result<RoleChild> {
        let Self { args, descriptors, stdin, stdout, stderr } = self;
        let program = rustix::io::fcntl_dupfd_cloexec(&exe.0, PARKING)?;
        let nothing: OwnedFd = File::options().read(true).write(true).open("/dev/null")?.into();
        let mut parked = Vec::with_capacity(descriptors.len() + 3);
        for (stream, number) in [(stdin, 0), (stdout, 1), (stderr, 2)] {
            let stream = stream.as_ref().unwrap_or(&nothing);
            parked.push((rustix::io::fcntl_dupfd_cloexec(stream, PARKING)?, number));
        }
        for (descriptor, number) in descriptors {
            parked.push((rustix::io::fcntl_dupfd_cloexec(descriptor, PARKING)?, number));
        }
        let ours = |name: &OsString| SERVICE_MANAGER_VARIABLES.iter().any(|other| name == other);
        let spawn = Spawn {
            program: PathBuf::from(format!("/proc/self/fd/{}", program.as_raw_fd())),
            args: std::iter::once("supervisor".into()).chain(args).collect(),
            environment: std::env::vars_os().filter(|(name, _)| !ours(name)).collect(),
            descriptors: parked.iter().map(|(fd, number)| (fd.as_raw_fd(), *number)).collect(),
        };
        let pid = spawn.start()?;
        // The child is not reaped before we say so, so the pid is still its own.
        let pidfd = open_pidfd(pid)?;
        Ok(RoleChild { pid, pidfd })
    }
}

/// A role that this process started and has not reaped.
#[derive(Debug)]
pub struct RoleChild {
    /// Its process id.
    pub pid: i32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

impl Ended {
    /// The code that a shell would show: the exit code, or 128 plus the signal.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
        }
    }
}

impl RoleChild {
    /// Reaps the child if it has ended.
    ///
    /// # Errors
    /// Those of waitid(2); `ECHILD` when it was reaped already.
    pub fn try_wait(&self) -> io::Result<Option<Ended>> {
        wait_pidfd(self.pidfd.as_fd(), WaitIdOptions::NOHANG)
    }

    /// Waits until the child has ended, and reaps it.
    ///
    /// # Errors
    /// Those of waitid(2).
    pub fn wait(&self) -> io::Result<Ended> {
        loop {
            if let Some(ended) = wait_pidfd(self.pidfd.as_fd(), WaitIdOptions::empty())? {
                return Ok(ended);
            }
        }
    }

    /// Sends a signal; a child that has ended already is no error.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2).
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        send_signal(self.pidfd.as_fd(), signal)
    }
}

fn wait_pidfd(pidfd: BorrowedFd<'_>, options: WaitIdOptions) -> io::Result<Option<Ended>> {
    let status = loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | options) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    Ok(status.map(|status| match status.exit_status() {
        Some(code) => Ended::Exited(code),
        None => Ended::Signaled(status.terminating_signal().unwrap_or(libc::SIGKILL)),
    }))
}

/// Reaps any one child that has ended, also inherited ones: for subreapers that own all children of their process.
///
/// # Errors
/// Those of waitpid(2); `ECHILD` is `None`.
pub fn reap_any() -> io::Result<Option<(i32, Ended)>> {
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let ended = match status.exit_status() {
                    Some(code) => Ended::Exited(code),
                    None => Ended::Signaled(status.terminating_signal().unwrap_or(libc::SIGKILL)),
                };
                return Ok(Some((pid.as_raw_nonzero().get(), ended)));
            }
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A descriptor that stays with one process, however its pid is used later.
///
/// # Errors
/// `ESRCH` when there is no such process; those of pidfd_open(2).
pub fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends `signal`, also a real-time one, to the process behind `pidfd`; one that has ended is no error.
///
/// # Errors
/// `EINVAL` for a signal that does not exist; those of pidfd_send_signal(2).
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: plain system call on a descriptor that is borrowed for its duration; no siginfo is passed. rustix takes
    // no real-time signals here, and images stop on SIGRTMIN+3.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        },
    }
}

/// Whether the process behind `pidfd` has ended.
#[must_use]
pub fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut poll, Some(&now)), Ok(1..))
}

/// A child of a single-threaded process, running a function of this program.
#[derive(Debug)]
pub struct Forked {
    /// Its process id.
    pub pid: i32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
}

/// Forks and runs `body` in the child, whose exit code is what it returns (101 when it panics). Destructors of the
/// parent's values do not run in the child.
///
/// # Errors
/// `Unsupported` when this process has more than one thread, because the child of a threaded process may find any
/// lock taken for ever; those of fork(2).
pub fn fork_child(body: impl FnOnce() -> u8) -> io::Result<Forked> {
    fork_child_into(None, body)
}

/// As [`fork_child`], with a child that is in the control group of version 2 that `group` is the directory of, from its
/// first moment on: unlike a move, that makes nobody wait. Where the kernel does not do that (before Linux 5.7), the
/// child is where this process is.
///
/// # Errors
/// As there.
pub fn fork_child_into(
    group: Option<BorrowedFd<'_>>,
    body: impl FnOnce() -> u8,
) -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "only a single-threaded process may fork",
        ));
    }
    // SAFETY: the process has one thread, so the child sees no lock in the middle of a change.
    let cloned = group.and_then(|group| unsafe { clone_into(group) });
    // SAFETY: as above.
    match cloned.unwrap_or_else(|| unsafe { libc::fork() }) {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
            // SAFETY: ends the child without running the parent's exit handlers, which is what is wanted.
            unsafe { libc::_exit(i32::from(code)) }
        }
        pid => Ok(Forked { pid, pidfd: open_pidfd(pid)? }),
    }
}

/// Of clone3(2); libc's has a type that is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// fork(2) into a control group; `None` when the kernel refuses.
///
/// # Safety
/// That of fork(2). What the C library does beside the call is for processes with threads.
unsafe fn clone_into(group: BorrowedFd<'_>) -> Option<libc::pid_t> {
    // SAFETY: all-zero is a valid `clone_args`.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    args.exit_signal = u64::try_from(libc::SIGCHLD).ok()?;
    args.cgroup = u64::try_from(group.as_raw_fd()).ok()?;
    // SAFETY: the arguments live through the call and name no stack, so the child goes on with a copy of this one.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    libc::pid_t::try_from(pid).ok().filter(|pid| *pid >= 0)
}

/// Ends this process with `code`, without the exit handlers of whoever forked it.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; nothing of it is used again.
    unsafe { libc::_exit(code) }
}

/// Raises the number of descriptors that this process may have to what it may raise it to, and returns that. Only for
/// roles that start no containers: programs that still use select(2) rely on the low number, which children inherit.
pub fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let limit = if raised.is_ok() { limit.maximum } else { limit.current };
    limit.unwrap_or(u64::MAX)
}

/// Takes ownership of a descriptor that the parent passed by number.
///
/// # Errors
/// `EBADF` when the parent passed none.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only asks whether the number is open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open, and by the contract of our role commands nobody else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threaded_process_may_not_fork() {
        // The test runner has threads.
        let error = fork_child(|| 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_sealed_copy_cannot_be_written() {
        let exe = SealedExe::of_current().unwrap();
        assert!(rustix::fs::fcntl_get_seals(&exe.0).unwrap().contains(SealFlags::WRITE));
        assert!(rustix::fs::fstat(&exe.0).unwrap().st_size > 0);
    }
}
