//! Where images come from: OCI distribution registries and image layout folders.
//!
//! [`Client::resolve`] turns a reference into a verified manifest and configuration; [`Client::blob`] gives access
//! to a blob's bytes, in parts or as a stream. Failures are [`FetchError`]s that say what, from where, and what to
//! do. Retries here are short; whether to wait for a registry that is down is the caller's decision. Nothing is
//! stored: that is `store`, `lazy` and `unpack`.

mod ahead;
mod answer;
mod auth;
mod blob;
mod credentials;
mod error;
mod exchange;
mod hosts;
pub mod keyring;
mod layout;
mod login;
mod part;
mod ping;
mod resolve;
mod retry;
mod status;
mod stream;
mod tls;
mod transport;
mod trust;
mod visit;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use blob::{Blob, BlobSource};
pub use error::{FetchError, FetchErrorKind};
pub(crate) use hosts::readable;
pub use login::Welcome;
pub use ping::Pong;
pub use resolve::{Located, Resolved};
pub use retry::RetryPolicy;
pub use stream::BlobStream;

use crate::image::{Digest, ImageConfig, ImageRef, Platform};
use exchange::Shared;

/// Settings of a [`Client`]. Serializable, because the worker gets them from control.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientOptions {
    /// Docker's `config.json` with credentials; read anew whenever they are needed. May be missing.
    pub docker_config: Option<PathBuf>,
    /// Folders with one folder for each registry: with a `hosts.toml` as containerd's `certs.d` has them, or with
    /// certificates as Docker's and Podman's. Read again whenever they are needed. May be missing.
    pub host_trees: Vec<PathBuf>,
    /// Files of the form of Podman's `registries.conf`; the first one that exists counts, with its drop-ins.
    pub registries_conf: Vec<PathBuf>,
    /// Hosts (with port) that are spoken to in plain HTTP, besides those of this machine.
    pub plain_http: Vec<String>,
    /// PEM files with certificate authorities that are trusted besides the host's own.
    pub certificate_authorities: Vec<PathBuf>,
    /// Proxies on the way to registries.
    pub proxy: ProxySettings,
    /// Retries inside one call.
    pub retry: RetryPolicy,
    /// A transfer in which no byte arrives for so long has failed.
    pub stall_timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            docker_config: None,
            host_trees: Vec::new(),
            registries_conf: Vec::new(),
            plain_http: Vec::new(),
            certificate_authorities: Vec::new(),
            proxy: ProxySettings::default(),
            retry: RetryPolicy::default(),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// Proxies, as in the usual environment variables. Loopback hosts are always reached directly.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxySettings {
    /// For https registries: `http://host:port`, or `socks5h://…`.
    pub https: Option<String>,
    /// For plain registries.
    pub http: Option<String>,
    /// Hosts that are reached directly, separated by commas; as `NO_PROXY`.
    pub except: Option<String>,
}

impl fmt::Debug for ProxySettings {
    /// Without the addresses, which may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxySettings")
            .field("https", &self.https.is_some())
            .field("http", &self.http.is_some())
            .field("except", &self.except)
            .finish()
    }
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The TLS library refuses its own defaults.
    #[error("could not set up TLS")]
    Tls(#[source] rustls::Error),
    /// A file of certificates, or of a key, cannot be used.
    #[error("could not read certificates from `{}`", .path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A proxy's address is wrong.
    #[error("a proxy's address is not valid")]
    Proxy(#[source] reqwest::Error),
    /// The HTTP library refuses the settings.
    #[error("could not set up the HTTP client")]
    Http(#[source] reqwest::Error),
}

/// Access to registries and layouts. Clones are cheap and share connections and tokens.
#[derive(Debug, Clone)]
pub struct Client(Arc<Shared>);

impl Client {
    /// A client that has not connected to anything.
    ///
    /// # Errors
    /// When the settings are not valid.
    pub fn new(options: ClientOptions) -> Result<Self, ClientError> {
        Shared::new(options).map(|shared| Self(Arc::new(shared)))
    }

    /// Finds the image for `platform` and reads its manifest and configuration, all verified.
    ///
    /// # Errors
    /// When any part cannot be fetched, is not what its digest says, or is no image for this platform.
    pub async fn resolve(
        &self,
        image: &ImageRef,
        platform: &Platform,
    ) -> Result<Resolved, FetchError> {
        Box::pin(resolve::resolve(&self.0, image, platform)).await
    }

    /// The first half of [`Client::resolve`]: with the manifest, the layers can be asked for beside the configuration.
    ///
    /// # Errors
    /// When the manifest cannot be fetched, is not what its digest says, or is no image for this platform.
    pub async fn locate(
        &self,
        image: &ImageRef,
        platform: &Platform,
    ) -> Result<Located, FetchError> {
        Box::pin(resolve::locate(&self.0, image, platform)).await
    }

    /// The second half of [`Client::resolve`]: the configuration as it was sent, and read.
    ///
    /// # Errors
    /// When it cannot be fetched, is not what its digest says, or belongs to another platform or other layers.
    pub async fn config(
        &self,
        located: &Located,
        platform: &Platform,
    ) -> Result<(Bytes, ImageConfig), FetchError> {
        Box::pin(resolve::config(&self.0, located, platform)).await
    }

    /// Asks whether the registry at `host` (with its port) answers, without credentials.
    ///
    /// # Errors
    /// With the reason for which no answer came: name, connection, encryption.
    pub async fn ping(&self, host: &str) -> Result<Pong, FetchError> {
        self.0.ping(host).await
    }

    /// Asks the registry at `host` (with its port) whether `user` has this password. Nothing is kept.
    ///
    /// # Errors
    /// When it refuses them, or no answer came.
    pub async fn check_login(
        &self,
        host: &str,
        user: &str,
        password: &str,
    ) -> Result<Welcome, FetchError> {
        self.0.check_login(host, user, password).await
    }

    /// The blob `digest` of `size` bytes; nothing is asked of the source until it is read.
    #[must_use]
    pub fn blob(&self, source: &BlobSource, digest: Digest, size: u64) -> Blob {
        Blob::new(&self.0, source, digest, size)
    }
}
