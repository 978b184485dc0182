//! Images as data: references, digests, descriptors, manifests, platforms, configuration. Computes only.

mod descriptor;
mod digest;
mod reference;

pub use descriptor::{Compression, Descriptor, annotation};
pub use digest::{Digest, DigestError, Hasher};
pub use reference::{ImageRef, RefError};
