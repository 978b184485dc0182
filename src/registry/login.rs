//! Whether a registry takes somebody's name and password.

use std::sync::Arc;

use reqwest::StatusCode;

use super::auth;
use super::error::{FetchError, FetchErrorKind, Subject};
use super::exchange::{Request, Shared};
use super::status::status_error;
use super::visit::Visit;

/// What a registry said to a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Welcome {
    /// Name and password are right.
    Known,
    /// It lets everybody in and asked for nothing, so nobody knows whether they are.
    NotAsked,
}

impl Shared {
    pub(super) async fn check_login(
        self: &Arc<Self>,
        host: &str,
        user: &str,
        password: &str,
    ) -> Result<Welcome, FetchError> {
        let subject = Subject::of_registry("leave to log in", host);
        let request = Request::greeting(&subject, host);
        let (endpoint, url) = self.greeted(&request).await?;
        let visit = Visit { shared: self, request: &request, endpoint: &endpoint };
        let answer = visit.send(&url, None).await?;
        if answer.status().is_success() {
            return Ok(Welcome::NotAsked);
        }
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Err(status_error(&subject, "the registry", answer).await);
        }
        let headers = answer.headers().clone();
        let (transport, access) = (visit.transport()?, visit.access(endpoint.is_plain()));
        let header = auth::log_in(&transport, &access, &headers, user, password).await?;
        let answer = visit.send(&url, Some(&header)).await?;
        match answer.status() {
            status if status.is_success() => Ok(Welcome::Known),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let status = answer.status().as_u16();
                let detail = "it refuses this name with this password";
                let kind = FetchErrorKind::Unauthorized;
                Err(FetchError::because(kind, &subject, detail).status(status).build())
            }
            _ => Err(status_error(&subject, "the registry", answer).await),
        }
    }
}
