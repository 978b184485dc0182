//! Translates the kernel's FUSE requests to the lazy engine; keeper, worker, take-over, state of the connection.
//!
//! ```text
//!   Lazy (control) ──starts, watches──► keeper ──starts, restarts──► worker
//!     handle, watch                      keeper*                       worker*  translator ─► tree ─► lazy
//!                                          │                              │     connect, handles, session
//!                                          └── /dev/fuse, mount ──────────┘
//! ```
//!
//! Who holds the connection's descriptor, what containers see, and what happens next. Each row is a test of that name in
//! `integration/holders.rs`. "The store" is the service manager's descriptor store.
//!
//! | dies | held by | containers see | next | test |
//! |---|---|---|---|---|
//! | worker | keeper, control, store | a pause | the keeper starts another, which gets the unanswered requests again | `when_the_worker_dies_the_keeper_holds` |
//! | keeper | worker, control, store | nothing | control starts another, which takes over from the worker | `when_the_keeper_dies_the_worker_holds` |
//! | control | keeper, worker, store | nothing | the next control finds the keeper by its socket | `when_control_dies_keeper_and_worker_hold` |
//! | keeper, then worker | next keeper, control, store | a pause | it watches a worker that it did not start, and starts the next | `when_the_keeper_dies_and_then_the_worker_the_next_keeper_holds` |
//! | keeper and control | worker, store | nothing, as long as the worker lives | the next control starts a keeper | `when_keeper_and_control_die_the_worker_holds` |
//! | keeper and worker | control, store | a pause | control gives its copy to the next keeper | `when_keeper_and_worker_die_control_holds` |
//! | worker and control | keeper, store | a pause | as when each dies alone | `when_worker_and_control_die_the_keeper_holds` |
//! | all, with a store | store | a pause, until control is started | the next control gets the descriptor back | `when_all_die_at_once_the_descriptor_store_holds` |
//! | all, without a store | nobody | I/O errors | the next control makes another connection and starts containers of the lost one again | `when_all_die_at_once_and_nobody_holds_the_connection_is_lost` |
//! | the host | nobody | their end | all begins anew | `everything_comes_back_after_a_reboot_without_a_network` |
//!
//! Before Linux 6.9 requests cannot be sent again. There the death of the worker alone ends the connection
//! ([`ConnectionEvent::ConnectionLost`]), nobody but keeper and worker holds the descriptor, and the rows read: keeper
//! dies, the worker holds; control dies, both hold; worker dies, the connection is lost
//! (`without_resend_the_death_of_the_worker_costs_the_connection_and_says_so` in `integration/takeover.rs`).
//!
//! # Two connections
//!
//! overlayfs asks for `trusted.overlay.metacopy` with each regular file that is looked up below it, whatever its options
//! are, and FUSE keeps no answer: of what a `find` over a tree does, that is the only request for each file. One answer
//! is kept, for a whole connection and for ever: that there are no extended attributes (`ENOSYS`). Most layers have
//! none, and no opaque directories, which are told by an attribute too. So a run directory has up to two connections
//! ([`Side`]), each with keeper, worker, files and rows above of its own:
//!
//! * the main one says so ([`Xattrs::Absent`]), and refuses to mount a layer whose index has an attribute or an opaque
//!   directory anywhere ([`FailureKind::Xattrs`]); where the layer stands in an image does not matter;
//! * the marked one serves attributes, and is begun when the first layer is refused: 6 MB more, there and then only.
//!
//! Which kind a connection is stands in its state, because the kernel remembers what it was told longer than any worker
//! lives. A build that does not know the kind refuses to take over and leaves it to the worker that serves; a
//! connection that an older build began serves attributes to its end, whatever the options of the next keeper are.
//!
//! Listing attributes is answered as ever (with nothing), so that who copies a tree sees no difference; who asks for one
//! by name is told that they are not supported where an unpacked layer has none of that name.
//!
//! Measured with `find -printf %s` over 20,000 small files on two cores that had much else to do, in alternation, medians
//! of three, as a part of what overlayfs above unpacked layers does: with nothing cached 0.26 where attributes are asked
//! for and 1.01 where they are not (one layer), 0.37 and 1.13 (five layers, two thousand directories, four hundred of
//! them merged). With everything cached no request is made either way, and `find` needs as much processor time as above
//! unpacked layers (0.93 to 1.01 as fast).
//!
//! Rejected: one connection that says so as long as no layer has attributes. After that a layer with some could only be
//! pulled whole, and whether an image starts before it is here would depend on what ran before it. One worker for both
//! would save its memory, and tie two descriptors together in everything that hands over, keeps or looses one. Between
//! the two workers of a host, whoever came second is a guest in the cache of contents: what it fetches is looked at
//! again after a reboot, and it evicts nothing; a chunk that layers of both have is fetched once by each, if at once.
//!
//! A worker that lives and does not serve is found out by the keeper (`keeper_watchdog`). One of another build is
//! succeeded by one of the keeper's (`keeper_succession`). What nobody answers for is ended by [`abort`].
//!
//! Only this module names fuser, which is pinned: take-over relies on how that release starts a session.

mod ask;
mod backing;
mod channel;
mod connect;
mod copy;
mod errno;
mod handle;
mod handle_ahead;
mod handle_error;
mod handle_start;
mod handles;
mod inspect;
mod keeper;
mod keeper_clients;
mod keeper_mount;
mod keeper_start;
mod keeper_succession;
mod keeper_watchdog;
mod keeper_worker;
mod layer_view;
mod options;
mod protocol;
mod rescue;
mod served;
mod session;
mod translator;
mod tree;
mod watch;
mod worker;
mod worker_layers;
mod worker_socket;

pub use handle::{Lazy, LazyStatus, MountedLayer, Spare};
pub use handle_error::{LazyError, LazyUnavailable};
pub use inspect::{Inspected, inspect};
pub use options::{Feature, LazyOptions, Side, Xattrs};
pub use protocol::{
    ConnectionEvent, FailureKind, KeeperStatus, LayerStatus, Stop, WorkerState, WorkerStatus,
};
pub use rescue::{AbortError, Aborted, ConnectionHealth, RoleHealth, abort, examine};
pub use session::{LayerMount, SessionError};
pub use tree::OpaqueXattr;

pub(crate) use keeper::keeper_main;
pub(crate) use worker::worker_main;
