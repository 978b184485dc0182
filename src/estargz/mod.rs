//! The eStargz format: footer, table of contents, index, chunk decoding, writer. Computes only.
//!
//! A layer is read in this order: [`tail`] takes the end of the blob and gives the JSON of the table of
//! contents, [`toc::verify`] compares that with the digest of the manifest, [`index::build()`] turns it into
//! our mapped form, [`Index`] answers from that, and [`chunk`] turns a compressed range of the blob into
//! verified content. [`writer`] is the other direction.
//!
//! Whatever stands in a blob was written by a stranger: every function here returns an error for what it
//! cannot take and has a limit ([`limit`]) for what would make it large. Nothing here opens, fetches or
//! caches; `registry` brings the bytes and `lazy` keeps them.

pub mod chunk;
pub mod footer;
pub mod index;
pub mod limit;
pub mod tail;
pub mod toc;
pub mod writer;

pub use chunk::ChunkError;
pub use footer::Flavour;
pub use index::{Chunk, ChunkNo, Entry, EntryKind, EntryNo, Index, IndexError, IndexInput};
pub use tail::{Tail, TocBytes};
pub use toc::{Problem, TocError};
pub use writer::{MissingPath, Prefetch, WriteError, WriterOptions, Written, write_layer};

/// Name of the table of contents, the last entry of the tar.
pub const TOC_NAME: &str = "stargz.index.json";
/// Root entry that ends the part of the blob worth fetching ahead.
pub const PREFETCH_LANDMARK: &str = ".prefetch.landmark";
/// Root entry that says that nothing is worth fetching ahead.
pub const NO_PREFETCH_LANDMARK: &str = ".no.prefetch.landmark";

/// Whether `name`, directly in the root, belongs to the format and not to the image.
#[must_use]
pub fn is_format_name(name: &[u8]) -> bool {
    [TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK].iter().any(|known| known.as_bytes() == name)
}

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod reading;
