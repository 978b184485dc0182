//! Loading a kernel module, with the program that hosts have for it.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// Where hosts keep it; found without the environment, which is not ours to read here.
const PROGRAMS: [&str; 4] =
    ["/usr/sbin/modprobe", "/sbin/modprobe", "/usr/bin/modprobe", "/bin/modprobe"];

/// Why a module was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The host has no program for it.
    #[error("the kernel module `{0}` is not loaded and this host has no `modprobe`")]
    NoProgram(String),
    /// The program could not be run.
    #[error("could not run `{program}` for the kernel module `{module}`")]
    Run {
        /// The program.
        program: &'static str,
        /// The module.
        module: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program refused.
    #[error("the kernel module `{module}` cannot be loaded: {message}")]
    Refused {
        /// The module.
        module: String,
        /// What the program said.
        message: String,
    },
}

/// Loads the kernel module `name`, if it is not loaded yet.
///
/// # Errors
/// When the host has no `modprobe`, or it refuses; also in a sandbox that may load none.
pub fn load_module(name: &str) -> Result<(), LoadError> {
    let Some(program) = PROGRAMS.into_iter().find(|program| Path::new(program).exists()) else {
        return Err(LoadError::NoProgram(name.to_owned()));
    };
    let output = Command::new(program)
        .arg(name)
        .stdin(Stdio::null())
        .env_clear()
        .output()
        .map_err(|source| LoadError::Run { program, module: name.to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let message = said.lines().next().unwrap_or("it gave no reason").trim().to_owned();
    Err(LoadError::Refused { module: name.to_owned(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_does_not_exist_is_named() {
        let error = load_module("no_such_module_here").unwrap_err().to_string();
        assert!(error.contains("`no_such_module_here`"), "{error}");
    }
}
