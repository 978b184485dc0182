//! The answer to a request: its head, and its body as it arrives.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use reqwest::{Response, StatusCode};

use super::error::{FetchError, FetchErrorKind, Subject};
use super::exchange::Shared;
use super::hosts::Endpoint;
use super::status::transport_error;

/// An answer with the status 200 or 206.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) shared: Arc<Shared>,
    /// Who gave it, or sent us where it came from.
    pub(super) endpoint: Arc<Endpoint>,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(super) fn content_length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The next bytes of the body.
    ///
    /// # Errors
    /// When the transfer breaks, or ends before its `due` bytes. Whoever sent it is asked last for a while then: what is
    /// missing comes from another address, if there is one.
    pub(super) async fn chunk(&mut self, subject: &Subject) -> Result<Bytes, FetchError> {
        let failed = |error| {
            self.shared.failed(&self.endpoint);
            error
        };
        match self.response.chunk().await {
            Ok(Some(part)) => Ok(part),
            Ok(None) => {
                let detail = "the server sent fewer bytes than were asked for";
                let kind = FetchErrorKind::Interrupted;
                Err(failed(FetchError::because(kind, subject, detail).build()))
            }
            Err(error) => Err(failed(transport_error(subject, "", error))),
        }
    }
}
