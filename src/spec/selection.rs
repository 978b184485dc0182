//! Which services of a file run: those without a profile, of an active one, or that were named; and what is left out.

use super::Unsupported;
use super::raw::{Node, Value};

/// What was chosen of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Active profiles; `*` stands for all.
    pub profiles: Vec<String>,
    /// Services that run whatever their profiles are.
    pub named: Vec<String>,
    /// What becomes of what this version does not do.
    pub unsupported: Unsupported,
}

impl Selection {
    pub(super) fn is_active(&self, name: &str, service: &Node) -> bool {
        let own: Vec<String> = profiles(service).collect();
        own.is_empty()
            || self.named.iter().any(|named| named == name)
            || self.profiles.iter().any(|active| active == "*" || own.contains(active))
    }
}

/// The profiles that a service has; what is malformed is told by the validation.
pub(super) fn profiles(service: &Node) -> impl Iterator<Item = String> + '_ {
    let items = match service.get("profiles").map(|node| &node.value) {
        Some(Value::List(items)) => items.as_slice(),
        _ => &[],
    };
    items.iter().filter_map(Node::scalar)
}
