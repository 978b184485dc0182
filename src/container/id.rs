//! Names of containers: readable, unique, and safe as a file, socket and cgroup name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest id. Socket names are made of it and a socket path has at most 108 bytes.
pub const MAX_ID_LENGTH: usize = 64;

/// The name of one container, unique in a run directory. A recreated container gets another one; a restarted
/// container keeps its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// A text that cannot name a container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContainerIdError {
    /// Nothing, or more than [`MAX_ID_LENGTH`].
    #[error("container id `{0}` does not have between 1 and {MAX_ID_LENGTH} characters")]
    Length(String),
    /// Something that is not a letter, a digit, or one of `_ . -` after the first character.
    #[error("container id `{0}` has a character that is not a letter, digit, `_`, `.` or `-`")]
    Character(String),
}

impl ContainerId {
    /// `project-service-number-unique`, the readable parts shortened where they are too long.
    ///
    /// # Errors
    /// When `unique` holds a character that an id cannot have.
    pub fn compose(
        project: &str,
        service: &str,
        number: u32,
        unique: &str,
    ) -> Result<Self, ContainerIdError> {
        let tail = format!("-{number}-{unique}");
        let clean: String = format!("{project}-{service}")
            .chars()
            .map(|c| if is_allowed(c) { c } else { '_' })
            .collect();
        let clean = clean.trim_start_matches(['-', '.', '_']);
        let room = MAX_ID_LENGTH.saturating_sub(tail.len()).min(clean.len());
        format!("{}{tail}", &clean[..room]).parse()
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
}

impl FromStr for ContainerId {
    type Err = ContainerIdError;

    fn from_str(text: &str) -> Result<Self, ContainerIdError> {
        if text.is_empty() || text.len() > MAX_ID_LENGTH {
            return Err(ContainerIdError::Length(text.to_owned()));
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || !text.chars().all(is_allowed) {
            return Err(ContainerIdError::Character(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for ContainerId {
    type Error = ContainerIdError;

    fn try_from(text: String) -> Result<Self, ContainerIdError> {
        text.parse()
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_harmless_file_name() {
        for bad in ["", ".", "..", "a/b", "-a", ".hidden", "a b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad}");
        }
        assert_eq!("web-1.a_b".parse::<ContainerId>().unwrap().as_str(), "web-1.a_b");
    }

    #[test]
    fn long_names_are_shortened_and_stay_unique() {
        let id = ContainerId::compose(&"p".repeat(60), "sérvice", 3, "0a1b2c").unwrap();
        assert_eq!(id.as_str().len(), MAX_ID_LENGTH);
        assert!(id.as_str().ends_with("-3-0a1b2c"));
        let id = ContainerId::compose("my project", "wéb", 1, "ff").unwrap();
        assert_eq!(id.as_str(), "my_project-w_b-1-ff");
    }
}
