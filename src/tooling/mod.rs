//! Making images: pack, convert, optimize, push.

mod folder;
mod layout;

pub use folder::{FolderError, write_tar};
pub use layout::{Layout, LayoutError};
