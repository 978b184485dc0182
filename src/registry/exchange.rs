//! One exchange with a registry: authorization, redirects, and what the status of the answer means.
//!
//! Does not try again after transient failures; callers do, with [`super::retry::Attempts`].

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::header::{RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use super::ClientOptions;
use super::auth::{Access, Auth};
use super::error::{FetchError, FetchErrorKind, Subject};
use super::transport::{Connections, classify, is_loopback};

/// Registries redirect once, to their storage; proxies in between may add one or two.
const MAX_REDIRECTS: u32 = 5;
/// Of an error answer, to find the registry's own words in.
const MAX_ERROR_BODY: u64 = 16 << 10;

/// What all blobs and documents of one client share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: ClientOptions,
    connections: Connections,
    auth: Auth,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) subject: &'a Subject,
    pub(super) host: &'a str,
    pub(super) repository: &'a str,
    /// Below the repository: `manifests/latest`, `blobs/sha256:…`.
    pub(super) path: &'a str,
    /// Media types; `None` for blobs, whose type some registries refuse to negotiate.
    pub(super) accept: Option<&'static str>,
    /// First byte, and last byte unless everything from there is wanted.
    pub(super) range: Option<(u64, Option<u64>)>,
}

/// Where a blob was last redirected to. Only storage hosts are kept here, and they never see our credentials.
pub(super) type Redirect = Mutex<Option<Url>>;

impl Shared {
    pub(super) fn new(options: ClientOptions) -> Result<Self, super::ClientError> {
        let connections = Connections::new(&options)?;
        let auth = Auth::new(options.docker_config.clone());
        Ok(Self { options, connections, auth })
    }

    /// Sends the request, answers challenges, follows redirects. The answer is 200 or 206.
    ///
    /// # Errors
    /// For any other answer, or none.
    pub(super) async fn get(
        &self,
        request: &Request<'_>,
        remembered: Option<&Redirect>,
    ) -> Result<Response, FetchError> {
        let known = remembered
            .and_then(|known| known.lock().unwrap_or_else(PoisonError::into_inner).clone());
        if let (Some(remembered), Some(url)) = (remembered, known) {
            match self.send(request, &url, None).await {
                // A signed address that has expired: the registry's own address stays valid. Storage services
                // disagree on the status (S3 403, Google 400, others 401, 404, 410).
                Ok(answer) if !matches!(answer.status().as_u16(), 300..=499) => {
                    return self.accept(request, answer, Via::Redirect).await;
                }
                Ok(answer) if matches!(answer.status().as_u16(), 416 | 429) => {
                    return self.accept(request, answer, Via::Redirect).await;
                }
                outcome => {
                    tracing::debug!(
                        status = outcome.as_ref().ok().map(|answer| answer.status().as_u16()),
                        "remembered redirect no longer works"
                    );
                    *remembered.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
            }
        }
        let (answer, url) = self.get_from_registry(request).await?;
        let Some(location) = location(request, &url, &answer)? else {
            return self.accept(request, answer, Via::Registry).await;
        };
        let (answer, url) = self.follow(request, url, location).await?;
        let answer = self.accept(request, answer, Via::Redirect).await?;
        if let (Some(remembered), Some(url)) = (remembered, url) {
            *remembered.lock().unwrap_or_else(PoisonError::into_inner) = Some(url);
        }
        Ok(answer)
    }

    async fn get_from_registry(
        &self,
        request: &Request<'_>,
    ) -> Result<(Response, Url), FetchError> {
        let plain = self.is_plain(request.host);
        let url = registry_url(request, plain)?;
        let Request { host, repository, subject, .. } = *request;
        let access = Access { host, repository, plain, subject };
        let authorization = self.auth.current(&self.connections.current(), &access).await?;
        let answer = self.send(request, &url, authorization.header.as_ref()).await?;
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
        let authorization = self
            .auth
            .answer(&self.connections.current(), &access, &authorization, &headers)
            .await?;
        let answer = self.send(request, &url, authorization.header.as_ref()).await?;
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
        request: &Request<'_>,
        origin: Url,
        mut url: Url,
    ) -> Result<(Response, Option<Url>), FetchError> {
        for _ in 0..MAX_REDIRECTS {
            let same_origin = url.origin() == origin.origin();
            let header = if same_origin {
                let Request { host, repository, subject, .. } = *request;
                let access = Access { host, repository, plain: url.scheme() == "http", subject };
                self.auth.current(&self.connections.current(), &access).await?.header
            } else {
                None
            };
            let answer = self.send(request, &url, header.as_ref()).await?;
            match location(request, &url, &answer)? {
                None => return Ok((answer, (!same_origin).then_some(url))),
                Some(next) => url = next,
            }
        }
        let detail = format!("it redirects more than {MAX_REDIRECTS} times");
        Err(FetchError::because(FetchErrorKind::Malformed, request.subject, detail).build())
    }

    pub(super) async fn send(
        &self,
        request: &Request<'_>,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, FetchError> {
        let local = url.host_str().is_some_and(is_loopback);
        let transport = self.connections.current();
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
                self.connections.distrust_resolver(&self.options);
            }
            error
        })
    }

    async fn accept(
        &self,
        request: &Request<'_>,
        answer: Response,
        via: Via,
    ) -> Result<Response, FetchError> {
        let status = answer.status();
        if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Ok(answer);
        }
        let ranged = request.range.is_some();
        if ranged && matches!(status.as_u16(), 400 | 416 | 501) {
            let detail = format!("the server refuses to send a part of it ({status})");
            let kind = FetchErrorKind::RangeNotSatisfiable;
            return Err(FetchError::because(kind, request.subject, detail)
                .status(status.as_u16())
                .build());
        }
        let storage = matches!(via, Via::Redirect);
        if storage && matches!(status.as_u16(), 401 | 403) {
            // Our credentials are for the registry; its storage judges the signed address, which is made anew for
            // each try.
            let detail = format!("the storage behind the registry refuses ({status})");
            return Err(FetchError::because(FetchErrorKind::Server, request.subject, detail)
                .status(status.as_u16())
                .build());
        }
        let whom = if storage { "the storage behind the registry" } else { "the registry" };
        Err(status_error(request.subject, whom, answer).await)
    }

    /// Loopback registries are spoken to in plain HTTP, at once: what is on this machine needs no encryption, and
    /// first trying TLS would only add an exchange that never succeeds.
    pub(super) fn is_plain(&self, host: &str) -> bool {
        is_loopback(host) || self.options.plain_http.iter().any(|plain| plain == host)
    }
}

#[derive(Clone, Copy)]
enum Via {
    Registry,
    Redirect,
}

fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn registry_url(request: &Request<'_>, plain: bool) -> Result<Url, FetchError> {
    let scheme = if plain { "http" } else { "https" };
    let host = match request.host {
        "docker.io" => "registry-1.docker.io",
        host => host,
    };
    let text = format!("{scheme}://{host}/v2/{}/{}", request.repository, request.path);
    Url::parse(&text).map_err(|error| {
        FetchError::because(FetchErrorKind::Malformed, request.subject, "its address is not valid")
            .source(error)
            .build()
    })
}

/// Where the answer sends us, if it does.
fn location(
    request: &Request<'_>,
    from: &Url,
    answer: &Response,
) -> Result<Option<Url>, FetchError> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let malformed = |detail: &str| {
        FetchError::because(FetchErrorKind::Malformed, request.subject, detail).build()
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

/// An exchange that had no answer; `whom` ends in `: ` if it is not empty.
pub(super) fn transport_error(subject: &Subject, whom: &str, error: reqwest::Error) -> FetchError {
    let (kind, text) = classify(&error);
    // The address may hold a signature.
    FetchError::because(kind, subject, format!("{whom}{text}")).source(error.without_url()).build()
}

/// The registry's own words in an error answer.
#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorItem>,
}

#[derive(Deserialize)]
struct ErrorItem {
    code: Option<String>,
    message: Option<String>,
}

/// What an answer other than 200 and 206 means.
pub(super) async fn status_error(subject: &Subject, whom: &str, answer: Response) -> FetchError {
    let status = answer.status();
    let kind = match status.as_u16() {
        401 | 403 => FetchErrorKind::Unauthorized,
        404 | 410 => FetchErrorKind::NotFound,
        429 => FetchErrorKind::TooManyRequests,
        408 | 500..=599 => FetchErrorKind::Server,
        _ => FetchErrorKind::Unexpected,
    };
    let after = retry_after(answer.headers());
    let body = read_limited(subject, answer, MAX_ERROR_BODY).await.unwrap_or_default();
    let said = serde_json::from_slice::<ErrorBody>(&body).ok().and_then(|body| {
        let item = body.errors.into_iter().next()?;
        let text = item.message.filter(|message| !message.is_empty()).or(item.code)?;
        Some(text.chars().filter(|c| !c.is_control()).take(200).collect::<String>())
    });
    let detail = match said {
        Some(said) => format!("{whom} answered {status}: {said}"),
        None => format!("{whom} answered {status}"),
    };
    FetchError::because(kind, subject, detail).status(status.as_u16()).retry_after(after).build()
}

/// Seconds, or a date of the form that mail uses.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    let wait = date.duration_since(jiff::Timestamp::now());
    Some(Duration::try_from(wait).unwrap_or(Duration::ZERO))
}

/// The whole body, unless it is longer than `limit`.
pub(super) async fn read_limited(
    subject: &Subject,
    mut answer: Response,
    limit: u64,
) -> Result<Bytes, FetchError> {
    let too_long = || {
        let detail = format!("the answer is longer than the {limit} bytes that it may have");
        FetchError::because(FetchErrorKind::Malformed, subject, detail).build()
    };
    if answer.content_length().is_some_and(|length| length > limit) {
        return Err(too_long());
    }
    let mut body = BytesMut::new();
    while let Some(part) =
        answer.chunk().await.map_err(|error| transport_error(subject, "", error))?
    {
        body.extend_from_slice(&part);
        if u64::try_from(body.len()).unwrap_or(u64::MAX) > limit {
            return Err(too_long());
        }
    }
    Ok(body.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_and_as_date() {
        let headers = |text: &str| {
            HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(text).unwrap())])
        };
        assert_eq!(retry_after(&headers("7")), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(&headers("soon")), None);
        let past = "Wed, 21 Oct 2015 07:28:00 GMT";
        assert_eq!(retry_after(&headers(past)), Some(Duration::ZERO));
        assert!(
            retry_after(&headers("Wed, 21 Oct 2195 07:28:00 GMT"))
                .is_some_and(|wait| wait > Duration::from_secs(1000))
        );
    }
}
