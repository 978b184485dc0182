//! The engine of a lazy layer: content cache, single flight, prefetch, background fill.
mod cache;
mod event;
mod health;
mod limits;
mod scheduler;
mod source;

pub use event::{EventSink, LazyEvent};
pub use limits::Limits;
pub use source::{RangeSource, SourceError};
