//! Real counterparts: docker-registry and skopeo, images of another tool, TLS, proxies, hosts that are not there.

use std::path::Path;

use supervisor::image::{Compression, Digest, ImageRef, Platform, media_type};
use supervisor::registry::{Client, ClientOptions, FetchErrorKind, ProxySettings};

use super::access::{client_with, docker_config, password};
use super::{LAYER, client, options, read_all, resolve};
use crate::support::docker_registry::{DockerRegistry, PASSWORD, USER};
use crate::support::registry::FaultRegistry;
use crate::support::tiny_image::TinyImage;
use crate::support::tls_registry::TlsFront;

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

#[tokio::test]
async fn an_image_with_dockers_media_types_is_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs-fixtures/golden/odd-plain");
    let registry = DockerRegistry::start();
    registry.push_as_docker(&folder, &only_tag(&folder), "docker:v2");
    let image: ImageRef = format!("{}/docker:v2", registry.host()).parse().unwrap();
    let resolved = client().resolve(&image, &"linux/amd64".parse().unwrap()).await.unwrap();
    assert_eq!(resolved.manifest.media_type, media_type::DOCKER_MANIFEST);
    assert_eq!(resolved.manifest.config.media_type, media_type::DOCKER_CONFIG);
    for layer in &resolved.manifest.layers {
        assert_eq!(layer.compression(), Some(Compression::Gzip));
        assert!(read_all(&client().blob(&resolved.source, layer.digest, layer.size)).await.is_ok());
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
    let front = TlsFront::start(&registry, "0.0.0.0");
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

    let other = TlsFront::start(&registry, "elsewhere.example");
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
