//! Whom encrypted connections trust, and as whom they present themselves.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

use super::ClientError;
use super::hosts::{Trust, Verification};

/// The authorities of the host, and those of the settings.
pub(super) fn roots(authorities: &[PathBuf]) -> Result<rustls::RootCertStore, ClientError> {
    let mut roots = rustls::RootCertStore::empty();
    // A host without certificate store is normal for an edge host; reqwest's default refuses to start there.
    let native = rustls_native_certs::load_native_certs();
    let (added, ignored) = roots.add_parsable_certificates(native.certs);
    if added == 0 {
        tracing::debug!(ignored, "the host has no certificate store, using the built-in one");
        roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
    }
    for path in authorities {
        add_authorities(&mut roots, path).map_err(unusable(path))?;
    }
    Ok(roots)
}

/// Settings of connections that trust so.
pub(super) fn tls_config(
    roots: &rustls::RootCertStore,
    trust: &Trust,
) -> Result<rustls::ClientConfig, ClientError> {
    // The provider is passed, never installed for the process: a library must not decide that for its user.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(ClientError::Tls)?;
    let builder = match trust.verification {
        Verification::None => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        }
        Verification::Full => {
            let mut roots = roots.clone();
            for path in &trust.authorities {
                add_authorities(&mut roots, path).map_err(unusable(path))?;
            }
            builder.with_root_certificates(roots)
        }
    };
    let Some((certificate, key)) = &trust.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain = chain.map_err(|error| unusable(certificate)(error.into()))?;
    let key_file = key.as_ref().unwrap_or(certificate);
    let key = PrivateKeyDer::from_pem_file(key_file);
    let key = key.map_err(|error| unusable(key_file)(error.into()))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| unusable(certificate)(error.into()))
}

fn unusable(path: &Path) -> impl FnOnce(Box<dyn Error + Send + Sync>) -> ClientError {
    let path = path.to_owned();
    |source| ClientError::Authority { path, source }
}

/// Takes any certificate, where somebody wrote down that this is wanted. What is signed with it is still checked, since
/// that costs nothing.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn add_authorities(
    roots: &mut rustls::RootCertStore,
    path: &Path,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let before = roots.len();
    for certificate in CertificateDer::pem_file_iter(path)? {
        roots.add(certificate?)?;
    }
    if roots.len() == before {
        return Err("it holds no certificate".into());
    }
    Ok(())
}
