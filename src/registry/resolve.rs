//! From a reference to a verified manifest and configuration.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;

use super::blob::{Blob, BlobSource};
use super::error::{FetchError, FetchErrorKind, Subject};
use super::exchange::{Request, Shared};
use super::hosts::Purpose;
use super::layout;
use super::retry::Attempts;
use super::status::read_limited;
use crate::image::{
    Descriptor, Digest, Document, DocumentError, ImageConfig, ImageRef, MAX_DOCUMENT_SIZE,
    Manifest, Platform,
};

/// Indexes inside indexes: one level is seen in practice, more is somebody's joke.
const MAX_INDEX_DEPTH: u32 = 3;

/// What we can read, in the order in which we like it.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

/// An image as it was found; every part has been checked against its digest.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What was asked for.
    pub reference: ImageRef,
    /// Where its blobs are.
    pub source: BlobSource,
    /// The outermost index, if the reference named one.
    pub index: Option<(Digest, Bytes)>,
    /// Names the image from here on.
    pub manifest_digest: Digest,
    /// The manifest as it was sent.
    pub manifest_bytes: Bytes,
    /// The manifest, read.
    pub manifest: Manifest,
    /// The configuration as it was sent; its digest is the manifest's to tell.
    pub config_bytes: Bytes,
    /// The configuration, read. It has one inflated digest per layer.
    pub config: ImageConfig,
}

/// An image whose manifest was found; its configuration is still to be fetched.
#[derive(Debug, Clone)]
pub struct Located {
    /// What was asked for.
    pub reference: ImageRef,
    /// Where its blobs are.
    pub source: BlobSource,
    /// The outermost index, if the reference named one.
    pub index: Option<(Digest, Bytes)>,
    /// Names the image from here on.
    pub manifest_digest: Digest,
    /// The manifest as it was sent.
    pub manifest_bytes: Bytes,
    /// The manifest, read.
    pub manifest: Manifest,
}

/// A document with its digest.
struct Fetched {
    digest: Digest,
    bytes: Bytes,
    media_type: Option<String>,
    subject: Subject,
}

pub(super) async fn resolve(
    shared: &Arc<Shared>,
    image: &ImageRef,
    platform: &Platform,
) -> Result<Resolved, FetchError> {
    let located = locate(shared, image, platform).await?;
    let (config_bytes, config) = config(shared, &located, platform).await?;
    let Located { reference, source, index, manifest_digest, manifest_bytes, manifest } = located;
    Ok(Resolved {
        reference,
        source,
        index,
        manifest_digest,
        manifest_bytes,
        manifest,
        config_bytes,
        config,
    })
}

/// The manifest of the image.
pub(super) async fn locate(
    shared: &Arc<Shared>,
    image: &ImageRef,
    platform: &Platform,
) -> Result<Located, FetchError> {
    let source = BlobSource::of(image);
    let mut fetched = first(shared, image, &source, platform).await?;
    let mut index = None;
    let mut depth = 0;
    let manifest = loop {
        let document = Document::parse(&fetched.bytes, fetched.media_type.as_deref())
            .map_err(|error| FetchError::document(&fetched.subject, error))?;
        match document {
            Document::Manifest(manifest) => break manifest,
            Document::Index(list) => {
                depth += 1;
                if depth > MAX_INDEX_DEPTH {
                    let detail = "its indexes are nested too deeply";
                    let kind = FetchErrorKind::Malformed;
                    return Err(FetchError::because(kind, &fetched.subject, detail).build());
                }
                let chosen = list
                    .select(platform)
                    .map_err(|error| FetchError::document(&fetched.subject, error))?;
                let next = by_digest(shared, &source, chosen).await?;
                index.get_or_insert((fetched.digest, fetched.bytes));
                fetched = next;
            }
        }
    };
    manifest.require_image().map_err(|error| FetchError::document(&fetched.subject, error))?;
    Ok(Located {
        reference: image.clone(),
        source,
        index,
        manifest_digest: fetched.digest,
        manifest_bytes: fetched.bytes,
        manifest,
    })
}

/// The configuration of an image whose manifest is known.
pub(super) async fn config(
    shared: &Arc<Shared>,
    located: &Located,
    platform: &Platform,
) -> Result<(Bytes, ImageConfig), FetchError> {
    let Located { source, manifest, .. } = located;
    let blob = Blob::new(shared, source, manifest.config.digest, manifest.config.size);
    let bytes = blob.bytes(MAX_DOCUMENT_SIZE).await?;
    let what = format!("image configuration `{}`", manifest.config.digest);
    let subject = source.subject(what, Some(manifest.config.digest));
    let config =
        ImageConfig::parse(&bytes).map_err(|error| FetchError::document(&subject, error))?;
    check(&config, manifest, platform, &subject)?;
    Ok((bytes, config))
}

fn check(
    config: &ImageConfig,
    manifest: &Manifest,
    platform: &Platform,
    subject: &Subject,
) -> Result<(), FetchError> {
    // A single manifest is not chosen by platform, so that this is the first place where it shows.
    if platform.rank(&config.platform).is_none() {
        let error = DocumentError::NoPlatform {
            wanted: platform.clone(),
            available: vec![config.platform.clone()],
        };
        return Err(FetchError::document(subject, error));
    }
    if config.diff_ids.len() != manifest.layers.len() {
        let detail = format!(
            "it describes {} layers, and the manifest has {}",
            config.diff_ids.len(),
            manifest.layers.len()
        );
        return Err(FetchError::because(FetchErrorKind::Malformed, subject, detail).build());
    }
    Ok(())
}

/// What the reference itself names.
async fn first(
    shared: &Arc<Shared>,
    image: &ImageRef,
    source: &BlobSource,
    platform: &Platform,
) -> Result<Fetched, FetchError> {
    match image {
        ImageRef::Registry { host, repository, tag, digest } => {
            let name = match (digest, tag) {
                (Some(digest), _) => digest.to_string(),
                (None, Some(tag)) => tag.clone(),
                (None, None) => "latest".to_owned(),
            };
            let subject = source.subject(format!("manifest `{name}`"), *digest);
            registry_document(shared, host, repository, &name, subject).await
        }
        ImageRef::Layout { path, tag } => {
            let what = match tag {
                Some(tag) => format!("image `{tag}`"),
                None => "the image".to_owned(),
            };
            let subject = source.subject(what, None);
            let (tag, platform) = (tag.clone(), platform.clone());
            blocking(path, subject, move |path, subject| {
                let entry = layout::choose(path, tag.as_deref(), &platform, subject)?;
                layout_document(path, &entry, subject.clone())
            })
            .await
        }
    }
}

/// What an index points to.
async fn by_digest(
    shared: &Arc<Shared>,
    source: &BlobSource,
    entry: &Descriptor,
) -> Result<Fetched, FetchError> {
    let subject = source.subject(format!("manifest `{}`", entry.digest), Some(entry.digest));
    let fetched = match source {
        BlobSource::Registry { host, repository } => {
            let name = entry.digest.to_string();
            registry_document(shared, host, repository, &name, subject).await?
        }
        BlobSource::Layout { path } => {
            let entry = entry.clone();
            blocking(path, subject, move |path, subject| {
                layout_document(path, &entry, subject.clone())
            })
            .await?
        }
    };
    let size = u64::try_from(fetched.bytes.len()).unwrap_or(u64::MAX);
    if size != entry.size {
        let detail = format!("it has {size} bytes, and {} in the index", entry.size);
        return Err(FetchError::corrupt(&fetched.subject, detail));
    }
    Ok(fetched)
}

async fn registry_document(
    shared: &Arc<Shared>,
    host: &str,
    repository: &str,
    name: &str,
    subject: Subject,
) -> Result<Fetched, FetchError> {
    let path = format!("manifests/{name}");
    let request = Request {
        subject: &subject,
        host,
        repository,
        path: &path,
        accept: Some(ACCEPT),
        range: None,
        purpose: if subject.digest.is_some() { Purpose::Pull } else { Purpose::Resolve },
    };
    let mut attempts = Attempts::new(&shared.options.retry);
    let (headers, bytes) = loop {
        let outcome = async {
            let answer = shared.get(&request, None).await?;
            let headers = answer.headers().clone();
            Ok((headers, read_limited(&subject, answer.response, MAX_DOCUMENT_SIZE).await?))
        };
        match outcome.await {
            Ok(answer) => break answer,
            Err(error) => attempts.wait(error).await?,
        }
    };
    let digest = Digest::of(&bytes);
    let promised = headers
        .get("docker-content-digest")
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok());
    // For a tag, the registry's own word is all there is to compare with.
    if let Some(expected) = subject.digest.or(promised)
        && expected != digest
    {
        let detail = format!("`{expected}` was promised, and what came has the digest `{digest}`");
        return Err(FetchError::corrupt(&subject, detail));
    }
    let media_type =
        headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Ok(Fetched { digest, bytes, media_type, subject })
}

fn layout_document(
    path: &Path,
    entry: &Descriptor,
    subject: Subject,
) -> Result<Fetched, FetchError> {
    let bytes = layout::document(path, entry, &subject)?;
    Ok(Fetched { digest: entry.digest, bytes, media_type: Some(entry.media_type.clone()), subject })
}

async fn blocking<T: Send + 'static>(
    path: &Path,
    subject: Subject,
    work: impl FnOnce(&Path, &Subject) -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    let path = path.to_owned();
    let copy = subject.clone();
    match tokio::task::spawn_blocking(move || work(&path, &copy)).await {
        Ok(outcome) => outcome,
        Err(error) => Err(FetchError::io(&subject, std::io::Error::other(error))),
    }
}
