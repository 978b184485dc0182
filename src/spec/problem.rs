//! What is wrong with a services file, and where. Rendering is here; finding problems is in the validation.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Line and column in a services file, both from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Which of the files that a project is put together from; an index of the reader's list.
    pub(crate) file: u16,
    /// From 1.
    pub line: u64,
    /// From 1, in characters.
    pub column: u64,
}

/// One thing that keeps a services file from being used.
///
/// Shown as ``file:line:column: service.key: message``; editors and terminals make the front part a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file as the user named it.
    pub file: String,
    /// Absent when nothing in the file can be pointed at.
    pub at: Option<Position>,
    /// Path of the key: `web.volumes[1]`, `services`; empty for the whole file.
    pub path: String,
    /// Lower case, values in backticks, with what to do about it where that is known.
    pub message: String,
    /// Whether it is wrong, or right and not for this version.
    pub kind: ProblemKind,
}

/// What a [`Problem`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProblemKind {
    /// No version could make sense of it.
    Invalid,
    /// Compose knows it and this version does not do it; the rest of the file means something without it.
    Unsupported,
}

/// What becomes of what compose knows and this version does not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unsupported {
    /// The file cannot be used.
    #[default]
    Reject,
    /// It is left out, with a warning.
    LeaveOut,
}

impl Unsupported {
    pub(crate) fn is_reject(&self) -> bool {
        *self == Self::Reject
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(at) = self.at {
            write!(f, "{}:{}:", at.line, at.column)?;
        }
        if !self.path.is_empty() {
            write!(f, " {}:", Printable(&self.path))?;
        }
        write!(f, " {}", Printable(&self.message))
    }
}

/// A text that may quote the file, which can hold anything: no escape sequence may reach a terminal.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_debug())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// All problems of a services file in the order of their positions; never empty.
///
/// Displayed one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Sorts `problems`; `None` when there are none.
    #[must_use]
    pub(crate) fn new(mut problems: Vec<Problem>) -> Option<Self> {
        problems.sort_by(|a, b| (a.at, &a.path, &a.message).cmp(&(b.at, &b.path, &b.message)));
        // An alias can lead to the same text from several places.
        problems.dedup();
        (!problems.is_empty()).then_some(Self(problems))
    }

    /// That a project in `folder` has no file at all.
    #[must_use]
    pub(crate) fn no_file(folder: &Path) -> Self {
        Self(vec![Problem {
            file: folder.display().to_string(),
            at: None,
            path: String::new(),
            message: "no services file is named".to_owned(),
            kind: ProblemKind::Invalid,
        }])
    }

    /// These and `more`.
    pub(crate) fn joined(self, more: Option<Self>) -> Self {
        let all = self.0.iter().chain(more.iter().flat_map(|more| &more.0)).cloned().collect();
        Self::new(all).unwrap_or(self)
    }

    /// The problems, in the order of their positions.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// How many there are, at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "never empty by construction")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
