//! Images as data: references, digests, descriptors, manifests, platforms, configuration. Computes only.

mod config;
mod descriptor;
mod digest;
mod document;
mod platform;
mod reference;

pub use config::{HistoryStep, ImageConfig, ImageHealthcheck};
pub use descriptor::{Compression, Descriptor, annotation};
pub use digest::{Digest, DigestError, Hasher};
pub use document::{Document, DocumentError, Index, MAX_DOCUMENT_SIZE, Manifest, media_type};
pub use platform::{Platform, PlatformError};
pub use reference::{ImageRef, RefError};
