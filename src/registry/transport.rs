//! HTTP connections: TLS, proxies, time limits, and what a failed exchange means. Knows nothing of registries.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::FetchErrorKind;
use super::hosts::Trust;
use super::trust::{roots, tls_config};
use super::{ClientError, ClientOptions, ProxySettings, tls};
use crate::telemetry::Chain;

/// DNS, TCP and TLS together. A registry that needs longer is taken for unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections to one host: as many as blobs are read in parallel, with some room.
const IDLE_PER_HOST: usize = 16;
/// Shorter than the idle limits of the usual load balancers (60 s), so that we seldom meet a closed connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// A resolver younger than this is not replaced: the name servers have just been read.
const RESOLVER_LIFETIME: Duration = Duration::from_secs(10);

/// The connections of one client.
#[derive(Debug)]
pub(super) struct Transport {
    /// Manifests and tokens: HTTP/2 where it is offered.
    pub(super) api: reqwest::Client,
    /// Blobs: HTTP/1.1, because parallel ranges over HTTP/2 share one TCP connection and its window.
    pub(super) blob: reqwest::Client,
    /// Loopback hosts: as `blob`, and never through a proxy.
    pub(super) loopback: reqwest::Client,
}

impl Transport {
    fn new(options: &ClientOptions, tls: &rustls::ClientConfig) -> Result<Self, ClientError> {
        Ok(Self {
            api: client(options, tls, &[b"h2", b"http/1.1"], Route::Proxied)?,
            blob: client(options, tls, &[b"http/1.1"], Route::Proxied)?,
            loopback: client(options, tls, &[b"http/1.1"], Route::Direct)?,
        })
    }
}

/// The transports in use, by whom they trust. One is replaced when names do not resolve any more: the resolver reads
/// `/etc/resolv.conf` once in its life, and a host that changes its network gets another one.
#[derive(Debug)]
pub(super) struct Connections {
    /// Kept, because the certificate store may be out of reach later: the worker is confined after its start.
    roots: rustls::RootCertStore,
    kept: Mutex<HashMap<Trust, Kept>>,
}

#[derive(Debug)]
struct Kept {
    tls: rustls::ClientConfig,
    transport: Arc<Transport>,
    since: Instant,
}

impl Connections {
    pub(super) fn new(options: &ClientOptions) -> Result<Self, ClientError> {
        let roots = roots(&options.certificate_authorities)?;
        let connections = Self { roots, kept: Mutex::default() };
        // Settings that cannot be used are found now.
        connections.with(options, &Trust::default())?;
        Ok(connections)
    }

    /// The transport to addresses that are trusted so.
    pub(super) fn with(
        &self,
        options: &ClientOptions,
        trust: &Trust,
    ) -> Result<Arc<Transport>, ClientError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.get(trust) {
            return Ok(Arc::clone(&kept.transport));
        }
        let tls = tls_config(&self.roots, trust)?;
        let transport = Arc::new(Transport::new(options, &tls)?);
        let new = Kept { tls, transport: Arc::clone(&transport), since: Instant::now() };
        kept.insert(trust.clone(), new);
        Ok(transport)
    }

    /// Has certificates read anew when the address is spoken to next: they are renewed while we run.
    pub(super) fn distrust_certificates(&self, trust: &Trust) {
        if *trust != Trust::default() {
            self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(trust);
        }
    }

    /// A name did not resolve: the next exchange asks the name servers that the host has then.
    pub(super) fn distrust_resolver(&self, options: &ClientOptions, trust: &Trust) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = kept.get_mut(trust) else { return };
        if kept.since.elapsed() < RESOLVER_LIFETIME {
            return;
        }
        // The same settings have been accepted before.
        if let Ok(transport) = Transport::new(options, &kept.tls) {
            (kept.transport, kept.since) = (Arc::new(transport), Instant::now());
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Route {
    Proxied,
    Direct,
}

fn client(
    options: &ClientOptions,
    tls: &rustls::ClientConfig,
    protocols: &[&[u8]],
    route: Route,
) -> Result<reqwest::Client, ClientError> {
    let mut tls = tls.clone();
    tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("supervisor/", env!("CARGO_PKG_VERSION")))
        .tls_backend_preconfigured(tls)
        // Followed by hand: they are remembered, and credentials must not travel with them.
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(options.stall_timeout)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .tcp_keepalive(Duration::from_secs(30))
        // Also turns off reqwest's own look at the environment, which is not ours to read here.
        .no_proxy();
    if protocols.len() == 1 {
        builder = builder.http1_only();
    }
    if route == Route::Proxied {
        for proxy in proxies(&options.proxy)? {
            builder = builder.proxy(proxy);
        }
    }
    builder.build().map_err(ClientError::Http)
}

fn proxies(settings: &ProxySettings) -> Result<Vec<reqwest::Proxy>, ClientError> {
    let except = settings.except.as_deref().and_then(reqwest::NoProxy::from_string);
    let proxy = |made: reqwest::Result<reqwest::Proxy>| {
        made.map(|proxy| proxy.no_proxy(except.clone())).map_err(ClientError::Proxy)
    };
    let mut proxies = Vec::new();
    if let Some(url) = &settings.https {
        proxies.push(proxy(reqwest::Proxy::https(url))?);
    }
    if let Some(url) = &settings.http {
        proxies.push(proxy(reqwest::Proxy::http(url))?);
    }
    Ok(proxies)
}

/// Whether `host` (with or without port) is this machine itself.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What a failed exchange means, and one line on it.
pub(super) fn classify(error: &reqwest::Error) -> (FetchErrorKind, String) {
    if let Some(failure) = tls::failure(error) {
        return (FetchErrorKind::Tls, tls::reason(failure));
    }
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    let mut io_kind = None;
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            io_kind = io_kind.or(Some(innermost_kind(io)));
        }
        // The resolver's type is private to the connector; this text is its only mark.
        if error.to_string().starts_with("dns error") {
            return (FetchErrorKind::Dns, resolver_reason(&Chain(error).to_string()));
        }
        cause = error.source();
    }
    if error.is_timeout() || io_kind == Some(io::ErrorKind::TimedOut) {
        let text = if error.is_connect() {
            "no connection within the time limit"
        } else {
            "no byte arrived within the time limit"
        };
        return (FetchErrorKind::Timeout, text.to_owned());
    }
    if error.is_connect() {
        let text = match io_kind {
            Some(io::ErrorKind::ConnectionRefused) => "the connection was refused",
            Some(io::ErrorKind::ConnectionReset) => "the connection was reset",
            Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
                "there is no route to the host"
            }
            // What it was closed in the middle of; before, it would have been refused.
            Some(io::ErrorKind::UnexpectedEof) => {
                "the connection was closed before it was encrypted"
            }
            _ => "no connection could be made",
        };
        return (FetchErrorKind::Unreachable, text.to_owned());
    }
    if error.is_builder() {
        return (FetchErrorKind::Malformed, "the request could not be made".to_owned());
    }
    (FetchErrorKind::Interrupted, "the connection broke before the answer was complete".to_owned())
}

/// Layers put one `io::Error` into another, and name the outer one after nothing.
fn innermost_kind(error: &io::Error) -> io::ErrorKind {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(inner) => innermost_kind(inner),
        None => error.kind(),
    }
}

/// Why a name did not resolve, from what the resolver says: its types are private too.
fn resolver_reason(said: &str) -> String {
    let why = if said.contains("no records found") {
        " (there is no such name)"
    } else if said.contains("timed out") || said.contains("no connections available") {
        " (the name servers do not answer)"
    } else {
        ""
    };
    format!("the host's name could not be resolved{why}")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn loopback_hosts_are_recognized_with_and_without_port() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:5"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "10.0.0.1:5000", "[::2]:5", "example.org", "::"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_client_is_built_without_a_process_wide_provider() {
        assert!(Connections::new(&ClientOptions::default()).is_ok());
    }

    #[test]
    fn a_resolver_that_fails_is_replaced_unless_it_is_fresh() {
        let options = ClientOptions::default();
        let connections = Connections::new(&options).unwrap();
        let trust = Trust::default();
        let current = || connections.with(&options, &trust).unwrap();
        let first = current();
        connections.distrust_resolver(&options, &trust);
        assert!(Arc::ptr_eq(&first, &current()));
        connections.kept.lock().unwrap().get_mut(&trust).unwrap().since -= RESOLVER_LIFETIME;
        connections.distrust_resolver(&options, &trust);
        assert!(!Arc::ptr_eq(&first, &current()));
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        for path in [empty.path().to_owned(), PathBuf::from("/nonexistent.pem")] {
            let options =
                ClientOptions { certificate_authorities: vec![path], ..ClientOptions::default() };
            assert!(matches!(Connections::new(&options), Err(ClientError::Authority { .. })));
        }
    }

    #[test]
    fn a_proxy_that_is_no_address_is_refused() {
        let options = ClientOptions {
            proxy: ProxySettings { https: Some("::::".to_owned()), ..ProxySettings::default() },
            ..ClientOptions::default()
        };
        assert!(matches!(Connections::new(&options), Err(ClientError::Proxy(_))));
    }
}
