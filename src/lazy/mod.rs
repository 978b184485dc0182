//! The engine of a lazy layer: content cache, single flight, fetching ahead, prefetch, background fill.
//!
//! ```text
//!   fuse ── open_local, read_local ──► LazyLayer ──► cache     nothing of this waits for the network
//!     └──── open, read (async) ──► join ──► flight ──► health ──► scheduler ──► RangeSource
//!              │       widen ───────┘         └── transfer: members as they arrive ──► decode ──► cache, readers
//!              └─ touch: sequence ──► fill: read-ahead, prefetch, background ──► join
//! ```
//!
//! What is promised: every byte handed out was compared with the digest of its chunk; a member of the blob is
//! fetched once whoever waits for it, and again only if it was corrupt; a reader waits for its own chunk and not for
//! what is fetched along; a reader that leaves cancels nothing for the others; content is found again after a crash,
//! and verified again after an unclean boot; a full disk costs speed and no read. It knows nothing of FUSE and of inodes.
//!
//! What decides how much is asked for in one request:
//!
//! * a read that misses takes the neighbours in the blob that are likely to be read (`widen`), learnt from what became
//!   of earlier ones; waste is bounded by [`Limits::widen_base`] and [`Limits::widen_share`];
//! * reads that follow each other are run ahead of, in a window that grows with them, and what is read for the most
//!   part is fetched to its end, in large ranges over several connections (`sequence`);
//! * prefetch and background fill ask for [`Limits::extent_bytes`] at a time.
//!
//! A transfer that stalls while somebody waits is raced by a second one (`transfer`). Reads go before prefetch and
//! read-ahead, and those before background fill; no layer holds more than its share of connections and memory, and
//! each has a read that is let through whatever the others hold (`scheduler`).

mod buffers;
mod cache;
mod decode;
mod engine;
mod error;
mod event;
mod evict;
mod expect;
mod extent;
mod fetch;
mod fill;
mod flight;
mod health;
mod intake;
mod join;
mod layer;
mod learned;
mod limits;
mod link;
mod named;
mod noted;
mod pace;
mod packing;
mod progress;
mod read;
mod refusal;
mod scheduler;
mod sequence;
mod source;
mod table;
mod transfer;
mod unused;
mod widen;

pub use cache::{Found, Survey};
pub use engine::{Engine, EngineOptions, LayerSpec};
pub use error::{OpenError, ReadError};
pub use event::{EventSink, LazyEvent};
pub use layer::{LazyLayer, Opened};
pub use limits::Limits;
pub use pace::Counters;
pub use source::{RangeSource, SourceError};
pub use unused::{evict_unused, survey};

#[cfg(test)]
mod tests;
