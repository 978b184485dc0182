//! One exchange with one address of a repository: authorization, redirects, and what the status of the answer means.

use std::sync::Arc;

use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderValue, LOCATION, RANGE};
use reqwest::{Response, StatusCode, Url};

use super::auth::Access;
use super::error::{FetchError, FetchErrorKind};
use super::exchange::{Request, Shared};
use super::hosts::Endpoint;
use super::status::{status_error, transport_error};
use super::transport::{Transport, is_loopback};
use crate::telemetry::Chain;

/// Registries redirect once, to their storage; proxies in between may add one or two.
const MAX_REDIRECTS: u32 = 5;

/// A request, and whom it is put to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Visit<'a> {
    pub(super) shared: &'a Shared,
    pub(super) request: &'a Request<'a>,
    pub(super) endpoint: &'a Arc<Endpoint>,
}

#[derive(Clone, Copy)]
enum Via {
    Registry,
    Redirect,
}

impl Visit<'_> {
    /// The answer, which is 200 or 206, and where it came from if that may be remembered.
    ///
    /// # Errors
    /// For any other answer, or none.
    pub(super) async fn get(&self) -> Result<(Response, Option<Url>), FetchError> {
        let (answer, url) = self.get_from_registry().await?;
        let Some(location) = self.location(&url, &answer)? else {
            return Ok((self.accept(answer, Via::Registry).await?, None));
        };
        let (answer, url) = self.follow(url, location).await?;
        Ok((self.accept(answer, Via::Redirect).await?, url))
    }

    /// The answer of where an earlier one came from; `None` if that address does not work any more.
    pub(super) async fn remembered(&self, url: &Url) -> Option<Result<Response, FetchError>> {
        match self.send(url, None).await {
            // A signed address that has expired: the registry's own address stays valid. Storage services disagree on
            // the status (S3 403, Google 400, others 401, 404, 410).
            Ok(answer)
                if !matches!(answer.status().as_u16(), 300..=499)
                    || matches!(answer.status().as_u16(), 416 | 429) =>
            {
                Some(self.accept(answer, Via::Redirect).await)
            }
            outcome => {
                let status = outcome.as_ref().ok().map(|answer| answer.status().as_u16());
                tracing::debug!(status, "remembered redirect no longer works");
                None
            }
        }
    }

    /// For whom and for what an authorization is wanted.
    pub(super) fn access(&self, plain: bool) -> Access<'_> {
        let Endpoint { host, repository, .. } = &**self.endpoint;
        Access { host, repository, plain, subject: self.request.subject }
    }

    /// The connections that its trust asks for.
    pub(super) fn transport(&self) -> Result<Arc<Transport>, FetchError> {
        let Self { shared, endpoint, request } = self;
        shared.connections.with(&shared.options, &endpoint.trust).map_err(|error| {
            let detail = format!("`{}`: {}", endpoint.base, Chain(&error));
            FetchError::because(FetchErrorKind::Settings, request.subject, detail).build()
        })
    }

    async fn get_from_registry(&self) -> Result<(Response, Url), FetchError> {
        let subject = self.request.subject;
        let url = self.endpoint.url(self.request.path).ok_or_else(|| {
            let detail = "its address is not valid";
            FetchError::because(FetchErrorKind::Malformed, subject, detail).build()
        })?;
        let (auth, transport) = (&self.shared.auth, self.transport()?);
        let access = self.access(self.endpoint.is_plain());
        let authorization = auth.current(&transport, &access).await?;
        let answer = self.send(&url, authorization.header.as_ref()).await?;
        let renewable = match answer.status() {
            StatusCode::UNAUTHORIZED => true,
            // Some registries answer an expired token like this.
            StatusCode::FORBIDDEN => authorization.header.is_some(),
            _ => false,
        };
        if !renewable {
            return Ok((answer, url));
        }
        let headers = answer.headers().clone();
        let authorization = auth.answer(&transport, &access, &authorization, &headers).await?;
        let answer = self.send(&url, authorization.header.as_ref()).await?;
        if matches!(answer.status().as_u16(), 401 | 403)
            && let Some(problem) = authorization.problem
        {
            let detail = format!(
                "it refuses access without credentials, and the stored ones could not be used: {problem}"
            );
            return Err(FetchError::because(FetchErrorKind::Unauthorized, subject, detail)
                .status(answer.status().as_u16())
                .build());
        }
        Ok((answer, url))
    }

    /// The answer behind the redirects, and its address if it may be remembered.
    async fn follow(
        &self,
        origin: Url,
        mut url: Url,
    ) -> Result<(Response, Option<Url>), FetchError> {
        for _ in 0..MAX_REDIRECTS {
            let same_origin = url.origin() == origin.origin();
            let header = if same_origin {
                let access = self.access(url.scheme() == "http");
                self.shared.auth.current(&*self.transport()?, &access).await?.header
            } else {
                None
            };
            let answer = self.send(&url, header.as_ref()).await?;
            match self.location(&url, &answer)? {
                None => return Ok((answer, (!same_origin).then_some(url))),
                Some(next) => url = next,
            }
        }
        let detail = format!("it redirects more than {MAX_REDIRECTS} times");
        Err(FetchError::because(FetchErrorKind::Malformed, self.request.subject, detail).build())
    }

    /// One request without more; `authorization` is for the registry only.
    pub(super) async fn send(
        &self,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, FetchError> {
        let Self { shared, request, endpoint } = *self;
        let local = url.host_str().is_some_and(is_loopback);
        let transport = self.transport()?;
        let client = match (local, request.accept) {
            (true, _) => &transport.loopback,
            (false, Some(_)) => &transport.api,
            (false, None) => &transport.blob,
        };
        // A transfer that something compresses on the way could not be asked for by byte positions.
        let mut http = client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(accept) = request.accept {
            http = http.header(ACCEPT, accept);
        }
        if let Some((first, last)) = request.range {
            let last = last.map(|last| last.to_string()).unwrap_or_default();
            http = http.header(RANGE, format!("bytes={first}-{last}"));
        }
        // They are for that address, not for where it sends us.
        if url.as_str().starts_with(&endpoint.base) {
            for (name, value) in &endpoint.headers {
                http = http.header(name, value);
            }
        }
        if let Some(authorization) = authorization {
            http = http.header(AUTHORIZATION, authorization);
        }
        let whom = match url.host_str() {
            Some(host) if host != host_name(request.host) => format!("`{host}`: "),
            _ => String::new(),
        };
        http.send().await.map_err(|error| {
            let error = transport_error(request.subject, &whom, error);
            // A name server that is out of reach may show as a timeout.
            if matches!(error.kind(), FetchErrorKind::Dns | FetchErrorKind::Timeout) {
                shared.connections.distrust_resolver(&shared.options, &endpoint.trust);
            }
            error
        })
    }

    async fn accept(&self, answer: Response, via: Via) -> Result<Response, FetchError> {
        let (status, subject) = (answer.status(), self.request.subject);
        if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Ok(answer);
        }
        let ranged = self.request.range.is_some();
        if ranged && matches!(status.as_u16(), 400 | 416 | 501) {
            let detail = format!("the server refuses to send a part of it ({status})");
            let kind = FetchErrorKind::RangeNotSatisfiable;
            return Err(FetchError::because(kind, subject, detail).status(status.as_u16()).build());
        }
        let storage = matches!(via, Via::Redirect);
        if storage && matches!(status.as_u16(), 401 | 403) {
            // Our credentials are for the registry; its storage judges the signed address, which is made anew for
            // each try.
            let detail = format!("the storage behind the registry refuses ({status})");
            return Err(FetchError::because(FetchErrorKind::Server, subject, detail)
                .status(status.as_u16())
                .build());
        }
        let whom = if storage { "the storage behind the registry" } else { "the registry" };
        Err(status_error(subject, whom, answer).await)
    }

    /// Where the answer sends us, if it does.
    fn location(&self, from: &Url, answer: &Response) -> Result<Option<Url>, FetchError> {
        if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let malformed = |detail: &str| {
            FetchError::because(FetchErrorKind::Malformed, self.request.subject, detail).build()
        };
        let target = answer
            .headers()
            .get(LOCATION)
            .and_then(|location| location.to_str().ok())
            .and_then(|location| from.join(location).ok())
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some())
            .ok_or_else(|| malformed("it redirects to nowhere"))?;
        if from.scheme() == "https" && target.scheme() == "http" {
            return Err(malformed("it redirects from an encrypted to a plain connection"));
        }
        Ok(Some(target))
    }
}

fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}
