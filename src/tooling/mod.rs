//! Making images: [`pack()`] a folder, [`convert()`] an image into one that can be mounted lazily.
//!
//! [`copy`] carries files between the host and containers.
//!
//! Images are written into OCI image layout folders. Reading them is `registry`'s, the format of layers `estargz`'s.

mod convert;
pub mod copy;
mod encode;
mod folder;
mod layout;
mod manifest;
mod pack;

pub use convert::{ConvertError, ConvertOptions, Converted, convert};
pub use encode::EncodeError;
pub use folder::{FolderError, write_tar};
pub use layout::{Layout, LayoutError};
pub use manifest::Made;
pub use pack::{PackError, PackOptions, pack};

#[cfg(test)]
mod tests;
