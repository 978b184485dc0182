//! Names of projects and services: texts that are safe in paths, cgroups and host names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest name; one label of a host name, and names of both kinds together fit in a file name.
const MAX_NAME: usize = 63;

/// Why a text is no name of a project or service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind} name: {reason}")]
pub struct NameError {
    /// What was given.
    pub text: String,
    /// `project` or `service`.
    pub kind: &'static str,
    /// The rule that it breaks.
    pub reason: &'static str,
}

/// What the container of a service is called besides its own name, as by compose.
#[must_use]
pub fn container_name(project: &str, service: &ServiceName) -> String {
    format!("{project}-{service}-1")
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                match $check(text) {
                    Ok(()) => Ok(Self(text.to_owned())),
                    Err(reason) => {
                        let text = text.chars().take(80).collect();
                        Err(NameError { text, kind: $kind, reason })
                    }
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name! {
    /// Name of a project: lower-case letters, digits, `-` and `_`, as in compose; 63 bytes at most.
    ProjectName, "project", check_project
}

name! {
    /// Name of a service: letters, digits, `-`, `_` and `.`, as in compose; 63 bytes at most, no `.` in front.
    ServiceName, "service", check_service
}

impl ProjectName {
    /// The project name that compose derives from the name of a directory: lower case, other characters left
    /// out. `None` when nothing is left.
    #[must_use]
    pub fn from_directory(name: &str) -> Option<Self> {
        let kept: String = name
            .chars()
            .map(|c| c.to_ascii_lowercase())
            .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'))
            .collect();
        let kept = kept.trim_start_matches(['-', '_']);
        kept[..kept.len().min(MAX_NAME)].parse().ok()
    }
}

fn check_project(text: &str) -> Result<(), &'static str> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    match text.as_bytes() {
        [] => Err("it is empty"),
        [b'-' | b'_', ..] => Err("it must begin with a letter or digit"),
        bytes if !bytes.iter().copied().all(allowed) => {
            Err("lower-case letters, digits, `-` and `_` are allowed")
        }
        bytes if bytes.len() > MAX_NAME => Err("it is longer than 63 characters"),
        _ => Ok(()),
    }
}

fn check_service(text: &str) -> Result<(), &'static str> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    match text.as_bytes() {
        [] => Err("it is empty"),
        // `.` and `..` would be directories, `-x` an option.
        [b'-' | b'.', ..] => Err("it must begin with a letter, digit or `_`"),
        bytes if !bytes.iter().copied().all(allowed) => {
            Err("letters, digits, `-`, `_` and `.` are allowed")
        }
        bytes if bytes.len() > MAX_NAME => Err("it is longer than 63 characters"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_paths() {
        for good in ["web", "web-1", "a.b", "_x", "WEB"] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-x", "a b", "é", &"x".repeat(64)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
        for bad in ["", "Web", "a.b", "_x", "-x", "a/b", &"x".repeat(64)] {
            assert!(bad.parse::<ProjectName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_directory_gives_the_name_that_compose_gives() {
        for (directory, expected) in [
            ("My App", Some("myapp")),
            ("_x-1", Some("x-1")),
            ("a.b", Some("ab")),
            ("...", None),
            ("é", None),
        ] {
            let name = ProjectName::from_directory(directory);
            assert_eq!(name.as_ref().map(ProjectName::as_str), expected, "{directory}");
        }
        assert!(ProjectName::from_directory(&"y".repeat(300)).is_some());
    }
}
