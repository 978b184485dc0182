//! One request of a repository's content: at each of its addresses in turn, until one has it.
//!
//! Does not try again after transient failures; callers do, with [`super::retry::Attempts`], and then ask first who has
//! not failed. One address is `visit`'s business.

use std::sync::{Arc, Mutex, PoisonError};

use reqwest::Url;

use super::ClientOptions;
use super::answer::Answer;
use super::auth::Auth;
use super::error::{FetchError, FetchErrorKind, Subject};
use super::hosts::{Endpoint, Hosts, Purpose};
use super::transport::Connections;
use super::visit::Visit;

/// What all blobs and documents of one client share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: ClientOptions,
    pub(super) hosts: Hosts,
    pub(super) connections: Connections,
    pub(super) auth: Auth,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) subject: &'a Subject,
    pub(super) host: &'a str,
    pub(super) repository: &'a str,
    /// Below the repository: `manifests/latest`, `blobs/sha256:…`.
    pub(super) path: &'a str,
    pub(super) purpose: Purpose,
    /// Media types; `None` for blobs, whose type some registries refuse to negotiate.
    pub(super) accept: Option<&'static str>,
    /// First byte, and last byte unless everything from there is wanted.
    pub(super) range: Option<(u64, Option<u64>)>,
}

/// Where a blob was last redirected to, and by whom. Only storage hosts are kept here, and they never see our
/// credentials.
pub(super) type Redirect = Mutex<Option<(Url, Arc<Endpoint>)>>;

impl Shared {
    pub(super) fn new(options: ClientOptions) -> Result<Self, super::ClientError> {
        let connections = Connections::new(&options)?;
        let auth = Auth::new(options.docker_config.clone());
        Ok(Self { hosts: Hosts::new(&options), options, connections, auth })
    }

    /// Sends the request, answers challenges, follows redirects; asks the next address when one fails. The answer is
    /// 200 or 206.
    ///
    /// # Errors
    /// That of the last address, with what the others said.
    pub(super) async fn get(
        self: &Arc<Self>,
        request: &Request<'_>,
        remembered: Option<&Redirect>,
    ) -> Result<Answer, FetchError> {
        let endpoints = self.endpoints(request).await?;
        let known = remembered
            .and_then(|known| known.lock().unwrap_or_else(PoisonError::into_inner).clone());
        // Not where it leads past an address that should be asked first now.
        if let (Some(remembered), Some((url, endpoint))) = (remembered, known)
            && endpoints.first() == Some(&endpoint)
        {
            let visit = Visit { shared: self, request, endpoint: &endpoint };
            if let Some(outcome) = visit.remembered(&url).await {
                let response = outcome.inspect_err(|error| self.note(&endpoint, error))?;
                return Ok(Answer { response, shared: Arc::clone(self), endpoint });
            }
            *remembered.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        let mut said = Vec::new();
        let count = endpoints.len();
        for (number, endpoint) in endpoints.into_iter().enumerate() {
            let visit = Visit { shared: self, request, endpoint: &endpoint };
            match visit.get().await {
                Ok((response, redirect)) => {
                    if let (Some(remembered), Some(url)) = (remembered, redirect) {
                        *remembered.lock().unwrap_or_else(PoisonError::into_inner) =
                            Some((url, Arc::clone(&endpoint)));
                    }
                    return Ok(Answer { response, shared: Arc::clone(self), endpoint });
                }
                Err(error) => {
                    self.note(&endpoint, &error);
                    if number + 1 == count {
                        return Err(error.after(&said));
                    }
                    tracing::debug!(%error, address = endpoint.base, "the next address is asked");
                    said.push(format!("`{}`: {}", endpoint.base, error.reason()));
                }
            }
        }
        unreachable!("a repository has an address")
    }

    /// The addresses for a request, in the order in which they are to be asked.
    pub(super) async fn endpoints(
        &self,
        request: &Request<'_>,
    ) -> Result<Vec<Arc<Endpoint>>, FetchError> {
        let Request { host, repository, purpose, subject, .. } = *request;
        self.hosts.of(host, repository, purpose).await.map_err(|error| {
            FetchError::because(FetchErrorKind::Settings, subject, error.to_string()).build()
        })
    }

    /// An address broke in the middle of its answer, or sent what is not the content.
    pub(super) fn failed(&self, endpoint: &Endpoint) {
        self.hosts.failed(endpoint);
    }

    /// Whether what went wrong is the address's own trouble, which the next request meets too.
    fn note(&self, endpoint: &Endpoint, error: &FetchError) {
        let lasts = error.is_transient() || error.kind() == FetchErrorKind::Tls;
        if lasts {
            self.failed(endpoint);
        }
        if error.kind() == FetchErrorKind::Tls {
            self.connections.distrust_certificates(&endpoint.trust);
        }
    }
}
