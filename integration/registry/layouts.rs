//! Image layout folders.

use serde_json::json;
use supervisor::image::{Digest, ImageRef, Platform, media_type};
use supervisor::registry::{Blob, BlobSource, FetchErrorKind};

use super::{LAYER, client, read_all, resolve};
use crate::support::tiny_image::{TinyImage, descriptor, write_index};

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
