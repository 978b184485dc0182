//! What runs in a container, and how it begins.

use serde::{Deserialize, Serialize};

/// The program and its surroundings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments; at least one. Looked up in the container's `PATH`.
    pub args: Vec<String>,
    /// `NAME=value`. `PATH`, `HOME` and `HOSTNAME` are added where absent.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory; made where absent. `None` is `/`.
    #[serde(default)]
    pub cwd: Option<String>,
    /// `user`, `uid`, `user:group` …, looked up in the image. `None` is root.
    #[serde(default)]
    pub user: Option<String>,
    /// Further groups, by name in the image or by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// No program may gain privileges by being executed.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// What comes before it in the container.
    #[serde(default, skip_serializing_if = "FirstProcess::is_program")]
    pub first: FirstProcess,
    /// What it reads from its standard input where that is no caller's.
    #[serde(default, skip_serializing_if = "Input::is_empty")]
    pub input: Input,
}

/// Which process of the container is its first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstProcess {
    /// The program.
    #[default]
    Program,
    /// One that starts the program, passes signals on to it, takes in what it leaves behind, and ends as it does.
    Init,
}

impl FirstProcess {
    fn is_program(&self) -> bool {
        *self == Self::Program
    }
}

/// A standard input that nobody writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// It ends at once.
    #[default]
    Empty,
    /// It never ends.
    Open,
}

impl Input {
    fn is_empty(&self) -> bool {
        *self == Self::Empty
    }
}
