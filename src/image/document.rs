//! Manifests and indexes, of the OCI and of the Docker kind. Parses bytes that the caller has verified.

use serde::{Deserialize, Serialize};

use super::{Descriptor, Digest, DigestError, Platform};

/// Largest manifest, index or configuration that is read; registries refuse to store larger ones.
pub const MAX_DOCUMENT_SIZE: u64 = 4 << 20;

/// Media types of the documents that we read.
pub mod media_type {
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image configuration.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Docker image manifest, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker image configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
}

/// What a tag or digest of a repository can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// The same image for several platforms.
    Index(Index),
}

/// One image: its configuration and its layers, lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// As written in the document, or what its shape says.
    pub media_type: String,
    /// The image configuration.
    pub config: Descriptor,
    /// In the order in which they are applied.
    pub layers: Vec<Descriptor>,
    /// Of the manifest itself.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// Manifests to choose from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Each with the platform that it is for, where the index tells it.
    pub manifests: Vec<(Descriptor, Option<Platform>)>,
}

/// Why bytes are not a document that we can use.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Larger than [`MAX_DOCUMENT_SIZE`].
    #[error("the document has {0} bytes, more than the 4 MiB that one may have")]
    TooLarge(u64),
    /// Not JSON of the expected shape.
    #[error("the document is not a valid {kind}")]
    Json {
        /// What was expected.
        kind: &'static str,
        /// Where it fails.
        #[source]
        source: serde_json::Error,
    },
    /// Docker's first format, whose content cannot be verified.
    #[error("the image is in Docker's schema 1 format, which is no longer supported")]
    Schema1,
    /// Neither manifest nor index.
    #[error("`{0}` is neither an image manifest nor an image index")]
    UnknownType(String),
    /// Could be read as manifest and as index, so that two readers may see two images.
    #[error("the document has the fields of both a manifest and an index")]
    Ambiguous,
    /// The server calls it something else than the document does itself.
    #[error("the document was sent as `{sent}` but calls itself `{written}`")]
    TypeMismatch {
        /// Of the response or of the referring descriptor.
        sent: String,
        /// In the document.
        written: String,
    },
    /// A descriptor whose digest we cannot check.
    #[error("the digest of {of} cannot be checked")]
    Digest {
        /// `the configuration`, `layer 2` …
        of: String,
        /// Why.
        #[source]
        source: DigestError,
    },
    /// Nothing in the index runs here.
    #[error("the image is not built for `{wanted}`, only for {}", list(.available))]
    NoPlatform {
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        available: Vec<Platform>,
    },
    /// A manifest of something else than a container image.
    #[error("the manifest describes an artifact of type `{0}`, not a container image")]
    NotAnImage(String),
    /// A NUL byte where the kernel takes none.
    #[error("the configuration's `{0}` holds a NUL byte")]
    Nul(&'static str),
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "no platform at all".to_owned();
    }
    platforms.iter().map(|platform| format!("`{platform}`")).collect::<Vec<_>>().join(", ")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manifest,
    Index,
}

fn kind_of(media_type: &str) -> Option<Kind> {
    match media_type {
        media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => Some(Kind::Manifest),
        media_type::OCI_INDEX | media_type::DOCKER_INDEX => Some(Kind::Index),
        _ => None,
    }
}

/// The fields that tell the kinds apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: Option<serde_json::Value>,
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a document; `media_type` is what the server or the referring descriptor calls it, if anything.
    /// Generic types (`application/json`) are not held against the document.
    ///
    /// # Errors
    /// When it is too large, not JSON, of an unknown kind, of two kinds at once, or refers to content by a digest
    /// that cannot be checked.
    pub fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Self, DocumentError> {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if size > MAX_DOCUMENT_SIZE {
            return Err(DocumentError::TooLarge(size));
        }
        let probe: Probe = serde_json::from_slice(bytes)
            .map_err(|source| DocumentError::Json { kind: "image manifest or index", source })?;
        // Parameters (`; charset=utf-8`) say nothing about JSON.
        let sent = media_type.map(|sent| sent.split(';').next().unwrap_or(sent).trim());
        let schema1 =
            |sent: &str| sent.starts_with("application/vnd.docker.distribution.manifest.v1");
        if sent.is_some_and(schema1)
            || probe.fs_layers.is_some()
            || probe.schema_version == Some(serde_json::Value::from(1))
        {
            return Err(DocumentError::Schema1);
        }
        let is_manifest = probe.config.is_some() || probe.layers.is_some();
        let shape = match (is_manifest, probe.manifests.is_some()) {
            // Two readers that look at different fields would run different images (CVE-2021-41190).
            (true, true) => return Err(DocumentError::Ambiguous),
            (true, false) => Some(Kind::Manifest),
            (false, true) => Some(Kind::Index),
            (false, false) => None,
        };
        let written = probe.media_type.as_deref();
        if let (Some(sent), Some(written)) = (sent, written)
            && kind_of(sent).is_some()
            && kind_of(sent) != kind_of(written)
        {
            return Err(DocumentError::TypeMismatch {
                sent: sent.to_owned(),
                written: written.to_owned(),
            });
        }
        let named = written.or(sent.filter(|sent| kind_of(sent).is_some()));
        let kind = match (named.map(kind_of), shape) {
            (Some(Some(named)), Some(shape)) if named == shape => named,
            (None, Some(shape)) => shape,
            (_, _) => {
                let name = named.or(sent).unwrap_or("an empty document");
                return Err(DocumentError::UnknownType(name.chars().take(100).collect()));
            }
        };
        match kind {
            Kind::Manifest => Manifest::read(bytes, named).map(Self::Manifest),
            Kind::Index => Index::read(bytes).map(Self::Index),
        }
    }
}

impl Manifest {
    fn read(bytes: &[u8], media_type: Option<&str>) -> Result<Self, DocumentError> {
        let raw: oci_spec::image::ImageManifest = serde_json::from_slice(bytes)
            .map_err(|source| DocumentError::Json { kind: "image manifest", source })?;
        let layers = raw
            .layers()
            .iter()
            .enumerate()
            .map(|(number, layer)| descriptor(layer, || format!("layer {}", number + 1)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            media_type: media_type.unwrap_or(media_type::OCI_MANIFEST).to_owned(),
            config: descriptor(raw.config(), || "the configuration".to_owned())?,
            layers,
            annotations: raw.annotations().clone().unwrap_or_default().into_iter().collect(),
        })
    }

    /// Refuses what is stored like an image but is none: charts, signatures, policies.
    ///
    /// # Errors
    /// [`DocumentError::NotAnImage`], with the type of what it is.
    pub fn require_image(&self) -> Result<(), DocumentError> {
        match self.config.media_type.as_str() {
            media_type::OCI_CONFIG | media_type::DOCKER_CONFIG => Ok(()),
            // Builders before 2016 wrote this; what it is shows when it is parsed.
            "application/octet-stream" => Ok(()),
            other => Err(DocumentError::NotAnImage(other.chars().take(100).collect())),
        }
    }
}

impl Index {
    fn read(bytes: &[u8]) -> Result<Self, DocumentError> {
        let raw: oci_spec::image::ImageIndex = serde_json::from_slice(bytes)
            .map_err(|source| DocumentError::Json { kind: "image index", source })?;
        let mut manifests = Vec::with_capacity(raw.manifests().len());
        for (number, entry) in raw.manifests().iter().enumerate() {
            // Only what could be selected has to be readable: an entry for another platform, or of a kind that
            // we do not know, must not make an image unusable here.
            let platform = entry.platform().as_ref().map(|platform| {
                Platform::new(
                    &platform.os().to_string(),
                    &platform.architecture().to_string(),
                    platform.variant().as_deref(),
                )
            });
            if kind_of(entry.media_type().as_ref()).is_none() || is_attachment(entry) {
                continue;
            }
            let entry = descriptor(entry, || format!("manifest {} of the index", number + 1))?;
            manifests.push((entry, platform));
        }
        Ok(Self { manifests })
    }

    /// The manifest (or nested index) that serves `wanted` best.
    ///
    /// Attestations are never chosen. Without any platform in the index, a single manifest is taken: it says in its
    /// configuration what it is for.
    ///
    /// # Errors
    /// [`DocumentError::NoPlatform`], which lists what there is.
    pub fn select(&self, wanted: &Platform) -> Result<&Descriptor, DocumentError> {
        let mut best: Option<(u32, &Descriptor)> = None;
        for (descriptor, platform) in &self.manifests {
            let Some(rank) = platform.as_ref().and_then(|offered| wanted.rank(offered)) else {
                continue;
            };
            // Of equals the first one wins, as everywhere else.
            if best.is_none_or(|(found, _)| rank > found) {
                best = Some((rank, descriptor));
            }
        }
        if let Some((_, descriptor)) = best {
            return Ok(descriptor);
        }
        match &self.manifests[..] {
            [(descriptor, None)] => Ok(descriptor),
            manifests => {
                let mut available: Vec<Platform> =
                    manifests.iter().filter_map(|(_, platform)| platform.clone()).collect();
                available.sort();
                available.dedup();
                Err(DocumentError::NoPlatform { wanted: wanted.clone(), available })
            }
        }
    }
}

/// Whether an entry is about an image rather than being one: build provenance, SBOMs, signatures.
fn is_attachment(entry: &oci_spec::image::Descriptor) -> bool {
    let unknown = entry.platform().as_ref().is_some_and(|platform| {
        platform.os().to_string() == "unknown" || platform.architecture().to_string() == "unknown"
    });
    let annotated = entry
        .annotations()
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key("vnd.docker.reference.type"));
    let artifact = entry.artifact_type().as_ref().is_some_and(|artifact| {
        ![media_type::OCI_CONFIG, media_type::DOCKER_CONFIG].contains(&artifact.as_ref())
    });
    unknown || annotated || artifact
}

fn descriptor(
    raw: &oci_spec::image::Descriptor,
    of: impl FnOnce() -> String,
) -> Result<Descriptor, DocumentError> {
    let digest: Digest = raw
        .digest()
        .as_ref()
        .parse()
        .map_err(|source| DocumentError::Digest { of: of(), source })?;
    Ok(Descriptor {
        media_type: raw.media_type().as_ref().to_owned(),
        digest,
        size: raw.size(),
        annotations: raw.annotations().clone().unwrap_or_default().into_iter().collect(),
    })
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
