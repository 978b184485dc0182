//! Why files could not be placed or removed.

use std::io;
use std::path::PathBuf;

/// Installing or removing failed. Nothing was changed unless the reason is an I/O error.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is something that was not placed by an installation of ours.
    #[error("`{}` is there already and is not ours; remove it or choose another place", .0.display())]
    Foreign(PathBuf),
    /// Somebody changed what an installation placed.
    #[error(
        "`{}` was changed since it was installed; move the change elsewhere (for a unit: `systemctl edit`) and remove \
         the file",
        .0.display()
    )]
    Changed(PathBuf),
    /// A link on the way would lead somewhere else, perhaps out of the root.
    #[error("`{}` is a symbolic link or no folder; nothing is placed through it", .0.display())]
    NotFolder(PathBuf),
    /// A path has a character that the file that should name it cannot hold.
    #[error("the path `{}` cannot be written into a unit file", .0.display())]
    Path(PathBuf),
    /// Nothing was installed, or the record of it is gone.
    #[error("nothing is installed here: there is no `{}`", .0.display())]
    NotInstalled(PathBuf),
    /// The record of what was installed cannot be understood.
    #[error("the record `{}` cannot be understood", path.display())]
    Record {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A file operation failed.
    #[error("could not {action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl InstallError {
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
