//! From a reference to manifest and configuration.

use std::time::Duration;

use serde_json::json;
use supervisor::image::{Digest, Platform, media_type};
use supervisor::registry::FetchErrorKind;

use super::{client, reference, resolve, status};
use crate::support::registry::{Fault, FaultRegistry};
use crate::support::tiny_image::{TinyImage, descriptor};

fn retry_after(seconds: &str) -> Fault {
    Fault::Status(429, vec![("Retry-After".to_owned(), seconds.to_owned())])
}

#[tokio::test]
async fn a_tag_resolves_to_verified_parts() {
    let registry = FaultRegistry::start();
    let image = TinyImage::new(10);
    let folder = tempfile::tempdir().unwrap();
    image.write(folder.path(), "v1");
    registry.put_layout("a/b", folder.path());
    let reference = reference(&registry, "a/b:v1");
    let resolved = client().resolve(&reference, &Platform::host()).await.unwrap();
    assert_eq!(resolved.manifest_digest, image.digest());
    assert_eq!(resolved.config.cmd, ["/hello"]);
    assert_eq!(resolved.manifest.layers[0].digest, Digest::of(&image.layer));
    assert!(resolved.index.is_none());
    // Manifest and configuration, and no probing before them.
    assert_eq!(registry.seen("/v2/").len(), 2);
}

#[tokio::test]
async fn an_index_is_followed_to_the_platform_and_nested_ones_too() {
    let registry = FaultRegistry::start();
    let wanted: Platform = "linux/riscv64".parse().unwrap();
    let image = TinyImage::build(10, &wanted);
    image.put(&registry, "app", "inner");
    let other = TinyImage::new(11);
    let mut entry = descriptor(media_type::OCI_MANIFEST, &image.manifest);
    entry["platform"] = json!({"os": "linux", "architecture": "riscv64"});
    let mut wrong = descriptor(media_type::OCI_MANIFEST, &other.manifest);
    wrong["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let index = json!({"schemaVersion": 2, "manifests": [wrong, entry]}).to_string();
    registry.put_manifest("app", "v1", media_type::OCI_INDEX, index.as_bytes());
    let resolved = client().resolve(&reference(&registry, "app:v1"), &wanted).await.unwrap();
    assert_eq!(resolved.manifest_digest, image.digest());
    assert_eq!(resolved.index.unwrap().0, Digest::of(index.as_bytes()));

    let outer = json!({"schemaVersion": 2,
        "manifests": [descriptor(media_type::OCI_INDEX, index.as_bytes())]})
    .to_string();
    registry.put_manifest("app", "v2", media_type::OCI_INDEX, outer.as_bytes());
    let resolved = client().resolve(&reference(&registry, "app:v2"), &wanted).await.unwrap();
    assert_eq!(resolved.manifest_digest, image.digest());

    let error = client()
        .resolve(&reference(&registry, "app:v1"), &"linux/arm/v7".parse().unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::NoPlatform);
}

#[tokio::test]
async fn an_image_for_another_platform_is_refused_before_it_is_pulled() {
    let registry = FaultRegistry::start();
    TinyImage::build(10, &"linux/s390x".parse().unwrap()).put(&registry, "app", "v1");
    let error = resolve(&client(), &reference(&registry, "app:v1")).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::NoPlatform);
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn a_pinned_digest_is_checked_and_so_is_the_servers_own() {
    let registry = FaultRegistry::start();
    let image = TinyImage::new(10);
    image.put(&registry, "app", "v1");
    let pinned = reference(&registry, &format!("app:v1@{}", image.digest()));
    assert_eq!(resolve(&client(), &pinned).await.unwrap(), image.digest());
    for name in [format!("app@{}", image.digest()), "app:v1".to_owned()] {
        registry.fault("/manifests/", 1, Fault::WrongByte(3));
        let error = resolve(&client(), &reference(&registry, &name)).await.unwrap_err();
        assert_eq!(error.kind(), FetchErrorKind::Corrupt, "{error}");
    }
    registry.fault("/blobs/", 1, Fault::WrongByte(3));
    let error = resolve(&client(), &pinned).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Corrupt, "{error}");
    assert_eq!(error.digest(), Some(Digest::of(&image.config)));
}

#[tokio::test]
async fn what_is_missing_is_named_with_the_registrys_words() {
    let registry = FaultRegistry::start();
    let error = resolve(&client(), &reference(&registry, "a/b:nope")).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::NotFound);
    let text = error.to_string();
    for part in ["manifest `nope`", &registry.host(), "a/b", "404", "manifest unknown"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!error.is_transient());
}

#[tokio::test]
async fn transient_failures_are_tried_again_and_lasting_ones_are_handed_on() {
    for fault in [status(500), status(503), retry_after("0"), Fault::Hangup, Fault::Close(5)] {
        let registry = FaultRegistry::start();
        let image = TinyImage::new(10);
        image.put(&registry, "app", "v1");
        registry.fault("/manifests/", 2, fault.clone());
        let found = resolve(&client(), &reference(&registry, "app:v1")).await;
        assert_eq!(found.unwrap(), image.digest(), "{fault:?}");
        assert_eq!(registry.seen("/manifests/").len(), 3, "{fault:?}");
    }
    let registry = FaultRegistry::start();
    TinyImage::new(10).put(&registry, "app", "v1");
    registry.fault("/manifests/", 9, status(502));
    let error = resolve(&client(), &reference(&registry, "app:v1")).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (FetchErrorKind::Server, Some(502)));
    assert_eq!(registry.seen("/manifests/").len(), 3);
}

#[tokio::test]
async fn a_server_that_wants_a_long_pause_gets_it_from_the_caller() {
    let registry = FaultRegistry::start();
    TinyImage::new(10).put(&registry, "app", "v1");
    registry.fault("/manifests/", 1, retry_after("120"));
    let error = resolve(&client(), &reference(&registry, "app:v1")).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::TooManyRequests);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(120)));
    assert_eq!(registry.seen("/manifests/").len(), 1);
}

#[tokio::test]
async fn a_document_without_end_is_not_read_to_its_end() {
    let registry = FaultRegistry::start();
    let large = vec![b' '; 5 << 20];
    registry.put_manifest("app", "v1", media_type::OCI_MANIFEST, &large);
    let error = resolve(&client(), &reference(&registry, "app:v1")).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Malformed);
    assert!(registry.sent("/manifests/") < 5 << 20);
}
