//! Holding a process up at a boundary, from outside.

use std::fs;
use std::path::PathBuf;

use rustix::process::Pid;
use supervisor::boundary::Boundary;

use crate::support::program::Program;

fn folder(program: &Program) -> PathBuf {
    program.run_dir().join("boundary")
}

/// The next process that reaches `boundary` waits there.
pub(super) fn arm(program: &Program, boundary: Boundary) {
    fs::create_dir_all(folder(program)).unwrap();
    fs::write(folder(program).join(boundary.name()), "").unwrap();
}

/// Who waits at `boundary`.
pub(super) fn waiting(program: &Program, boundary: Boundary) -> Option<Pid> {
    let names = fs::read_dir(folder(program)).unwrap().flatten();
    let mut pids = names.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let (reached, pid) = name.rsplit_once('.')?;
        (reached == boundary.name()).then(|| Pid::from_raw(pid.parse().ok()?))?
    });
    pids.next()
}

/// Lets everybody go on, and holds nobody up any more.
pub(super) fn release(program: &Program) {
    let _ = fs::remove_dir_all(folder(program));
}
