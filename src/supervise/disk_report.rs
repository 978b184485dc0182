//! What control tells about the disk: what is where, and what was removed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::store::Class;

/// What the state directory holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// The state directory.
    pub state_dir: PathBuf,
    /// Bytes of its file system.
    pub total_bytes: u64,
    /// And of these the ones that can be written.
    pub free_bytes: u64,
    /// By kind.
    pub rows: Vec<DiskRow>,
}

/// What one kind of things occupies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRow {
    /// `images`, `layers`, `lazy-content`, `containers`, `volumes` or `logs`.
    pub kind: String,
    /// How many there are; of content, files.
    pub count: u64,
    /// How many of them are in use.
    pub active: u64,
    /// What they occupy.
    pub bytes: u64,
    /// What of it `prune --all` would free.
    pub reclaimable_bytes: u64,
}

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReport {
    /// In the order in which it goes.
    pub removed: Vec<Pruned>,
    /// All of their bytes.
    pub bytes: u64,
    /// Why something stays that looks unused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_because: Vec<String>,
}

/// Something that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// `image`, `layer`, `blob` or `content`.
    pub kind: String,
    /// The reference or the digest; of content, how many files.
    pub name: String,
    /// Why it could go.
    pub class: Class,
    /// The bytes that it occupied.
    pub bytes: u64,
}
