//! Files that survive a power cut: written beside their place, synced, renamed.
//!
//! Everything that the store writes whole goes through here, so that one place decides the order of the
//! operations. A temporary file is locked by its writer as long as it is being written: what is left after a
//! crash is told apart from what another process is writing now, without looking at clocks or process ids.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Begins the name of every temporary file and directory of the store.
pub(super) const TEMPORARY_PREFIX: &str = ".tmp-";

/// What happens to the copy that a write replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Previous {
    /// It stays, as `<name>.prev`.
    Keep,
    /// It goes.
    Discard,
}

/// Writes `bytes` to `path`: at every moment, also of a crash or power cut, the name stands for the complete
/// old or the complete new content. When this returns, the new content is on the disk.
pub(super) fn write(path: &Path, bytes: &[u8], previous: Previous) -> io::Result<()> {
    let directory = parent(path)?;
    let mut temporary = temporary_file(directory)?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    if previous == Previous::Keep {
        keep_previous(path)?;
    }
    temporary.persist(path).map_err(|error| error.error)?;
    sync_directory(directory)
}

/// As [`write()`], but until the result is synced a power cut may bring the old content back, or leave what is no
/// content at all. A process that dies changes nothing any more.
pub(super) fn write_unsynced(
    path: &Path,
    bytes: &[u8],
    previous: Previous,
) -> io::Result<Unsynced> {
    let directory = parent(path)?;
    let mut temporary = temporary_file(directory)?;
    temporary.write_all(bytes)?;
    if previous == Previous::Keep {
        keep_previous(path)?;
    }
    let file = temporary.persist(path).map_err(|error| error.error)?;
    Ok(Unsynced { file, directory: directory.to_owned() })
}

/// A file that was written, and is not on the disk yet.
#[derive(Debug)]
pub(super) struct Unsynced {
    file: File,
    directory: PathBuf,
}

impl Unsynced {
    /// Waits until it is.
    pub(super) fn sync(self) -> io::Result<()> {
        self.file.sync_all()?;
        sync_directory(&self.directory)
    }
}

/// The name of the copy that is kept when `path` is replaced.
pub(super) fn previous_of(path: &Path) -> PathBuf {
    with_suffix(path, ".prev")
}

/// `path` with `suffix` added to its last component.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes the names in `directory` as they are now survive a power cut.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Removes the temporary files in `directory` (not below) that no living process is writing.
///
/// Attempts all of them; what cannot be removed is left for the next time.
pub(super) fn sweep(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let temporary =
            entry.file_name().as_encoded_bytes().starts_with(TEMPORARY_PREFIX.as_bytes());
        if !temporary || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let path = entry.path();
        let abandoned = File::open(&path)
            .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
        if abandoned && std::fs::remove_file(&path).is_ok() {
            tracing::debug!(path = %path.display(), "removed a file that a crash left");
        }
    }
}

/// A locked temporary file in `directory`, which disappears unless it is renamed.
fn temporary_file(directory: &Path) -> io::Result<tempfile::NamedTempFile> {
    loop {
        let file = tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .rand_bytes(10)
            .tempfile_in(directory)?;
        flock(file.as_file(), FlockOperation::LockExclusive)?;
        // Between its creation and the lock a sweep may have taken the file for an abandoned one.
        if rustix::fs::fstat(file.as_file())?.st_nlink > 0 {
            return Ok(file);
        }
    }
}

/// Gives the content of `path` the name of the previous copy, while it also keeps its own.
fn keep_previous(path: &Path) -> io::Result<()> {
    let previous = previous_of(path);
    let directory = parent(path)?;
    // A name for the link, which must not exist; the rename below then replaces the older copy.
    let link = tempfile::Builder::new().prefix(TEMPORARY_PREFIX).rand_bytes(10).make_in(
        directory,
        |link| match rustix::fs::link(path, link) {
            Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        },
    );
    match link {
        Ok(link) => link.into_temp_path().persist(&previous).map_err(|error| error.error),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // File systems without hard links (FAT, some network ones): a crash between this rename and the next
        // leaves only the previous copy, which a load finds.
        Err(error)
            if [Errno::PERM, Errno::OPNOTSUPP, Errno::MLINK, Errno::NOSYS]
                .iter()
                .any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) =>
        {
            std::fs::rename(path, previous)
        }
        Err(error) => Err(error),
    }
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "the path of a stored file names its directory")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_content_and_keeps_the_previous_copy_where_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write(&path, b"one", Previous::Keep).unwrap();
        assert!(!previous_of(&path).exists());
        write(&path, b"two", Previous::Keep).unwrap();
        write(&path, b"three", Previous::Keep).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        assert_eq!(std::fs::read(previous_of(&path)).unwrap(), b"two");
        write(&path, b"four", Previous::Discard).unwrap();
        assert_eq!(std::fs::read(previous_of(&path)).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing temporary stays");
    }

    #[test]
    fn a_sweep_takes_what_a_crash_left_and_nothing_that_is_being_written() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(".tmp-left"), b"x").unwrap();
        std::fs::write(dir.path().join("kept"), b"x").unwrap();
        let writing = temporary_file(dir.path()).unwrap();
        sweep(dir.path());
        assert!(writing.path().exists());
        assert!(dir.path().join("kept").exists());
        assert!(!dir.path().join(".tmp-left").exists());
    }
}
