//! Parts and streams of blobs, from a registry that misbehaves.

use futures_util::StreamExt as _;
use supervisor::image::Digest;
use supervisor::registry::{Blob, BlobSource, Client, FetchErrorKind};

use super::{client, impatient, one_layer, one_layer_for, read_all, reference, status};
use crate::support::registry::{Fault, FaultRegistry};

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
        let (registry, layer, blob) = one_layer_for(&impatient());
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
    let (registry, _, blob) = one_layer_for(&impatient());
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
        let (registry, layer, blob) = one_layer_for(&impatient());
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
    for code in [400, 416, 501] {
        let (registry, layer, blob) = one_layer();
        registry.fault("/blobs/", 1, Fault::Close(90_000));
        registry.fault("/blobs/", 1, status(code));
        assert_eq!(read_all(&blob).await.unwrap(), layer, "{code}");
    }
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

/// A blob that is worth several connections.
fn large_layer(client: &Client) -> (FaultRegistry, Vec<u8>, Blob) {
    let registry = FaultRegistry::start();
    let layer: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = registry.put_blob(&layer);
    let source = BlobSource::Registry { host: registry.host(), repository: "app".to_owned() };
    let blob = client.blob(&source, digest, layer.len() as u64);
    (registry, layer, blob)
}

#[tokio::test]
async fn a_large_stream_comes_in_pieces_each_of_which_is_continued_where_it_broke() {
    let (registry, layer, blob) = large_layer(&client());
    assert!(read_all(&blob).await.unwrap() == layer);
    assert_eq!(registry.seen("/blobs/").len(), 5);
    assert_eq!(registry.sent("/blobs/"), layer.len() as u64);
    for fault in [Fault::Reset(900_000), Fault::Close(900_000), Fault::Hangup, status(500)] {
        let (registry, layer, blob) = large_layer(&client());
        registry.fault("/blobs/", 2, fault.clone());
        assert!(read_all(&blob).await.unwrap() == layer, "{fault:?}");
        assert_eq!(registry.seen("/blobs/").len(), 7, "{fault:?}");
    }
}

#[tokio::test]
async fn a_large_stream_is_one_transfer_where_parts_are_not_sent() {
    let (registry, layer, blob) = large_layer(&client());
    registry.fault("/blobs/", 99, Fault::RangeIgnored);
    assert!(read_all(&blob).await.unwrap() == layer);
    assert_eq!(registry.seen("/blobs/").len(), 1);
    // Or are sent first, and then no more.
    let (registry, layer, blob) = large_layer(&client());
    let mut stream = blob.stream().await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    registry.fault("/blobs/", 99, Fault::RangeIgnored);
    let mut read = first.to_vec();
    while let Some(part) = stream.next().await {
        read.extend_from_slice(&part.unwrap());
    }
    assert!(read == layer);
    for code in [400, 416, 501] {
        let (registry, layer, blob) = large_layer(&client());
        registry.fault("/blobs/", 1, status(code));
        assert!(read_all(&blob).await.unwrap() == layer, "{code}");
        assert_eq!(registry.seen("/blobs/").len(), 2, "{code}");
    }
}

#[tokio::test]
async fn a_large_stream_that_is_wrong_or_never_gets_on_ends_with_an_error() {
    let (registry, _, blob) = large_layer(&client());
    registry.fault("/blobs/", 1, Fault::WrongByte(150_000));
    assert_eq!(read_all(&blob).await.unwrap_err().kind(), FetchErrorKind::Corrupt);
    let (registry, _, blob) = large_layer(&client());
    let mut stream = blob.stream().await.unwrap();
    stream.next().await.unwrap().unwrap();
    registry.fault("/blobs/", 99, Fault::Close(0));
    let outcome = loop {
        match stream.next().await {
            Some(Ok(_)) => {}
            other => break other,
        }
    };
    assert_eq!(outcome.unwrap().unwrap_err().kind(), FetchErrorKind::Interrupted);
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
async fn a_slow_transfer_is_no_stall() {
    let (registry, layer, blob) = one_layer();
    registry.limit_rate(Some(250_000));
    assert_eq!(read_all(&blob).await.unwrap(), layer);
}
