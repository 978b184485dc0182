//! The registry client against a registry that misbehaves, and against real ones.

mod access;
mod blobs;
mod documents;
mod hosts;
mod layouts;
mod peers;

use std::time::Duration;

use futures_util::TryStreamExt as _;
use supervisor::image::{Digest, ImageRef, Platform};
use supervisor::registry::{Blob, BlobSource, Client, ClientOptions, FetchError, RetryPolicy};

use crate::support::registry::{Fault, FaultRegistry};
use crate::support::tiny_image::TinyImage;

/// Long enough for several pieces of a body.
pub(super) const LAYER: usize = 200_000;

pub(super) fn options() -> ClientOptions {
    ClientOptions {
        retry: RetryPolicy {
            attempts: 3,
            first_delay: Duration::from_millis(1),
            longest_delay: Duration::from_secs(2),
        },
        // Generous: the machine may be busy, and only tests of stalls wait for it.
        stall_timeout: Duration::from_secs(20),
        ..ClientOptions::default()
    }
}

pub(super) fn client() -> Client {
    Client::new(options()).unwrap()
}

pub(super) fn reference(registry: &FaultRegistry, rest: &str) -> ImageRef {
    format!("{}/{rest}", registry.host()).parse().unwrap()
}

pub(super) async fn resolve(client: &Client, image: &ImageRef) -> Result<Digest, FetchError> {
    client.resolve(image, &Platform::host()).await.map(|resolved| resolved.manifest_digest)
}

/// A client for tests in which a transfer stalls.
pub(super) fn impatient() -> Client {
    Client::new(ClientOptions { stall_timeout: Duration::from_secs(1), ..options() }).unwrap()
}

/// A registry with one image as `app:v1`, and its layer as a blob of a client.
pub(super) fn one_layer() -> (FaultRegistry, Vec<u8>, Blob) {
    one_layer_for(&client())
}

pub(super) fn one_layer_for(client: &Client) -> (FaultRegistry, Vec<u8>, Blob) {
    let registry = FaultRegistry::start();
    let image = TinyImage::new(LAYER);
    image.put(&registry, "app", "v1");
    let blob = layer_blob(client, &registry, &image);
    (registry, image.layer, blob)
}

pub(super) fn layer_blob(client: &Client, registry: &FaultRegistry, image: &TinyImage) -> Blob {
    let source = BlobSource::of(&reference(registry, "app:v1"));
    client.blob(&source, Digest::of(&image.layer), image.layer.len() as u64)
}

pub(super) async fn read_all(blob: &Blob) -> Result<Vec<u8>, FetchError> {
    blob.stream()
        .await?
        .try_fold(Vec::new(), |mut all, part| async move {
            all.extend_from_slice(&part);
            Ok(all)
        })
        .await
}

pub(super) fn status(code: u16) -> Fault {
    Fault::Status(code, Vec::new())
}
