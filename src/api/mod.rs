//! The unix-socket API: server, client, wire types.
//!
//! HTTP/1.1 with JSON on `$RUN/api.sock`; lists that go on are one JSON object a line. Every path begins with the
//! version of the API. The command line uses nothing else. The socket is root's (mode 0600): who can open it may do
//! everything; the caller's identity is taken from the socket, which is where narrower scopes will go.

mod client;
mod server;
mod wire;

pub use client::{ApiClient, ClientError, Lines};
pub use server::{ServeError, serve};
pub use wire::{
    API_VERSION, Hello, LogLine, LogsQuery, MountRequest, ProjectQuery, PullRequest, SOCKET_NAME,
    StopRequest, Subject, WireError,
};
