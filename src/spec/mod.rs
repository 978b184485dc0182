//! `services.yaml`: raw mirror, validation, and the [`Desired`] model. Computes only; reading the file and its
//! environment is the caller's.
//!
//! ```text
//! text ── raw ──► tree with positions ── validate, field ──► Desired
//!                                              └──────────► Problems (all of them, with file:line:column)
//! ```
//!
//! The file is a compose file. Each of its keys is implemented, accepted (`version`, `x-*`), or an error that says
//! where and why; none is ignored in silence. What differs from compose in the values: a number keeps the spelling
//! of the file (`UMASK: 022` is `022`, not `18`), and `;` or `|` in a command given as one text is passed on.

mod dollar;
mod duration;
mod field;
mod fingerprint;
mod keys;
mod logging;
mod name;
mod problem;
mod raw;
mod service;
mod signal;
mod size;
mod validate;
mod volume;
mod words;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

pub use fingerprint::Fingerprint;
pub use logging::{LogDriver, LogMode, Logging};
pub use name::{NameError, ProjectName, ServiceName};
pub use problem::{Position, Problem, Problems};
pub use service::{Access, Bind, Desired, NetworkMode, RestartPolicy, Service};
pub use signal::{Signal, SignalError};

/// What a services file means depends on this besides its text.
#[derive(Debug, Clone)]
pub struct ParseInput<'a> {
    /// The file as the user named it; only shown.
    pub file: &'a str,
    /// Name of the project; [`ProjectName::from_directory`] derives compose's default.
    pub project: ProjectName,
    /// Whether the file's `name:` comes before `project`.
    pub project_choice: ProjectChoice,
    /// Absolute path of the folder that relative paths begin at, normally the file's.
    pub base_dir: &'a Path,
    /// Gives values to variables that the file names without one.
    pub environment: &'a BTreeMap<String, String>,
}

/// Where the project name given by the caller comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectChoice {
    /// A default; the file's `name:` wins.
    Default,
    /// The user's explicit choice, by option or variable; it wins.
    Explicit,
}

/// Reads a services file.
///
/// # Errors
/// Everything that is wrong with the file, at once; only YAML that cannot be read at all ends at its first error.
pub fn parse(text: &str, input: &ParseInput<'_>) -> Result<Desired, Problems> {
    validate::parse(text, input)
}
