//! Translates the kernel's FUSE requests to the lazy engine; keeper, worker, take-over, state of the connection.
//!
//! ```text
//!   Lazy (control) ──starts, watches──► keeper ──starts, restarts──► worker
//!     handle, watch                      keeper*                       worker*  translator ─► tree ─► lazy
//!                                          │                              │     connect, handles, session
//!                                          └── /dev/fuse, mount ──────────┘
//! ```
//!
//! Who holds the connection's descriptor, and what is left after a death:
//!
//! | dies | what happens |
//! |---|---|
//! | worker | the keeper starts the next; unanswered requests are sent to it again (Linux 6.9) |
//! | worker, on a kernel without resend | the connection is ended and another made: `ConnectionLost` |
//! | keeper | the worker goes on; control starts a keeper, which takes the descriptor from the worker |
//! | keeper, later the worker | as above: the next keeper watches a worker that it did not start |
//! | control | nothing; the next control finds the keeper by its socket |
//! | keeper and worker together | `ConnectionLost`, unless somebody kept a descriptor and gives it to [`Lazy::ensure`] |
//!
//! Only this module names fuser, which is pinned: take-over relies on how that release starts a session.

mod ask;
mod backing;
mod channel;
mod connect;
mod errno;
mod handle;
mod handle_error;
mod handles;
mod keeper;
mod keeper_clients;
mod keeper_mount;
mod keeper_start;
mod keeper_worker;
mod layer_view;
mod options;
mod protocol;
mod session;
mod translator;
mod tree;
mod watch;
mod worker;
mod worker_layers;
mod worker_socket;

pub use handle::{Lazy, LazyStatus, MountedLayer};
pub use handle_error::{LazyError, LazyUnavailable};
pub use options::{Feature, LazyOptions};
pub use protocol::{
    ConnectionEvent, FailureKind, KeeperStatus, LayerStatus, Stop, WorkerState, WorkerStatus,
};
pub use session::{LayerMount, SessionError};
pub use tree::OpaqueXattr;

pub(crate) use keeper::keeper_main;
pub(crate) use worker::worker_main;
