//! The engine of a lazy layer: content cache, single flight, prefetch, background fill.
//!
//! ```text
//!   fuse ── open_local, read_local ──► LazyLayer ──► cache     nothing of this waits for the network
//!     └──── open, read (async) ──────► flight ──► health ──► scheduler ──► RangeSource
//!                                        └── inflate, verify ──► cache, and every reader that waited
//!                      fill: prefetch, background ──┘
//! ```
//!
//! What is promised: every byte handed out was compared with the digest of its chunk; a member of the blob is
//! fetched once whoever waits for it, and again only if it was corrupt; a reader that leaves cancels nothing for
//! the others; content is found again after a crash, and verified again after an unclean boot; a full disk costs
//! speed and no read. It knows nothing of FUSE and of inodes.

mod cache;
mod engine;
mod error;
mod event;
mod fetch;
mod fill;
mod flight;
mod health;
mod layer;
mod limits;
mod noted;
mod progress;
mod refusal;
mod scheduler;
mod source;
mod table;

pub use engine::{Engine, EngineOptions, LayerSpec};
pub use error::{OpenError, ReadError};
pub use event::{EventSink, LazyEvent};
pub use layer::{LazyLayer, Opened};
pub use limits::Limits;
pub use source::{RangeSource, SourceError};

#[cfg(test)]
mod tests;
