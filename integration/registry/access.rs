//! Logging in: passwords, tokens, their expiry and rotation, and where credentials must not go.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use base64::Engine as _;
use serde_json::json;
use supervisor::registry::{Client, ClientOptions, FetchErrorKind};

use super::{LAYER, client, layer_blob, one_layer, options, read_all, reference, resolve, status};
use crate::support::registry::{Access, FaultRegistry};
use crate::support::tiny_image::TinyImage;

/// A `config.json` with `auths` for one host.
pub(super) fn docker_config(host: &str, entry: serde_json::Value) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, json!({"auths": {host: entry}}).to_string()).unwrap();
    (folder, path)
}

pub(super) fn password(pair: &str) -> serde_json::Value {
    json!({"auth": base64::engine::general_purpose::STANDARD.encode(pair)})
}

pub(super) fn client_with(config: &Path) -> Client {
    Client::new(ClientOptions { docker_config: Some(config.to_owned()), ..options() }).unwrap()
}

#[tokio::test]
async fn each_way_of_logging_in_works() {
    let user = || ("ann".to_owned(), "secret".to_owned());
    let cases = [
        (Access::Basic(user().0, user().1), password("ann:secret")),
        (Access::Bearer { user: None, expires_in: 300 }, json!({})),
        (Access::Bearer { user: Some(user()), expires_in: 300 }, password("ann:secret")),
        (Access::Identity("id-1".to_owned()), json!({"identitytoken": "id-1"})),
    ];
    for (access, entry) in cases {
        let registry = FaultRegistry::start();
        let image = TinyImage::new(LAYER);
        image.put(&registry, "app", "v1");
        registry.require(access.clone());
        let (_folder, config) = docker_config(&registry.host(), entry);
        let client = client_with(&config);
        let found = resolve(&client, &reference(&registry, "app:v1")).await;
        assert_eq!(found.unwrap(), image.digest(), "{access:?}");
        let blob = layer_blob(&client, &registry, &image);
        assert_eq!(blob.range(7..20).await.unwrap()[..], image.layer[7..20]);
        // What was learnt is kept: one refusal in all, one token.
        assert_eq!(registry.seen("/v2/").iter().filter(|seen| seen.status == 401).count(), 1);
        assert!(registry.seen("/token").len() <= 1);
    }
}

#[tokio::test]
async fn wrong_or_missing_credentials_say_so() {
    let registry = FaultRegistry::start();
    TinyImage::new(10).put(&registry, "app", "v1");
    let image = reference(&registry, "app:v1");
    for access in [
        Access::Basic("ann".to_owned(), "secret".to_owned()),
        Access::Bearer { user: Some(("ann".to_owned(), "secret".to_owned())), expires_in: 300 },
    ] {
        registry.require(access);
        let error = resolve(&client(), &image).await.unwrap_err();
        assert_eq!(error.kind(), FetchErrorKind::Unauthorized);
        assert!(error.to_string().contains("no credentials are stored"), "{error}");
        assert!(error.hint().unwrap().contains("login"));
        let (_folder, config) = docker_config(&registry.host(), password("ann:wrong"));
        let error = resolve(&client_with(&config), &image).await.unwrap_err();
        assert_eq!(error.kind(), FetchErrorKind::Unauthorized, "{error}");
        assert!(!error.to_string().contains("wrong"), "a password in a message: {error}");
    }
}

#[tokio::test]
async fn a_broken_credential_helper_is_named_when_it_would_have_been_needed() {
    let registry = FaultRegistry::start();
    let image = TinyImage::new(10);
    image.put(&registry, "app", "v1");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    std::fs::write(&config, r#"{"credsStore": "of-a-test-that-does-not-exist"}"#).unwrap();
    let client = client_with(&config);
    let reference = reference(&registry, "app:v1");
    registry.require(Access::Bearer { user: None, expires_in: 300 });
    assert_eq!(resolve(&client, &reference).await.unwrap(), image.digest());
    registry.fault("/v2/", 9, status(401));
    let error = resolve(&client, &reference).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Unauthorized);
    assert!(error.to_string().contains("could not be used"), "{error}");
}

#[tokio::test]
async fn rotated_credentials_are_read_again() {
    let registry = FaultRegistry::start();
    let image = TinyImage::new(10);
    image.put(&registry, "app", "v1");
    registry.require(Access::Basic("ann".to_owned(), "old".to_owned()));
    let (_folder, config) = docker_config(&registry.host(), password("ann:old"));
    let client = client_with(&config);
    let reference = reference(&registry, "app:v1");
    assert!(resolve(&client, &reference).await.is_ok());
    registry.require(Access::Basic("ann".to_owned(), "new".to_owned()));
    let new = json!({"auths": {registry.host(): password("ann:new")}}).to_string();
    std::fs::write(&config, new).unwrap();
    assert!(resolve(&client, &reference).await.is_ok());
}

#[tokio::test]
async fn an_expired_token_is_renewed_once_for_all_readers() {
    let (registry, layer, blob) = one_layer();
    registry.require(Access::Bearer { user: None, expires_in: 300 });
    assert!(blob.range(0..5).await.is_ok());
    registry.revoke_tokens();
    let reads = (0..20_u64).map(|n| {
        let blob = blob.clone();
        async move { blob.range(n * 10..n * 10 + 10).await }
    });
    let parts = futures_util::future::try_join_all(reads).await.unwrap();
    assert_eq!(parts.concat(), layer[..200]);
    assert_eq!(registry.seen("/token").len(), 2);
}

#[tokio::test]
async fn a_token_known_to_have_expired_is_renewed_before_it_is_refused() {
    let (registry, _, blob) = one_layer();
    registry.require(Access::Bearer { user: None, expires_in: 1 });
    assert!(blob.range(0..5).await.is_ok());
    let deadline = Instant::now() + Duration::from_secs(20);
    while registry.seen("/token").len() < 2 && Instant::now() < deadline {
        assert!(blob.range(5..9).await.is_ok());
    }
    assert_eq!(registry.seen("/token").len(), 2);
    assert_eq!(registry.seen("/blobs/").iter().filter(|seen| seen.status == 401).count(), 1);
}

#[tokio::test]
async fn credentials_are_not_sent_where_a_registry_redirects_to() {
    let storage = FaultRegistry::start();
    let (registry, layer, blob) = one_layer();
    storage.put_blob(&layer);
    registry.require(Access::Bearer { user: None, expires_in: 300 });
    registry.redirect_blobs_to(&storage);
    assert_eq!(blob.range(0..9).await.unwrap()[..], layer[..9]);
    assert_eq!(blob.range(9..20).await.unwrap()[..], layer[9..20]);
    assert_eq!(read_all(&blob).await.unwrap(), layer);
    let seen = storage.seen("/storage/");
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|seen| seen.authorization.is_none()));
    assert!(registry.seen("/blobs/").iter().any(|seen| seen.authorization.is_some()));
    // Remembered: one refused and one redirected request for three reads.
    assert_eq!(registry.seen("/blobs/").len(), 2);
}
