//! Whether a registry answers at all, and what time it has: for the doctor.

use jiff::Timestamp;
use reqwest::Url;
use reqwest::header::DATE;

use super::error::{FetchError, FetchErrorKind, Subject};
use super::exchange::{Request, Shared};

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
        let plain = self.is_plain(host);
        let name = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let address = format!("{}://{name}/v2/", if plain { "http" } else { "https" });
        let url = Url::parse(&address).map_err(|error| {
            let detail = "its address is not valid";
            FetchError::because(FetchErrorKind::Malformed, &subject, detail).source(error).build()
        })?;
        let request = Request {
            subject: &subject,
            host,
            repository: "",
            path: "",
            accept: Some("application/json"),
            range: None,
        };
        let answer = self.send(&request, &url, None).await?;
        let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
        let parser = jiff::fmt::rfc2822::DateTimeParser::new();
        Ok(Pong {
            status: answer.status().as_u16(),
            date: date.and_then(|date| parser.parse_timestamp(date).ok()),
            is_encrypted: !plain,
        })
    }
}
