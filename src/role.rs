//! Which role this process plays: the hook that a program calls first thing in its `main`.
//!
//! Roles other than control are this same program with `supervisor-role NAME …` as arguments. They must begin before
//! any thread, runtime or logger exists, because some of them fork. What a role does is in its own module.

use std::ffi::OsString;
use std::process::ExitCode;

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
];

/// Runs the role that the arguments of this process name and returns its exit code, or returns `None` when they name
/// none and the program should go on. Call it at the top of `main`, before any thread exists.
#[must_use]
pub fn run_if_role() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != ROLE_ARGUMENT {
        return None;
    }
    let name = args.next()?;
    let (_, main) = ROLES.iter().find(|(role, _)| name == *role)?;
    Some(main(args.collect()))
}
