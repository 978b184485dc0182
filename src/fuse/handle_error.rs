//! What control is told when layers cannot be mounted lazily, or a request to keeper or worker fails.

use std::io;
use std::path::PathBuf;

use super::protocol::FailureKind;
use crate::image::Digest;
use crate::sys::fuse_device;

/// Why this host mounts no layer lazily; the caller pulls them in full and shows this.
#[derive(Debug, thiserror::Error)]
pub enum LazyUnavailable {
    /// It was told not to.
    #[error("lazy mounts are switched off")]
    Off,
    /// The kernel has no FUSE, or a sandbox hides it.
    #[error("`{}` cannot be used: {message}", fuse_device::DEVICE)]
    NoDevice {
        /// What it said.
        message: String,
    },
    /// Mounting is not allowed, or something else is mounted at our place.
    #[error("FUSE cannot be mounted: {message}")]
    MountRefused {
        /// Why.
        message: String,
    },
    /// The keeper did not start.
    #[error("keeper did not start: {message}")]
    Keeper {
        /// Why.
        message: String,
    },
    /// The worker could not be started.
    #[error("worker did not start: {message}")]
    Worker {
        /// Why.
        message: String,
    },
    /// The run directory cannot be used.
    #[error("could not use `{path}`")]
    RunDirectory {
        /// The directory.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

impl LazyUnavailable {
    /// What an operator can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoDevice { .. } => Some("load the kernel module: `modprobe fuse`"),
            Self::MountRefused { .. } => Some("mounting needs root (CAP_SYS_ADMIN)"),
            Self::Off | Self::Keeper { .. } | Self::Worker { .. } | Self::RunDirectory { .. } => {
                None
            }
        }
    }
}

/// A request to keeper or worker failed.
#[derive(Debug, thiserror::Error)]
pub enum LazyError {
    /// Nobody answered for a long time.
    #[error("the lazy {role} does not answer")]
    Silent {
        /// Keeper or worker.
        role: &'static str,
        /// The last attempt.
        #[source]
        source: io::Error,
    },
    /// It was refused.
    #[error("{message}")]
    Refused {
        /// For programs.
        kind: FailureKind,
        /// For people.
        message: String,
    },
    /// The blob of an image layout cannot be opened.
    #[error("blob `{digest}` of the image layout cannot be opened")]
    LayoutBlob {
        /// The blob.
        digest: Digest,
        /// What happened.
        #[source]
        source: io::Error,
    },
}
