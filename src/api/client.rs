//! The client of the API socket.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::{Method, Request, body::Incoming};
use hyper_util::rt::TokioIo;
use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::version::span;
use super::wire::{
    API_HEADER, API_VERSION, ErrorKind, Hello, OLDEST_API_VERSION, SOCKET_NAME, VERSION_HEADER,
    WireError,
};
use crate::version::versions;

/// Why a call did not work.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: no control runs for this run directory.
    #[error("no supervisor runs with the run directory `{}`", run_dir.display())]
    NotRunning {
        /// Which directory.
        run_dir: PathBuf,
        /// What connecting said.
        #[source]
        source: io::Error,
    },
    /// The socket is not ours to use.
    #[error("could not connect to `{}`", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Control speaks no version of the API that this program speaks.
    #[error(
        "the running supervisor is version {} and speaks {}; this program is version {} and speaks {}",
        hello.version,
        span(oldest(hello), hello.api),
        versions().build,
        span(OLDEST_API_VERSION, API_VERSION)
    )]
    Version {
        /// What it says of itself.
        hello: Box<Hello>,
        /// What to do about it.
        hint: String,
    },
    /// Control's answer is not what this program expects.
    #[error(
        "the running supervisor answers what this program (version {}) does not understand",
        versions().build
    )]
    Answer(#[source] serde_json::Error),
    /// The connection broke.
    #[error("lost the connection to the running supervisor")]
    Lost(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Control refused or failed.
    #[error("{}", error.message)]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it said.
        error: WireError,
    },
}

impl ClientError {
    /// What to do about it, if control said.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Refused { error, .. } => error.hint.as_deref(),
            Self::Version { hint, .. } => Some(hint),
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(
                    "run it as root, or as a member of the group that the supervisor was started with \
                     (`--socket-group`)",
                )
            }
            Self::Answer(_) => Some("use the program that the supervisor was started from"),
            Self::Connect { .. } | Self::NotRunning { .. } | Self::Lost(_) => None,
        }
    }

    /// Whether no control runs.
    #[must_use]
    pub fn is_not_running(&self) -> bool {
        matches!(self, Self::NotRunning { .. })
    }

    /// Whether control refused a call for a reason of this kind.
    #[must_use]
    pub fn is_kind(&self, kind: ErrorKind) -> bool {
        matches!(self, Self::Refused { error, .. } if error.kind == kind)
    }

    fn lost(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Lost(error.into())
    }
}

/// A way to call one control; each call is a connection of its own, so that a stream blocks no other call.
#[derive(Debug, Clone)]
pub struct ApiClient {
    run_dir: PathBuf,
}

impl ApiClient {
    /// A client of the control of `run_dir`, after a first exchange of versions.
    ///
    /// # Errors
    /// When no control runs there, or one that speaks no version that this program speaks.
    pub async fn connect(run_dir: &Path) -> Result<(Self, Hello), ClientError> {
        let client = Self { run_dir: run_dir.to_path_buf() };
        let hello: Hello = match client.call(Method::GET, "/hello", &()).await {
            // One that is ending takes the connection and then lets it fall, or says so.
            Err(ClientError::Lost(error)) => {
                return Err(client.not_running(io::Error::other(error)));
            }
            Err(error @ ClientError::Refused { .. }) if error.is_kind(ErrorKind::Failed) => {
                return Err(client.not_running(io::Error::other(error)));
            }
            other => other?,
        };
        let newest = hello.api.min(API_VERSION);
        if newest < OLDEST_API_VERSION || newest < oldest(&hello) {
            let hint = if hello.api < API_VERSION {
                format!(
                    "end the running one with `kill {}` and run this again: this program takes over, and services \
                     go on meanwhile",
                    hello.pid
                )
            } else {
                format!("use the program of the running one, version {}", hello.version)
            };
            return Err(ClientError::Version { hello: Box::new(hello), hint });
        }
        Ok((client, hello))
    }

    fn not_running(&self, source: io::Error) -> ClientError {
        ClientError::NotRunning { run_dir: self.run_dir.clone(), source }
    }

    async fn stream_to(&self) -> Result<UnixStream, ClientError> {
        let not_running = |source| self.not_running(source);
        let failed = |source: io::Error| match source.kind() {
            // The last: it died before it took the connection.
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset => not_running(source),
            _ => ClientError::Connect { path: self.run_dir.join(SOCKET_NAME), source },
        };
        // A member of the socket's group may search the directory and not read it.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&self.run_dir, flags, Mode::empty())
            .map_err(|error| failed(error.into()))?;
        // Through the descriptor, because socket paths are short.
        let path = format!("/proc/self/fd/{}/{SOCKET_NAME}", directory.as_raw_fd());
        UnixStream::connect(path).await.map_err(failed)
    }

    async fn send<B: Serialize + Sync>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<Incoming, ClientError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(self.stream_to().await?))
            .await
            .map_err(ClientError::lost)?;
        tokio::spawn(connection);
        let body = serde_json::to_vec(body).map_err(ClientError::lost)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "supervisor")
            .header("content-type", "application/json")
            .header(API_HEADER, API_VERSION)
            .header(VERSION_HEADER, versions().build)
            .body(Full::new(Bytes::from(body)))
            .map_err(ClientError::lost)?;
        let response = sender.send_request(request).await.map_err(ClientError::lost)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let bytes = response.into_body().collect().await.map_err(ClientError::lost)?.to_bytes();
        let error = serde_json::from_slice(&bytes).unwrap_or_else(|_| WireError {
            message: format!(
                "the running supervisor answered {status}: {}",
                String::from_utf8_lossy(&bytes)
            ),
            hint: None,
            kind: ErrorKind::Other,
        });
        Err(ClientError::Refused { status: status.as_u16(), error })
    }

    /// Sends `body` and reads one JSON answer.
    ///
    /// # Errors
    /// When control cannot be reached, refuses or fails.
    pub async fn call<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        let bytes = self
            .send(method, path, body)
            .await?
            .collect()
            .await
            .map_err(ClientError::lost)?
            .to_bytes();
        let text: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(text).map_err(ClientError::Answer)
    }

    /// Sends `body` and reads an answer of one JSON object a line.
    ///
    /// # Errors
    /// As [`ApiClient::call`].
    pub async fn lines<B: Serialize + Sync>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<Lines, ClientError> {
        Ok(Lines { body: self.send(method, path, body).await?, buffer: Vec::new() })
    }

    /// Whether something that a call named does not exist.
    #[must_use]
    pub fn is_not_found(error: &ClientError) -> bool {
        error.is_kind(ErrorKind::NotFound)
    }
}

/// The oldest version that control speaks.
fn oldest(hello: &Hello) -> u32 {
    if hello.oldest_api == 0 { hello.api } else { hello.oldest_api }
}

/// An answer that arrives line by line.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next object, or `None` at the end.
    ///
    /// # Errors
    /// When the connection breaks or a line is not what is expected.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(ClientError::Answer);
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame.map_err(ClientError::lost)?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}
