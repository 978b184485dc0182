//! Who we are to a registry: challenges, tokens and their expiry.
//!
//! One slot per host and repository remembers the challenge and the answer. Whoever finds it expired or rejected
//! renews it under the slot's lock, and the others take over the result: a hundred parallel reads ask once.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::credentials::{self, Credential, Found};
use super::error::{FetchError, FetchErrorKind, Subject};
use super::status::{read_limited, status_error, transport_error};
use super::transport::{Transport, is_loopback};

/// The token specification's default, for servers that do not say.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// A token that is this close to its end would expire under way.
const EXPIRY_MARGIN: Duration = Duration::from_secs(10);
/// Tokens are a few kilobytes; this is no token any more.
const MAX_TOKEN_ANSWER: u64 = 256 << 10;

/// What a registry asks for, as remembered from its last 401.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Challenge {
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
    Basic,
}

/// The answer to give with a request, and its number, by which a rejection refers to it.
#[derive(Debug, Clone, Default)]
pub(super) struct Authorization {
    pub(super) header: Option<HeaderValue>,
    /// Why stored credentials were left out of it; told when it is not enough.
    pub(super) problem: Option<String>,
    number: u64,
}

#[derive(Debug, Default)]
struct Slot {
    challenge: Option<Challenge>,
    current: Authorization,
    expires: Option<Instant>,
}

type Slots = HashMap<(String, String), Arc<tokio::sync::Mutex<Slot>>>;

/// Authorizations of one client.
#[derive(Debug)]
pub(super) struct Auth {
    config: Option<PathBuf>,
    slots: Mutex<Slots>,
}

/// For whom and for what an authorization is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access<'a> {
    pub(super) host: &'a str,
    pub(super) repository: &'a str,
    /// Whether the registry itself is reached in the clear.
    pub(super) plain: bool,
    pub(super) subject: &'a Subject,
}

impl Auth {
    pub(super) fn new(config: Option<PathBuf>) -> Self {
        Self { config, slots: Mutex::default() }
    }

    fn slot(&self, access: &Access<'_>) -> Arc<tokio::sync::Mutex<Slot>> {
        let key = (access.host.to_owned(), access.repository.to_owned());
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(key).or_default())
    }

    /// What to send with the next request; renewed first when it is known to have expired.
    ///
    /// # Errors
    /// When the renewal fails.
    pub(super) async fn current(
        &self,
        transport: &Transport,
        access: &Access<'_>,
    ) -> Result<Authorization, FetchError> {
        let slot = self.slot(access);
        let mut slot = slot.lock().await;
        if slot.expires.is_some_and(|expires| expires <= Instant::now()) {
            self.renew(&mut slot, transport, access).await?;
        }
        Ok(slot.current.clone())
    }

    /// Answers a 401 or 403 that `rejected` met. `headers` are the answer's.
    ///
    /// # Errors
    /// When the registry asks for nothing that we can give, or the renewal fails.
    pub(super) async fn answer(
        &self,
        transport: &Transport,
        access: &Access<'_>,
        rejected: &Authorization,
        headers: &HeaderMap,
    ) -> Result<Authorization, FetchError> {
        let slot = self.slot(access);
        let mut slot = slot.lock().await;
        if slot.current.number != rejected.number {
            return Ok(slot.current.clone());
        }
        if let Some(challenge) = strongest(headers) {
            slot.challenge = Some(challenge);
        }
        self.renew(&mut slot, transport, access).await?;
        Ok(slot.current.clone())
    }

    async fn renew(
        &self,
        slot: &mut Slot,
        transport: &Transport,
        access: &Access<'_>,
    ) -> Result<(), FetchError> {
        let Some(challenge) = slot.challenge.clone() else {
            return Err(refused(access, "it refuses access and does not say what it asks for"));
        };
        let found = credentials::find(self.config.as_deref(), access.host).await;
        let (header, lifetime) = match &challenge {
            Challenge::Basic => (basic(access, &found)?, None),
            Challenge::Bearer { realm, service, scope } => {
                let request =
                    TokenRequest { realm, service: service.as_deref(), scope: scope.as_deref() };
                let (header, lifetime) = request.send(transport, access, &found).await?;
                (header, Some(lifetime))
            }
        };
        slot.current = Authorization {
            header: Some(header),
            problem: found.problem,
            number: slot.current.number + 1,
        };
        slot.expires = lifetime.map(|lifetime| {
            // Half of a short life, so that a token of a few seconds is used at all.
            Instant::now() + lifetime.saturating_sub(EXPIRY_MARGIN).max(lifetime / 2)
        });
        Ok(())
    }
}

/// What to send to a registry that asked in `headers` who `user` is.
///
/// # Errors
/// When it asks for nothing that we can give, or its token server refuses them.
pub(super) async fn log_in(
    transport: &Transport,
    access: &Access<'_>,
    headers: &HeaderMap,
    user: &str,
    password: &str,
) -> Result<HeaderValue, FetchError> {
    let credential = Credential::Password { user: user.to_owned(), password: password.to_owned() };
    let found = Found { credential: Some(credential), problem: None };
    match strongest(headers) {
        None => Err(refused(access, "it refuses access and does not say what it asks for")),
        Some(Challenge::Basic) => basic(access, &found),
        Some(Challenge::Bearer { realm, service, .. }) => {
            let request =
                TokenRequest { realm: &realm, service: service.as_deref(), scope: Some("") };
            Ok(request.send(transport, access, &found).await?.0)
        }
    }
}

fn refused(access: &Access<'_>, detail: impl Into<String>) -> FetchError {
    FetchError::because(FetchErrorKind::Unauthorized, access.subject, detail).build()
}

/// The challenge that tells most about us without telling too much: a token before a password.
fn strongest(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(challenges) = http_auth::parse_challenges(value.to_str().unwrap_or_default()) else {
            continue;
        };
        for challenge in challenges {
            let param = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped()).filter(|value| !value.is_empty())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = param("realm") {
                    let (service, scope) = (param("service"), param("scope"));
                    return Some(Challenge::Bearer { realm, service, scope });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

fn basic(access: &Access<'_>, found: &Found) -> Result<HeaderValue, FetchError> {
    match &found.credential {
        Some(Credential::Password { user, password }) => basic_header(user, password)
            .ok_or_else(|| refused(access, "the stored password cannot be sent in a header")),
        Some(Credential::IdentityToken(_)) => {
            Err(refused(access, "it asks for a password, and an identity token is stored"))
        }
        None => Err(refused(access, without_credentials(found, "it asks for a password"))),
    }
}

fn basic_header(user: &str, password: &str) -> Option<HeaderValue> {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    let mut header = HeaderValue::from_str(&format!("Basic {pair}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

fn without_credentials(found: &Found, asked: &str) -> String {
    match &found.problem {
        Some(problem) => {
            format!("{asked}, and the stored credentials could not be used: {problem}")
        }
        None => format!("{asked}, and no credentials are stored for it"),
    }
}

struct TokenRequest<'a> {
    realm: &'a str,
    service: Option<&'a str>,
    scope: Option<&'a str>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl TokenRequest<'_> {
    async fn send(
        &self,
        transport: &Transport,
        access: &Access<'_>,
        found: &Found,
    ) -> Result<(HeaderValue, Duration), FetchError> {
        let shown: String = self.realm.chars().take(200).collect();
        let mut url = reqwest::Url::parse(self.realm)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some())
            .ok_or_else(|| refused(access, format!("its token server `{shown}` is no address")))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let local = is_loopback(&host);
        if found.credential.is_some() && url.scheme() == "http" && !access.plain && !local {
            return Err(refused(
                access,
                format!("it wants credentials sent in the clear to `{shown}`"),
            ));
        }
        let scope = self
            .scope
            .map_or_else(|| format!("repository:{}:pull", access.repository), str::to_owned);
        let client = if local { &transport.loopback } else { &transport.api };
        let mut form = reqwest::Url::parse("form:").expect("a constant that is an address");
        {
            let mut query = match &found.credential {
                Some(Credential::IdentityToken(_)) => form.query_pairs_mut(),
                _ => url.query_pairs_mut(),
            };
            if let Some(service) = self.service {
                query.append_pair("service", service);
            }
            // Nothing is asked for but who somebody is.
            if !scope.is_empty() {
                query.append_pair("scope", &scope);
            }
            if let Some(Credential::IdentityToken(token)) = &found.credential {
                query.append_pair("grant_type", "refresh_token");
                query.append_pair("client_id", "supervisor");
                query.append_pair("refresh_token", token);
            }
        }
        let request = match &found.credential {
            None => client.get(url),
            Some(Credential::Password { user, password }) => {
                client.get(url).basic_auth(user, Some(password))
            }
            Some(Credential::IdentityToken(_)) => client
                .post(url)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(form.query().unwrap_or_default().to_owned()),
        };
        let answer = request.send().await.map_err(|error| {
            transport_error(access.subject, &format!("its token server `{host}`: "), error)
        })?;
        if matches!(answer.status().as_u16(), 400 | 401 | 403) {
            let asked = format!("its token server `{host}` refuses ({})", answer.status());
            return Err(refused(
                access,
                match found.credential {
                    Some(_) => format!("{asked} the stored credentials"),
                    None => without_credentials(found, &asked),
                },
            ));
        }
        if !answer.status().is_success() {
            let whom = format!("its token server `{host}`");
            return Err(status_error(access.subject, &whom, answer).await);
        }
        let bytes = read_limited(access.subject, answer, MAX_TOKEN_ANSWER).await?;
        let malformed = || {
            let detail = format!("its token server `{host}` sent no token");
            FetchError::because(FetchErrorKind::Malformed, access.subject, detail).build()
        };
        let answer: TokenAnswer = serde_json::from_slice(&bytes).map_err(|_| malformed())?;
        let token = answer
            .token
            .or(answer.access_token)
            .filter(|token| !token.is_empty())
            .ok_or_else(malformed)?;
        let mut header =
            HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| malformed())?;
        header.set_sensitive(true);
        // The server's own clock (`issued_at`) is left out: it may be wrong, ours counts from now.
        let lifetime = answer.expires_in.filter(|seconds| *seconds > 0);
        Ok((header, lifetime.map_or(DEFAULT_LIFETIME, |s| Duration::from_secs(s.min(86_400)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        values
            .iter()
            .map(|value| (WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let challenge = strongest(&headers(&[
            r#"Basic realm="x""#,
            r#"Bearer realm="https://auth/t",service="s",scope="repository:a/b:pull,push""#,
        ]));
        assert_eq!(
            challenge,
            Some(Challenge::Bearer {
                realm: "https://auth/t".to_owned(),
                service: Some("s".to_owned()),
                scope: Some("repository:a/b:pull,push".to_owned()),
            })
        );
        assert_eq!(strongest(&headers(&[r#"Basic realm="x""#])), Some(Challenge::Basic));
    }

    #[test]
    fn challenges_that_make_no_sense_are_skipped() {
        assert_eq!(strongest(&headers(&[])), None);
        assert_eq!(
            strongest(&headers(&["Bearer", "Negotiate", "=\\\"", "Bearer service=x"])),
            None
        );
    }
}
