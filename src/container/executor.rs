//! The last steps before a container's program runs, and how their failure is told.
//!
//! Called by libcontainer in the new process, when namespaces, user and capabilities are set. It differs from the
//! library's own executor in four ways: the search in PATH happens when the program is executed and tells *not found*
//! from *not executable*; its failure reaches the one who waits, through a pipe that closes when the program is
//! executed; signals are neither blocked nor ignored (they are, in the monitor, and programs inherit that); and the
//! filter of system calls is loaded here, as a program that was compiled before ([`super::filter`]): the library
//! compiles it for each start, and does not load it into a program that joins a container.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;

use caps::{CapSet, Capability};
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use serde::{Deserialize, Serialize};

use super::{FirstProcess, init};
use crate::sys::confine;

/// Capabilities that loading a filter and giving up capabilities take, unless no program can gain privileges anyway.
pub(super) const TRANSIENT: [&str; 2] = ["CAP_SYS_ADMIN", "CAP_SETPCAP"];

/// Why a program was not executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NotExecuted {
    pub(super) reason: String,
    /// 127 not found, 126 not executable, 125 ours.
    pub(super) code: i32,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// Where a failure is written; closed by a successful execution.
    pub(super) report: Arc<io::PipeWriter>,
    /// What libcontainer has not done.
    pub(super) restriction: Restriction,
    /// Its standard input is a terminal, which becomes that of its session.
    pub(super) terminal: bool,
    /// What comes before it.
    pub(super) first: FirstProcess,
}

/// What a program may do.
#[derive(Debug, Clone, Default)]
pub(super) struct Restriction {
    /// The program that filters its system calls.
    pub(super) filter: Option<Vec<u8>>,
    /// Capabilities that it really has; those of [`TRANSIENT`] that are not among them are given up. `None`: it has
    /// been given no others.
    pub(super) capabilities: Option<Vec<String>>,
}

impl Executor for Program {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        if self.terminal {
            // Without it there is no control of jobs, and nothing else is lost.
            let _ = rustix::process::ioctl_tiocsctty(io::stdin());
        }
        let failure = match self.first {
            FirstProcess::Program => self.execute(spec),
            FirstProcess::Init => {
                let program = || {
                    let failure = self.execute(spec);
                    self.report(&failure);
                    u8::try_from(failure.code).unwrap_or(125)
                };
                NotExecuted { reason: init::run(program, || self.restrict()), code: 125 }
            }
        };
        self.report(&failure);
        Err(ExecutorError::Execution(failure.reason.into()))
    }

    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }
}

impl Program {
    /// Returns only when that fails.
    fn execute(&self, spec: &Spec) -> NotExecuted {
        self.restrict().map_or_else(|reason| NotExecuted { reason, code: 125 }, |()| execute(spec))
    }

    fn report(&self, failure: &NotExecuted) {
        let text = serde_json::to_vec(failure).unwrap_or_default();
        let _ = (&*self.report).write_all(&text);
    }

    fn restrict(&self) -> Result<(), String> {
        if let Some(filter) = &self.restriction.filter {
            confine::load_filter(filter)
                .map_err(|error| format!("could not load the system call filter: {error}"))?;
        }
        match &self.restriction.capabilities {
            Some(own) => {
                give_up(own).map_err(|error| format!("could not give up capabilities: {error}"))
            }
            None => Ok(()),
        }
    }
}

fn give_up(own: &[String]) -> Result<(), caps::errors::CapsError> {
    let has = |name: &str| own.iter().any(|own| own == name);
    for name in TRANSIENT.iter().filter(|name| !has(name)) {
        // The second one is what permits this, and goes last.
        caps::drop(None, CapSet::Bounding, name.parse()?)?;
    }
    for set in [CapSet::Effective, CapSet::Permitted] {
        let mut left = caps::read(None, set)?;
        left.retain(|capability: &Capability| has(&capability.to_string()));
        caps::set(None, set, &left)?;
    }
    Ok(())
}

/// Replaces this process by the program; returns only when that fails.
fn execute(spec: &Spec) -> NotExecuted {
    let process = spec.process().as_ref();
    let args = process.and_then(|process| process.args().as_deref()).unwrap_or_default();
    let Some((program, rest)) = args.split_first() else {
        return NotExecuted { reason: "no command is given".to_owned(), code: 125 };
    };
    let env = process.and_then(|process| process.env().as_deref()).unwrap_or_default();
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    crate::sys::signal::unblock_all();
    let mut denied = None;
    for candidate in candidates(program, path) {
        let error = Command::new(&candidate).arg0(program).args(rest).exec();
        let exists = std::fs::symlink_metadata(&candidate).is_ok();
        match error.kind() {
            io::ErrorKind::NotFound if exists => {
                let reason = format!(
                    "`{candidate}` exists, but what it is interpreted or loaded by does not"
                );
                return NotExecuted { reason, code: 127 };
            }
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {}
            io::ErrorKind::PermissionDenied => {
                denied.get_or_insert_with(|| format!("`{candidate}` is not executable"));
            }
            _ => {
                let reason = format!("`{candidate}` cannot be executed: {error}");
                return NotExecuted { reason, code: 126 };
            }
        }
    }
    match denied {
        Some(reason) => NotExecuted { reason, code: 126 },
        None if program.contains('/') => {
            NotExecuted { reason: format!("`{program}` does not exist"), code: 127 }
        }
        None => NotExecuted { reason: format!("`{program}` was not found in PATH"), code: 127 },
    }
}

/// Where a program may be.
fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    path.split(':')
        .map(|dir| match dir {
            "" => format!("./{program}"),
            dir => format!("{}/{program}", dir.trim_end_matches('/')),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_searched_in_path_unless_it_is_one() {
        assert_eq!(candidates("/bin/x", "/a"), ["/bin/x"]);
        assert_eq!(candidates("./x", "/a"), ["./x"]);
        assert_eq!(candidates("x", "/a:/b/:"), ["/a/x", "/b/x", "./x"]);
    }

    #[test]
    fn failures_have_the_codes_of_a_shell() {
        let run = |args: &[&str]| {
            let spec = serde_json::json!({
                "ociVersion": "1.0.2",
                "process": { "cwd": "/", "args": args, "env": ["PATH=/usr/bin:/bin"],
                    "user": { "uid": 0, "gid": 0 } },
            });
            execute(&serde_json::from_value(spec).unwrap()).code
        };
        assert_eq!(run(&["surely-no-such-program"]), 127);
        assert_eq!(run(&["/etc"]), 126);
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "text").unwrap();
        assert_eq!(run(&[plain.to_str().unwrap()]), 126);
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        assert_eq!(run(&[script.to_str().unwrap()]), 127);
    }
}
