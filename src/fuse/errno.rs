//! What a request is answered with when it cannot be done: one exhaustive table.
#![warn(clippy::wildcard_enum_match_arm)]

use fuser::Errno;

use crate::lazy::ReadError;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No such name or inode.
    NotFound,
    /// The layer was released while something still used it.
    Released,
    /// The layer could not be opened when this worker started.
    Broken,
    /// A directory operation on something else.
    NotDirectory,
    /// A file operation on something else.
    NotFile,
    /// A link operation on something else.
    NotLink,
    /// The file has no such extended attribute.
    NoAttribute,
    /// No file of the mount has any, and none ever will: the kernel does not ask again.
    NoAttributes,
    /// The caller's buffer is too small.
    Range,
    /// Layers are never written.
    ReadOnly,
    /// No more files can be open at a time, or their state cannot be recorded.
    TooManyOpen,
    /// The content is not what its digest says, also when fetched again.
    Corrupt,
    /// The content could not be fetched in time.
    Unavailable,
    /// The content could not be fetched or kept for another reason.
    Io,
}

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound => Self::ENOENT,
            Refusal::Released => Self::ESTALE,
            Refusal::NotDirectory => Self::ENOTDIR,
            Refusal::NotFile | Refusal::NotLink => Self::EINVAL,
            Refusal::NoAttribute => Self::NO_XATTR,
            Refusal::NoAttributes => Self::ENOSYS,
            Refusal::Range => Self::ERANGE,
            Refusal::ReadOnly => Self::EROFS,
            Refusal::TooManyOpen => Self::ENFILE,
            // Programs know what to do about EIO from a disk; a more telling number would only surprise them.
            Refusal::Broken | Refusal::Corrupt | Refusal::Unavailable | Refusal::Io => Self::EIO,
        }
    }
}

impl From<&ReadError> for Refusal {
    fn from(error: &ReadError) -> Self {
        match error {
            ReadError::NotAFile { .. } => Self::NotFile,
            ReadError::Corrupt { .. } => Self::Corrupt,
            ReadError::Unavailable { .. } => Self::Unavailable,
            ReadError::Refused { .. } | ReadError::Interrupted(_) => Self::Io,
            ReadError::Closed(_) => Self::Released,
        }
    }
}
