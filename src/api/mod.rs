//! The unix-socket API: server, client, wire types, callers and what they may do.
//!
//! HTTP/1.1 with JSON on `$RUN/api.sock`; lists that go on are one JSON object a line. The command line uses nothing
//! else. The socket is root's (mode 0600), or also a group's (0660); each handler asks what its [`Caller`] may do.
//!
//! Versions: `GET /hello` tells which versions of the API control speaks ([`API_VERSION`] and [`OLDEST_API_VERSION`]),
//! each request carries its caller's, and either side refuses one that is too old for it, naming both. Within a version
//! fields and calls are only added; the `/v1` of the paths changes when a call changes its meaning.

mod caller;
mod client;
mod container_routes;
mod disk_routes;
mod event_routes;
mod listen;
mod run_routes;
mod server;
mod service_routes;
#[cfg(test)]
mod tests;
mod version;
mod wire;

pub use caller::{Access, Caller, NoTokens, Permission, Scope, ScopeSource, Unknown};
pub use client::{ApiClient, ClientError, Lines};
pub use server::{ServeError, ServeOptions, serve};
pub use wire::{
    API_HEADER, API_VERSION, DownAnswer, DownRequest, ErrorKind, EventsQuery, Hello, ImageRequest,
    InspectQuery, KillRequest, LogLine, LogsQuery, MountRequest, OLDEST_API_VERSION, PinAnswer,
    ProjectQuery, PruneRequest, PullRequest, RunRequest, RunStreams, SOCKET_NAME, ServicesQuery,
    StartRequest, StopRequest, Subject, VERSION_HEADER, WireError,
};
