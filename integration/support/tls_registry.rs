//! TLS in front of the in-process registry, with a certificate of an authority that `openssl` makes for the test.

use std::io::{self, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::registry::FaultRegistry;

/// The encrypted side. Its thread ends with the test process: it holds nothing but a socket.
pub(crate) struct TlsFront {
    port: u16,
    folder: tempfile::TempDir,
}

impl TlsFront {
    /// Puts TLS before `registry`, with a certificate for `name` (`IP:…` or `DNS:…`).
    pub(crate) fn start(registry: &FaultRegistry, name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = Arc::new(certificate(folder.path(), name));
        let listener = TcpListener::bind("0.0.0.0:0").expect("a free port");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        let backend = registry.host();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, backend) = (Arc::clone(&config), backend.clone());
                // Failures are what some tests want; they see them on the client's side.
                std::thread::spawn(move || drop(relay(stream, config, &backend)));
            }
        });
        Self { port, folder }
    }

    /// An address of this machine that is not a loopback one, so that it is spoken to with TLS.
    pub(crate) fn host(&self) -> String {
        format!("0.0.0.0:{}", self.port)
    }

    /// The authority that signed the certificate.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }
}

fn relay(stream: TcpStream, config: Arc<rustls::ServerConfig>, backend: &str) -> io::Result<()> {
    let connection = rustls::ServerConnection::new(config).map_err(io::Error::other)?;
    let mut front = rustls::StreamOwned::new(connection, stream);
    let mut back = TcpStream::connect(backend)?;
    loop {
        let request = read_head(&mut front)?;
        back.write_all(&request)?;
        let answer = read_head(&mut back)?;
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
            .unwrap_or(0);
        front.write_all(&answer)?;
        io::copy(&mut (&back).take(length), &mut front)?;
        front.flush()?;
    }
}

/// Up to and including the empty line.
fn read_head(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(head)
}

fn certificate(folder: &Path, name: &str) -> rustls::ServerConfig {
    std::fs::write(folder.join("ext"), format!("subjectAltName={name}")).expect("extensions");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for command in [
        format!("req -x509 {key} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"),
        format!("req {key} -subj /CN=server -keyout key.pem -out request.pem"),
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
         -extfile ext -out server.pem"
            .to_owned(),
    ] {
        let output = Command::new("openssl")
            .args(command.split_whitespace())
            .current_dir(folder)
            .output()
            .expect("`openssl` runs (Debian package openssl)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let certificate = CertificateDer::from_pem_file(folder.join("server.pem")).expect("PEM");
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).expect("PEM");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows them")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a certificate and its key")
}
