//! The registry client against a registry that misbehaves, and against a real one.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use futures_util::TryStreamExt as _;
use serde_json::json;
use supervisor::image::{Digest, ImageRef, Platform, media_type};
use supervisor::registry::{
    Blob, BlobSource, Client, ClientOptions, FetchError, FetchErrorKind, ProxySettings, RetryPolicy,
};

use crate::support::docker_registry::{DockerRegistry, PASSWORD, USER};
use crate::support::registry::{Access, Fault, FaultRegistry};
use crate::support::tiny_image::{TinyImage, descriptor, write_index};
use crate::support::tls_registry::TlsFront;

/// Long enough for several pieces of a body.
const LAYER: usize = 200_000;

fn options() -> ClientOptions {
    ClientOptions {
        retry: RetryPolicy {
            attempts: 3,
            first_delay: Duration::from_millis(1),
            longest_delay: Duration::from_secs(2),
        },
        stall_timeout: Duration::from_millis(400),
        ..ClientOptions::default()
    }
}

fn client() -> Client {
    Client::new(options()).unwrap()
}

fn reference(registry: &FaultRegistry, rest: &str) -> ImageRef {
    format!("{}/{rest}", registry.host()).parse().unwrap()
}

async fn resolve(client: &Client, image: &ImageRef) -> Result<Digest, FetchError> {
    client.resolve(image, &Platform::host()).await.map(|resolved| resolved.manifest_digest)
}

/// A registry with one image as `app:v1`, and its layer as a blob of a client.
fn one_layer() -> (FaultRegistry, Vec<u8>, Blob) {
    let registry = FaultRegistry::start();
    let image = TinyImage::new(LAYER);
    image.put(&registry, "app", "v1");
    let blob = layer_blob(&client(), &registry, &image);
    (registry, image.layer, blob)
}

fn layer_blob(client: &Client, registry: &FaultRegistry, image: &TinyImage) -> Blob {
    let source = BlobSource::of(&reference(registry, "app:v1"));
    client.blob(&source, Digest::of(&image.layer), image.layer.len() as u64)
}

async fn read_all(blob: &Blob) -> Result<Vec<u8>, FetchError> {
    blob.stream()
        .await?
        .try_fold(Vec::new(), |mut all, part| async move {
            all.extend_from_slice(&part);
            Ok(all)
        })
        .await
}

fn status(code: u16) -> Fault {
    Fault::Status(code, Vec::new())
}

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
async fn refused_unresolvable_and_unencrypted_hosts_are_told_apart() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let image: ImageRef = format!("{free}/app").parse().unwrap();
    let error = resolve(&client(), &image).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Unreachable, "{error:?}");
    assert!(error.to_string().contains("refused") && error.is_transient());

    // A resolver that answers nothing at all ends in the time limit instead.
    let error = resolve(&client(), &"no-such-host.invalid/app".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error.kind(), FetchErrorKind::Dns | FetchErrorKind::Timeout), "{error:?}");

    // TLS is spoken to every host but those of this machine; an address of it that is not loopback shows it.
    let registry = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = registry.local_addr().unwrap().port();
    let serve = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        while let Ok((mut stream, _)) = registry.accept().await {
            let _ = stream.read(&mut [0; 512]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    // 0.0.0.0 reaches this machine without being a loopback address.
    let image: ImageRef = format!("0.0.0.0:{port}/app").parse().unwrap();
    let error = resolve(&client(), &image).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Tls, "{error:?}");
    assert!(error.hint().unwrap().contains("plain HTTP"));
    serve.abort();
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

/// A `config.json` with `auths` for one host.
fn docker_config(host: &str, entry: serde_json::Value) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, json!({"auths": {host: entry}}).to_string()).unwrap();
    (folder, path)
}

fn password(pair: &str) -> serde_json::Value {
    json!({"auth": base64::engine::general_purpose::STANDARD.encode(pair)})
}

fn client_with(config: &Path) -> Client {
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
async fn a_range_is_exactly_the_bytes_asked_for() {
    let (registry, layer, blob) = one_layer();
    let size = blob.size();
    for range in [0..1, 0..size, size - 5..size, 100..70_000] {
        let bytes = blob.range(range.clone()).await.unwrap();
        let (start, end) = (range.start as usize, range.end as usize);
        assert_eq!(bytes[..], layer[start..end]);
    }
    assert_eq!(registry.seen("/blobs/")[3].range.as_deref(), Some("bytes=100-69999"));
    assert!(blob.range(9..9).await.unwrap().is_empty());
    assert!(blob.range(0..size + 1).await.is_err());
    assert_eq!(registry.seen("/blobs/").len(), 4);
}

#[tokio::test]
async fn a_broken_range_is_continued_where_it_stopped() {
    for fault in [
        Fault::ShortRange(30_000),
        Fault::Close(30_000),
        Fault::Stall(30_000),
        Fault::Hangup,
        status(503),
    ] {
        let (registry, layer, blob) = one_layer();
        registry.fault("/blobs/", 1, fault.clone());
        assert_eq!(blob.range(10..150_000).await.unwrap()[..], layer[10..150_000], "{fault:?}");
        let seen = registry.seen("/blobs/");
        assert_eq!(seen.len(), 2, "{fault:?}");
        if matches!(fault, Fault::ShortRange(_) | Fault::Close(_) | Fault::Stall(_)) {
            assert_eq!(seen[1].range.as_deref(), Some("bytes=30010-149999"), "{fault:?}");
        }
    }
}

#[tokio::test]
async fn a_stall_ends_as_a_timeout() {
    let (registry, _, blob) = one_layer();
    registry.fault("/blobs/", 9, Fault::Stall(0));
    let error = blob.range(0..100).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Timeout, "{error:?}");
    assert!(error.is_transient());
}

#[tokio::test]
async fn a_server_without_ranges_is_recognized() {
    for (fault, kind) in [
        (Fault::RangeIgnored, FetchErrorKind::RangeIgnored),
        (status(400), FetchErrorKind::RangeNotSatisfiable),
        (status(416), FetchErrorKind::RangeNotSatisfiable),
        (status(501), FetchErrorKind::RangeNotSatisfiable),
    ] {
        let (registry, layer, blob) = one_layer();
        registry.fault("/blobs/", 1, fault.clone());
        let error = blob.range(0..100).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{fault:?}");
        assert!(error.is_range_unsupported() && !error.is_transient());
        assert_eq!(registry.seen("/blobs/").len(), 1, "{fault:?}");
        assert_eq!(read_all(&blob).await.unwrap(), layer, "the whole blob can still be pulled");
    }
    let (registry, layer, blob) = one_layer();
    registry.fault("/blobs/", 1, Fault::RangeIgnored);
    assert_eq!(blob.range(0..blob.size()).await.unwrap()[..], layer[..]);
}

#[tokio::test]
async fn a_part_that_is_not_the_one_asked_for_is_refused() {
    let (registry, layer, blob) = one_layer();
    registry.fault("/blobs/", 1, Fault::WrongContentRange);
    assert_eq!(blob.range(0..100).await.unwrap_err().kind(), FetchErrorKind::Malformed);
    let source = BlobSource::of(&reference(&registry, "app:v1"));
    let larger = client().blob(&source, Digest::of(&layer), layer.len() as u64 + 1);
    assert_eq!(larger.range(0..100).await.unwrap_err().kind(), FetchErrorKind::Corrupt);
    assert_eq!(read_all(&larger).await.unwrap_err().kind(), FetchErrorKind::Corrupt);
}

#[tokio::test]
async fn a_stream_survives_resets_and_resumes() {
    for fault in [
        Fault::Reset(90_000),
        Fault::Close(90_000),
        Fault::Stall(90_000),
        Fault::Hangup,
        status(500),
    ] {
        let (registry, layer, blob) = one_layer();
        registry.fault("/blobs/", 1, fault.clone());
        assert_eq!(read_all(&blob).await.unwrap(), layer, "{fault:?}");
        assert_eq!(registry.seen("/blobs/").len(), 2, "{fault:?}");
        let sent = registry.sent("/blobs/");
        assert!(sent < layer.len() as u64 + 95_000, "{fault:?}: {sent}");
    }
}

#[tokio::test]
async fn a_stream_resumes_from_a_server_without_ranges() {
    let (registry, layer, blob) = one_layer();
    registry.fault("/blobs/", 1, Fault::Close(90_000));
    registry.fault("/blobs/", 9, Fault::RangeIgnored);
    assert_eq!(read_all(&blob).await.unwrap(), layer);
}

#[tokio::test]
async fn a_stream_that_never_gets_on_ends_with_an_error() {
    let (registry, _, blob) = one_layer();
    registry.fault("/blobs/", 1, Fault::Close(50_000));
    registry.fault("/blobs/", 99, Fault::Close(0));
    let error = read_all(&blob).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Interrupted);
    assert!(error.to_string().contains(&blob.digest().to_string()), "{error}");
    assert_eq!(registry.seen("/blobs/").len(), 3);
    registry.heal();
    assert!(read_all(&blob).await.is_ok());
}

#[tokio::test]
async fn wrong_bytes_in_a_stream_are_found_and_not_retried() {
    let (registry, _, blob) = one_layer();
    registry.fault("/blobs/", 1, Fault::WrongByte(150_000));
    let error = read_all(&blob).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Corrupt);
    assert_eq!(registry.seen("/blobs/").len(), 1);
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

#[tokio::test]
async fn an_expired_redirect_is_forgotten_and_asked_for_anew() {
    for fault in [status(403), status(400), status(404), status(410), Fault::Hangup] {
        let storage = FaultRegistry::start();
        let (registry, layer, blob) = one_layer();
        storage.put_blob(&layer);
        registry.redirect_blobs_to(&storage);
        assert!(blob.range(0..9).await.is_ok());
        storage.fault("signature=1", 9, fault.clone());
        assert_eq!(blob.range(9..20).await.unwrap()[..], layer[9..20], "{fault:?}");
        assert!(storage.seen("signature=2").len() == 1, "{fault:?}");
    }
}

#[tokio::test]
async fn redirects_that_never_end_are_refused() {
    let (registry, _, blob) = one_layer();
    let here = vec![("Location".to_owned(), format!("http://{}/v2/app/blobs/x", registry.host()))];
    registry.fault("/blobs/", 99, Fault::Status(307, here));
    let error = blob.range(0..9).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Malformed);
    registry.heal();
    registry.fault("/blobs/", 1, status(307));
    assert_eq!(blob.range(0..9).await.unwrap_err().kind(), FetchErrorKind::Malformed);
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

#[tokio::test]
async fn a_slow_transfer_is_no_stall() {
    let (registry, layer, blob) = one_layer();
    registry.limit_rate(Some(250_000));
    assert_eq!(read_all(&blob).await.unwrap(), layer);
}

#[tokio::test]
async fn a_layout_folder_is_read_like_a_registry() {
    let folder = tempfile::tempdir().unwrap();
    let image = TinyImage::new(LAYER);
    image.write(folder.path(), "v1");
    for tag in ["", ":v1"] {
        let reference: ImageRef = format!("oci:{}{tag}", folder.path().display()).parse().unwrap();
        let resolved = client().resolve(&reference, &Platform::host()).await.unwrap();
        assert_eq!(resolved.manifest_digest, image.digest());
        let layer = &resolved.manifest.layers[0];
        let blob = client().blob(&resolved.source, layer.digest, layer.size);
        assert_eq!(blob.range(5..99).await.unwrap()[..], image.layer[5..99]);
        assert_eq!(read_all(&blob).await.unwrap(), image.layer);
        let file = Blob::open_layout_file(&resolved.source, &layer.digest).unwrap().unwrap();
        let blob = Blob::from_file(file, layer.digest, layer.size);
        assert_eq!(blob.range(5..99).await.unwrap()[..], image.layer[5..99]);
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_layout_folder_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let reference = |rest: &str| format!("oci:{path}{rest}").parse::<ImageRef>().unwrap();
    let fails = async |image: ImageRef, kind: FetchErrorKind, part: &str| {
        let error = resolve(&client(), &image).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.to_string().contains(part), "{error}");
    };
    fails(reference("/none"), FetchErrorKind::NotFound, "no such folder").await;
    fails(reference(""), FetchErrorKind::Malformed, "no `index.json`").await;
    write_index(folder.path(), &[]);
    fails(reference(""), FetchErrorKind::NotFound, "no image").await;
    let image = TinyImage::new(LAYER);
    image.write(folder.path(), "v1");
    fails(reference(":v2"), FetchErrorKind::NotFound, "its tags are: `v1`").await;

    let other = TinyImage::new(9);
    other.write_blobs(folder.path());
    let entries: Vec<_> = [(&image, "v1"), (&other, "v2")]
        .into_iter()
        .map(|(image, tag)| {
            let mut entry = descriptor(media_type::OCI_MANIFEST, &image.manifest);
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
            entry
        })
        .collect();
    write_index(folder.path(), &entries);
    fails(reference(""), FetchErrorKind::Malformed, "several images").await;
    assert_eq!(resolve(&client(), &reference(":v2")).await.unwrap(), other.digest());

    let blob = |bytes: &[u8]| folder.path().join("blobs/sha256").join(Digest::of(bytes).hex());
    std::fs::write(blob(&image.layer), &image.layer[..50]).unwrap();
    let source = BlobSource::of(&reference(""));
    let layer = client().blob(&source, Digest::of(&image.layer), LAYER as u64);
    assert_eq!(layer.range(0..99).await.unwrap_err().kind(), FetchErrorKind::Corrupt);
    assert_eq!(read_all(&layer).await.unwrap_err().kind(), FetchErrorKind::Corrupt);
    std::fs::write(blob(&image.config), vec![b' '; image.config.len()]).unwrap();
    fails(reference(":v1"), FetchErrorKind::Corrupt, "digest").await;
    std::fs::remove_file(blob(&image.manifest)).unwrap();
    fails(reference(":v1"), FetchErrorKind::NotFound, "image `v1`").await;
}

#[tokio::test]
async fn a_real_registry_serves_an_image_that_skopeo_pushed() {
    let folder = tempfile::tempdir().unwrap();
    let image = TinyImage::new(LAYER);
    image.write(folder.path(), "v1");
    let registry = DockerRegistry::start();
    registry.push(folder.path(), "v1", "team/app:v1");
    let reference: ImageRef = format!("{}/team/app:v1", registry.host()).parse().unwrap();
    let resolved = client().resolve(&reference, &Platform::host()).await.unwrap();
    assert_eq!(resolved.manifest_digest, image.digest());
    let layer = &resolved.manifest.layers[0];
    let blob = client().blob(&resolved.source, layer.digest, layer.size);
    assert_eq!(blob.range(1000..2000).await.unwrap()[..], image.layer[1000..2000]);
    assert_eq!(read_all(&blob).await.unwrap(), image.layer);
    let missing = client().blob(&resolved.source, Digest::of(b"missing"), 9);
    let error = missing.range(0..5).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::NotFound);
    assert!(error.to_string().contains("blob unknown"), "{error}");
}

#[tokio::test]
async fn a_real_registry_with_a_password_opens_for_who_knows_it() {
    let folder = tempfile::tempdir().unwrap();
    let image = TinyImage::new(10);
    image.write(folder.path(), "v1");
    let registry = DockerRegistry::start_with_password();
    registry.push(folder.path(), "v1", "app:v1");
    let reference: ImageRef = format!("{}/app:v1", registry.host()).parse().unwrap();
    let error = resolve(&client(), &reference).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Unauthorized);
    let (_folder, config) = docker_config(registry.host(), password(&format!("{USER}:{PASSWORD}")));
    assert_eq!(resolve(&client_with(&config), &reference).await.unwrap(), image.digest());
}

#[tokio::test]
async fn images_of_another_tool_are_the_same_from_folder_and_registry() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs-fixtures/golden");
    let registry = DockerRegistry::start();
    for name in ["small-esgz", "small-zstd", "odd-plain", "gnu-esgz"] {
        let folder = golden.join(name);
        let local = ImageRef::Layout { path: folder.clone(), tag: None };
        let local = client().resolve(&local, &"linux/amd64".parse().unwrap()).await.unwrap();
        let tag = only_tag(&folder);
        registry.push(&folder, &tag, &format!("golden/{name}:{tag}"));
        let remote: ImageRef = format!("{}/golden/{name}:{tag}", registry.host()).parse().unwrap();
        let remote = client().resolve(&remote, &"linux/amd64".parse().unwrap()).await.unwrap();
        assert_eq!(local.manifest_bytes, remote.manifest_bytes, "{name}");
        assert_eq!(local.config, remote.config, "{name}");
        for layer in &local.manifest.layers {
            let tail = layer.size.saturating_sub(1000)..layer.size;
            let [here, there] = [&local, &remote]
                .map(|image| client().blob(&image.source, layer.digest, layer.size));
            assert_eq!(
                here.range(tail.clone()).await.unwrap(),
                there.range(tail).await.unwrap(),
                "{name}"
            );
            assert_eq!(read_all(&here).await.unwrap(), read_all(&there).await.unwrap(), "{name}");
        }
    }
}

fn only_tag(layout: &Path) -> String {
    let index = std::fs::read(layout.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let annotations = &index["manifests"][0]["annotations"];
    annotations["org.opencontainers.image.ref.name"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_registry_behind_tls_is_trusted_by_its_authority_and_name() {
    let registry = FaultRegistry::start();
    let image = TinyImage::new(LAYER);
    image.put(&registry, "app", "v1");
    let front = TlsFront::start(&registry, "IP:0.0.0.0");
    let reference: ImageRef = format!("{}/app:v1", front.host()).parse().unwrap();
    let error = resolve(&client(), &reference).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Tls, "{error:?}");
    assert!(error.to_string().contains("does not trust"), "{error}");
    let trusting = |front: &TlsFront| {
        let certificate_authorities = vec![front.authority()];
        Client::new(ClientOptions { certificate_authorities, ..options() }).unwrap()
    };
    let client = trusting(&front);
    let resolved = client.resolve(&reference, &Platform::host()).await.unwrap();
    assert_eq!(resolved.manifest_digest, image.digest());
    let blob = client.blob(&resolved.source, Digest::of(&image.layer), LAYER as u64);
    assert_eq!(blob.range(5..99).await.unwrap()[..], image.layer[5..99]);
    assert_eq!(read_all(&blob).await.unwrap(), image.layer);

    let other = TlsFront::start(&registry, "DNS:elsewhere.example");
    let reference: ImageRef = format!("{}/app:v1", other.host()).parse().unwrap();
    let error = resolve(&trusting(&other), &reference).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Tls, "{error:?}");
    assert!(error.to_string().contains("another name"), "{error}");
}

#[tokio::test]
async fn a_proxy_is_used_unless_the_host_is_excepted() {
    let proxy = FaultRegistry::start();
    let image = TinyImage::new(10);
    image.put(&proxy, "app", "v1");
    let client = |except: Option<&str>| {
        Client::new(ClientOptions {
            plain_http: vec!["registry.invalid:5000".to_owned()],
            proxy: ProxySettings {
                http: Some(format!("http://{}", proxy.host())),
                except: except.map(str::to_owned),
                ..ProxySettings::default()
            },
            ..options()
        })
        .unwrap()
    };
    let reference: ImageRef = "registry.invalid:5000/app:v1".parse().unwrap();
    assert_eq!(resolve(&client(None), &reference).await.unwrap(), image.digest());
    let error = resolve(&client(Some("registry.invalid")), &reference).await.unwrap_err();
    assert!(matches!(error.kind(), FetchErrorKind::Dns | FetchErrorKind::Timeout), "{error:?}");

    // What is on this machine is reached directly.
    let registry = FaultRegistry::start();
    let other = TinyImage::new(11);
    other.put(&registry, "app", "v1");
    let local: ImageRef = format!("{}/app:v1", registry.host()).parse().unwrap();
    assert_eq!(resolve(&client(None), &local).await.unwrap(), other.digest());
}
