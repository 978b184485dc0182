//! Image references: `registry/repository:tag@digest`, and `oci:PATH[:TAG]` for image layout folders.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Digest;

/// Where an image is and which one is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImageRef {
    /// In a registry that speaks the OCI distribution protocol.
    Registry {
        /// Host and optional port, `docker.io` for short names.
        host: String,
        /// Path of the repository; `library/` is added to one-word names of `docker.io`.
        repository: String,
        /// `latest` when neither tag nor digest was given.
        tag: Option<String>,
        /// Wins over the tag.
        digest: Option<Digest>,
    },
    /// In an OCI image layout folder of this host.
    Layout {
        /// The folder that holds `index.json`.
        path: PathBuf,
        /// Compared with `org.opencontainers.image.ref.name`; without it the folder must hold one image.
        tag: Option<String>,
    },
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefError {
    /// The text does not follow the grammar of references.
    #[error("`{text}` is not an image reference: {reason}")]
    Malformed {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl FromStr for ImageRef {
    type Err = RefError;

    fn from_str(_text: &str) -> Result<Self, RefError> {
        unimplemented!()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        unimplemented!()
    }
}

impl Serialize for ImageRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
