//! Which role this process plays: the hook that a program calls first thing in its `main`.
//!
//! Roles other than control are this same program with `supervisor-role NAME …` as arguments. They must begin before
//! any thread, runtime or logger exists, because some of them fork. What a role does is in its own module.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys::heap;

/// The first argument of every role; the second is the role's name.
pub const ROLE_ARGUMENT: &str = "supervisor-role";

/// A role's `main`: its arguments after the name in, its exit code out.
type RoleMain = fn(Vec<OsString>) -> ExitCode;

/// The roles by name.
const ROLES: &[(&str, RoleMain)] = &[
    ("unpack-layer", crate::unpack::child_main),
    ("monitor", crate::container::monitor_main),
    ("keeper", crate::fuse::keeper_main),
    ("worker", crate::fuse::worker_main),
    ("names", crate::network::names::names_main),
];

/// Exit code of a role that cannot begin.
const MISUSED: u8 = 70;

/// Threads of this process; 1 where that is not known.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Into the log of the role, which its standard error is.
fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Whether this program has the hook.
static HOOKED: AtomicBool = AtomicBool::new(false);

/// Whether [`run_if_role`] was called in this process, so that it can be started again as a role.
pub(crate) fn is_hooked() -> bool {
    HOOKED.load(Ordering::Relaxed)
}

/// Runs the role that the arguments of this process name and returns its exit code, or returns `None` when they name
/// none and the program should go on.
///
/// Call it at the top of `main`, before any thread, runtime or logger exists: a role that finds threads refuses to
/// begin. A program without this call cannot start a [`Supervisor`](crate::Supervisor).
#[must_use]
pub fn run_if_role() -> Option<ExitCode> {
    HOOKED.store(true, Ordering::Relaxed);
    let mut args = std::env::args_os().skip(1);
    if args.next()? != ROLE_ARGUMENT {
        return None;
    }
    // From here on it is never the program itself that goes on: it would do its work a second time.
    let name = args.next().unwrap_or_default();
    if threads() != 1 {
        say("supervisor::run_if_role() must be called before the program starts any thread");
        return Some(ExitCode::from(MISUSED));
    }
    heap::bound();
    match ROLES.iter().find(|(role, _)| name == *role) {
        Some((_, main)) => Some(main(args.collect())),
        None => {
            say(&format!("this program has no role `{}`", name.display()));
            Some(ExitCode::from(MISUSED))
        }
    }
}
