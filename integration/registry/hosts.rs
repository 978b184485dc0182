//! Mirrors and settings of registries, from files as containerd, Docker and Podman have them.

use std::path::Path;

use supervisor::image::{Digest, ImageRef, Platform};
use supervisor::registry::{Blob, BlobSource, Client, ClientOptions, FetchErrorKind};

use super::{LAYER, options, read_all, resolve, status};
use crate::support::registry::{Fault, FaultRegistry};
use crate::support::tiny_image::TinyImage;
use crate::support::tls_registry::TlsFront;

/// A registry that cannot be reached.
const NOWHERE: &str = "registry.invalid:5000";

/// What `hosts.toml` of a registry says.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new(host: &str, text: &str) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(tree.folder(host)).unwrap();
        std::fs::write(tree.folder(host).join("hosts.toml"), text).unwrap();
        tree
    }

    fn folder(&self, host: &str) -> std::path::PathBuf {
        self.0.path().join(host)
    }

    fn client(&self) -> Client {
        client_of(self.0.path())
    }
}

fn client_of(tree: &Path) -> Client {
    Client::new(ClientOptions { host_trees: vec![tree.to_owned()], ..options() }).unwrap()
}

fn mirrored(mirrors: &[&FaultRegistry]) -> Tree {
    let hosts = mirrors.iter().map(|mirror| format!("[host.\"http://{}\"]\n", mirror.host()));
    Tree::new(NOWHERE, &hosts.collect::<String>())
}

fn image() -> ImageRef {
    format!("{NOWHERE}/app:v1").parse().unwrap()
}

fn layer(client: &Client, image: &TinyImage) -> Blob {
    let source = BlobSource::of(&self::image());
    client.blob(&source, Digest::of(&image.layer), image.layer.len() as u64)
}

/// Registries that have the same image.
fn alike<const N: usize>() -> ([FaultRegistry; N], TinyImage) {
    let image = TinyImage::new(LAYER);
    let registries = std::array::from_fn(|_| {
        let registry = FaultRegistry::start();
        image.put(&registry, "app", "v1");
        registry
    });
    (registries, image)
}

#[tokio::test]
async fn a_mirror_stands_in_for_a_registry_that_is_away_and_is_told_for_which() {
    let ([mirror], image) = alike();
    let tree = mirrored(&[&mirror]);
    let client = tree.client();
    assert_eq!(resolve(&client, &self::image()).await.unwrap(), image.digest());
    assert_eq!(read_all(&layer(&client, &image)).await.unwrap(), image.layer);
    let seen = mirror.seen("/v2/");
    assert!(seen.iter().all(|seen| seen.path.ends_with("?ns=registry.invalid%3A5000")), "{seen:?}");
}

#[tokio::test]
async fn a_mirror_that_fails_in_the_middle_is_left_for_the_next_where_it_stopped() {
    let ([first, second], image) = alike();
    let tree = mirrored(&[&first, &second]);
    let client = tree.client();
    let blob = layer(&client, &image);
    for fault in [Fault::Close(90_000), Fault::Reset(90_000)] {
        first.fault("/blobs/", 1, fault.clone());
        let (began, went_on) = (first.seen("/blobs/").len(), second.seen("/blobs/").len());
        if began == 0 {
            assert_eq!(read_all(&blob).await.unwrap(), image.layer, "{fault:?}");
            assert_eq!(first.seen("/blobs/").len(), 1, "{fault:?}");
        } else {
            assert_eq!(blob.range(0..150_000).await.unwrap()[..], image.layer[..150_000]);
            assert_eq!(first.seen("/blobs/").len(), began, "it is asked last for a while");
        }
        let seen = &second.seen("/blobs/")[went_on..];
        assert_eq!(seen.len(), 1, "{fault:?}");
        let range = seen[0].range.as_deref().unwrap_or_default().to_owned();
        assert!(began > 0 || !range.starts_with("bytes=0-"), "{range}");
    }
    assert!(first.sent("/blobs/") + second.sent("/blobs/") < 360_000);
}

#[tokio::test]
async fn what_a_mirror_does_not_have_or_give_comes_from_the_registry_itself() {
    for fault in [status(404), status(401), status(500), Fault::Hangup] {
        let ([mirror, own], image) = alike();
        let text =
            format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", own.host(), mirror.host());
        let tree = Tree::new(NOWHERE, &text);
        mirror.fault("/v2/", 100, fault.clone());
        let client = tree.client();
        assert_eq!(resolve(&client, &self::image()).await.unwrap(), image.digest(), "{fault:?}");
        assert_eq!(read_all(&layer(&client, &image)).await.unwrap(), image.layer, "{fault:?}");
        assert!(!mirror.seen("/v2/").is_empty() && !own.seen("/blobs/").is_empty(), "{fault:?}");
    }
}

#[tokio::test]
async fn when_nobody_has_it_the_error_tells_what_each_said() {
    let mirror = FaultRegistry::start();
    let tree = mirrored(&[&mirror]);
    let error = resolve(&tree.client(), &image()).await.unwrap_err().to_string();
    let mirror = format!("before that, `http://{}/v2`: the registry answered 404", mirror.host());
    assert!(error.contains(&mirror) && error.contains(NOWHERE), "{error}");
}

#[tokio::test]
async fn a_mirror_for_content_only_is_not_asked_what_a_tag_means() {
    let ([mirror, own], image) = alike();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        own.host(),
        mirror.host()
    );
    let tree = Tree::new(NOWHERE, &text);
    let client = tree.client();
    assert_eq!(resolve(&client, &self::image()).await.unwrap(), image.digest());
    assert!(mirror.seen("manifests/v1").is_empty());
    assert!(!mirror.seen("/blobs/").is_empty(), "the configuration");
}

#[tokio::test]
async fn settings_that_make_no_sense_stop_the_pull_and_name_their_file() {
    let tree = Tree::new(NOWHERE, "[host.\"https://a\"]\ncapabilities = [\"fly\"]\n");
    let error = resolve(&tree.client(), &image()).await.unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Settings);
    assert!(
        error.to_string().contains("hosts.toml`: `https://a` has the unknown capability `fly`")
    );
    let tree = Tree::new(NOWHERE, "[host.\"https://a.invalid\"]\nca = \"missing.pem\"\n");
    let error = resolve(&tree.client(), &image()).await.unwrap_err().to_string();
    assert!(error.contains("missing.pem"), "{error}");
}

#[tokio::test]
async fn private_authorities_and_our_own_certificate_come_from_the_registrys_folder() {
    let ([registry], image) = alike();
    let keys = tempfile::tempdir().unwrap();
    let front = TlsFront::start_closed(&registry, "0.0.0.0", keys.path());
    let reference: ImageRef = format!("{}/app:v1", front.host()).parse().unwrap();
    let authority = front.authority().display().to_string();
    let pair = format!("[[\"{0}/us.cert\", \"{0}/us.key\"]]", keys.path().display());
    for (text, works) in [
        (format!("ca = \"{authority}\"\nclient = {pair}\n"), true),
        (format!("skip_verify = true\nclient = {pair}\n"), true),
        (format!("ca = \"{authority}\"\n"), false),
        (format!("client = {pair}\n"), false),
    ] {
        let tree = Tree::new(&front.host(), &text);
        let resolved = resolve(&tree.client(), &reference).await;
        match works {
            true => assert_eq!(resolved.unwrap(), image.digest(), "{text}"),
            false => assert_eq!(resolved.unwrap_err().kind(), FetchErrorKind::Tls, "{text}"),
        }
    }
    // Without any hosts.toml, as Docker and Podman have it.
    let tree = tempfile::tempdir().unwrap();
    let folder = tree.path().join(front.host());
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(front.authority(), folder.join("ca.crt")).unwrap();
    std::fs::copy(keys.path().join("us.cert"), folder.join("us.cert")).unwrap();
    std::fs::copy(keys.path().join("us.key"), folder.join("us.key")).unwrap();
    let client = client_of(tree.path());
    let resolved = client.resolve(&reference, &Platform::host()).await.unwrap();
    assert_eq!(resolved.manifest_digest, image.digest());
}

#[tokio::test]
async fn podmans_mirrors_and_insecure_registries_are_taken_as_they_are_written() {
    let ([mirror], image) = alike();
    let front = TlsFront::start(&mirror, "elsewhere.example");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("registries.conf");
    let text = format!(
        "[[registry]]\nlocation = \"{NOWHERE}\"\n[[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
        front.host()
    );
    std::fs::write(&file, text).unwrap();
    let client = Client::new(ClientOptions { registries_conf: vec![file], ..options() }).unwrap();
    assert_eq!(resolve(&client, &self::image()).await.unwrap(), image.digest());
}
