//! What a container was made from, as digests: the way to tell whether a service changed, and where.
//!
//! Only what the user wrote is in a fingerprint. A default of ours that changes therefore recreates nothing by itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Service;
use crate::image::{Digest, Hasher};

/// Version of the encoding below. The encoding of a field never changes within a version; a key that is implemented
/// later is a new field, and no older container can have had it.
const SCHEMA: u32 = 1;

/// Digest of each field that the user wrote, by name (`image`, `environment.PORT`).
///
/// Kept in the record of a container. Variables have a digest each, so that a plan can name the one that changed
/// without the record holding its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    schema: u32,
    fields: BTreeMap<String, Digest>,
}

impl Fingerprint {
    /// Of nothing that anybody wrote; differs from that of every service, which has an image at least.
    #[must_use]
    pub fn none() -> Self {
        Self { schema: SCHEMA, fields: BTreeMap::new() }
    }

    /// One digest over the fingerprint.
    #[must_use]
    pub fn hash(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(format!("supervisor service {}\n", self.schema).as_bytes());
        for (field, digest) in &self.fields {
            // Lengths in front keep the encoding free of ambiguity, whatever a name holds.
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field.as_bytes());
            hasher.update(digest.as_bytes());
        }
        hasher.finish()
    }

    /// Names of the fields that differ, in order; empty when nothing changed. Schemas are not compared, so that an
    /// upgrade of this program is no change of a service.
    #[must_use]
    pub fn changed_fields(&self, other: &Self) -> Vec<String> {
        let names = self.fields.keys().chain(other.fields.keys());
        let mut changed: Vec<String> = names
            .filter(|name| self.fields.get(*name) != other.fields.get(*name))
            .cloned()
            .collect();
        changed.sort();
        changed.dedup();
        changed
    }
}

impl Service {
    /// The digests of what the user wrote for this service.
    ///
    /// `restart` is left out: the planner obeys it, the container does not hold it, so it applies at once.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        // Every field is named, so that a new one cannot be forgotten here.
        let Self {
            name: _,
            image,
            command,
            entrypoint,
            environment,
            working_dir,
            user,
            volumes,
            read_only,
            restart: _,
            stop_signal,
            stop_grace_period,
            network_mode,
            logging,
        } = self;
        let mut fields = BTreeMap::new();
        let mut add = |field: &str, value: Option<Value>| {
            if let Some(value) = value {
                fields.insert(field.to_owned(), Digest::of(value.to_string().as_bytes()));
            }
        };
        add("image", Some(json!(image.to_string())));
        add("command", command.as_ref().map(|words| json!(words)));
        add("entrypoint", entrypoint.as_ref().map(|words| json!(words)));
        for (variable, value) in environment {
            add(&format!("environment.{variable}"), Some(json!(value)));
        }
        add("working_dir", working_dir.as_ref().map(|path| json!(path)));
        add("user", user.as_ref().map(|user| json!(user)));
        let volume = |bind: &super::Bind| {
            // Bytes, since a path need not be UTF-8.
            let source = bind.source.as_os_str().as_encoded_bytes();
            json!([source, bind.target, matches!(bind.access, super::Access::ReadOnly)])
        };
        let volumes = (!volumes.is_empty()).then(|| volumes.iter().map(volume).collect());
        add("volumes", volumes.map(Value::Array));
        add("read_only", read_only.map(|value| json!(value)));
        add("stop_signal", stop_signal.map(|signal| json!(signal.number())));
        let grace = stop_grace_period.map(|grace| json!(grace.as_nanos().to_string()));
        add("stop_grace_period", grace);
        add("network_mode", network_mode.map(|mode| json!(mode.to_string())));
        // The monitor of a container learns it at its start; compose recreates for it too.
        add(
            "logging",
            logging
                .as_ref()
                .filter(|logging| **logging != super::Logging::default())
                .map(super::Logging::written),
        );
        Fingerprint { schema: SCHEMA, fields }
    }

    /// One digest over what the user wrote; equal for files that mean the same.
    #[must_use]
    pub fn config_hash(&self) -> Digest {
        self.fingerprint().hash()
    }
}
