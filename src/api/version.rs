//! What control says to callers of another version.

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};

use super::wire::{
    API_HEADER, API_VERSION, ErrorKind, OLDEST_API_VERSION, VERSION_HEADER, WireError,
};
use crate::version::versions;

fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request.headers().get(name)?.to_str().ok()
}

/// This program, for a sentence.
fn own() -> String {
    let spoken = span(OLDEST_API_VERSION, API_VERSION);
    format!("the running supervisor is version {} and speaks {spoken}", versions().build)
}

/// `API 1`, or `API 1 to 3`.
pub(super) fn span(oldest: u32, newest: u32) -> String {
    if oldest >= newest { format!("API {newest}") } else { format!("API {oldest} to {newest}") }
}

fn refusal(status: StatusCode, kind: ErrorKind, message: String, hint: &str) -> Response {
    (status, Json(WireError { message, hint: Some(hint.to_owned()), kind })).into_response()
}

/// Puts all calls behind the check of versions, and answers those that do not exist. What is added to the result
/// later has neither.
pub(super) fn versioned<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes.fallback(unknown_call).method_not_allowed_fallback(unknown_call).layer(from_fn(check))
}

/// Refuses callers that are older than what is still spoken, except in `/hello`, from which they learn that. Newer
/// ones decide for themselves by what `/hello` says.
async fn check(request: Request, next: Next) -> Response {
    let spoken = header(&request, API_HEADER).and_then(|text| text.parse::<u32>().ok());
    if let Some(spoken) = spoken
        && spoken < OLDEST_API_VERSION
        && request.uri().path() != "/hello"
    {
        let theirs = header(&request, VERSION_HEADER).unwrap_or("unknown");
        return refusal(
            StatusCode::UPGRADE_REQUIRED,
            ErrorKind::Version,
            format!("{}; the caller is version {theirs} and speaks API {spoken}", own()),
            "call with the program of the running supervisor",
        );
    }
    next.run(request).await
}

/// The answer to a call that does not exist in this version.
pub(super) async fn unknown_call(request: Request) -> Response {
    let call = format!("{} {}", request.method(), request.uri().path());
    let newer = header(&request, VERSION_HEADER)
        .filter(|version| *version != versions().build)
        .map(|version| format!(", the caller is version {version}"))
        .unwrap_or_default();
    refusal(
        StatusCode::NOT_FOUND,
        ErrorKind::UnknownCall,
        format!("there is no call `{call}`: {}{newer}", own()),
        "if the caller is newer, restart the supervisor with its program; services go on meanwhile",
    )
}
