//! Who calls, and what that one may do: the first line of every handler asks.
//!
//! The identity is that of the process at the other end of the socket, as the kernel tells it. Who could open the
//! socket is root or a member of its group, and may do everything. A narrower [`Scope`] comes with a bearer token,
//! through a [`ScopeSource`]; the only source so far knows no token.

use std::sync::Arc;

use axum::Json;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use tokio::net::UnixListener;

use super::wire::WireError;
use crate::supervise::{RequestError, RequestErrorKind};
use crate::sys::socket::{self, Peer};

/// What a caller may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    Everything,
    /// Everything may be seen, nothing changed.
    ReadOnly,
    /// One project and nothing else.
    Project {
        /// Its name.
        name: String,
        /// Whether it may be changed.
        access: Access,
    },
}

/// Whether something may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It may only be seen.
    Read,
    /// It may be changed too.
    Change,
}

/// What a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission<'a> {
    /// To see a project: its services, output and events; all projects and the host when `None`.
    Read(Option<&'a str>),
    /// To change what runs of a project.
    Change(&'a str),
    /// To run a program inside a project.
    Execute(&'a str),
    /// To see which images are here.
    ReadImages,
    /// To bring images here or remove them.
    ChangeImages,
    /// To mount into the host, or to end control.
    Host,
}

impl Scope {
    /// Whether it includes `permission`.
    #[must_use]
    pub fn allows(&self, permission: Permission<'_>) -> bool {
        use Permission::{Change, ChangeImages, Execute, Host, Read, ReadImages};
        match (self, permission) {
            (Self::Everything, _) | (Self::ReadOnly, Read(_) | ReadImages) => true,
            (Self::ReadOnly, Change(_) | Execute(_) | ChangeImages | Host) => false,
            (Self::Project { name, .. }, Read(Some(project))) => project == name,
            (Self::Project { name, access }, Change(project) | Execute(project)) => {
                project == name && *access == Access::Change
            }
            (Self::Project { .. }, Read(None) | ReadImages | ChangeImages | Host) => false,
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Everything => formatter.write_str("everything"),
            Self::ReadOnly => formatter.write_str("reading"),
            Self::Project { name, access: Access::Read } => {
                write!(formatter, "reading project `{name}`")
            }
            Self::Project { name, access: Access::Change } => write!(formatter, "project `{name}`"),
        }
    }
}

impl std::fmt::Display for Permission<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(None) => formatter.write_str("see all projects"),
            Self::Read(Some(project)) => write!(formatter, "see project `{project}`"),
            Self::Change(project) => write!(formatter, "change project `{project}`"),
            Self::Execute(project) => write!(formatter, "run programs in project `{project}`"),
            Self::ReadImages => formatter.write_str("see the images"),
            Self::ChangeImages => formatter.write_str("change which images are here"),
            Self::Host => formatter.write_str("change the host"),
        }
    }
}

/// Where the scope of a bearer token comes from.
pub trait ScopeSource: std::fmt::Debug + Send + Sync {
    /// The scope of `token` for this peer, or why it has none, in words for the caller.
    ///
    /// # Errors
    /// When the token is not valid.
    fn scope(&self, token: &str, peer: Peer) -> Result<Scope, String>;
}

/// The source that knows no token.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTokens;

impl ScopeSource for NoTokens {
    fn scope(&self, _token: &str, _peer: Peer) -> Result<Scope, String> {
        Err("this supervisor gives out no tokens; call without the header `Authorization`"
            .to_owned())
    }
}

/// One caller, taken from its connection and its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its process; may be gone.
    pub pid: i32,
    /// What it may reach.
    pub scope: Scope,
}

impl Caller {
    /// Refuses what the caller's scope does not include. The first line of every handler.
    ///
    /// # Errors
    /// [`RequestErrorKind::Forbidden`].
    pub fn require(&self, permission: Permission<'_>) -> Result<(), RequestError> {
        if self.scope.allows(permission) {
            return Ok(());
        }
        let message = format!("may not {permission}: the scope of this call is {}", self.scope);
        Err(RequestError::new(RequestErrorKind::Forbidden, message))
    }
}

/// The peer of one connection, asked for once when it is accepted; `None` if the kernel did not say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connection(pub(super) Option<Peer>);

impl Connected<IncomingStream<'_, UnixListener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(socket::peer(stream.io()).ok())
    }
}

/// Why a caller was not let in.
#[derive(Debug)]
pub struct Unknown(String);

impl IntoResponse for Unknown {
    fn into_response(self) -> Response {
        let error =
            WireError { message: self.0, hint: None, kind: super::wire::ErrorKind::Forbidden };
        (StatusCode::UNAUTHORIZED, Json(error)).into_response()
    }
}

impl<S> FromRequestParts<S> for Caller
where
    Arc<dyn ScopeSource>: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Unknown;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Unknown> {
        let peer = parts
            .extensions
            .get::<ConnectInfo<Connection>>()
            .and_then(|ConnectInfo(Connection(peer))| *peer)
            .ok_or_else(|| Unknown("the kernel does not say who calls".to_owned()))?;
        let scope = match parts.headers.get(header::AUTHORIZATION) {
            None => Scope::Everything,
            Some(value) => {
                let token = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
                let token = token.ok_or_else(|| {
                    Unknown("the header `Authorization` is not `Bearer TOKEN`".to_owned())
                })?;
                <Arc<dyn ScopeSource>>::from_ref(state).scope(token, peer).map_err(Unknown)?
            }
        };
        if peer.uid != 0 {
            let Peer { uid, gid, pid } = peer;
            tracing::debug!(uid, gid, pid, method = %parts.method, path = parts.uri.path(), "call");
        }
        Ok(Self { uid: peer.uid, gid: peer.gid, pid: peer.pid, scope })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(access: Access) -> Scope {
        Scope::Project { name: "shop".to_owned(), access }
    }

    #[test]
    fn a_scope_allows_what_it_says_and_nothing_else() {
        use Permission::{Change, ChangeImages, Execute, Host, Read, ReadImages};
        let all = [
            Read(None),
            Read(Some("shop")),
            Read(Some("other")),
            Change("shop"),
            Change("other"),
            Execute("shop"),
            Execute("other"),
            ReadImages,
            ChangeImages,
            Host,
        ];
        for (scope, allowed) in [
            (Scope::Everything, &all[..]),
            (Scope::ReadOnly, &[Read(None), Read(Some("shop")), Read(Some("other")), ReadImages]),
            (project(Access::Read), &[Read(Some("shop"))]),
            (project(Access::Change), &[Read(Some("shop")), Change("shop"), Execute("shop")]),
        ] {
            for permission in all {
                assert_eq!(
                    scope.allows(permission),
                    allowed.contains(&permission),
                    "{scope}: {permission}"
                );
            }
        }
    }

    #[test]
    fn a_refusal_names_what_was_asked_for_and_what_is_allowed() {
        let caller = Caller { uid: 7, gid: 7, pid: 1, scope: project(Access::Read) };
        let error = caller.require(Permission::Change("shop")).unwrap_err();
        assert_eq!(error.kind, RequestErrorKind::Forbidden);
        assert_eq!(
            error.message,
            "may not change project `shop`: the scope of this call is reading project `shop`"
        );
    }
}
