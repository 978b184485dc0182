//! TLS in front of the in-process registry, with a certificate of an authority that is made for the test.

use std::io::{self, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::WebPkiClientVerifier;

use super::registry::FaultRegistry;

const AUTHORITY: &str = "authority.pem";

/// The encrypted side. Its thread ends with the test process: it holds nothing but a socket.
pub(crate) struct TlsFront {
    port: u16,
    folder: tempfile::TempDir,
}

impl TlsFront {
    /// Puts TLS before `registry`, with a certificate for `name`, a host name or an address, that is valid now.
    pub(crate) fn start(registry: &FaultRegistry, name: &str) -> Self {
        Self::start_in(registry, name, 2000..3000)
    }

    /// The same, valid from the beginning of the first year to the beginning of the last.
    pub(crate) fn start_in(registry: &FaultRegistry, name: &str, years: Range<i32>) -> Self {
        Self::start_with(registry, |folder| signed(folder, name, years))
    }

    /// With the certificate of an authority that was meant for nothing else, as `openssl req -x509` makes it.
    pub(crate) fn start_self_signed(registry: &FaultRegistry, name: &str) -> Self {
        Self::start_with(registry, |folder| {
            let (mut authority, key) = authority();
            authority.subject_alt_names =
                CertificateParams::new([name.to_owned()]).expect("a name").subject_alt_names;
            let certificate = authority.self_signed(&key).expect("an authority");
            std::fs::write(folder.join(AUTHORITY), certificate.pem()).expect("a file");
            (certificate, key)
        })
    }

    /// One that speaks only to who has the certificate `us.cert` with the key `us.key`, which are put into `folder`.
    pub(crate) fn start_closed(registry: &FaultRegistry, name: &str, folder: &Path) -> Self {
        let ours = KeyPair::generate().expect("a key");
        let us = CertificateParams::new(["us".to_owned()]).expect("a name");
        let us = us.self_signed(&ours).expect("a certificate");
        std::fs::write(folder.join("us.cert"), us.pem()).expect("a file");
        std::fs::write(folder.join("us.key"), ours.serialize_pem()).expect("a file");
        let mut known = rustls::RootCertStore::empty();
        known.add(us.der().clone()).expect("a certificate");
        Self::start_for(registry, Some(known), |folder| signed(folder, name, 2000..3000))
    }

    fn start_with(
        registry: &FaultRegistry,
        certificate: impl FnOnce(&Path) -> (Certificate, KeyPair),
    ) -> Self {
        Self::start_for(registry, None, certificate)
    }

    fn start_for(
        registry: &FaultRegistry,
        known: Option<rustls::RootCertStore>,
        certificate: impl FnOnce(&Path) -> (Certificate, KeyPair),
    ) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = Arc::new(config(certificate(folder.path()), known));
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
        self.folder.path().join(AUTHORITY)
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

fn authority() -> (CertificateParams, KeyPair) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "authority");
    (authority, KeyPair::generate().expect("a key"))
}

/// For the server; the authority's own goes into `folder`.
fn signed(folder: &Path, name: &str, years: Range<i32>) -> (Certificate, KeyPair) {
    let (authority, signer) = authority();
    let signed = authority.self_signed(&signer).expect("an authority");
    std::fs::write(folder.join(AUTHORITY), signed.pem()).expect("a file");

    let mut server = CertificateParams::new([name.to_owned()]).expect("a name");
    server.not_before = rcgen::date_time_ymd(years.start, 1, 1);
    server.not_after = rcgen::date_time_ymd(years.end, 1, 1);
    let key = KeyPair::generate().expect("a key");
    let issuer = Issuer::from_params(&authority, &signer);
    (server.signed_by(&key, &issuer).expect("a certificate"), key)
}

/// For whoever comes, or only for those who are `known`.
fn config(
    (certificate, key): (Certificate, KeyPair),
    known: Option<rustls::RootCertStore>,
) -> rustls::ServerConfig {
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider knows them");
    let builder = match known {
        None => builder.with_no_client_auth(),
        Some(known) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(known), provider);
            builder.with_client_cert_verifier(verifier.build().expect("somebody is known"))
        }
    };
    builder
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .expect("a certificate and its key")
}
