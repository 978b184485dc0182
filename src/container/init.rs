//! The first process of a container that asks for one beside its program (`init: true`): it passes signals on, takes in
//! what the program leaves behind, and ends as the program does.
//!
//! The kernel gives the first process of a pid namespace two duties that few programs know of: a signal for which it
//! has no handler has no effect on it, and it inherits every orphan and has to wait for it. It is this program, forked,
//! not another one that has to be mounted into the container; it holds nothing of ours but its memory.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};

use crate::sys::process::{self, Forked};
use crate::sys::{child, signal::SignalFd};

/// `SIGCHLD` is of Linux on every architecture that we build for.
const CHILD: i32 = 17;
/// Signals that say something of the process that they are sent to, or that nobody can block.
const OWN: [i32; 9] = [4, 5, 7, 8, 9, 11, 19, 21, 22];
/// The largest signal of Linux.
const LAST: i32 = 64;

/// Runs `program` in a child, and this process as the first one beside it: as `confine` leaves it, until the child
/// has ended. Returns only when that cannot be done, with the reason.
pub(super) fn run(
    program: impl FnOnce() -> u8,
    confine: impl FnOnce() -> Result<(), String>,
) -> String {
    let begun = || -> io::Result<(SignalFd, Forked)> {
        let passed: Vec<i32> = (1..=LAST).filter(|number| !OWN.contains(number)).collect();
        // Before the child exists, so that none is lost; it lets them through again before it executes.
        let signals = SignalFd::block(&passed)?;
        Ok((signals, process::fork_child(program)?))
    };
    let (signals, program) = match begun() {
        Ok(begun) => begun,
        Err(error) => return format!("could not start beside its first process: {error}"),
    };
    if let Err(reason) = confine() {
        return reason;
    }
    // The report of a failed start among them: whoever waits for it is told by the child alone.
    let kept: [BorrowedFd<'_>; 2] = [signals.as_fd(), program.pidfd.as_fd()];
    if let Err(error) = child::close_all_except(&kept) {
        return format!("the first process could not let go of its descriptors: {error}");
    }
    let code = wait(&signals, &program);
    // What is left ends with this process.
    process::exit_now(code)
}

/// The exit code of the program, as a shell shows it.
fn wait(signals: &SignalFd, program: &Forked) -> i32 {
    loop {
        while let Ok(Some((pid, ended))) = process::reap_any() {
            if pid == program.pid {
                return ended.code();
            }
        }
        let _ = poll(&mut [PollFd::new(signals, PollFlags::IN)], None);
        while let Ok(Some(signal)) = signals.next() {
            if signal != CHILD {
                let _ = process::send_signal(program.pidfd.as_fd(), signal);
            }
        }
    }
}
