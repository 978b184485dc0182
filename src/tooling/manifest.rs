//! The documents of an image that we write: configuration and manifest, always of the OCI kind, because the Docker
//! kind has no place for the annotations that make layers lazy.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Layout, LayoutError};
use crate::image::{Descriptor, Digest, Platform, media_type};

/// An image that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The manifest: what a reference by digest names.
    pub manifest: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// Stores configuration and manifest of an image whose layers are in `layout`, and lists it under `tag`.
pub(super) fn finish(
    layout: &Layout,
    config: &Value,
    layers: Vec<Descriptor>,
    annotations: &BTreeMap<String, String>,
    (platform, tag): (&Platform, Option<&str>),
) -> Result<Made, LayoutError> {
    let config = layout.write_document(media_type::OCI_CONFIG, config.to_string().as_bytes())?;
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": config,
        "layers": layers,
    });
    if !annotations.is_empty() {
        manifest["annotations"] = json!(annotations);
    }
    let manifest =
        layout.write_document(media_type::OCI_MANIFEST, manifest.to_string().as_bytes())?;
    layout.list(&manifest, platform, tag)?;
    Ok(Made { manifest, layers })
}

/// Replaces the inflated digests of a configuration, and nothing else: it may have fields that we do not know.
pub(super) fn with_diff_ids(config: &mut Value, diff_ids: &[Digest]) {
    config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
}
