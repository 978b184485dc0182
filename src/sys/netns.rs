//! Network namespaces: made, and entered, by threads of their own.
//!
//! The namespace is a property of the thread, so whatever has to be done in another one is done by a thread that ends
//! in it; the caller's never leaves its own. Sockets stay where they were made, so mostly the thread opens one and is
//! gone.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// A new network namespace, in which only a loopback interface exists, and is down. It lives as long as the descriptor
/// and what was made in it.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN; those of unshare(2).
pub fn make() -> io::Result<OwnedFd> {
    in_thread(|| {
        // SAFETY: unsharing the network namespace touches no descriptor table and no memory.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        current()
    })?
}

/// The network namespace of the calling thread.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn current() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// The network namespace of a process.
///
/// # Errors
/// When the process is gone.
pub fn of_process(pid: i32) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{pid}/ns/net"))?.into())
}

/// Runs `work` in the network namespace `namespace`. Programs that it starts, sockets that it opens and settings
/// below `/proc/sys/net` that it writes are of that namespace.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN; `EINVAL` when it is no network namespace. What `work` returns is inside.
pub fn within<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    in_thread(|| {
        rustix::thread::move_into_link_name_space(
            namespace.as_fd(),
            Some(LinkNameSpaceType::Network),
        )?;
        Ok(work())
    })?
}

/// Runs `work` in a thread of its own and waits for its end.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        match thread.join() {
            Ok(done) => Ok(done),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_in_a_namespace_leaves_the_caller_where_it_is() {
        let interfaces = || {
            let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            text.lines()
                .skip(2)
                .filter_map(|l| l.split(':').next().map(str::trim).map(str::to_owned))
                .collect::<Vec<_>>()
        };
        let before = interfaces();
        let namespace = make().unwrap();
        assert_eq!(within(namespace.as_fd(), interfaces).unwrap(), ["lo"]);
        assert_eq!(interfaces(), before);
        let file = File::open("/proc/self/ns/mnt").unwrap();
        assert!(within(file.as_fd(), || ()).is_err());
    }
}
