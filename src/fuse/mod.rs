//! Translates the kernel's FUSE requests to the lazy engine; keeper, worker, take-over, state of the connection.

mod backing;
mod channel;
mod connect;
mod errno;
mod handle;
mod handles;
mod keeper;
mod keeper_mount;
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

pub use handle::{Lazy, LazyError, LazyStatus, LazyUnavailable, MountedLayer};
pub use options::{Feature, LazyOptions};
pub use protocol::{
    ConnectionEvent, FailureKind, KeeperStatus, LayerStatus, Stop, WorkerState, WorkerStatus,
};
pub use session::{LayerMount, SessionError};
pub use tree::OpaqueXattr;

pub(crate) use keeper::keeper_main;
pub(crate) use worker::worker_main;
