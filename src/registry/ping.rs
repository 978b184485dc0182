//! Whether a registry answers at all, and what time it has: for the doctor.

use std::sync::Arc;

use jiff::Timestamp;
use reqwest::Url;
use reqwest::header::DATE;

use super::error::{FetchError, FetchErrorKind, Subject};
use super::exchange::{Request, Shared};
use super::hosts::Endpoint;
use super::hosts::Purpose;
use super::visit::Visit;

/// The answer of a registry to somebody unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pong {
    /// HTTP status: 200, or 401 where one has to log in.
    pub status: u16,
    /// Its clock, if it said.
    pub date: Option<Timestamp>,
    /// Whether the connection is encrypted.
    pub is_encrypted: bool,
}

impl Subject {
    /// A registry as a whole, which is asked for `what`.
    pub(super) fn of_registry(what: &str, host: &str) -> Self {
        let (place, host) = (host.to_owned(), host.to_owned());
        Self { what: what.to_owned(), place, host, digest: None }
    }
}

impl<'a> Request<'a> {
    /// The question that every registry answers, and answers differently to those whom it knows.
    pub(super) fn greeting(subject: &'a Subject, host: &'a str) -> Self {
        let (purpose, accept) = (Purpose::Pull, Some("application/json"));
        Self { subject, host, repository: "library", path: "", purpose, accept, range: None }
    }
}

impl Shared {
    /// Where a registry itself, and none of its mirrors, is greeted.
    pub(super) async fn greeted(
        &self,
        request: &Request<'_>,
    ) -> Result<(Arc<Endpoint>, Url), FetchError> {
        // Mirrors come first: the registry itself is the last one.
        let endpoint = self.endpoints(request).await?.pop().expect("a registry has an address");
        let url = endpoint.greeting().ok_or_else(|| {
            let detail = "its address is not valid";
            FetchError::because(FetchErrorKind::Malformed, request.subject, detail).build()
        })?;
        Ok((endpoint, url))
    }

    /// Asks the registry's first address, without credentials.
    pub(super) async fn ping(&self, host: &str) -> Result<Pong, FetchError> {
        let subject = Subject::of_registry("the registry's greeting", host);
        let request = Request::greeting(&subject, host);
        let (endpoint, url) = self.greeted(&request).await?;
        let visit = Visit { shared: self, request: &request, endpoint: &endpoint };
        let answer = visit.send(&url, None).await?;
        let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
        let parser = jiff::fmt::rfc2822::DateTimeParser::new();
        Ok(Pong {
            status: answer.status().as_u16(),
            date: date.and_then(|date| parser.parse_timestamp(date).ok()),
            is_encrypted: !endpoint.is_plain(),
        })
    }
}
