//! The promise that gives the product its reason: a service answers long before its image is here.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use supervisor::image::{ImageRef, Platform};
use supervisor::registry::{Client, ClientOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::docker_registry::DockerRegistry;
use crate::support::link::{Link, LinkOptions};
use crate::support::program::{Program, eventually};

/// The image must have at least so many bytes for the test to mean anything.
const LARGE: u64 = 300_000_000;

/// Where the image is, made first if need be.
fn large_image() -> ImageRef {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/make-large-image");
    let output = Command::new(script)
        .env("SUPERVISOR", env!("CARGO_BIN_EXE_supervisor"))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "scripts/make-large-image failed");
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// The answer to a request for `/`, if there is one.
async fn page(port: u16) -> Option<String> {
    let request = async {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        connection.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(30), request).await.ok()?.ok()?;
    answer.contains(" 200 OK").then_some(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: makes and serves an image of more than 300 MB; `scripts/test --all`"]
async fn a_service_answers_while_less_than_a_third_of_its_image_was_sent() {
    let image = tokio::task::spawn_blocking(large_image).await.unwrap();
    let client = Client::new(ClientOptions::default()).unwrap();
    let resolved = client.resolve(&image, &Platform::host()).await.unwrap();
    let total: u64 = resolved.manifest.layers.iter().map(|layer| layer.size).sum();
    assert!(total >= LARGE, "the image has only {total} bytes");
    let ImageRef::Layout { path, tag } = image else { panic!("{image} is no layout") };

    let registry = tokio::task::spawn_blocking(move || {
        let registry = DockerRegistry::start();
        registry.push(&path, &tag.unwrap(), "large:v1");
        registry
    })
    .await
    .unwrap();
    let server: SocketAddr = registry.host().parse().unwrap();
    let link = Link::open(server, LinkOptions::megabits(100), None).unwrap();

    // Free now, and nobody else on this machine asks for a port at the top of the range.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let program = Program::new();
    program.services(&format!(
        "services:\n  web:\n    image: {}/large:v1\n    network_mode: host\n    environment:\n      PORT: \"{port}\"\n",
        link.address()
    ));
    let start = Instant::now();
    let mut up = program.up();
    let answer = eventually("the service answers", Duration::from_secs(120), async || {
        let ended = up.try_wait().unwrap();
        assert!(ended.is_none(), "up ended with {ended:?}: {}", program.log());
        page(port).await
    })
    .await;
    let (sent, took) = (link.sent(), start.elapsed());
    assert!(answer.ends_with("hello from a large image\n"), "{answer}");
    eprintln!("ready after {took:?}, {sent} of {total} bytes ({} %)", sent * 100 / total);
    assert!(sent * 3 < total, "{sent} of {total} bytes were sent before the service answered");

    kill_process(Pid::from_child(&up), Signal::INT).unwrap();
    eventually("up ends", Duration::from_secs(30), async || up.try_wait().unwrap()).await;
}
