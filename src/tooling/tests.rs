//! Packing and converting, through the client that will read what was written.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;

use super::*;
use crate::estargz::{MissingPath, Prefetch, WriterOptions};
use crate::image::{Descriptor, Digest, ImageRef, Platform, annotation};
use crate::registry::{Client, ClientOptions, Resolved};

fn client() -> Client {
    Client::new(ClientOptions::default()).unwrap()
}

fn layout(path: &Path, tag: &str) -> ImageRef {
    ImageRef::Layout { path: path.to_owned(), tag: Some(tag.to_owned()) }
}

async fn resolve(image: &ImageRef) -> Resolved {
    client().resolve(image, &Platform::host()).await.unwrap()
}

fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// Names and contents in the order of a layer of `image`, without what belongs to the format.
async fn content(image: &Resolved, layer: usize) -> Vec<(String, Vec<u8>)> {
    let layer = &image.manifest.layers[layer];
    let blob = client().blob(&image.source, layer.digest, layer.size);
    let blob = blob.bytes(1 << 30).await.unwrap();
    let mut content = Vec::new();
    for entry in tar::Archive::new(flate2::read::MultiGzDecoder::new(&blob[..])).entries().unwrap()
    {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if !crate::estargz::is_format_name(name.as_bytes()) {
            content.push((name, bytes));
        }
    }
    content
}

/// An image by another builder: layers as given, with the media type's ending.
fn foreign(root: &Path, layers: &[(&str, Vec<u8>, Digest)]) -> ImageRef {
    let layout_folder = Layout::open_or_create(root).unwrap();
    let descriptors = layers
        .iter()
        .map(|(ending, blob, _)| {
            let media_type = format!("application/vnd.oci.image.layer.v1.{ending}");
            let mut layer = layout_folder.write_document(&media_type, blob).unwrap();
            layer.annotations.insert("org.example.note".to_owned(), "kept".to_owned());
            layer
        })
        .collect();
    let mut config = serde_json::json!({
        "architecture": Platform::host().architecture, "os": "linux",
        "config": {"Cmd": ["/run"], "OnBuild": ["unknown to us"]},
    });
    let diff_ids: Vec<Digest> = layers.iter().map(|(_, _, diff_id)| *diff_id).collect();
    manifest::with_diff_ids(&mut config, &diff_ids);
    let annotations = [("org.example.image".to_owned(), "yes".to_owned())].into();
    let place = (&Platform::host(), Some("plain"));
    manifest::finish(&layout_folder, &config, descriptors, &annotations, place).unwrap();
    layout(root, "plain")
}

async fn converted(
    source: &ImageRef,
    target: &ImageRef,
    prefetch: &[&str],
) -> Result<Converted, ConvertError> {
    let options = ConvertOptions {
        prefetch: prefetch.iter().map(|path| (*path).to_owned()).collect(),
        ..ConvertOptions::default()
    };
    convert(&client(), source, &Platform::host(), target, &options).await
}

fn is_lazy(layer: &Descriptor) -> bool {
    layer.toc_digest().is_some() && layer.annotations.contains_key(annotation::UNCOMPRESSED_SIZE)
}

#[tokio::test]
async fn a_folder_becomes_an_image_that_runs_as_told_and_is_lazy() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    fs::create_dir_all(input.join("app")).unwrap();
    fs::write(input.join("app/main"), "program").unwrap();
    let options = PackOptions {
        entrypoint: vec!["/app/main".to_owned()],
        cmd: vec!["--serve".to_owned()],
        env: vec!["A=b".to_owned()],
        user: Some("1000".to_owned()),
        exposed_ports: vec!["80/tcp".to_owned()],
        source_date_epoch: Some(1_700_000_000),
        ..PackOptions::default()
    };
    let target = layout(&output, "v1");
    let made = pack(&input, &Platform::host(), &target, &options).unwrap();
    let image = resolve(&target).await;
    assert_eq!(image.manifest_digest, made.manifest.digest);
    assert_eq!(image.config.entrypoint, ["/app/main"]);
    assert_eq!(image.config.cmd, ["--serve"]);
    assert_eq!(image.config.env, ["A=b"]);
    assert_eq!(image.config.user.as_deref(), Some("1000"));
    assert_eq!(image.config.exposed_ports, ["80/tcp"]);
    assert_eq!(image.config.created.as_deref(), Some("2023-11-14T22:13:20Z"));
    assert!(is_lazy(&image.manifest.layers[0]));
    let files = content(&image, 0).await;
    assert!(files.contains(&("app/main".to_owned(), b"program".to_vec())), "{files:?}");

    let again = folder.path().join("again");
    assert_eq!(pack(&input, &Platform::host(), &layout(&again, "v1"), &options).unwrap(), made);
}

#[tokio::test]
async fn what_is_to_be_fetched_first_must_be_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("in")).unwrap();
    let prefetch =
        Prefetch::Paths { paths: vec!["no/such".to_owned()], missing: MissingPath::Refuse };
    let options = PackOptions {
        writer: WriterOptions { prefetch, ..WriterOptions::default() },
        ..PackOptions::default()
    };
    let target = layout(&folder.path().join("out"), "v1");
    let error = pack(&folder.path().join("in"), &Platform::host(), &target, &options).unwrap_err();
    assert!(matches!(error, PackError::Encode { .. }), "{error}");
    assert!(!folder.path().join("out/index.json").exists());
}

#[tokio::test]
async fn layers_of_every_compression_keep_their_content_and_settings() {
    let folder = tempfile::tempdir().unwrap();
    let tars = [
        tar_of(&[("a", b"1"), ("b", b"")]),
        tar_of(&[("b", b"2"), (".wh.a", b"")]),
        tar_of(&[("c", b"3")]),
    ];
    let source = foreign(
        &folder.path().join("plain"),
        &[
            // A builder whose media type is wrong.
            ("tar", gzip(&tars[0]), Digest::of(&tars[0])),
            ("tar+zstd", zstd::encode_all(&tars[1][..], 3).unwrap(), Digest::of(&tars[1])),
            ("tar", tars[2].clone(), Digest::of(&tars[2])),
        ],
    );
    let target = layout(&folder.path().join("lazy"), "v1");
    let result = converted(&source, &target, &["b", "gone"]).await.unwrap();
    assert_eq!(result.missing, ["gone"]);
    let image = resolve(&target).await;
    assert_eq!(image.config.cmd, ["/run"]);
    assert!(String::from_utf8_lossy(&image.config_bytes).contains("unknown to us"));
    assert_eq!(image.manifest.annotations["org.example.image"], "yes");
    for layer in &image.manifest.layers {
        assert!(is_lazy(layer) && layer.annotations["org.example.note"] == "kept", "{layer:?}");
    }
    let pair = |name: &str, content: &[u8]| (name.to_owned(), content.to_vec());
    assert_eq!(content(&image, 0).await, [pair("b", b""), pair("a", b"1")]);
    assert_eq!(content(&image, 1).await, [pair("b", b"2"), pair(".wh.a", b"")]);
    assert_eq!(content(&image, 2).await, [pair("c", b"3")]);

    // What is lazy already is passed through, byte for byte.
    let copy = layout(&folder.path().join("copy"), "v1");
    let result = converted(&target, &copy, &[]).await.unwrap();
    assert_eq!(result.made.layers, image.manifest.layers);
    assert_eq!(content(&resolve(&copy).await, 1).await.len(), 2);
}

#[tokio::test]
async fn a_layer_that_is_not_what_its_digests_say_is_refused_and_nothing_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let tar = tar_of(&[("a", b"1")]);
    let whole = gzip(&tar);
    let cut = whole[..whole.len() - 9].to_vec();
    for (name, ending, blob, diff_id, part) in [
        ("diff-id", "tar+gzip", whole.clone(), Digest::of(b"else"), "layer 1 inflates to"),
        ("cut", "tar+gzip", cut, Digest::of(&tar), "could not inflate layer 1"),
        (
            "type",
            "tar+gzip+encrypted",
            whole.clone(),
            Digest::of(&tar),
            "which cannot be converted",
        ),
        ("garbage", "tar", b"no tar".to_vec(), Digest::of(b"no tar"), "could not write layer 1"),
    ] {
        let source = foreign(&folder.path().join(name), &[(ending, blob, diff_id)]);
        let output = folder.path().join(format!("{name}-out"));
        let error = converted(&source, &layout(&output, "v1"), &[]).await.unwrap_err();
        assert!(error.to_string().contains(part), "{name}: {error}");
        assert!(!output.join("index.json").exists(), "{name}");
    }
    let blob = folder.path().join("diff-id/blobs/sha256").join(Digest::of(&whole).hex());
    fs::write(blob, gzip(&tar_of(&[("b", b"1")]))).unwrap();
    let source = layout(&folder.path().join("diff-id"), "plain");
    let error = converted(&source, &layout(&folder.path().join("x"), "v1"), &[]).await.unwrap_err();
    assert!(crate::telemetry::Chain(&error).to_string().contains("sha256:"), "{error}");
}

#[tokio::test]
async fn images_are_written_into_layouts_only() {
    let folder = tempfile::tempdir().unwrap();
    let target: ImageRef = "registry.example/app".parse().unwrap();
    let error = pack(folder.path(), &Platform::host(), &target, &PackOptions::default());
    assert!(matches!(error, Err(PackError::Target(_))));
    let error = converted(&layout(folder.path(), "x"), &target, &[]).await;
    assert!(matches!(error, Err(ConvertError::Target(_))));
}
