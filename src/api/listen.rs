//! The API socket: where it is, and whose.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::Gid;
use tokio::net::UnixListener;

use super::wire::SOCKET_NAME;

/// Listens at `$RUN/api.sock`, for root and the members of `group`.
///
/// Bound through the directory's descriptor because socket paths are short, and renamed over a dead one so that a
/// client never finds the name without a listener.
pub(super) fn bind(run_dir: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    let directory = File::open(run_dir)?;
    let within =
        |name: &str| PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()));
    let fresh = within(".api.sock.new");
    let _ = std::fs::remove_file(&fresh);
    let listener = std::os::unix::net::UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
    share(&directory, group)?;
    if let Some(group) = group {
        std::os::unix::fs::chown(&fresh, None, Some(group))?;
        std::fs::set_permissions(&fresh, Permissions::from_mode(0o660))?;
    }
    std::fs::rename(&fresh, within(SOCKET_NAME))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Lets a group search the run directory, so that it reaches the socket, or takes that back. Everything else in the
/// directory is closed to it: all of our files and folders there are made for their owner alone.
fn share(directory: &File, group: Option<u32>) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let mode = directory.metadata()?.mode() & 0o7777;
    match group {
        // A directory that everybody may search needs no group.
        Some(group) if mode & 0o001 == 0 => {
            rustix::fs::fchown(directory, None, Some(Gid::from_raw(group)))?;
            directory.set_permissions(Permissions::from_mode(mode | 0o010))
        }
        // An earlier control had a group. A directory of any other mode is not of our making.
        None if mode == 0o710 => directory.set_permissions(Permissions::from_mode(0o700)),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn a_group_gets_the_socket_and_nothing_else_and_loses_it_again() {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("run");
        std::fs::create_dir(&run).unwrap();
        std::fs::set_permissions(&run, Permissions::from_mode(0o700)).unwrap();
        drop(bind(&run, None).unwrap());
        assert_eq!((mode(&run), mode(&run.join(SOCKET_NAME))), (0o700, 0o600));

        // The own group: changing to any other one needs root.
        let own = rustix::process::getegid().as_raw();
        drop(bind(&run, Some(own)).unwrap());
        assert_eq!((mode(&run), mode(&run.join(SOCKET_NAME))), (0o710, 0o660));

        drop(bind(&run, None).unwrap());
        assert_eq!((mode(&run), mode(&run.join(SOCKET_NAME))), (0o700, 0o600));
    }
}
