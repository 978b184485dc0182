//! Whether a registry answers at all, and what time it has: for the doctor.

use jiff::Timestamp;
use reqwest::header::DATE;

use super::error::{FetchError, FetchErrorKind, Subject};
use super::exchange::{Request, Shared};
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

impl Shared {
    /// Asks the registry's first address, without credentials.
    pub(super) async fn ping(&self, host: &str) -> Result<Pong, FetchError> {
        let subject = Subject {
            what: "the registry's greeting".to_owned(),
            place: host.to_owned(),
            host: host.to_owned(),
            digest: None,
        };
        let request = Request {
            subject: &subject,
            host,
            repository: "library",
            path: "",
            purpose: Purpose::Pull,
            accept: Some("application/json"),
            range: None,
        };
        // Mirrors come first: the registry itself is the last one.
        let endpoints = self.endpoints(&request).await?;
        let endpoint = endpoints.last().expect("a registry has an address");
        let url = endpoint.greeting().ok_or_else(|| {
            let detail = "its address is not valid";
            FetchError::because(FetchErrorKind::Malformed, &subject, detail).build()
        })?;
        let visit = Visit { shared: self, request: &request, endpoint };
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
