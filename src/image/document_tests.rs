//! Documents of both families, and the ones that must be refused.

use super::*;

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn manifest_json(media_type: &str, layer_digest: &str) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{{"mediaType":"{}","digest":"{}","size":7}},
        "layers":[{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","digest":"{layer_digest}","size":9,
        "annotations":{{"a":"b"}}}}]}}"#,
        media_type::DOCKER_CONFIG,
        digest("config"),
    )
}

fn entry(platform: &str, content: &str, extra: &str) -> String {
    let platform = match platform.split('/').collect::<Vec<_>>()[..] {
        [os, architecture] => {
            format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"}}"#)
        }
        [os, architecture, variant] => format!(
            r#","platform":{{"os":"{os}","architecture":"{architecture}","variant":"{variant}"}}"#
        ),
        _ => String::new(),
    };
    format!(
        r#"{{"mediaType":"{}","digest":"{}","size":5{platform}{extra}}}"#,
        media_type::OCI_MANIFEST,
        digest(content)
    )
}

fn index(entries: &[String]) -> Index {
    let json = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
    match Document::parse(json.as_bytes(), Some(media_type::OCI_INDEX)) {
        Ok(Document::Index(index)) => index,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_docker_manifest_reads_with_its_layers() {
    let json = manifest_json(media_type::DOCKER_MANIFEST, &digest("layer").to_string());
    let Ok(Document::Manifest(manifest)) =
        Document::parse(json.as_bytes(), Some(media_type::DOCKER_MANIFEST))
    else {
        panic!("not read as a manifest");
    };
    assert_eq!(manifest.config.digest, digest("config"));
    assert_eq!(manifest.layers[0].size, 9);
    assert_eq!(manifest.layers[0].annotations["a"], "b");
    assert!(manifest.require_image().is_ok());
}

#[test]
fn a_generic_content_type_is_not_held_against_a_document() {
    let json = manifest_json(media_type::OCI_MANIFEST, &digest("layer").to_string());
    for sent in [None, Some("application/json; charset=utf-8"), Some("application/octet-stream")] {
        assert!(Document::parse(json.as_bytes(), sent).is_ok(), "{sent:?}");
    }
}

#[test]
fn what_is_no_document_is_refused_with_its_reason() {
    let good = manifest_json(media_type::OCI_MANIFEST, &digest("layer").to_string());
    for (json, sent, part) in [
        ("", None, "not a valid"),
        ("[]", None, "not a valid"),
        ("{}", None, "neither"),
        (r#"{"schemaVersion":1,"fsLayers":[]}"#, None, "schema 1"),
        (r#"{"schemaVersion":1}"#, None, "schema 1"),
        (
            r#"{"schemaVersion":2}"#,
            Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
            "schema 1",
        ),
        (r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, None, "both"),
        (r#"{"schemaVersion":2,"manifests":null,"mediaType":"text/plain"}"#, None, "neither"),
        (&good, Some(media_type::OCI_INDEX), "calls itself"),
        (
            r#"{"schemaVersion":2,"layers":[],"config":3}"#,
            Some(media_type::OCI_MANIFEST),
            "not a valid image manifest",
        ),
        (&manifest_json(media_type::OCI_INDEX, "sha256:00"), None, "neither"),
    ] {
        let error = Document::parse(json.as_bytes(), sent).expect_err(json).to_string();
        assert!(error.contains(part), "{json}: {error}");
    }
    let large = vec![b' '; usize::try_from(MAX_DOCUMENT_SIZE).unwrap() + 1];
    assert!(matches!(Document::parse(&large, None), Err(DocumentError::TooLarge(_))));
}

#[test]
fn a_sha512_layer_gets_an_error_that_names_it() {
    let json = manifest_json(media_type::OCI_MANIFEST, &format!("sha512:{}", "0".repeat(128)));
    let error = Document::parse(json.as_bytes(), None).unwrap_err();
    assert!(
        matches!(&error, DocumentError::Digest { of, source: DigestError::Algorithm(_) } if of == "layer 1"),
        "{error:?}"
    );
}

#[test]
fn a_chart_is_not_an_image() {
    let json = manifest_json(media_type::OCI_MANIFEST, &digest("layer").to_string())
        .replace(media_type::DOCKER_CONFIG, "application/vnd.cncf.helm.config.v1+json");
    let Ok(Document::Manifest(manifest)) = Document::parse(json.as_bytes(), None) else {
        panic!("not read as a manifest");
    };
    assert!(manifest.require_image().unwrap_err().to_string().contains("helm"));
}

#[test]
fn the_best_variant_that_runs_is_selected() {
    let index = index(&[
        entry("linux/arm/v5", "v5", ""),
        entry("linux/arm/v6", "v6", ""),
        entry("linux/arm/v7", "v7", ""),
        entry("linux/amd64", "amd64", ""),
        entry("linux/arm64/v8", "arm64", ""),
    ]);
    for (wanted, content) in [
        ("linux/arm/v7", "v7"),
        ("linux/arm/v6", "v6"),
        ("linux/arm/v8", "v7"),
        ("linux/amd64", "amd64"),
        ("linux/amd64/v3", "amd64"),
        ("linux/arm64", "arm64"),
    ] {
        let wanted: Platform = wanted.parse().unwrap();
        assert_eq!(index.select(&wanted).unwrap().digest, digest(content), "{wanted}");
    }
    let error = index.select(&"linux/s390x".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("linux/s390x") && error.contains("`linux/arm/v5`"), "{error}");
}

#[test]
fn attestations_are_never_selected() {
    let index = index(&[
        entry("unknown/unknown", "attestation", ""),
        entry(
            "linux/amd64",
            "annotated",
            r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#,
        ),
        entry("", "signature", r#","artifactType":"application/vnd.dev.sigstore.bundle+json""#),
        entry("linux/amd64", "image", ""),
    ]);
    assert_eq!(index.select(&"linux/amd64".parse().unwrap()).unwrap().digest, digest("image"));
}

#[test]
fn a_single_manifest_without_platform_is_taken() {
    let one = index(&[entry("", "image", "")]);
    assert_eq!(one.select(&Platform::host()).unwrap().digest, digest("image"));
    let two = index(&[entry("", "a", ""), entry("", "b", "")]);
    assert!(two.select(&Platform::host()).is_err());
}
