//! What an answer means that is not what was asked for, and bodies of a bounded length.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::Response;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde::Deserialize;

use super::error::{FetchError, FetchErrorKind, Subject};
use super::transport::classify;

/// Of an error answer, to find the registry's own words in.
const MAX_ERROR_BODY: u64 = 16 << 10;

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
    use reqwest::header::HeaderValue;

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
