//! The keys of compose: which are implemented, which are accepted without effect, which are rejected and why. The
//! validation, the documented table and the schema all come from these tables.

mod document;
mod network;
mod schema;
mod service;
mod top;

pub(super) use document::document;
pub(super) use network::{IPAM, IPAM_CONFIG, NETWORK, SERVICE_NETWORK};
pub(super) use schema::schema;
pub(super) use service::{
    DEPLOY, HEALTHCHECK, LIMITS, RESERVATIONS, RESOURCES, RESTART_POLICY, SERVICE,
};
pub(super) use top::{
    GRANT, GRANTED, IMAGE_OPTIONS, LAZY, NAMED_VOLUME, PROBE, SUPERVISOR, TOP, VOLUME,
    VOLUME_OPTIONS,
};

use super::raw::Value;

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// It does what compose's does; where it differs, its text says how.
    Implemented,
    /// It may be there and changes nothing; its text says why.
    Accepted,
    /// It is an error; its text is the reason.
    Rejected,
}

/// What a value looks like.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Any,
    /// A text, or what can be read as one.
    Text,
    /// `true` or `false`.
    Bool,
    /// A number, or a text with a unit.
    Number,
    /// One of a few texts.
    Choice(&'static [&'static str]),
    /// A list of texts.
    List,
    /// A text, or a list of them.
    Texts,
    /// A mapping from names to texts, or a list of `NAME=VALUE`.
    Pairs,
    /// A list of texts or mappings.
    Items,
    /// A mapping with these keys.
    Object(&'static [Key]),
    /// A mapping from names to mappings with these keys, or nothing.
    Named(&'static [Key]),
}

impl Shape {
    /// Whether a value looks like this, as far as can be told without its parts.
    pub(super) fn fits(self, value: &Value) -> bool {
        let is_scalar = matches!(value, Value::Text(_) | Value::Number(_) | Value::Bool(_));
        match self {
            Self::Any => true,
            Self::Text | Self::Number | Self::Choice(_) => is_scalar,
            Self::Bool => match value {
                Value::Bool(_) => true,
                Value::Text(text) => text == "true" || text == "false",
                _ => false,
            },
            Self::List | Self::Items => matches!(value, Value::List(_)),
            Self::Texts => is_scalar || matches!(value, Value::List(_)),
            Self::Pairs => matches!(value, Value::List(_) | Value::Map(_)),
            Self::Object(_) | Self::Named(_) => matches!(value, Value::Map(_)),
        }
    }

    /// What a message says was expected.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Self::Any => "a value",
            Self::Text | Self::Choice(_) => "a text",
            Self::Bool => "`true` or `false`",
            Self::Number => "a number",
            Self::List | Self::Items => "a list",
            Self::Texts => "a text or a list of texts",
            Self::Pairs => "a mapping or a list of `NAME=VALUE`",
            Self::Object(_) | Self::Named(_) => "a mapping",
        }
    }
}

/// One key of a mapping.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) class: Class,
    pub(super) shape: Shape,
    /// What it takes, why it has no effect, or why it is rejected.
    pub(super) text: &'static str,
}

const fn done(name: &'static str, shape: Shape, text: &'static str) -> Key {
    Key { name, class: Class::Implemented, shape, text }
}

const fn accepted(name: &'static str, shape: Shape, text: &'static str) -> Key {
    Key { name, class: Class::Accepted, shape, text }
}

const fn rejected(name: &'static str, text: &'static str) -> Key {
    Key { name, class: Class::Rejected, shape: Shape::Any, text }
}

/// The key of this name.
pub(super) fn find(keys: &'static [Key], name: &str) -> Option<&'static Key> {
    keys.iter().find(|key| key.name == name)
}

/// What is said of a rejected key.
pub(super) fn refusal(key: &Key) -> String {
    format!("`{}` is not supported: {}", key.name, key.text)
}

/// What is said of `build`, which is rejected in two ways.
pub(super) fn build(has_image: HasImage) -> String {
    match has_image {
        HasImage::No => "`build` is not supported: images are not built here; pack a folder with \
            `supervisor image pack`, or build with another tool, and name the result in `image:`"
            .to_owned(),
        HasImage::Yes => {
            "`build` is not supported: images are not built here; remove it, and `image:` is pulled as it is"
                .to_owned()
        }
    }
}

/// Whether a service names its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HasImage {
    Yes,
    No,
}

/// What is said of a key at the top of the file that is not one of [`TOP`].
pub(super) fn unknown_top(key: &str) -> String {
    if find(SERVICE, key).is_some() {
        return format!(
            "`{key}` belongs to a service; put it below `services:` and the name of the service"
        );
    }
    unknown(key, TOP)
}

/// What is said of a key that is none of `known`.
pub(super) fn unknown(key: &str, known: &'static [Key]) -> String {
    let normalized = key.to_ascii_lowercase().replace('-', "_");
    let nearest = known
        .iter()
        .map(|candidate| (distance(&normalized, candidate.name), candidate.name))
        .filter(|(distance, candidate)| *distance <= 1.max(candidate.len().min(key.len()) / 3))
        .min();
    match nearest {
        Some((_, candidate)) => format!("unknown key `{key}`; did you mean `{candidate}`?"),
        None if known.len() <= 12 => {
            let known: Vec<String> = known.iter().map(|key| format!("`{}`", key.name)).collect();
            format!("unknown key `{key}`; there are {}", known.join(", "))
        }
        None => format!("unknown key `{key}`; keys of your own begin with `x-`"),
    }
}

/// Edits that lead from `a` to `b`: insert, delete, replace. Bounded, since a key can be as long as the file.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 64 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_misspelt_key_is_answered_with_the_nearest_known_one() {
        for (key, expected) in [
            ("imag", "`image`"),
            ("enviroment", "`environment`"),
            ("read-only", "`read_only`"),
            ("Restart", "`restart`"),
            ("comand", "`command`"),
            ("volume", "`volumes`"),
            ("port", "`ports`"),
            ("frobnicate", "`x-`"),
        ] {
            let message = unknown(key, SERVICE);
            assert!(message.contains(expected), "{message}");
        }
        assert!(unknown_top("service").contains("`services`"));
        assert!(unknown_top("image").contains("belongs to a service"));
        assert!(unknown(&"x".repeat(10_000), SERVICE).contains("unknown key"));
        assert!(unknown("zzz", LAZY).contains("there are `background`"));
    }

    #[test]
    fn tables_are_in_order_and_say_something_of_each_key() {
        let of_services =
            [SERVICE, HEALTHCHECK, DEPLOY, RESOURCES, LIMITS, RESERVATIONS, RESTART_POLICY];
        let of_the_rest =
            [TOP, VOLUME, NAMED_VOLUME, VOLUME_OPTIONS, GRANT, GRANTED, SUPERVISOR, LAZY, PROBE];
        let of_networks = [NETWORK, IPAM, IPAM_CONFIG, SERVICE_NETWORK];
        for keys in of_services.into_iter().chain(of_the_rest).chain(of_networks) {
            let names: BTreeSet<&str> = keys.iter().map(|key| key.name).collect();
            assert_eq!(names.len(), keys.len(), "{names:?}");
            assert!(keys.iter().all(|key| !key.text.is_empty() && !key.text.contains('\n')));
        }
        assert!(SERVICE.is_sorted_by_key(|key| key.name));
    }

    /// The keys without which files of the usual kind do not come up.
    #[test]
    fn every_key_that_is_common_has_its_class() {
        let common = "image build command entrypoint environment env_file working_dir user hostname \
            container_name labels ports expose volumes tmpfs configs secrets networks network_mode extra_hosts dns \
            depends_on restart healthcheck stop_signal stop_grace_period init tty stdin_open privileged cap_add \
            cap_drop security_opt read_only devices ulimits shm_size pids_limit mem_limit cpus platform pull_policy \
            profiles logging deploy";
        let common: Vec<&str> = common.split_whitespace().collect();
        assert_eq!(common.len(), 45);
        assert!(common.iter().all(|name| find(SERVICE, name).is_some()));
    }
}
