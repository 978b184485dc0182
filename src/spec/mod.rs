//! `services.yaml`: raw mirror, what compose does with several files, validation, and the [`Desired`] model. Computes
//! only; reading files and the environment is the caller's.
//!
//! ```text
//! text ── raw, tag ──► tree with positions ── interpolate, place, include, extends ──┐  for each file
//!                                                                                    ├── merge ──► Composition
//! .env, env_file ── dotenv ──► Variables ────────────────────────────────────────────┘                 │
//!                                        ┌── validate, field ── merged tree ──────────────────────────┤
//!                                     Desired                          forms, emit: the canonical text ┘
//! Problems (all of them, with file:line:column) at every step
//! ```
//!
//! The file is a compose file. Each of its keys is implemented, accepted (`version`, `x-*`), or rejected with place and
//! reason; none is ignored in silence. The tables in `keys` say which, and documents and schema are made of them. What differs from compose in the values: a number keeps the spelling
//! of the file (`UMASK: 022` is `022`, not `18`), and `;` or `|` in a command given as one text is passed on.

mod composition;
mod depends;
mod deploy;
mod device;
mod dotenv;
mod duration;
mod emit;
mod env_files;
mod extends;
mod field;
mod fingerprint;
mod forms;
mod grants;
mod health;
mod hosts;
mod include;
mod interpolate;
mod keys;
mod limits;
mod load;
mod logging;
mod merge;
mod name;
mod named_volume;
mod networks;
mod object;
mod place;
mod ports;
mod privileges;
mod problem;
mod published;
mod raw;
mod read_service;
mod selection;
mod service;
mod service_networks;
mod signal;
pub(crate) mod size;
mod supervisor;
mod tag;
mod tmpfs;
mod tree;
mod validate;
mod volume;
mod words;

#[cfg(test)]
mod corpus_tests;
#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

pub use composition::{Composition, Interpolation, LoadInput, compose};
pub use depends::{Condition, Dependency};
pub use device::{Device, FirstProcess, Kernel};
pub use fingerprint::Fingerprint;
pub use grants::{Grant, GrantContent, GrantKind};
pub use health::{HealthTest, Healthcheck};
pub use hosts::{Dns, ExtraHost, HostAddress};
pub use limits::{Limits, Swap, Ulimit};
pub use load::{FileSource, Sources};
pub use logging::{LogDriver, LogMode, Logging};
pub use name::{NameError, ProjectName, ServiceName, container_name};
pub use networks::{Network, NetworkOwner, NetworkSubnet};
pub use privileges::{Privileges, SystemCalls};
pub use problem::{Position, Problem, ProblemKind, Problems, Unsupported};
pub use published::{Port, Protocol};
pub use selection::Selection;
pub use service::{
    Access, Bind, CopyUp, Desired, ImageVolume, NamedVolume, NetworkMode, RestartPolicy, Service,
    Tmpfs,
};
pub use service_networks::ServiceNetwork;
pub use signal::{Signal, SignalError};
pub use supervisor::{
    Extensions, Lazy, LazyMode, Prefetch, Probe, ProbeTarget, RegistryLoss, UnhealthyAction,
};
pub(crate) use words::split as split_words;

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
    /// Gives values to the variables in the file.
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

/// Reads one text of a services file, in which no other file can be named; [`compose`] does the rest.
///
/// # Errors
/// Everything that is wrong with the file, at once; only YAML that cannot be read at all ends at its first error.
pub fn parse(text: &str, input: &ParseInput<'_>) -> Result<Desired, Problems> {
    parse_selected(text, input, &Selection::default())
}

/// As [`parse`], with profiles, and with what becomes of what this version does not do.
///
/// # Errors
/// Those of [`parse`].
pub fn parse_selected(
    text: &str,
    input: &ParseInput<'_>,
    selection: &Selection,
) -> Result<Desired, Problems> {
    validate::parse(text, input, selection).map(|checked| checked.desired)
}

/// What services files mean, and what of them was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What is wanted.
    pub desired: Desired,
    /// What is not supported and was left out; empty unless that was allowed.
    pub left_out: Vec<Problem>,
}

/// What becomes of each key of compose, in Markdown.
#[must_use]
pub fn keys_document() -> String {
    keys::document()
}

/// The JSON schema of a services file, for editors.
#[must_use]
pub fn schema() -> serde_json::Value {
    keys::schema()
}

/// The variables of an `.env` text, for the few that must be known before any services file is found.
#[must_use]
pub fn env_variables(text: &str, shell: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let usage = interpolate::Usage::default();
    let variables = interpolate::Variables::new(shell, &usage);
    // What is wrong with it is told when the project is put together.
    dotenv::parse(text, dotenv::Format::Compose, &variables, &mut |_, _| {}).unwrap_or_default()
}
